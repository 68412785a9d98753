"""What is measured of a model: prefill, decode, and requests through the engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.interfaces import ModelShape

Phase = Literal["prefill", "decode", "engine"]

CACHE_BYTES_PER_ELEMENT = 2
"""Of keys and values, as the physical limit counts them: float16, what every rival keeps unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure, in tokens per second.

    Attributes:
        phase: ``"prefill"`` reads ``tokens`` tokens of one sequence; ``"decode"`` adds ``tokens`` tokens to each of
            ``batch`` sequences, one per step; ``"engine"`` serves ``batch`` requests of ``prompt`` tokens in and
            ``tokens`` tokens out, and only what comes out counts.
        tokens: See ``phase``.
        batch: Sequences, or requests.
        context: Tokens of each sequence that are in the cache before the clock starts.
        prompt: Of an engine case: tokens of each request.
    """

    phase: Phase
    tokens: int
    batch: int = 1
    context: int = 0
    prompt: int = 0

    @property
    def name(self) -> str:
        """What people call it: ``"decode, batch 8, context 4096"``."""
        if self.phase == "engine":
            return f"{self.batch} requests ({self.prompt} in, {self.tokens} out)"
        what = f"prefill {self.tokens}" if self.phase == "prefill" else f"decode, batch {self.batch}"
        return f"{what}, context {self.context}" if self.context else what

    @property
    def counted(self) -> int:
        """Tokens that the speed counts."""
        return self.batch * self.tokens

    @property
    def length(self) -> int:
        """Tokens of one sequence at its end."""
        return self.context + self.prompt + self.tokens

    def details(self, threads: int) -> dict[str, Scalar]:
        """What tells this case from others in a record."""
        return {
            "phase": self.phase,
            "batch": self.batch,
            "context": self.context,
            "tokens": self.tokens,
            "threads": threads,
        }


def case_to_json(case: Case) -> dict[str, object]:
    """As :func:`case_from_json` reads it."""
    return asdict(case)


def case_from_json(value: Mapping[str, Any]) -> Case:
    """The case that :func:`case_to_json` wrote."""
    return Case(**value)


def bytes_per_token(case: Case, shape: ModelShape, stored_bytes: int) -> float | None:
    """Bytes that must be read from memory per counted token, or None where reading does not bound the speed.

    A decode step reads every weight once, as the file stores it, and the keys and values of each sequence.

    Args:
        case: What is measured.
        shape: Of the model.
        stored_bytes: Of the weights that a step reads.
    """
    if case.phase != "decode":
        return None
    middle = case.context + (case.tokens + 1) / 2
    return stored_bytes / case.batch + middle * shape.kv_elements_per_token * CACHE_BYTES_PER_ELEMENT


def ops_per_token(case: Case, shape: ModelShape, *, tied_head: bool) -> float | None:
    """Operations per counted token, a multiply-add being 2, or None for requests, whose two phases differ.

    The matrices once per token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), the head only where a next token is
    wanted, and attention's two products over the context.

    Args:
        case: What is measured.
        shape: Of the model.
        tied_head: Whether embedding and head are one table.
    """
    if case.phase == "engine":
        return None
    head = shape.vocab_size * shape.hidden_size
    matrices = shape.num_parameters - (head if tied_head else 2 * head)
    heads = case.tokens if case.phase == "decode" else 1
    middle = case.context + (case.tokens + 1) / 2
    attention = sum(4 * spec.num_heads * spec.head_dim for spec in shape.attention)
    return 2 * matrices + 2 * head * heads / case.tokens + attention * middle
