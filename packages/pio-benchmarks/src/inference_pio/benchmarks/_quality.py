"""How far an executor's predictions are from those of the same file in float32."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.benchmarks._gen_driver import StepDriver
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from inference_pio.core import Checkpoint
    from inference_pio.interfaces import Executor

CHUNK = 128
"""Tokens of a step: as many rows of logits as the engine itself asks for at most."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Predictions of one executor held against those of a reference, over the ``N`` tokens of a text.

    Attributes:
        positions: Predictions that were compared, ``N - 1``.
        reference_nll: Negative log-likelihood of each next token under the reference, in nats, (positions,).
        nll: The same under the executor.
        divergence: KL divergence of the executor's distribution from the reference's, in nats, (positions,).
        agreement: Whether both have the same likeliest token, (positions,).
    """

    positions: int
    reference_nll: NDArray[np.float64]
    nll: NDArray[np.float64]
    divergence: NDArray[np.float64]
    agreement: NDArray[np.bool_]

    @property
    def perplexity(self) -> float:
        """Of the text under the executor."""
        return float(np.exp(self.nll.mean()))

    @property
    def reference_perplexity(self) -> float:
        """Of the text under the reference."""
        return float(np.exp(self.reference_nll.mean()))


def bundled_text() -> str:
    """Some 600 tokens of prose in the public domain: Lincoln (1863), Austen (1813) and Darwin (1859), abridged."""
    return importlib.resources.files(__package__).joinpath("_quality_text.txt").read_text(encoding="utf-8")


def text_tokens(checkpoint: Checkpoint, text: str | None, most: int) -> list[int]:
    """The first ``most`` tokens of ``text``, or of the bundled text, as the model's tokenizer cuts it.

    A model without a tokenizer gets random tokens: their perplexity says nothing, but divergence and agreement do.

    Raises:
        InvalidRequestError: There are fewer than 2 tokens, or a text is given and the model has no tokenizer.
    """
    most = min(most, checkpoint.shape.max_position)
    tokenizer = checkpoint.tokenizer()
    if tokenizer is not None:
        tokens = list(tokenizer.encode(bundled_text() if text is None else text))[:most]
    elif text is None:
        tokens = np.random.default_rng(0).integers(checkpoint.shape.vocab_size, size=most).tolist()
    else:
        raise InvalidRequestError(f"{checkpoint.name!r} has no tokenizer for a text", hint="leave --text out")
    if len(tokens) < 2:
        raise InvalidRequestError(
            f"a prediction needs 2 tokens, got {len(tokens)}", hint="a longer text, and --tokens of at least 2"
        )
    return tokens


def predict(executor: Executor, vocab_size: int, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits after each of ``tokens``, float32 (rows, V), some rows at a time."""
    driver = StepDriver(executor, vocab_size=vocab_size)
    driver.open(1, len(tokens), tokens)
    for start in range(0, len(tokens), CHUNK):
        logits = driver.step(min(CHUNK, len(tokens) - start), all_logits=True)
        yield np.array(logits, dtype=np.float32)  # a copy: the executor's own are gone after the next step
    driver.close()


def compare_logits(
    reference: Sequence[NDArray[np.float32]], tested: Sequence[NDArray[np.float32]], tokens: Sequence[int]
) -> Quality:
    """Hold the predictions of ``tested`` against those of ``reference``; both as :func:`predict` gives them.

    Raises:
        ValueError: The parts do not match each other or the tokens.
    """
    if [part.shape for part in reference] != [part.shape for part in tested]:
        raise ValueError("the two sides have logits of other shapes")
    if sum(len(part) for part in reference) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens need as many rows of logits")
    columns: list[tuple[NDArray[np.float64], ...]] = []
    agreement: list[NDArray[np.bool_]] = []
    start = 0
    for left, right in zip(reference, tested, strict=True):
        following = np.array(tokens[start + 1 : start + 1 + len(left)])
        rows = np.arange(len(following))  # after the last token comes nothing that could be compared
        expected, got = log_softmax(left[: len(rows)]), log_softmax(right[: len(rows)])
        divergence = (np.exp(expected) * (expected - got)).sum(axis=1)
        columns.append((-expected[rows, following], -got[rows, following], divergence))
        agreement.append(left[: len(rows)].argmax(axis=1) == right[: len(rows)].argmax(axis=1))
        start += len(left)
    reference_nll, nll, divergence = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Quality(len(tokens) - 1, reference_nll, nll, divergence, np.concatenate(agreement))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities, float64 (rows, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)
