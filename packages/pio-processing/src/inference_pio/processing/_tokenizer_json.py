"""From the content of a ``tokenizer.json`` to a tokenizer of the ``tokenizers`` library.

What that library takes for granted is checked first: files that break these rules make it panic, in the worst case so
that the whole process is aborted, or make ids ambiguous.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

from inference_pio.interfaces import MalformedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import tokenizers

_ADDED_TOKEN = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MAX_ID = 2**32 - 1


def build_backend(path: Path, spec: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that ``spec`` describes, without truncation, padding and dropout.

    Args:
        path: The file, for messages.
        spec: Its content.

    Raises:
        MalformedFileError: Content that contradicts itself.
        UnsupportedError: A model of another kind than BPE or Unigram, or word-piece markers in a BPE.
    """
    import tokenizers

    model = _mapping(path, "model", spec.get("model"))
    kind = model.get("type") or ("BPE" if "merges" in model else None)  # the oldest files name no type
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedError(f"{path}: the tokenizer's model is {kind!r:.40}", hint="supported: BPE, Unigram")
    for processor in _steps(spec.get("post_processor"), "processors"):
        if processor.get("type") == "TemplateProcessing":
            _check_template(path, processor)
    if kind == "BPE":
        _check_bpe(path, model)
    else:
        _check_unigram(path, model)
    try:
        is_bpe = kind == "BPE"
        backend = _bpe_backend(path, spec, model) if is_bpe else tokenizers.Tokenizer.from_str(json.dumps(spec))
    except MalformedFileError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise MalformedFileError(path, "content", " ".join(str(error).split())[:200]) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _bpe_backend(path: Path, spec: dict[str, Any], model: dict[str, Any]) -> tokenizers.Tokenizer:
    """The same as reading the whole file once more in the library, in half the time."""
    from tokenizers import AddedToken, Tokenizer, models

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    backend = Tokenizer.from_str(json.dumps({**spec, "model": empty, "added_tokens": []}))
    backend.model = models.BPE(
        vocab=model["vocab"],
        merges=[_pair(path, merge) for merge in _list(path, "model.merges", model.get("merges"))],
        unk_token=model.get("unk_token"),
        fuse_unk=bool(model.get("fuse_unk")),
        byte_fallback=bool(model.get("byte_fallback")),
        ignore_merges=bool(model.get("ignore_merges")),
    )
    # Ids follow from the order, as they do in the library.
    entries = [
        dict(_mapping(path, "added_tokens", entry))
        for entry in _list(path, "added_tokens", spec.get("added_tokens", []))
    ]
    tokens = [AddedToken(**{key: entry[key] for key in _ADDED_TOKEN if key in entry}) for entry in entries]
    for special, group in groupby(tokens, key=lambda token: token.special):
        if special:
            backend.add_special_tokens(list(group))
        else:
            backend.add_tokens(list(group))
    return backend


def _pair(path: Path, merge: object) -> tuple[str, str]:
    """The two tokens that a merge joins: a pair, or in older files a string with a space between."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        raise MalformedFileError(path, "model.merges", f"{merge!r:.80} is not two tokens")
    left, right = parts
    return left, right


def _check_bpe(path: Path, model: dict[str, Any]) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(
                f"{path}: model.{key} is {model[key]!r:.40}", hint="supported: null or an empty string"
            )
    ids = _mapping(path, "model.vocab", model.get("vocab")).values()
    if not {type(token_id) for token_id in ids} <= {int}:
        raise MalformedFileError(path, "model.vocab", "must map tokens to integers")
    distinct = set(ids)
    if len(distinct) != len(ids):
        raise MalformedFileError(path, "model.vocab", f"has {len(ids)} tokens, but only {len(distinct)} different ids")
    if distinct and not 0 <= min(distinct) <= max(distinct) <= _MAX_ID:
        raise MalformedFileError(path, "model.vocab", f"has an id outside of 0 to {_MAX_ID}")


def _check_unigram(path: Path, model: dict[str, Any]) -> None:
    vocab, unknown = _list(path, "model.vocab", model.get("vocab")), model.get("unk_id")
    if not isinstance(unknown, int) or not 0 <= unknown < len(vocab):
        raise MalformedFileError(path, "model.unk_id", f"must be the id of a token, got {unknown!r:.40}")


def _check_template(path: Path, processor: dict[str, Any]) -> None:
    """Every special token that a template puts in must be described."""
    described = _mapping(path, "post_processor.special_tokens", processor.get("special_tokens"))
    for key in ("single", "pair"):
        pieces = processor.get(key)
        for piece in pieces if isinstance(pieces, list) else []:
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = special.get("id") if isinstance(special, dict) else None
            if isinstance(name, str) and name not in described:
                raise MalformedFileError(path, f"post_processor.{key}", f"uses {name!r:.40}, which is not described")


def _steps(step: object, inner: str) -> Iterator[dict[str, Any]]:
    """A step and those inside it."""
    if isinstance(step, dict):
        yield step
        parts = step.get(inner)
        for part in parts if isinstance(parts, list) else []:
            yield from _steps(part, inner)


def _list(path: Path, field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedFileError(path, field, f"must be a list, got {type(value).__name__}")
    return value


def _mapping(path: Path, field: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedFileError(path, field, f"must be an object, got {type(value).__name__}")
    return value
