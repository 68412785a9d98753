"""A smaller model of the same vocabulary that guesses what the target will choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inference_pio.cache import CacheManager
from inference_pio.core._proposers import continues
from inference_pio.interfaces import GroupTables, InvalidRequestError, SamplingBatch, StepBatch

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from inference_pio.cache import SequencePages
    from inference_pio.core._proposers import DraftRequest
    from inference_pio.interfaces import CacheGroup, Executor, SamplingParams

_RETRY_CALLS = 64
"""Calls after which a sequence that found no room is let in again."""


@dataclass(slots=True, eq=False)
class _Reader:
    """How far the draft model has read one sequence.

    Attributes:
        key: Of the sequence.
        pages: Its pages. ``pages.tokens`` are tokens that the target has chosen, ``pages.num_computed`` how many of
            them were read for good.
        guesses: Drafts that were read after all of ``pages.tokens``, and may yet prove right.
        last_call: The call that asked for it last.
    """

    key: Hashable
    pages: SequencePages
    guesses: list[int] = field(default_factory=list)
    last_call: int = 0


class _Work(NamedTuple):
    """A request that is served in this call: its reader, how many tokens to draft, and the drafts so far."""

    request: DraftRequest
    reader: _Reader
    num_draft: int
    drafts: list[int]


class _Row(NamedTuple):
    """Tokens of one sequence to be read in one step, from position ``start`` on."""

    pages: SequencePages
    start: int
    tokens: Sequence[int]


class DraftModelProposer:
    """Drafts with a second model, which has its own executor and keeps its own books.

    In each call it reads what it has not read yet, of all sequences in one ragged step, and then goes on by one token
    of each at a time. Each token is drawn from the draft's own distribution under the request's temperature and
    filters, with the very number in [0, 1) that the target will use there: where the two distributions agree so do
    the tokens (Daliri et al. 2024, arXiv:2408.07978). Penalties, bias and structure are left to the target, which
    rejects what they forbid.

    Drafts that the target chose as well are not read again, others are overwritten. A sequence whose older tokens have
    changed is opened anew, on the pages that it still shares with what was read before. Recurrent states cannot be
    overwritten: drafts are then read by a fork, which is thrown away.

    When the cache is full, sequences that are not asked for give way, the least recently used first; if there is none
    left, the sequence that lacks pages gets no drafts until one has ended or 64 calls have passed.

    Args:
        executor: Of the draft model; only this proposer steps it.
        vocab_size: Of the draft model.
        target_vocab_size: Of the target.
        max_length: Tokens that the draft model can read of one sequence; beyond, nothing is proposed.
        max_step_tokens: Tokens that a call reads in its first step, at least 1. What is left of long prompts is read in
            the next calls; until then there are no drafts for them.

    Attributes:
        cache: Who owns which page of the draft's cache.

    Raises:
        InvalidRequestError: The vocabularies differ.
        ValueError: A bound below 1.
    """

    name = "draft"

    def __init__(
        self,
        executor: Executor,
        *,
        vocab_size: int,
        target_vocab_size: int,
        max_length: int,
        max_step_tokens: int = 2048,
    ) -> None:
        if vocab_size != target_vocab_size:
            raise InvalidRequestError(
                f"the draft model has a vocabulary of {vocab_size} tokens, the model one of {target_vocab_size}",
                hint="take a draft model of the same family, or speculative='ngram'",
            )
        if max_length < 1 or max_step_tokens < 1:
            msg = f"max_length and max_step_tokens must be at least 1, got {max_length} and {max_step_tokens}"
            raise ValueError(msg)
        self.cache = CacheManager(executor.cache_groups, page_size=executor.page_size)
        self._executor = executor
        self._max_length = max_length
        self._max_step_tokens = max_step_tokens
        self._recurrent = any(group.kind == "state" for group in executor.cache_groups)
        self._readers: dict[Hashable, _Reader] = {}
        self._refused: dict[Hashable, int] = {}
        self._calls = 0

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """See :class:`~inference_pio.core._proposers.Proposer`."""
        self._calls += 1
        works = [self._open(request) for request in requests]
        ready = self._catch_up([work for work in works if work is not None])
        if self._recurrent:
            self._go_on_in_forks(ready)
        else:
            self._go_on([(work, work.reader.pages) for work in ready])
            for work in ready:
                work.reader.guesses = work.drafts[:-1]
        return [[] if work is None else work.drafts for work in works]

    def forget(self, key: Hashable) -> None:
        """See :class:`~inference_pio.core._proposers.Proposer`."""
        self._refused.pop(key, None)
        reader = self._readers.pop(key, None)
        if reader is not None:
            self.cache.release(reader.pages)
            self._refused.clear()  # there is room now

    def _open(self, request: DraftRequest) -> _Work | None:
        """The work that ``request`` asks for, its reader brought up to its tokens; None if there is nothing to do."""
        length = len(request.tokens)
        count = min(request.num_draft, min(self._max_length, self.cache.capacity_tokens) - length + 1)
        if count < 1 or length == 0 or self._refused.get(request.key, 0) > self._calls:
            return None
        reader = self._readers.get(request.key)
        if reader is not None and (
            not continues(request.tokens, reader.pages.tokens)
            or reader.pages.num_computed == length  # asked again: what was computed for the last token is gone
        ):
            self._drop(reader)
            reader = None
        if reader is None:
            reader = _Reader(request.key, self.cache.open(list(request.tokens), salt=request.cache_salt))
            self._readers[request.key] = reader
        else:
            self._accept(reader, request.tokens)
        reader.last_call = self._calls
        return _Work(request, reader, count, [])

    def _accept(self, reader: _Reader, tokens: Sequence[int]) -> None:
        """Append what is new in ``tokens``, of which right guesses were read already."""
        pages = reader.pages
        known = len(pages.tokens)
        pages.tokens.extend(tokens[known:])
        right = 0
        for guess, token in zip(reader.guesses, pages.tokens[known:-1], strict=False):
            if guess != token:
                break
            right += 1
        reader.guesses = []
        if right:
            self.cache.commit(pages, known + right)

    def _catch_up(self, works: list[_Work]) -> list[_Work]:
        """Read what was not read yet, the shortest rests first, and draw the first draft where that was all."""
        budget = self._max_step_tokens
        rows: list[_Row] = []
        ready: list[_Work] = []
        for work in sorted(works, key=_num_unread):
            pages = work.reader.pages
            if budget == 0 or not self._admit(work, works):
                continue
            past = pages.num_computed
            end = min(len(pages.tokens), past + budget)
            complete = end == len(pages.tokens)
            drafted = 0 if self._recurrent or not complete else work.num_draft - 1
            if not self._with_room(work, works, end + drafted):
                continue
            budget -= end - past
            rows.append(_Row(pages, past, pages.tokens[past:end]))
            if complete:
                ready.append(work)
        if not rows:
            return []
        drawing = {id(work.reader.pages): work for work in ready}
        logits = self._step(rows, [drawing.get(id(row.pages)) for row in rows])
        for row in rows:
            self.cache.commit(row.pages, row.start + len(row.tokens))
        drawn = self._draw(ready, logits)
        return [work for work, got_one in zip(ready, drawn, strict=True) if got_one]

    def _go_on(self, active: list[tuple[_Work, SequencePages]]) -> None:
        """Draft token after token, in one step for all that want more."""
        while active := [pair for pair in active if len(pair[0].drafts) < pair[0].num_draft]:
            rows = [
                _Row(pages, len(work.request.tokens) + len(work.drafts) - 1, work.drafts[-1:]) for work, pages in active
            ]
            logits = self._step(rows, [work for work, _ in active])
            drawn = self._draw([work for work, _ in active], logits)
            active = [pair for pair, got_one in zip(active, drawn, strict=True) if got_one]

    def _go_on_in_forks(self, ready: list[_Work]) -> None:
        """The same for sequences with states, which must not see drafts; without room for a fork one draft is all."""
        forks: list[tuple[_Work, SequencePages]] = []
        for work in ready:
            pages = work.reader.pages
            fork = self.cache.fork(pages, pages.tokens) if work.num_draft > 1 else None
            if fork is not None and self.cache.grow(fork, len(pages.tokens) + work.num_draft - 1):
                forks.append((work, fork))
            elif fork is not None:
                self.cache.release(fork)
        self._go_on(forks)
        for _, fork in forks:
            self.cache.release(fork)

    def _admit(self, work: _Work, works: list[_Work]) -> bool:
        pages = work.reader.pages
        if pages.admitted:
            return True
        length = len(pages.tokens)
        while not self.cache.admit(pages, length, expected=length + work.num_draft):
            if not self._evict(works):
                self._refuse(work.reader)
                return False
        return True

    def _with_room(self, work: _Work, works: list[_Work], num_tokens: int) -> bool:
        """Get pages for the positions before ``num_tokens``, from others if need be."""
        while not self.cache.grow(work.reader.pages, num_tokens):
            if not self._evict(works):
                self._refuse(work.reader)
                return False
        return True

    def _evict(self, works: list[_Work]) -> bool:
        """Let the least recently used sequence that this call does not ask for give its pages back."""
        asked = {work.reader.key for work in works}
        idle = [reader for reader in self._readers.values() if reader.key not in asked]
        if not idle:
            return False
        self._drop(min(idle, key=lambda reader: reader.last_call))
        return True

    def _refuse(self, reader: _Reader) -> None:
        self._drop(reader)
        self._refused[reader.key] = self._calls + _RETRY_CALLS

    def _drop(self, reader: _Reader) -> None:
        self.cache.release(reader.pages)
        del self._readers[reader.key]

    def _step(self, rows: list[_Row], drawing: Sequence[_Work | None]) -> object:
        for move in self.cache.take_moves():  # only copies: nothing here goes to host memory
            self._executor.copy_pages(move.group, move.sources, move.targets)
        return self._executor.step(_lay_out(rows, drawing, self._executor.cache_groups, self._executor.page_size))

    def _draw(self, works: list[_Work], logits: object) -> list[bool]:
        """Append the next draft of each of ``works``, whose rows ``logits`` hold; which of them got one."""
        if not works:
            return []
        chosen = self._executor.sampler.sample(logits, _sampling(works)).tolist()
        for work, token in zip(works, chosen, strict=True):
            if token >= 0:  # else its logits are no numbers: the target will do without
                work.drafts.append(token)
        return [token >= 0 for token in chosen]


def _num_unread(work: _Work) -> int:
    return len(work.reader.pages.tokens) - work.reader.pages.num_computed


def _sampling(works: list[_Work]) -> SamplingBatch:
    """How to draw the next draft of each of ``works`` from as many rows."""
    settings = np.zeros((5, len(works)))
    settings[2:4] = 1.0
    uniforms = np.zeros(len(works))
    for index, (request, _, _, drafts) in enumerate(works):
        params = request.params
        if params is not None and not params.greedy and request.uniforms is not None:
            settings[:, index] = params.temperature, _top_k(params), params.typical_p, params.top_p, params.min_p
            uniforms[index] = request.uniforms[len(drafts)]
    return SamplingBatch(
        rows=np.arange(len(works), dtype=np.int64),
        bias=None,
        repetition=None,
        penalties=None,
        masks=None,
        temperature=settings[0].astype(np.float32),
        top_k=settings[1].astype(np.int32),
        typical_p=settings[2].astype(np.float32),
        top_p=settings[3].astype(np.float32),
        min_p=settings[4].astype(np.float32),
        uniforms=uniforms,
    )


def _largest_wanted(work: _Work) -> int:
    """How many of the largest logits its next draft is drawn from; 0 for all."""
    params = work.request.params
    if params is None or params.greedy or work.request.uniforms is None:
        return 1
    return _top_k(params)


def _top_k(params: SamplingParams) -> int:
    """As samplers take it: 0 keeps all, and it fits 32 bits."""
    return min(max(params.top_k, 0), 2**31 - 1)


def _lay_out(
    rows: list[_Row], drawing: Sequence[_Work | None], groups: Sequence[CacheGroup], page_size: int
) -> StepBatch:
    """The arrays of a step over ``rows``; logits of the last token of each row that a draft is drawn from."""
    counts = np.array([len(row.tokens) for row in rows], dtype=np.int64)
    pasts = np.array([row.start for row in rows], dtype=np.int64)
    starts = np.zeros(len(rows) + 1, dtype=np.int32)
    ends = np.cumsum(counts, out=starts[1:]).tolist()
    owner = np.repeat(np.arange(len(rows)), counts)
    positions = np.arange(starts[-1], dtype=np.int64) + (pasts - starts[:-1])[owner]
    first, *others = (
        _tables([row.pages.tables[index] for row in rows], group, owner, positions, page_size)
        for index, group in enumerate(groups)
    )
    return StepBatch(
        token_ids=np.concatenate([np.array(row.tokens, dtype=np.int64) for row in rows]),
        positions=positions,
        query_starts=starts,
        seq_lens=(pasts + counts).astype(np.int32),
        block_tables=first.block_tables,
        slot_mapping=first.slot_mapping,
        logit_rows=np.array([end - 1 for end, work in zip(ends, drawing, strict=True) if work], dtype=np.int64),
        others=tuple(others),
        largest_wanted=np.array([_largest_wanted(work) for work in drawing if work], dtype=np.int32),
    )


def _tables(
    pages: list[list[int]],
    group: CacheGroup,
    owner: NDArray[np.int64],
    positions: NDArray[np.int64],
    page_size: int,
) -> GroupTables:
    tables = np.full((len(pages), max(map(len, pages))), -1, dtype=np.int32)
    for row, table in zip(tables, pages, strict=True):
        row[: len(table)] = table
    if group.kind == "state":
        return GroupTables(block_tables=tables, slot_mapping=np.empty(0, dtype=np.int64))
    page, offset = np.divmod(positions, page_size)
    return GroupTables(block_tables=tables, slot_mapping=tables[owner, page].astype(np.int64) * page_size + offset)
