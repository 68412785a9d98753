"""Structured output: which tokens keep a text within its form, for one sequence at a time.

``llguidance`` does the parsing; it is imported when the first structure is compiled.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.core._grammar import form_name, grammar_source, one_line, way_out
from inference_pio.core._vocabulary import StructureVocabulary
from inference_pio.interfaces import EngineError, InvalidRequestError, StructureError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from inference_pio.interfaces import StructuredOutputs
    from inference_pio.processing import Tokenizer

CACHED_STRUCTURES = 128
# Bounds that keep a hostile form from holding up a step: of the library's defaults about a third.
_MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
_COMPILE_FUEL = 300_000
_STEP_FUEL = 100_000
_STEP_ITEMS = 20_000


class Structure:
    """Where one sequence stands within its form. Not safe to share between threads.

    Made by :meth:`StructureCompiler.compile` and :meth:`fork`. End tokens are remembered here and never reach the
    matcher, which cannot take them back once nothing else may follow.

    Args:
        matcher: The parser, owned by this object from now on.
        vocabulary: What it was built on.
    """

    __slots__ = ("_ended", "_taken", "matcher", "vocabulary")

    def __init__(self, matcher: LLMatcher, vocabulary: StructureVocabulary) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self._taken = 0
        self._ended = 0

    @property
    def has_ended(self) -> bool:
        """Whether an end token was taken: only end tokens may follow."""
        return self._ended > 0

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self.has_ended or (self.matcher.is_stopped() and not self.matcher.is_error())

    @property
    def error(self) -> str | None:
        """Why the structure cannot go on, such as a grammar that became too complex; None if it can. One line."""
        if not self.matcher.is_error():
            return None
        message = one_line(self.matcher.get_error())
        return "no token can follow" if message.startswith("NoExtension") else message

    def failure(self) -> StructureError:
        """What whoever asked for the form is told once there is an :attr:`error`."""
        return StructureError(f"the structured output cannot go on: {self.error}", hint="simplify the form")

    def fill_mask(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may come next.

        Args:
            out: int32 (W,), contiguous: bit ``i % 32`` of word ``i // 32`` is set if token ``i`` is allowed. An end
                token is allowed exactly where the text may end.

        Raises:
            StructureError: It leads nowhere or became too complex.
        """
        if self.has_ended:
            out[:] = self.vocabulary.end_mask
            return
        self.matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        if self.matcher.is_error():
            raise self.failure()
        out &= self.vocabulary.selectable

    def advance(self, token_id: int) -> None:
        """Take ``token_id``.

        Raises:
            EngineError: It is not allowed here; nothing changes.
        """
        if token_id in self.vocabulary.end_token_ids:
            if not self.has_ended and not self.matcher.is_accepting():
                raise EngineError(f"the text may not end here, but end token {token_id} was taken")
            self._ended += 1
            return
        if self.has_ended or self.matcher.try_consume_tokens([token_id]) != 1:
            raise EngineError(f"token {token_id} does not follow the structure of the text")
        self._taken += 1

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens.

        Raises:
            ValueError: Fewer were taken.
        """
        if not 0 <= count <= self._taken + self._ended:
            msg = f"cannot take back {count} tokens of {self._taken + self._ended}"
            raise ValueError(msg)
        ends = min(count, self._ended)
        self._ended -= ends
        if count > ends:
            self.matcher.rollback(count - ends)
            self._taken -= count - ends

    def fork(self) -> Structure:
        """An independent copy in the same state."""
        copy = Structure(self.matcher.deep_copy(), self.vocabulary)
        copy._taken, copy._ended = self._taken, self._ended
        return copy

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of the leading ``tokens`` are allowed, one after the other. Changes nothing."""
        ends = self.vocabulary.end_token_ids
        texts = next((index for index, token_id in enumerate(tokens) if token_id in ends), len(tokens))
        if self.has_ended:
            valid = 0
        else:
            # The matcher's own check does not tell whether the text may end after these, so they are taken, and back.
            valid = self.matcher.try_consume_tokens(list(tokens[:texts])) if texts else 0
            may_end = valid == texts < len(tokens) and self.matcher.is_accepting()
            if valid:
                self.matcher.rollback(valid)
            if not may_end:
                return valid
        while valid < len(tokens) and tokens[valid] in ends:
            valid += 1
        return valid


class StructureCompiler:
    """Makes structures for one vocabulary. Safe to share between threads.

    Args:
        tokenizer: Spells the tokens.
        vocab_size: Logits per row.
        end_token_ids: Tokens that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = frozenset(end_token_ids)
        self._vocabulary: StructureVocabulary | None = None
        self._reading = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], Structure] = OrderedDict()
        self._lock = threading.Lock()  # never held while a form is compiled: the engine's step takes it too

    def vocabulary(self) -> StructureVocabulary:
        """What structures are built on; the first call reads it (some tenths of a second, or seconds where it is long).

        Raises:
            UnsupportedError: The model has no end token.
        """
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = StructureVocabulary(self._tokenizer, self._vocab_size, self._end_token_ids)
            return self._vocabulary

    def compile(self, structured: StructuredOutputs) -> Structure:
        """The structure of a text that is to have this form, at its beginning.

        The first call reads the vocabulary; the last 128 forms are kept, each until a text has used up its bounds,
        which all copies share.

        Raises:
            InvalidRequestError: The form is malformed, beyond the bounds, or no text has it.
            UnsupportedError: The model has no end token.
        """
        key = form_name(structured), grammar_source(structured)
        with self._lock:
            known = self._compiled.get(key)
            copy = None if known is None else known.fork()
        if known is None or copy is None or not _can_begin(copy):
            known = self._compile(*key)
        with self._lock:
            self._compiled[key] = known
            self._compiled.move_to_end(key)
            while len(self._compiled) > CACHED_STRUCTURES:
                self._compiled.popitem(last=False)
            return known.fork()

    def _compile(self, form: str, grammar: str) -> Structure:
        from llguidance import LLMatcher, LLParserLimits

        vocabulary = self.vocabulary()
        limits = LLParserLimits(
            initial_lexer_fuel=_COMPILE_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            step_max_items=_STEP_ITEMS,
            max_lexer_states=_MAX_LEXER_STATES,
            verbose_errors=False,
        )
        matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidRequestError(
                f"the {form} of structured_outputs cannot be used: {one_line(matcher.get_error())}", hint=way_out(form)
            )
        structure = Structure(matcher, vocabulary)
        for _ in range(2):  # what one copy has used up of the bounds shows in the next
            _check_beginning(structure.fork(), form)
        return structure


def _can_begin(structure: Structure) -> bool:
    """Whether the first token can be asked for."""
    try:
        structure.fill_mask(np.empty(structure.vocabulary.num_words, dtype=np.int32))
    except StructureError:
        return False
    return True


def _check_beginning(structure: Structure, form: str) -> None:
    """Some impossible forms are found out only when the first token is asked for."""
    mask = np.empty(structure.vocabulary.num_words, dtype=np.int32)
    try:
        structure.fill_mask(mask)
    except EngineError as error:
        reason = structure.error or ""
        if "error" in reason:  # a bound, with its reason; otherwise the parser just stopped
            raise InvalidRequestError(
                f"the {form} of structured_outputs is too complex: {reason}", hint="simplify it"
            ) from error
        mask[:] = 0
    if not mask.any():
        raise InvalidRequestError(f"no text matches the {form} of structured_outputs", hint=way_out(form))
