"""Reasoning and answer are told apart, however the text is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.interfaces import InvalidRequestError
from inference_pio.processing import ReasoningDelta, reasoning_parser

OPEN_PROMPT = "<|im_start|>assistant\n<think>\n"


def parse(pieces, prompt=""):
    parser = reasoning_parser("think", prompt=prompt)
    deltas = [*map(parser.push, pieces), parser.finish()]
    return "".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas)


CASES = [
    ("<think>\nTwo\nlines.\n</think>\n\nYes.\n", "", "Two\nlines.", "Yes.\n"),
    ("\n <think>a</think>b", "", "a", "b"),
    ("Yes <think>no</think>", "", "", "Yes <think>no</think>"),
    ("  Yes", "", "", "  Yes"),
    ("<thin", "", "", "<thin"),
    ("<thing>", "", "", "<thing>"),
    ("<think>\n\n</think>\n\nYes", "", "", "Yes"),
    ("<think>never ends\n", "", "never ends\n", ""),
    ("<think>a</thin", "", "a</thin", ""),
    ("<think>a <b>\n</b>\n</think>c</think>", "", "a <b>\n</b>", "c</think>"),
    ("<think>a<</think>c", "", "a<", "c"),
    ("<think>\n\n\nb", "", "b", ""),
    ("", "", "", ""),
    ("Hm.\n</think>\n\nYes.", OPEN_PROMPT, "Hm.", "Yes."),
    ("<think>\nHm.</think>Yes.", OPEN_PROMPT, "Hm.", "Yes."),
    ("</think>Yes.", OPEN_PROMPT, "", "Yes."),
    ("\n<b>Hm", OPEN_PROMPT, "<b>Hm", ""),
    ("<", OPEN_PROMPT, "<", ""),
    ("Yes.", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "", "Yes."),
    ("Yes.", "What does <think> mean?", "", "Yes."),
]


@pytest.mark.parametrize(("text", "prompt", "reasoning", "content"), CASES)
def test_think(text, prompt, reasoning, content):
    """The tag may be in the prompt or in the text; newlines next to tags go."""
    assert parse([text], prompt) == parse(text, prompt) == (reasoning, content)


def test_pieces_come_as_soon_as_they_can():
    """Held back is only what may be part of a tag."""
    parser = reasoning_parser("think")
    assert parser.push("<thi") == ReasoningDelta("", "")
    assert parser.push("nk>Hm") == ReasoningDelta("Hm", "")
    assert parser.push(".\n") == ReasoningDelta(".", "")
    assert parser.push("\nSo </t") == ReasoningDelta("\n\nSo ", "")
    assert parser.push("hink>\n") == ReasoningDelta("", "")
    assert parser.push("Yes <think>") == ReasoningDelta("", "Yes <think>")
    assert parser.finish() == ReasoningDelta("", "")


FRAGMENTS = st.sampled_from(["<think>", "</think>", "<", "\n", " ", "</", "think", "x"]) | st.text(max_size=2)


@settings(deadline=None)
@given(
    parts=st.lists(FRAGMENTS, max_size=8), cuts=st.lists(st.integers(0, 60)), prompt=st.sampled_from(["", OPEN_PROMPT])
)
def test_any_chunking_gives_the_same(parts, cuts, prompt):
    """And nothing but one pair of tags and white space is dropped."""
    text = "".join(parts)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = parse([text], prompt)
    assert parse([text[a:b] for a, b in pairwise(bounds)], prompt) == whole
    kept = "".join("".join(whole).split())
    left = "".join(text.split())
    dropped = [left, left.replace("<think>", "", 1), left.replace("</think>", "", 1)]
    dropped.append(dropped[1].replace("</think>", "", 1))
    assert kept in dropped


def test_unknown_parsers_are_named():
    """The error lists what there is."""
    with pytest.raises(InvalidRequestError, match=r"named 'harmony' \(there is think\)"):
        reasoning_parser("harmony")


@pytest.mark.parametrize(
    ("prompt", "text", "count"), [("", "<think>ab</think>cd", 3), ("<think>\n", "ab</think>cd", 2)]
)
def test_reasoning_tokens_can_be_counted(prompt, text, count):
    """The tag that opens counts, the one that closes and what follows do not."""
    parser = reasoning_parser("think", prompt=prompt)
    counted = 0
    for token in text.replace("<think>", "<think>|").replace("</think>", "|</think>|").replace("ab", "a|b").split("|"):
        parser.push(token)
        counted += bool(token) and parser.in_reasoning
    assert counted == count
    assert not parser.in_reasoning
