"""Who guesses the coming tokens of a sequence, and the guess that needs no second model: it has been said before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from inference_pio.interfaces import SamplingParams

_COMPARED = 32
"""Tokens at the end of what was indexed that are compared with the sequence at every call."""
_STALE_CALLS = 64
"""Calls that a sequence is not asked for before another may take its place."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A sequence whose coming tokens are to be guessed.

    Attributes:
        key: Names the sequence from call to call.
        tokens: Prompt and text so far; not changed.
        num_draft: The most tokens wanted, at least 0.
        uniforms: At least ``num_draft`` draws in [0, 1), those that the target will use for the coming tokens, so that
            a proposer that draws too draws alike (Daliri et al. 2024, arXiv:2408.07978); None if the target is greedy.
        params: How the target samples; None is greedy.
        cache_salt: As in :class:`inference_pio.interfaces.Request`: what is kept of it is shared only within one salt.
    """

    key: Hashable
    tokens: Sequence[int]
    num_draft: int
    uniforms: Sequence[float] | None
    params: SamplingParams | None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if self.num_draft < 0:
            msg = f"num_draft must be at least 0, got {self.num_draft}"
            raise ValueError(msg)
        if self.uniforms is not None and len(self.uniforms) < self.num_draft:
            msg = f"{self.num_draft} drafts need as many uniforms, got {len(self.uniforms)}"
            raise ValueError(msg)


class Proposer(Protocol):
    """Guesses coming tokens. A bad guess costs time and never changes what comes out."""

    @property
    def name(self) -> str:
        """``"ngram"``, ``"draft"``, ..."""

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Per request at most ``num_draft`` tokens after its ``tokens``; fewer or none where nothing is likely.

        The keys of one call differ. Tokens of a key may have been taken back or changed since the last call.
        """

    def forget(self, key: Hashable) -> None:
        """The sequence has ended: free what is kept of it. Harmless for an unknown one."""


@dataclass(slots=True)
class _NgramIndex:
    """Where each n-gram of one sequence was seen last.

    Attributes:
        tokens: The tokens that were indexed, from ``start`` on.
        start: Where ``tokens`` begins in the sequence; above 0 where the sequence outgrew the index.
        ends: By hash of an n-gram, its latest end in ``tokens``. Hashes may collide: who looks up compares.
        last_call: The call that asked for it last.
    """

    tokens: list[int] = field(default_factory=list)
    start: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    last_call: int = 0


class NgramProposer:
    """Prompt lookup: what followed the latest n tokens when they came before.

    Of all n-grams at the end of the sequence, the longest that occurs earlier counts (``max_ngram`` down to
    ``min_ngram`` tokens), and of its occurrences the latest (Saxena 2023, "Prompt Lookup Decoding", which takes the
    earliest). A continuation that reaches the end of the sequence goes on into itself, as an overlapping copy of LZ77
    does, so a loop is proposed as a loop.

    A call costs time in proportion to the tokens that are new since the last one. That the older ones are the same is
    checked over their last 32 (and by length); where they are not, the index is built anew. A change further back than
    that can make a guess worse until then, never wrong in form: what is proposed is always copied from ``tokens``
    after a true match.

    Memory: about 0.3 KiB per indexed token with the default sizes, ``max_tokens`` tokens in all. When they are used up,
    the sequence not asked for the longest gives way, if that was 64 calls ago or more; otherwise the new one gets no
    proposals, for taking turns would mean indexing whole prompts in every step. Of a sequence longer than
    ``max_tokens`` only the end is searched.

    Args:
        max_ngram: Longest suffix that is looked for.
        min_ngram: Shortest.
        max_tokens: Indexed tokens of all sequences together.

    Raises:
        ValueError: Sizes that contradict each other.
    """

    name = "ngram"

    def __init__(self, *, max_ngram: int = 4, min_ngram: int = 2, max_tokens: int = 1 << 18) -> None:
        if not 1 <= min_ngram <= max_ngram:
            msg = f"n-grams need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}"
            raise ValueError(msg)
        if max_tokens < 2 * max_ngram:
            msg = f"max_tokens must be at least twice max_ngram, got {max_tokens} and {max_ngram}"
            raise ValueError(msg)
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._max_tokens = max_tokens
        self._indices: dict[Hashable, _NgramIndex] = {}
        self._num_tokens = 0
        self._calls = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that are indexed now."""
        return self._num_tokens

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """See :class:`Proposer`."""
        self._calls += 1
        return [self._propose(request) if request.num_draft else [] for request in requests]

    def forget(self, key: Hashable) -> None:
        """See :class:`Proposer`."""
        index = self._indices.pop(key, None)
        if index is not None:
            self._num_tokens -= len(index.tokens)

    def _propose(self, request: DraftRequest) -> list[int]:
        index = self._updated(request.key, request.tokens)
        distance = None if index is None else self._distance(index)
        if index is None or distance is None:
            return []
        source = index.tokens[-distance:]
        return [source[position % distance] for position in range(request.num_draft)]

    def _updated(self, key: Hashable, tokens: Sequence[int]) -> _NgramIndex | None:
        """The index of ``tokens``, or None if there is no room for it."""
        index = self._indices.get(key)
        if index is not None and not continues(tokens, index.tokens, index.start):
            self.forget(key)
            index = None
        known = 0 if index is None else index.start + len(index.tokens)
        if index is not None and len(index.tokens) + len(tokens) - known > self._max_tokens:
            self.forget(key)  # outgrown: keep the newer half, so that this happens seldom
            index, known = None, 0
        if index is None:
            start = 0 if len(tokens) <= self._max_tokens else len(tokens) - self._max_tokens // 2
            index, known = _NgramIndex(start=start), start
        self._make_room(len(tokens) - known, key)
        if self._num_tokens + len(tokens) - known > self._max_tokens:
            self.forget(key)
            return None
        index.last_call = self._calls
        self._indices[key] = index
        self._num_tokens += len(tokens) - known
        self._extend(index, tokens[known:])
        return index

    def _make_room(self, needed: int, key: Hashable) -> None:
        while self._num_tokens + needed > self._max_tokens:
            others = (other for other in self._indices if other != key)
            oldest = min(others, key=lambda other: self._indices[other].last_call, default=None)
            if oldest is None or self._calls - self._indices[oldest].last_call < _STALE_CALLS:
                return
            self.forget(oldest)

    def _extend(self, index: _NgramIndex, new: Sequence[int]) -> None:
        """Append tokens and note the n-grams that now have a continuation: those that end before the last token."""
        tokens, ends = index.tokens, index.ends
        first = max(len(tokens), 1)
        tokens.extend(new)
        for end in range(first, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    ends[hash(tuple(tokens[end - size : end]))] = end

    def _distance(self, index: _NgramIndex) -> int | None:
        """How far back the latest occurrence of the longest suffix lies."""
        tokens = index.tokens
        for size in self._sizes:
            if size >= len(tokens):
                continue
            suffix = tokens[-size:]
            end = index.ends.get(hash(tuple(suffix)))
            if end is not None and tokens[end - size : end] == suffix:
                return len(tokens) - end
        return None


def continues(tokens: Sequence[int], known: Sequence[int], start: int = 0) -> bool:
    """Whether ``tokens`` from ``start`` on are the ``known`` ones and perhaps more, by their number and the last 32."""
    end = start + len(known)
    count = min(_COMPARED, len(known))
    return len(tokens) >= end and list(tokens[end - count : end]) == list(known[len(known) - count :])
