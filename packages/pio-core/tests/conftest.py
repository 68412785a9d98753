"""A torch-free executor whose logits depend on everything that a sequence's cache must hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference_pio.core import Engine
from inference_pio.interfaces import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from inference_pio.interfaces import StepBatch

VOCAB = 97


class HistoryExecutor:
    """Stores token ids where keys would go and makes logits from the whole history read back through the pages.

    A wrong slot, page, position or length changes the history, and so every token that follows.
    """

    name = "history"

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.slots = np.full(num_pages * page_size, -1, dtype=np.int64)
        self.step_tokens: list[int] = []
        self.logit_rows: list[int] = []
        self.fail_at: int | None = None

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        if self.fail_at is not None and len(self.step_tokens) == self.fail_at:
            raise RuntimeError("planted failure")
        assert len(set(batch.slot_mapping.tolist())) == batch.slot_mapping.size, "two tokens in one slot"
        self.slots[batch.slot_mapping] = batch.token_ids
        self.step_tokens.append(batch.token_ids.size)
        self.logit_rows.append(batch.logit_rows.size)
        sequence_of = np.repeat(np.arange(len(batch.seq_lens)), np.diff(batch.query_starts))
        logits = np.empty((batch.logit_rows.size, VOCAB), dtype=np.float32)
        for index, row in enumerate(batch.logit_rows):
            sequence, position = int(sequence_of[row]), int(batch.positions[row])
            pages = batch.block_tables[sequence].astype(np.int64)
            slots = (pages[:, None] * self.page_size + np.arange(self.page_size)).ravel()[: position + 1]
            history = self.slots[slots]
            assert (history >= 0).all(), "history was never written"
            logits[index] = history_logits(history.tolist())
        return logits

    def close(self) -> None:
        self.slots[:] = -1


def history_logits(history: list[int]) -> NDArray[np.float32]:
    """Logits that a reader of the whole ``history`` would give."""
    seed = 0
    for token_id in history:
        seed = (seed * 1_000_003 + token_id + 1) % 2**61
    return np.random.default_rng(seed).normal(scale=2.0, size=VOCAB).astype(np.float32)


def greedy_history(prompt: list[int], count: int) -> list[int]:
    """What greedy decoding must give."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(history_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def run_to_end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    def make(*, num_pages: int = 64, page_size: int = 4, eos: tuple[int, ...] = (), **options: int) -> Engine:
        options.setdefault("max_model_len", num_pages * page_size)
        executor = HistoryExecutor(num_pages, page_size)
        return Engine(executor, None, vocab_size=VOCAB, eos_token_ids=eos, **options)

    return make


@pytest.fixture
def request_of() -> Callable[..., Request]:
    def make(request_id: str, prompt: list[int], **params: object) -> Request:
        params.setdefault("temperature", 0.0)
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(**params),  # type: ignore[arg-type]  # tests name real parameters
        )

    return make


@pytest.fixture
def expected() -> Callable[[list[int], int], list[int]]:
    return greedy_history


@pytest.fixture
def finish() -> Callable[[Engine], None]:
    return run_to_end
