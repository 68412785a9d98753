"""Parity with the reference implementation: the definition of done for a model family."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from inference_pio.testing._compare import ParityError, compare, first_different_row
from inference_pio.testing._load import load_model
from inference_pio.testing._reference import load_reference, trace_reference
from inference_pio.testing._run import trace_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from inference_pio.interfaces import ModelPlugin
    from inference_pio.testing._trace import Trace

_DEFAULT_LENGTH = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """What a passed parity check measured.

    Attributes:
        tokens: Tokens compared.
        max_abs_error: Largest absolute difference.
        spread: Standard deviation of what the reference gives, to judge the difference by.
    """

    tokens: int
    max_abs_error: float
    spread: float


def check_parity(
    plugin: ModelPlugin[Any],
    path: Path,
    *,
    reference: Path | PreTrainedModel | None = None,
    token_ids: Sequence[int] | None = None,
    dtype: str = "float32",
    backend: str = "sdpa",
    tolerance: float = 1e-4,
    on: Literal["logits", "logprobs"] = "logits",
) -> ParityReport:
    """Hold a plugin's logits to transformers' on the same checkpoint.

    Args:
        plugin: The family's plugin.
        path: A folder with ``config.json``, or a GGUF file.
        reference: What to compare with: a folder, or a model of transformers; None means ``path``, a folder then.
        token_ids: The sequence; None draws 96 token ids, or as many as the context holds.
        dtype: Name of the dtype that the plugin's model computes in; the reference computes in float32.
        backend: Name of the attention backend.
        tolerance: Largest absolute difference allowed.
        on: Compare logits, or their log-softmax.

    Raises:
        ParityError: They differ; the message names the first decoder layer and the first row where they part.
    """
    loaded = load_model(plugin, path, dtype=dtype, backend=backend)
    model = reference_model(path if reference is None else reference)
    if token_ids is None:
        draw = random.Random(0)  # noqa: S311 - test data, not a secret
        length = min(_DEFAULT_LENGTH, loaded.shape.max_position)
        token_ids = [draw.randrange(loaded.shape.vocab_size) for _ in range(length)]
    actual, expected = trace_model(loaded, token_ids), trace_reference(model, token_ids)
    ours, theirs = actual.logits, expected.logits
    if on == "logprobs":
        ours, theirs = torch.log_softmax(ours, dim=-1), torch.log_softmax(theirs, dim=-1)
    try:
        error = compare(f"{on} of {path.name}", ours, theirs, tolerance=tolerance)
    except ParityError as failure:
        raise ParityError(f"{failure}\n{_where(actual, expected, tolerance)}") from None
    return ParityReport(tokens=len(token_ids), max_abs_error=error, spread=theirs.std().item())


def reference_model(reference: Path | PreTrainedModel) -> PreTrainedModel:
    """``reference``, loaded if it is a folder."""
    return load_reference(reference) if not isinstance(reference, torch.nn.Module) else reference


def _where(actual: Trace, expected: Trace, tolerance: float) -> str:
    """One line on the first decoder layer whose output differs."""
    for index, (ours, theirs) in enumerate(zip(actual.layers, expected.layers, strict=True)):
        row = first_different_row(ours, theirs, tolerance=tolerance)
        if row is not None:
            worst = (ours - theirs).abs()[row].max().item()
            return f"the first decoder layer whose output differs is {index}, first at row {row} (by {worst:.3g})"
    return f"the outputs of all {len(actual.layers)} decoder layers agree: look at the final norm and the head"
