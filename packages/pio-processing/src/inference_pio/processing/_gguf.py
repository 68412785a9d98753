"""Tokenizers out of GGUF metadata (keys ``tokenizer.*`` of the GGUF specification)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from inference_pio.interfaces import MalformedFileError, UnsupportedError
from inference_pio.processing._pieces import byte_level_rule, sentencepiece_rule
from inference_pio.processing._pretokenizers import build_pre_tokenizer, find_pre_tokenizer
from inference_pio.processing._scores import merges_from_scores
from inference_pio.processing._tokenizer import DEFAULT_TEMPLATE, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tokenizers

T = TypeVar("T", str, int, float)

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_END_KEYS = ("eot_token_id", "eom_token_id")
# Older files name only the token that ends a document; these end a turn by their published meaning.
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
_MAX_TOKEN_CHARS = 4096


# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPECIAL = (_UNKNOWN, _CONTROL)
_FOUND_IN_TEXT = (_UNKNOWN, _CONTROL, _USER_DEFINED)
_NEVER_MERGED = (_UNKNOWN, _CONTROL, _BYTE)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Spellings and types by id, and ids by spelling."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]


class _Metadata:
    """Typed access to the metadata, with one-line errors."""

    def __init__(self, metadata: Mapping[str, object], path: object) -> None:
        self._metadata = metadata
        self.path = path

    def error(self, key: str, problem: str, *, hint: str | None = None) -> MalformedFileError:
        return MalformedFileError(self.path, _PREFIX + key, problem, hint=hint)

    def has(self, key: str) -> bool:
        return _PREFIX + key in self._metadata

    def value(self, key: str, kind: type[T], default: T) -> T:
        value = self._metadata.get(_PREFIX + key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"must be of type {kind.__name__}, got {value!r}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._metadata.get(_PREFIX + key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {value!r}")
        return value

    def array(self, key: str, kind: type[T], *, length: int | None = None) -> list[T]:
        """A list of ``kind``, from a list or a NumPy array."""
        value = self._metadata.get(_PREFIX + key)
        listed: object = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(listed, list) or not {type(item) for item in listed} <= {kind}:
            raise self.error(key, f"must be an array of {kind.__name__}, got {type(value).__name__}")
        if length is not None and len(listed) != length:
            raise self.error(key, f"has {len(listed)} entries, but there are {length} tokens")
        return listed

    def token_id(self, key: str, size: int) -> int | None:
        if not self.has(key):
            return None
        value = self.value(key, int, 0)
        if value in (2**32 - 1, -1):  # how converters write "none"
            return None
        if not 0 <= value < size:
            raise self.error(key, f"is {value}, but ids go from 0 to {size - 1}")
        return value

    def templates(self) -> dict[str, str]:
        """Sources by name: ``tokenizer.chat_template`` and ``tokenizer.chat_template.NAME``."""
        found: dict[str, str] = {}
        for key, value in self._metadata.items():
            if key == _TEMPLATE or key.startswith(_TEMPLATE + "."):
                if not isinstance(value, str):
                    raise MalformedFileError(self.path, key, f"must be a string, got {type(value).__name__}")
                found[key.removeprefix(_TEMPLATE).removeprefix(".") or DEFAULT_TEMPLATE] = value
        return found


def tokenizer_from_gguf(metadata: Mapping[str, object], *, path: object = "GGUF metadata") -> Tokenizer | None:
    """The tokenizer that the metadata of a GGUF file describe.

    Args:
        metadata: Keys and values of the file. Arrays may be lists or NumPy arrays.
        path: The file, for messages.

    Returns:
        The tokenizer, or None if the file has no vocabulary.

    Raises:
        UnsupportedError: A tokenizer model or pre-tokenizer that is not known here.
        MalformedFileError: Metadata that contradict themselves.
    """
    meta = _Metadata(metadata, path)
    model = meta.value("model", str, "none")
    if model in ("none", "no_vocab") or not meta.has("tokens"):
        return None
    if model not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"tokenizer.ggml.model is {model!r}", hint="known models: gpt2 (byte-level BPE), llama (SentencePiece BPE)"
        )
    vocabulary = _vocabulary(meta)
    tokens = vocabulary.tokens
    special_tokens = {
        role: tokens[token_id]
        for role, key in _ROLES.items()
        if (token_id := meta.token_id(key, len(tokens))) is not None
    }
    if model == "gpt2":
        pre = find_pre_tokenizer(meta.value("pre", str, "default"))
        backend = _byte_level_backend(meta, vocabulary)
        backend.pre_tokenizer = build_pre_tokenizer(pre)
        rule, adds_bos = byte_level_rule(), pre.adds_bos
        if pre.nfc:
            from tokenizers import normalizers

            backend.normalizer = normalizers.NFC()
        backend.model.ignore_merges = pre.whole_words
    else:
        spaced = meta.flag("add_space_prefix", default=True)
        backend = _sentencepiece_backend(meta, vocabulary, spaced=spaced)
        rule, adds_bos = sentencepiece_rule(strip=1 if spaced else 0), True
    _add_special(backend, vocabulary)
    return Tokenizer(
        backend,
        rule,
        special_tokens=special_tokens,
        chat_templates=meta.templates(),
        prefix=_affix(meta, "add_bos_token", "bos_token_id", len(tokens), default=adds_bos),
        suffix=_affix(meta, "add_eos_token", "eos_token_id", len(tokens), default=False),
        end_token_ids=_end_tokens(meta, vocabulary),
    )


def _vocabulary(meta: _Metadata) -> _Vocabulary:
    tokens = meta.array("tokens", str)
    if not tokens:
        raise meta.error("tokens", "is empty")
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise meta.error("tokens", f"has {Counter(tokens).most_common(1)[0][0][:80]!r} twice")
    if (longest := max(map(len, tokens))) > _MAX_TOKEN_CHARS:
        raise meta.error("tokens", f"has a token of {longest} characters; the limit is {_MAX_TOKEN_CHARS}")
    if not meta.has("token_type"):
        return _Vocabulary(tokens, [_NORMAL] * len(tokens), ids)
    types = meta.array("token_type", int, length=len(tokens))
    if strays := set(types) - {0, *range(_NORMAL, _BYTE + 1)}:
        raise meta.error("token_type", f"has unknown type {min(strays)}")
    return _Vocabulary(tokens, types, ids)


def _byte_level_backend(meta: _Metadata, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    # Calling a function for each merge would take three times as long, and nearly none needs it.
    merges = [
        (left, right) if left and right else _pair(meta, merge)
        for merge in meta.array("merges", str)
        for left, _, right in [merge.partition(" ")]
    ]
    try:
        model = models.BPE(vocab=vocabulary.ids, merges=merges)
    except Exception as error:  # the library raises bare Exception for a merge that is not made of tokens
        raise meta.error("merges", " ".join(str(error).split())[:200]) from error
    return Backend(model)


def _pair(meta: _Metadata, merge: str) -> tuple[str, str]:
    """The two tokens that a merge joins; the first may be, or begin with, a space."""
    space = merge.find(" ", 1)
    if space < 0:
        raise meta.error("merges", f"{merge[:80]!r} is not two tokens with a space between")
    return merge[:space], merge[space + 1 :]


def _sentencepiece_backend(meta: _Metadata, vocabulary: _Vocabulary, *, spaced: bool) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    tokens = vocabulary.tokens
    scores = meta.array("scores", float, length=len(tokens))
    if not all(map(math.isfinite, scores)):
        raise meta.error("scores", "has a value that is not a finite number")
    mergeable = {
        token: token_id
        for (token, token_id), kind in zip(vocabulary.ids.items(), vocabulary.types, strict=True)
        if kind not in _NEVER_MERGED
    }
    unknown = meta.token_id("unknown_token_id", len(tokens))
    backend = Backend(
        models.BPE(
            vocab=vocabulary.ids,
            merges=merges_from_scores(mergeable, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=_BYTE in vocabulary.types,
        )
    )
    prepend: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if spaced else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    return backend


def _add_special(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control and unknown tokens become special ones; user-defined tokens are found in text as they are spelled."""
    from tokenizers import AddedToken

    added = [
        AddedToken(vocabulary.tokens[token_id], special=kind in _SPECIAL, normalized=False)
        for token_id, kind in enumerate(vocabulary.types)
        if kind in _FOUND_IN_TEXT
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])


def _affix(meta: _Metadata, flag: str, key: str, size: int, *, default: bool) -> list[int]:
    """The token put before or after every text, if the file says so."""
    token_id = meta.token_id(key, size)
    if not meta.flag(flag, default=default and token_id is not None):
        return []
    if token_id is None:
        raise meta.error(flag, f"is true, but there is no {_PREFIX}{key}")
    return [token_id]


def _end_tokens(meta: _Metadata, vocabulary: _Vocabulary) -> list[int]:
    """Tokens that end a turn or a message: as the file says, else by their well-known spellings."""
    size = len(vocabulary.tokens)
    named = [token_id for key in _END_KEYS if (token_id := meta.token_id(key, size)) is not None]
    if named:
        return named
    spelled = [token_id for token in _END_OF_TURN if (token_id := vocabulary.ids.get(token)) is not None]
    return [token_id for token_id in spelled if vocabulary.types[token_id] == _CONTROL]
