"""Parity of embeddings with the reference implementation, from :meth:`LLM.embed` to the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from inference_pio.core import LLM
from inference_pio.testing._compare import ParityError, compare
from inference_pio.testing._parity import ParityReport, reference_model
from inference_pio.testing._reference import reference_hidden_states

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

_LENGTHS = (1, 2, 17, 40, 96)  # ragged; with 24 tokens per step also in chunks, beside each other
_STEP_TOKENS = 24
_POOLINGS: tuple[Literal["mean", "last"], ...] = ("mean", "last")
_NORM_TOLERANCE = 1e-6


def check_embedding_parity(
    path: Path,
    *,
    reference: Path | PreTrainedModel | None = None,
    executor: Literal["native", "torch"] = "torch",
    kv_cache_dtype: str = "float32",
    tolerance: float = 2e-5,
    on: Literal["entries", "direction"] = "entries",
) -> ParityReport:
    """Hold embeddings of prompts of several lengths to transformers' hidden states of each alone, pooled.

    Means and last positions, read in chunks beside each other. Normalised ones must be those that are not, divided by
    their length. Runs :class:`LLM`, so the plugin that serves ``path`` is the one that is installed.

    Args:
        path: A folder with ``config.json``, or a GGUF file.
        reference: What to compare with: a folder, or a model of transformers; None means ``path``, a folder then.
        executor: What computes the embeddings, with weights in float32 if it is ``"torch"``; the reference computes in
            float32.
        kv_cache_dtype: As in :class:`LLM`.
        tolerance: Largest absolute difference allowed.
        on: Compare entries of embeddings that are not normalised, or the cosine between ours and theirs with 1.

    Returns:
        Tokens of all prompts, the largest difference, and the spread of the reference's embeddings.

    Raises:
        ParityError: They differ; the message names the pooling and the first prompt.
        PioError: No plugin is installed that serves ``path`` with this executor.
    """
    dtype = "float32" if executor == "torch" else "auto"
    with LLM(
        path,
        executor=executor,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        max_num_seqs=4,
        max_num_batched_tokens=_STEP_TOKENS,
    ) as llm:
        prompts = _random_prompts(llm)
        plain = {pooling: _embed(llm, prompts, pooling, normalize=False) for pooling in _POOLINGS}
        unit = {pooling: _embed(llm, prompts, pooling, normalize=True) for pooling in _POOLINGS}
    model = reference_model(path if reference is None else reference)
    states = [reference_hidden_states(model, prompt).double() for prompt in prompts]
    expected = {
        "mean": torch.stack([rows.mean(dim=0) for rows in states]),
        "last": torch.stack([rows[-1] for rows in states]),
    }
    worst = 0.0
    for pooling in _POOLINGS:
        what = f"{pooling} embeddings of {path.name}, {executor} executor"
        ours, theirs = plain[pooling], expected[pooling]
        compare(f"{what}, normalised", unit[pooling], normalize(ours), tolerance=_NORM_TOLERANCE)
        if on == "direction":
            ours = (normalize(ours) * normalize(theirs)).sum(dim=1, keepdim=True)
            theirs = torch.ones_like(ours)
        worst = max(worst, compare(f"{what}, {on}", ours, theirs, tolerance=tolerance))
    spread = torch.stack(list(expected.values())).std().item()
    return ParityReport(tokens=sum(map(len, prompts)), max_abs_error=worst, spread=spread)


def _random_prompts(llm: LLM) -> list[list[int]]:
    draw = np.random.default_rng(0)
    lengths = [min(length, llm.max_model_len) for length in _LENGTHS]
    return [draw.integers(0, llm.shape.vocab_size, length).tolist() for length in lengths]


def _embed(llm: LLM, prompts: Sequence[list[int]], pooling: Literal["mean", "last"], *, normalize: bool) -> Tensor:
    """Embeddings (prompts, E), float64."""
    salt = f"{pooling}, {normalize}"  # else a prefix that is found saves the last position its chunks
    outputs = llm.embed(prompts, pooling=pooling, normalize=normalize, cache_salt=salt)
    if [output.prompt_token_ids for output in outputs] != prompts:
        raise ParityError("embeddings are not those of the prompts, in their order")
    return torch.from_numpy(np.array([output.embedding for output in outputs], dtype=np.float64))
