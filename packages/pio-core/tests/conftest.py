"""A torch-free executor whose logits depend on everything that a sequence's cache must hold."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inference_pio.core import Engine
from inference_pio.core._host_sampler import HostSampler
from inference_pio.interfaces import CacheGroup, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import GroupTables, StepBatch
    from inference_pio.processing import Tokenizer

VOCAB = 97
EMPTY = -1


class HistoryExecutor:
    """Stores token ids where keys would go, and makes logits from the whole history read back through the pages.

    A wrong slot, page, copy, position or length changes the history, and so every token that follows, and every hidden
    state: the logits are what its head would give. A group with a
    window holds the same tokens a second time, and only its last ones are read; a group of states holds a digest of the
    history per sequence, as a recurrent layer would. What does not agree with the history is an assertion error.
    Logits that are not wanted are given as ``-inf``, as an executor may.
    """

    name = "history"
    hidden_size = 5

    def __init__(self, groups: Sequence[CacheGroup], page_size: int) -> None:
        self.cache_groups = tuple(groups)
        self.page_size = page_size
        self.sampler = HostSampler()
        shapes = [(1 if group.kind == "state" else page_size) for group in groups]
        self.pages = [np.full((g.num_pages, n), EMPTY, dtype=np.int64) for g, n in zip(groups, shapes, strict=True)]
        self.host = [np.full((g.num_host_pages, n), EMPTY, dtype=np.int64) for g, n in zip(groups, shapes, strict=True)]
        self.step_tokens: list[int] = []
        self.logit_rows: list[int] = []
        self.batch_sizes: list[int] = []
        self.largest_wanted: list[list[int]] = []
        self.fail_at: int | None = None
        self.nan_for: set[int] = set()
        self.hidden_rows: list[int] = []
        self.hidden = np.empty((0, self.hidden_size), dtype=np.float32)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        if self.fail_at is not None and len(self.step_tokens) == self.fail_at:
            self.fail_at = None
            raise RuntimeError("planted failure")
        self.step_tokens.append(batch.token_ids.size)
        self.logit_rows.append(batch.logit_rows.size)
        self.batch_sizes.append(len(batch.seq_lens))
        for index in range(len(self.cache_groups)):
            self._write(index, batch)
        sequence_of = np.repeat(np.arange(len(batch.seq_lens)), np.diff(batch.query_starts))
        logits = np.empty((batch.logit_rows.size, VOCAB), dtype=np.float32)
        for index, row in enumerate(batch.logit_rows):
            sequence, position = int(sequence_of[row]), int(batch.positions[row])
            history = self._history(batch, sequence, position)
            logits[index] = np.nan if history[0] in self.nan_for else history_logits(history)
        wanted = [] if batch.hidden_rows is None else batch.hidden_rows.tolist()
        self.hidden_rows.append(len(wanted))
        self.hidden = np.empty((len(wanted), self.hidden_size), dtype=np.float32)
        for index, row in enumerate(wanted):
            history = self._history(batch, int(sequence_of[row]), int(batch.positions[row]))
            self.hidden[index] = np.nan if history[0] in self.nan_for else history_logits(history)[: self.hidden_size]
        largest = [0] * len(logits) if batch.largest_wanted is None else batch.largest_wanted.tolist()
        self.largest_wanted.append(largest)
        for row, count in zip(logits, largest, strict=True):
            if 0 < count < VOCAB:
                row[row < np.sort(row)[-count]] = -np.inf
        return logits

    def hidden_states(self) -> NDArray[np.float32]:
        return self.hidden

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.pages[group][target] = self.pages[group][source]

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        self.host[group][list(host_pages)] = self.pages[group][list(pages)]

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        self.pages[group][list(pages)] = self.host[group][list(host_pages)]

    def close(self) -> None:
        for pages in self.pages:
            pages[:] = EMPTY

    def _tables(self, index: int, batch: StepBatch) -> StepBatch | GroupTables:
        return batch if index == 0 else batch.others[index - 1]

    def _write(self, index: int, batch: StepBatch) -> None:
        tables = self._tables(index, batch)
        if self.cache_groups[index].kind != "state":
            slots = tables.slot_mapping
            assert len(set(slots.tolist())) == slots.size, "two tokens in one slot"
            assert (slots >= 0).all(), "a token without a slot"
            self.pages[index].reshape(-1)[slots] = batch.token_ids
            return
        owners = tables.block_tables[:, 0].tolist()
        assert len(set(owners)) == len(owners), "two sequences share a state"
        for sequence, page in enumerate(owners):
            start, end = batch.query_starts[sequence : sequence + 2]
            fresh = batch.seq_lens[sequence] == end - start
            state = 0 if fresh else int(self.pages[index][page, 0])
            self.pages[index][page, 0] = digest(batch.token_ids[start:end].tolist(), state)

    def _history(self, batch: StepBatch, sequence: int, position: int) -> list[int]:
        """Tokens of a sequence up to ``position``, as the first group holds them; the others must agree."""
        history = self._read(0, batch, sequence, 0, position)
        for index, group in enumerate(self.cache_groups[1:], start=1):
            if group.kind == "window":
                first = max(0, position - group.window + 1)
                assert self._read(index, batch, sequence, first, position) == history[first:], "the window differs"
            elif position == batch.seq_lens[sequence] - 1:
                page = int(self._tables(index, batch).block_tables[sequence, 0])
                assert int(self.pages[index][page, 0]) == digest(history), "the state differs"
        return history

    def _read(self, index: int, batch: StepBatch, sequence: int, first: int, last: int) -> list[int]:
        places = np.arange(first, last + 1)
        pages = self._tables(index, batch).block_tables[sequence][places // self.page_size]
        assert (pages >= 0).all(), "a page that was given back is read"
        tokens = self.pages[index][pages, places % self.page_size]
        assert (tokens >= 0).all(), "history was never written"
        return tokens.tolist()


def digest(tokens: Sequence[int], state: int = 0) -> int:
    """A number that stands for all tokens so far."""
    for token_id in tokens:
        state = (state * 1_000_003 + token_id + 1) % 2**61
    return state


def history_logits(history: list[int]) -> NDArray[np.float32]:
    """Logits that a reader of the whole ``history`` would give."""
    return np.random.default_rng(digest(history)).normal(scale=2.0, size=VOCAB).astype(np.float32)


def greedy_history(prompt: list[int], count: int) -> list[int]:
    """What greedy decoding must give."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(history_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def run_to_end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.cache.check()


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    def make(
        *,
        num_pages: int = 64,
        page_size: int = 4,
        host_pages: int = 0,
        window: int | None = None,
        states: int = 0,
        tokenizer: Tokenizer | None = None,
        eos: tuple[int, ...] = (),
        **options: object,
    ) -> Engine:
        options.setdefault("max_model_len", num_pages * page_size)
        options.setdefault("max_num_seqs", 8)
        groups = [CacheGroup(kind="full", num_pages=num_pages, num_host_pages=host_pages)]
        if window is not None:
            groups.append(CacheGroup(kind="window", window=window, num_pages=num_pages, num_host_pages=host_pages))
        if states:
            groups.append(CacheGroup(kind="state", num_pages=states, num_host_pages=host_pages))
        executor = HistoryExecutor(groups, page_size)
        return Engine(executor, tokenizer, vocab_size=VOCAB, eos_token_ids=eos, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def slow_down() -> Callable[[Any], None]:
    """Has a step of an executor take 10 ms at least: nothing long ends before what a test does meanwhile."""

    def wrap(executor: Any) -> None:
        step = executor.step

        def slow(batch: StepBatch) -> object:
            time.sleep(0.01)
            return step(batch)

        executor.step = slow

    return wrap


@pytest.fixture
def request_of() -> Callable[..., Request]:
    def make(request_id: str, prompt: list[int], *, priority: int = 0, timeout_s=None, salt="", **params) -> Request:
        params.setdefault("temperature", 0.0)
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(**params),
            priority=priority,
            timeout_s=timeout_s,
            cache_salt=salt,
        )

    return make


@pytest.fixture
def expected() -> Callable[[list[int], int], list[int]]:
    return greedy_history


@pytest.fixture
def finish() -> Callable[[Engine], None]:
    return run_to_end


@pytest.fixture
def logits_of() -> Callable[[list[int]], NDArray[np.float32]]:
    return history_logits
