"""What each token contributes to the text, as bytes: the decoders of the ``tokenizers`` library, one token at a time.

Decoding whole lists of tokens and decoding them as they come must agree, so both use the rules of this module. The
text is the UTF-8 decoding of the joined bytes; every maximal invalid part becomes one U+FFFD, for both kinds of
tokenizer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRule:
    """How the tokens of one tokenizer turn into bytes.

    Attributes:
        to_bytes: Bytes of a token, from its spelling in the vocabulary.
        first_to_bytes: The same for the first token of a text.
        strip: Spaces removed from the start of a text, at most this many.
    """

    to_bytes: Callable[[str], bytes]
    first_to_bytes: Callable[[str], bytes]
    strip: int = 0


def byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies, to that byte.

    Printable bytes stand for themselves; the others take the code points from 256 on (Radford et al. 2019, GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def byte_level_rule() -> PieceRule:
    """Byte-level BPE: each character of a token stands for a byte; a token with any other character is plain text."""
    alphabet = byte_level_alphabet()

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([alphabet[char] for char in token])
        except KeyError:
            return token.encode()

    return PieceRule(to_bytes=to_bytes, first_to_bytes=to_bytes)


def sentencepiece_rule(*, replacement: str = "▁", strip: int) -> PieceRule:
    """SentencePiece with byte fallback: ``<0x0A>`` is a byte, ``replacement`` a space."""

    def to_bytes(token: str) -> bytes:
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(replacement, " ").encode()

    return PieceRule(to_bytes=to_bytes, first_to_bytes=to_bytes, strip=strip)


def metaspace_rule(*, replacement: str, prepended: bool) -> PieceRule:
    """Metaspace: ``replacement`` is a space, except in the first token, where a prepended one is dropped."""

    def to_bytes(token: str) -> bytes:
        return token.replace(replacement, " ").encode()

    def first_to_bytes(token: str) -> bytes:
        return token.replace(replacement, "").encode()

    return PieceRule(to_bytes=to_bytes, first_to_bytes=first_to_bytes if prepended else to_bytes)


def rule_from_decoder(spec: str | None) -> PieceRule:
    """The rule that a ``tokenizer.json`` decoder stands for.

    Args:
        spec: JSON of the decoder, or None where the tokenizer has none.

    Raises:
        UnsupportedError: A decoder of another kind.
    """
    parts = [] if spec is None else _flatten(json.loads(spec))
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return byte_level_rule()
    if kinds == ["Metaspace"]:
        scheme = parts[0].get("prepend_scheme", "always")
        return metaspace_rule(replacement=str(parts[0]["replacement"]), prepended=scheme != "never")
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        replacement = _replaced_by_space(parts[0])
        strip = parts[3] if len(parts) == 4 else {"content": " ", "start": 0, "stop": 0}
        if replacement is not None and strip.get("content") == " " and strip.get("stop") == 0:
            return sentencepiece_rule(replacement=replacement, strip=int(str(strip["start"])))
    raise UnsupportedError(
        f"the tokenizer's decoder is {' + '.join(map(str, kinds)) or 'missing'}",
        hint="supported decoders: ByteLevel; Metaspace; Replace + ByteFallback + Fuse, with or without Strip",
    )


def _flatten(spec: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The steps of a decoder in order, sequences dissolved."""
    inner = spec.get("decoders")
    if spec.get("type") != "Sequence" or not isinstance(inner, list):
        return [spec]
    return [part for item in inner for part in _flatten(item)]


def _replaced_by_space(part: Mapping[str, object]) -> str | None:
    """What a Replace step turns into a space, or None if it does something else."""
    pattern = part.get("pattern")
    if part.get("content") != " " or not isinstance(pattern, dict):
        return None
    string = pattern.get("String")
    return string if isinstance(string, str) and string else None
