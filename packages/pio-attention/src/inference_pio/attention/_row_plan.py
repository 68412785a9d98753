"""Which keys the decoding rows of a step attend to together, and where these keys lie. Made once per step.

A row is one token of the ragged batch. Its keys are cut into pieces, so that each piece is one call:

- a stretch of neighbouring pages that is long enough is read in place;
- a prefix whose pages several sequences share is attended to by all of them at once (the cascade of Hydragen, Juravsky
  et al. 2024, arXiv:2402.05099, section 3): its keys are read once, and their heads become rows of one matrix product;
- the pages that are left, of all sequences, are copied together in blocks of bounded size;
- where a sequence has several rows (a draft that is verified), they share what lies before them, and see each other
  through a mask.

A row with several pieces merges their outputs by the logarithms of their sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import gcd
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, RaggedBatch

MAX_GROUP_ROWS = 32
"""Up to this many rows per KV head, (token, head of the group) pairs as rows beat one row block per head."""

_MAX_PAGE = 64
"""Larger pages are copied in parts of at most this many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a piece is worth a call of its own (``benchmarks/bench_paged_cpu.py --sizes`` measures them).

    Attributes:
        view: From this many tokens on, neighbouring pages are read in place: a call costs about what copying this much
            does. Also what a shared prefix must spare.
        view_half: The same for a single row in 16 bits, where reading in strides costs more than copying.
        block: Copies are made in blocks of at most this many bytes, which stay in a processor's cache. Reading from
            there repays most of the copying: in memory the heads of a token lie together, in an order that attention
            reads in strides.
    """

    view: int = 128
    view_half: int = 4096
    block: int = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One call: ``sets`` sets of keys, each seen by as many rows.

    Attributes:
        rows: The tokens, int64 (sets * R,).
        first_row: The token where there is one only, else None.
        sets: Sets of keys of equal size ``S``.
        slots: Where the one set lies, ``begin .. end - 1``, to be read in place; else None.
        pages: Pages to copy, int64 (sets * S / page_size,); else None.
        page_size: Of these pages: that of the cache, or a divisor of it where a page holds many tokens.
        single_slots: Slots to copy, int64 (sets * S,); else None.
        unused: Slots of the copy that hold no visible key, int64; None if all do.
        mask: What is added to the scores, (sets or 1, 1, R * G or 1, S); None for nothing.
    """

    rows: Tensor
    first_row: int | None
    sets: int
    slots: tuple[int, int] | None = None
    pages: Tensor | None = None
    page_size: int = 0
    single_slots: Tensor | None = None
    unused: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """How the decoding rows of a step are attended to.

    Attributes:
        pieces: The calls.
        rows: The tokens that the pieces serve, int64 (M,), ascending.
        take: For each of these, which rows of the pieces' outputs are its own, int64 (M, J).
        absent: What to add to their log-sums, 0 or -inf where there are fewer than J, (M, J, 1); None where ``J`` is 1.
        in_order: Whether row ``m`` of the outputs belongs to token ``rows[m]``, one each.
        others: The sequences that are not decoding.
    """

    pieces: tuple[Piece, ...]
    rows: Tensor
    take: Tensor
    absent: Tensor | None
    in_order: bool
    others: tuple[int, ...]


def plan_rows(
    batch: RaggedBatch,
    tables: list[list[int]],
    spec: AttentionSpec,
    *,
    page_size: int,
    token_bytes: int,
    dtype: torch.dtype,
    in_place: bool,
    limits: Limits,
) -> RowPlan:
    """Plan a step.

    Args:
        batch: The step.
        tables: Its pages, sequence by sequence.
        spec: What is computed.
        page_size: ``P``.
        token_bytes: Size of a token's key and value.
        dtype: Of the queries.
        in_place: Whether keys can be read where they lie; otherwise all are copied.
        limits: Sizes of pieces.
    """
    with torch.inference_mode(mode=False):  # a plan may outlive the mode that it is made in
        size = page_size
        if page_size > _MAX_PAGE:  # a page may hold a whole sequence, of which only what is there is to be copied
            size = gcd(page_size, _MAX_PAGE)
            tables = [
                _divide(row, page_size // size, -(-n // size)) for row, n in zip(tables, batch.seq_lens, strict=True)
            ]
        planner = _Planner(
            tables=tables,
            page_size=size,
            view=limits.view if in_place else None,
            view_alone=limits.view if dtype.itemsize > 2 else limits.view_half,
            shared=limits.view,
            block=max(1, limits.block // (token_bytes * size)),
            dtype=dtype,
        )
        return _plan(batch, spec, planner)


def _plan(batch: RaggedBatch, spec: AttentionSpec, planner: _Planner) -> RowPlan:
    group = spec.num_heads // spec.num_kv_heads
    starts = batch.query_starts.tolist()
    decoding, others = [], []
    for index, (queries, length) in enumerate(zip(batch.query_lens, batch.seq_lens, strict=True)):
        if queries == 1:
            first = 0 if spec.window is None else max(0, length - spec.window)
            decoding.append(_Member(index, tuple(range(starts[index], starts[index + 1])), first, length))
        elif spec.causal and spec.window is None and queries < length and queries * group <= MAX_GROUP_ROWS:
            rows = tuple(range(starts[index], starts[index + 1]))
            decoding.append(_Member(index, rows, 0, length - queries))
        else:
            others.append(index)
    planner.plan_prefixes([member for member in decoding if member.first == 0], 0)
    for member in decoding:
        if member.first > 0:
            planner.plan_alone(member, member.first)
    planner.plan_leftovers()
    planner.plan_drafts([member for member in decoding if len(member.rows) > 1], group)
    return planner.finish(tuple(row for member in decoding for row in member.rows), tuple(others))


@dataclass(frozen=True, slots=True)
class _Member:
    """A sequence that decodes: its tokens in the batch, and the positions ``first .. end - 1`` that all of them see."""

    index: int
    rows: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _Leftover:
    """Pages to be copied, and the positions in them, counted from the first of them, that are seen."""

    rows: tuple[int, ...]
    pages: list[int]
    begin: int
    end: int


class _Planner:
    """Collects pieces. Sizes in tokens, ``block`` in pages; ``view`` is None where nothing is read in place."""

    def __init__(
        self,
        *,
        tables: list[list[int]],
        page_size: int,
        view: int | None,
        view_alone: int,
        shared: int,
        block: int,
        dtype: torch.dtype,
    ) -> None:
        self._tables = tables
        self._page_size = page_size
        self._view = view
        self._view_alone = view_alone
        self._shared = shared
        self._block = block
        self._dtype = dtype
        self._pieces: list[Piece] = []
        self._piece_rows: list[int] = []
        self._leftovers: list[_Leftover] = []

    def plan_prefixes(self, members: list[_Member], depth: int) -> None:
        """Plan the keys from page ``depth`` on of sequences that share the pages before it."""
        full = {member.index: self._tables[member.index][depth : member.end // self._page_size] for member in members}
        ordered = sorted(members, key=lambda member: full[member.index][:1])
        for _, found in groupby(ordered, key=lambda member: full[member.index][:1]):
            together = list(found)
            common = _common([full[member.index] for member in together]) if len(together) > 1 else []
            if len(common) * self._page_size * (len(together) - 1) < self._shared or not common:
                for member in together:
                    self.plan_alone(member, depth * self._page_size)
                continue
            rows = tuple(row for member in together for row in member.rows)
            self._plan_pages(rows, common, 0, len(common) * self._page_size)
            self.plan_prefixes(together, depth + len(common))

    def plan_alone(self, member: _Member, start: int) -> None:
        """Plan the keys of one sequence from position ``start`` on."""
        if start == member.end:
            return
        size = self._page_size
        first_page = start // size
        pages = self._tables[member.index][first_page : -(-member.end // size)]
        self._plan_pages(member.rows, pages, start - first_page * size, member.end - first_page * size)

    def plan_leftovers(self) -> None:
        """Copy what is left together: sets of like size, seen by equally many rows."""
        pending = sorted(self._leftovers, key=lambda leftover: (len(leftover.rows), -len(leftover.pages)))
        bucket: list[_Leftover] = []
        wasted = 0
        for leftover in pending:
            if bucket:
                longest = len(bucket[0].pages)
                wasted += longest - len(leftover.pages)
                if (
                    len(leftover.rows) != len(bucket[0].rows)
                    or longest * (len(bucket) + 1) > self._block
                    or wasted * self._page_size > self._shared
                ):
                    self._copy(bucket)
                    bucket, wasted = [], 0
            bucket.append(leftover)
        if bucket:
            self._copy(bucket)

    def plan_drafts(self, members: list[_Member], group: int) -> None:
        """The rows of one sequence see each other: row ``i`` the keys of rows ``0 .. i``."""
        for count, found in groupby(sorted(members, key=lambda m: len(m.rows)), key=lambda m: len(m.rows)):
            together = list(found)
            slots = [
                self._tables[member.index][position // self._page_size] * self._page_size + position % self._page_size
                for member in together
                for position in range(member.end, member.end + count)
            ]
            hidden = torch.full((count, count), float("-inf"), dtype=self._dtype).triu(1)
            self._add(
                [row for member in together for row in member.rows],
                sets=len(together),
                single_slots=torch.tensor(slots),
                mask=hidden.repeat_interleave(group, dim=0)[None, None],
            )

    def finish(self, rows: tuple[int, ...], others: tuple[int, ...]) -> RowPlan:
        """The plan: the pieces, and which of their outputs belong to each of ``rows``."""
        owned: dict[int, list[int]] = {row: [] for row in rows}
        for place, row in enumerate(self._piece_rows):
            owned[row].append(place)
        most = max(map(len, owned.values()), default=1)
        padded = [places + places[:1] * (most - len(places)) for places in owned.values()]
        absent = [[0.0] * len(places) + [float("-inf")] * (most - len(places)) for places in owned.values()]
        return RowPlan(
            pieces=tuple(self._pieces),
            rows=torch.tensor(rows, dtype=torch.int64),
            take=torch.tensor(padded, dtype=torch.int64).view(len(rows), most),
            absent=torch.tensor(absent).unsqueeze(-1) if most > 1 else None,
            in_order=self._piece_rows == list(rows),
            others=others,
        )

    def _plan_pages(self, rows: tuple[int, ...], pages: list[int], begin: int, end: int) -> None:
        """Plan positions ``begin .. end - 1`` of ``pages``, counted from the first of them, for ``rows``."""
        size, kept = self._page_size, 0
        if self._view is not None:
            least = self._view_alone if len(rows) == 1 else self._view
            for first, last in _stretches(pages):
                low, high = max(begin, first * size), min(end, last * size)
                if high - low >= least:
                    self._leave(rows, pages[kept:first], begin - kept * size, end - kept * size)
                    origin = (pages[first] - first) * size
                    self._add(list(rows), sets=1, slots=(origin + low, origin + high))
                    kept = last
        self._leave(rows, pages[kept:], begin - kept * size, end - kept * size)

    def _leave(self, rows: tuple[int, ...], pages: list[int], begin: int, end: int) -> None:
        size = self._page_size
        for first in range(0, len(pages), self._block):
            block = pages[first : first + self._block]
            low, high = max(0, begin - first * size), min(len(block) * size, end - first * size)
            self._leftovers.append(_Leftover(rows, block, low, high))

    def _copy(self, bucket: list[_Leftover]) -> None:
        longest = len(bucket[0].pages)
        length = longest * self._page_size
        pages = [leftover.pages + leftover.pages[-1:] * (longest - len(leftover.pages)) for leftover in bucket]
        position = torch.arange(length)
        unseen = torch.stack([(position < leftover.begin) | (position >= leftover.end) for leftover in bucket])
        unused = unseen.flatten().nonzero().flatten()
        mask = torch.zeros(unseen.shape, dtype=self._dtype).masked_fill_(unseen, float("-inf"))
        self._add(
            [row for leftover in bucket for row in leftover.rows],
            sets=len(bucket),
            pages=torch.tensor(pages).flatten(),
            unused=unused if unused.numel() else None,
            mask=mask[:, None, None] if unused.numel() else None,
        )

    def _add(
        self,
        rows: list[int],
        *,
        sets: int,
        slots: tuple[int, int] | None = None,
        pages: Tensor | None = None,
        single_slots: Tensor | None = None,
        unused: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self._piece_rows += rows
        self._pieces.append(
            Piece(
                rows=torch.tensor(rows),
                first_row=rows[0] if len(rows) == 1 else None,
                sets=sets,
                slots=slots,
                pages=pages,
                page_size=self._page_size,
                single_slots=single_slots,
                unused=unused,
                mask=mask,
            )
        )


def _divide(pages: list[int], parts: int, count: int) -> list[int]:
    """The first ``count`` of the parts of these pages; one that was given back gives parts that were."""
    divided = [page * parts + part if page >= 0 else -1 for page in pages for part in range(parts)]
    return divided[:count]


def _stretches(pages: list[int]) -> list[tuple[int, int]]:
    """Indices ``first .. last - 1`` of neighbouring pages."""
    if pages == list(range(pages[0], pages[0] + len(pages))):
        return [(0, len(pages))]
    cuts = [index for index in range(1, len(pages)) if pages[index] != pages[index - 1] + 1]
    return list(zip([0, *cuts], [*cuts, len(pages)], strict=True))


def _common(tables: list[list[int]]) -> list[int]:
    """The pages that all tables begin with: in order of their pages, the first and the last table differ soonest."""
    first, last = min(tables), max(tables)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
