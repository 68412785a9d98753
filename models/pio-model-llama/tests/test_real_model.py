"""The real SmolLM2-135M-Instruct, against the same file dequantised into transformers by the format's own library."""

import pytest
import torch

from inference_pio.models.llama import PLUGIN
from inference_pio.testing import (
    check_deterministic,
    check_parity,
    check_preempted,
    check_prefix_hit,
    check_speculative,
    contiguous_cache,
    load_gguf_reference,
    load_model,
    paged_cache,
    random_pages,
    run_schedule,
)

# "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n" in the model's vocabulary.
PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def reference(default_model_path):
    """transformers' model of the file, float32."""
    return load_gguf_reference(default_model_path)


def test_log_probabilities_equal_transformers(default_model_path, reference):
    """Next-token log-probabilities agree within 1e-3 over prompt and answer."""
    report = check_parity(
        PLUGIN,
        default_model_path,
        reference=reference,
        token_ids=PROMPT + ANSWER,
        on="logprobs",
        tolerance=1e-3,
    )
    assert report.spread > 1.0


@pytest.fixture(scope="module")
def loaded(default_model_path):
    """The file in float32."""
    return load_model(PLUGIN, default_model_path)


@pytest.mark.parametrize("check", [check_prefix_hit, check_preempted, check_speculative])
def test_the_engine_leaves_no_trace(loaded, check):
    """Shared prefixes, preemption and speculation give what each sequence gives alone."""
    check(loaded, tolerance=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_in_any_company(loaded, dtype):
    """Alone, beside others, in chunks and after a prefix hit."""
    check_deterministic(loaded, dtypes=[dtype])


def test_greedy_answer_over_a_paged_cache(loaded):
    """Prefill in two chunks and one token at a time over scattered pages, it says that the capital is Paris."""
    tokens = PROMPT + ANSWER[:-1]
    schedule = [[9], [len(PROMPT) - 9], *[[1]] * (len(ANSWER) - 1)]
    pages = random_pages([len(tokens)], num_pages=12, page_size=4)
    cache = paged_cache(loaded, num_pages=12, page_size=4)
    (logits,) = run_schedule(loaded, [tokens], schedule, cache=cache, pages=pages)
    assert logits[len(PROMPT) - 1 :].argmax(dim=-1).tolist() == ANSWER


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shape_and_storage(default_model_path, dtype):
    """The file has no head, so the embedding serves as one, and each parameter is there once in the chosen dtype."""
    loaded = load_model(PLUGIN, default_model_path, dtype=dtype)
    assert loaded.tied_head
    assert loaded.shape.num_parameters == 134_515_008
    assert loaded.shape.max_position == 8192
    assert loaded.shape.eos_token_ids == (2,)
    parameters = list(loaded.module.parameters())
    assert {parameter.dtype for parameter in parameters} == {getattr(torch, dtype)}
    assert sum(parameter.numel() for parameter in parameters) == loaded.shape.num_parameters


def test_bfloat16_answers_the_same(default_model_path):
    """In bfloat16 the same tokens stay the most likely ones where float32 is not in doubt."""
    exact, rounded = (load_model(PLUGIN, default_model_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    tokens = PROMPT + ANSWER[:-1]
    rows = []
    for loaded in (exact, rounded):
        cache = contiguous_cache(loaded, num_sequences=1, max_length=len(tokens))
        logits = run_schedule(loaded, [tokens], [[len(tokens)]], cache=cache, pages=[[0]])[0]
        rows.append(torch.log_softmax(logits[len(PROMPT) - 1 :], dim=-1))
    top = rows[0].topk(2, dim=-1)
    certain = top.values[:, 0] - top.values[:, 1] > 0.3
    assert certain.sum() >= 5
    assert rows[1].argmax(dim=-1)[certain].tolist() == top.indices[:, 0][certain].tolist()
