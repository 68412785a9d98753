"""A tokenizer's vocabulary as ``llguidance`` needs it: bytes per token, and which tokens structured text may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llguidance import LLTokenizer
    from numpy.typing import NDArray

    from inference_pio.processing import Tokenizer

_NEVER_IN_UTF8 = b"\xff"  # llguidance marks special tokens with this byte, so ordinary text must not bring it


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask over ``vocab_size`` tokens."""
    return -(-vocab_size // 32)


class StructureVocabulary:
    """The tokens that structured text is made of.

    Special tokens, gaps and padding spell nothing and are never allowed; of several tokens that spell the same bytes
    the last one stands for all (byte-fallback tokens come first, and models do not use them where they have another).

    Args:
        tokenizer: Spells the tokens.
        vocab_size: Logits per row; ids beyond the tokenizer's are padding.
        end_token_ids: Tokens that end a text; those outside of the vocabulary are ignored.

    Attributes:
        tokenizer: The vocabulary as a trie.
        spelling: Bytes of each token; empty for those that are never part of a text.
        num_words: int32 words of a mask.
        selectable: int32 (W,), bits of tokens that a mask may ever allow.
        end_mask: int32 (W,), bits of the end tokens.
        end_token_ids: The end tokens.

    Raises:
        UnsupportedError: There is no end token and no unused one that could stand for it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Collection[int]) -> None:
        from llguidance import LLTokenizer

        self.num_words = mask_words(vocab_size)
        self.end_token_ids = frozenset(token_id for token_id in end_token_ids if 0 <= token_id < vocab_size)
        spelled = self.spelling = _spelled_bytes(tokenizer, vocab_size, self.end_token_ids)
        blanks = [token_id for token_id, piece in enumerate(spelled) if not piece]
        if not blanks:
            raise UnsupportedError(
                "structured outputs need an end token, and the model names none", hint="name one in config.json"
            )
        self.end_mask = _bits(sorted(self.end_token_ids), self.num_words)
        words = [token_id for token_id, piece in enumerate(spelled) if piece]
        self.selectable = _bits(words, self.num_words) | self.end_mask
        self.tokenizer: LLTokenizer = LLTokenizer(
            _Wrapper(tokenizer, spelled, blanks[0]),  # type: ignore[arg-type]  # asks for a class, uses a protocol
            eos_token=sorted(self.end_token_ids) or blanks[0],
        )


class _Wrapper:
    """What ``llguidance`` reads from a tokenizer; the names are its own."""

    is_tokenizer_wrapper = True
    _accepts_bytes = False

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.special_token_ids: tuple[int, ...] = ()
        self._tokenizer = tokenizer
        self._ids = {piece: token_id for token_id, piece in enumerate(tokens) if piece}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """How the tokenizer splits ``text``: where only one text can follow, this is how it is spelled."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        data = text.encode()
        within = all(token_id < len(self.tokens) for token_id in ids)
        if within and b"".join(self.tokens[token_id] for token_id in ids) == data:
            return ids
        return self._greedy(data)  # tokenizers that put a space before every text

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token at each place; ends early where none fits."""
        ids: list[int] = []
        start = 0
        while start < len(data):
            lengths = range(min(self._longest, len(data) - start), 0, -1)
            fitting = next((size for size in lengths if data[start : start + size] in self._ids), None)
            if fitting is None:
                break
            ids.append(self._ids[data[start : start + fitting]])
            start += fitting
        return ids


def _spelled_bytes(tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]) -> list[bytes]:
    """Bytes per id; empty for what must never be part of a text."""
    spelled: list[bytes] = []
    last: dict[bytes, int] = {}
    for token_id in range(vocab_size):
        piece = b""
        if token_id not in tokenizer.special_ids and token_id not in ends:
            piece = _token_bytes(tokenizer, token_id)
        if _NEVER_IN_UTF8 in piece:
            piece = b""
        if piece in last:
            spelled[last[piece]] = b""
        if piece:
            last[piece] = token_id
        spelled.append(piece)
    return spelled


def _token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.token_bytes(token_id)
    except InvalidRequestError:  # a gap, or padding
        return b""


def _bits(token_ids: Sequence[int], num_words: int) -> NDArray[np.int32]:
    flags = np.zeros(num_words * 32, dtype=np.uint8)
    flags[np.array(token_ids, dtype=np.int64)] = 1
    return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)
