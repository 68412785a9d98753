"""Every shape of prompt that users of other engines give."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.core._prompts import as_conversations, as_prompt_list, pair_with_params, tokenize_prompt
from inference_pio.interfaces import InvalidRequestError, SamplingParams

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ("one", 1),
        (["one", "two"], 2),
        ([1, 2, 3], 1),
        ((1, 2, 3), 1),
        ([[1, 2], [3]], 2),
        (["text", [1, 2]], 2),
        ({"prompt": "one"}, 1),
        ([{"prompt_token_ids": [1]}, "two"], 2),
        ([], 0),
    ],
)
def test_one_or_many(prompts, count):
    """A single prompt is a list of one; token ids are one prompt, not many."""
    assert len(as_prompt_list(prompts)) == count


def test_token_ids_pass_through():
    """Ids of any integer type come through unchanged, without a tokenizer."""
    assert tokenize_prompt([1, 2], None).token_ids == (1, 2)
    assert tokenize_prompt({"prompt_token_ids": (3,)}, None) == ((3,), None)
    assert tokenize_prompt({"prompt_token_ids": (3,), "prompt": "c"}, None) == ((3,), "c")
    assert tokenize_prompt(list(np.array([4, 5])), None).token_ids == (4, 5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("text", "no tokenizer"),
        ({"prompt": "text"}, "no tokenizer"),
        ({"text": "x"}, "needs 'prompt' or 'prompt_token_ids', got \\['text'\\]"),
        ([1.5], "text or a list of token ids, got list"),
        ([True], "text or a list of token ids"),
        (7, "text or a list of token ids, got int"),
    ],
)
def test_bad_prompts(prompt, message):
    """Anything else is refused by name."""
    with pytest.raises(InvalidRequestError, match=message):
        tokenize_prompt(prompt, None)


def test_bad_prompt_lists():
    """A number is not a list of prompts."""
    with pytest.raises(InvalidRequestError, match="got int"):
        as_prompt_list(5)


def test_params_for_all_or_for_each():
    """None takes the default, one serves all, a list must match."""
    default, other = SamplingParams(seed=1), SamplingParams(seed=2)
    assert pair_with_params(2, None, default) == [default, default]
    assert pair_with_params(2, other, default) == [other, other]
    assert pair_with_params(2, [default, other], default) == [default, other]
    with pytest.raises(InvalidRequestError, match="1 sampling parameters for 2 prompts"):
        pair_with_params(2, [other], default)
    with pytest.raises(InvalidRequestError, match="must be SamplingParams or a list"):
        pair_with_params(1, {"temperature": 0}, default)


def test_conversations():
    """One conversation or several."""
    assert as_conversations(HELLO) == [HELLO]
    assert as_conversations([HELLO, HELLO]) == [HELLO, HELLO]


@pytest.mark.parametrize("messages", [[], "Hello", [1], [HELLO, "x"], [[]]])
def test_bad_conversations(messages):
    """Anything else is refused."""
    with pytest.raises(InvalidRequestError, match="messages must be"):
        as_conversations(messages)
