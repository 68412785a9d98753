"""What sampling remembers of one sequence: its draws, and the tokens that penalties and prohibitions look at."""

from __future__ import annotations

import copy
import secrets
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import SamplingParams

_BLOCK = 32
_LARGEST_TOP_K = 2**31 - 1

Edits = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


class SamplerState:
    """The memory of one continuation.

    Token number ``t`` (from 0) of continuation ``index`` is drawn with number ``t`` of the PCG64 stream that is seeded
    with ``[seed % 2**64, index]``. So a draw depends on nothing else: not on the batch, not on how far speculation
    looked ahead, not on what was rolled back.

    Args:
        params: How to sample. Without a seed, one is drawn.
        prompt: Tokens of the prompt; read only for the repetition penalty.
        index: Which of the continuations of the request.
        end_ids: Tokens that may not be chosen before ``params.min_tokens``.
        bad_words: Token sequences that must not come in the text, as :func:`bad_word_sequences` makes them; the prompt
            does not count as text.

    Raises:
        ValueError: A negative ``index``, or an empty bad word.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        index: int,
        end_ids: Iterable[int],
        bad_words: Sequence[tuple[int, ...]] = (),
    ) -> None:
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        if any(not word for word in bad_words):
            raise ValueError(f"a bad word must have at least one token, got {tuple(bad_words)!r}")
        self.params = params
        self.num_generated = 0
        self.greedy = params.greedy
        self.top_k = min(max(params.top_k, 0), _LARGEST_TOP_K)
        """How many of the most likely tokens are drawn from; 0 for all."""
        self.settings = (float(params.temperature), float(self.top_k), params.typical_p, params.top_p, params.min_p)
        """Temperature, top-k (0 keeps all), typical-p, top-p and min-p."""
        self._seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        self._open_stream(index)
        self._bias = _bias(params)
        self._seen = _Tally(prompt) if params.repetition_penalty != 1.0 else None
        penalised = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._counts = _Tally(()) if penalised else None
        always = {word[0] for word in bad_words if len(word) == 1}
        ends = set(end_ids) if params.min_tokens > 0 else set()
        self._forbidden = _token_array(always)
        self._forbidden_early = _token_array(always | ends)
        self._endings: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for word in bad_words:
            if len(word) > 1:
                self._endings[word[-2]].append(tuple(word))
        self._longest = max((len(word) - 1 for word in bad_words), default=0)
        self._tail: list[int] = []
        self.edits_logits = bool(
            self._bias is not None or self._seen or penalised or bad_words or self._forbidden_early.size
        )
        """Whether any logit of this sequence may ever have to be changed."""

    def record(self, token_id: int) -> None:
        """Note that ``token_id`` is the next token of the text."""
        self.num_generated += 1
        if not self.edits_logits:
            return
        if self._seen is not None:
            self._seen.add(token_id)
        if self._counts is not None:
            self._counts.add(token_id)
        if self._longest:
            self._tail = [*self._tail, token_id][-self._longest :]

    def fork(self, index: int) -> SamplerState:
        """Another continuation with the same past, which draws from stream ``index`` from here on.

        Raises:
            ValueError: A negative ``index``.
        """
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        other = copy.deepcopy(self)
        other._open_stream(index)  # noqa: SLF001 - of its own class
        return other

    def uniform(self, ahead: int = 0) -> float:
        """The number in [0, 1) that draws generated token ``num_generated + ahead``; asking changes no draw."""
        offset = self.num_generated + ahead - self._first
        if offset >= len(self._uniforms):
            offset = self._extend(offset)
        return self._uniforms[offset]

    def bias(self) -> Edits | None:
        """Token ids (M,) and what is added to their logits (M,); None for nothing."""
        return self._bias

    def repeated(self, ahead: Sequence[int] = ()) -> NDArray[np.int64] | None:
        """Distinct tokens (M,) of prompt, text and ``ahead`` that the repetition penalty concerns; None without it.

        The array is valid until the next :meth:`record`.
        """
        return None if self._seen is None else self._seen.including(ahead)[0]

    def penalties(self, ahead: Sequence[int] = ()) -> Edits | None:
        """What the text so far, followed by ``ahead``, takes off the logits of the next token.

        Returns:
            Distinct token ids (M,) and what is added (M,): presence and frequency penalties, ``-inf`` for end tokens
            before ``min_tokens`` and for tokens that would complete a bad word. None for nothing.
        """
        forbidden = self._prohibited(ahead)
        if self._counts is None:
            return (forbidden, np.full(forbidden.size, -np.inf, dtype=np.float32)) if forbidden.size else None
        ids, counts = self._counts.including(ahead)
        values = -(np.float32(self.params.presence_penalty) + np.float32(self.params.frequency_penalty) * counts)
        if forbidden.size:
            kept = ~np.isin(ids, forbidden)
            ids = np.concatenate([ids[kept], forbidden])
            values = np.concatenate([values[kept], np.full(forbidden.size, -np.inf, dtype=np.float32)])
        return (ids, values) if ids.size else None

    def _prohibited(self, ahead: Sequence[int]) -> NDArray[np.int64]:
        early = self.num_generated + len(ahead) < self.params.min_tokens
        forbidden = self._forbidden_early if early else self._forbidden
        if not self._longest:
            return forbidden
        tail = tuple(self._tail) + tuple(ahead)
        words = self._endings.get(tail[-1], ()) if tail else ()
        completing = [word[-1] for word in words if tail[-len(word) + 1 :] == word[:-1]]
        return np.union1d(forbidden, np.array(completing, dtype=np.int64)) if completing else forbidden

    def _open_stream(self, index: int) -> None:
        bits = np.random.PCG64([self._seed, index])
        if self.num_generated:
            bits.advance(self.num_generated)  # a double takes one step of PCG64
        self._generator = np.random.Generator(bits)
        self._first = self.num_generated
        self._uniforms: list[float] = []

    def _extend(self, offset: int) -> int:
        """Draw up to ``offset``, forget what lies behind, and say where ``offset`` is now."""
        behind = min(self.num_generated - self._first, len(self._uniforms))
        missing = offset + 1 - len(self._uniforms)
        drawn = self._generator.random(-(-missing // _BLOCK) * _BLOCK).tolist()
        self._uniforms = self._uniforms[behind:] + drawn
        self._first += behind
        return offset - behind


class _Tally:
    """Distinct tokens and how often each came, as arrays that grow in place."""

    def __init__(self, tokens: Sequence[int]) -> None:
        ids, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
        self._slots: dict[int, int] = {int(token_id): slot for slot, token_id in enumerate(ids)}
        self._ids: NDArray[np.int64] = ids
        self._counts: NDArray[np.float32] = counts.astype(np.float32)

    def add(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros(max(16, slot), dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(max(16, slot), dtype=np.float32)])
        self._ids[slot] = token_id
        self._counts[slot] += 1

    def including(self, ahead: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct tokens (M,) and counts (M,) with those of ``ahead``; views that the next ``add`` may change."""
        size = len(self._slots)
        ids, counts = self._ids[:size], self._counts[:size]
        if not ahead:
            return ids, counts
        counts = counts.copy()
        fresh: dict[int, int] = {}
        for token_id in ahead:
            slot = self._slots.get(token_id)
            if slot is None:
                fresh[token_id] = fresh.get(token_id, 0) + 1
            else:
                counts[slot] += 1
        return (
            np.concatenate([ids, np.fromiter(fresh, dtype=np.int64, count=len(fresh))]),
            np.concatenate([counts, np.fromiter(fresh.values(), dtype=np.float32, count=len(fresh))]),
        )


def _bias(params: SamplingParams) -> Edits | None:
    if not params.logit_bias:
        return None
    return _token_array(params.logit_bias), np.fromiter(params.logit_bias.values(), dtype=np.float32)


def _token_array(ids: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(ids), dtype=np.int64)
