"""Which files of a hub repository are fetched: one set of weights that hold no code, and what goes with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from inference_pio.interfaces import MalformedFileError, ModelNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INDEX_NAME = "model.safetensors.index.json"
_DEFAULT_ENCODING = "Q4_K_M"
_COMPANIONS = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)([.\-_][\w.-]*)?", re.ASCII | re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+ ()\-]*", re.ASCII)
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_CODE_BEARING = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx")


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a file at the top of a repository, with a name that is a name on every system."""
    return _PLAIN_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository's listing; ``sha256`` and ``blob_id`` (git's SHA-1) as far as the hub gives them."""

    name: str
    bytes: int
    sha256: str | None
    blob_id: str | None


def choose_files(
    model_id: str, tag: str | None, listing: Sequence[RemoteFile], read_index: Callable[[RemoteFile], set[str]]
) -> list[RemoteFile]:
    """The files to fetch; folders of a repository are left out.

    Args:
        model_id: ``owner/name`` or ``owner/name:TAG``, for messages.
        tag: Selects one of several GGUF files: a file name, or the encoding at its end.
        listing: All files of the repository.
        read_index: Fetches the index of a sharded checkpoint and gives the names of its shards.

    Raises:
        UnsupportedError: No weights in a format that is read, or several and nothing that chooses one.
        ModelNotFoundError: No file for ``tag``.
        MalformedFileError: The index names a file that is not there.
    """
    top = {file.name: file for file in listing if is_plain_name(file.name)}
    companions = [file for file in top.values() if file.name in _COMPANIONS or _LICENCE.fullmatch(file.name)]
    if tag is None and _INDEX_NAME in top:
        shards = read_index(top[_INDEX_NAME])
        if missing := sorted(shards - top.keys()):
            raise MalformedFileError(
                f"{model_id}/{_INDEX_NAME}", "weight_map", f"names {missing[0]!r}, which is not there"
            )
        return [*companions, top[_INDEX_NAME], *(top[name] for name in sorted(shards))]
    safetensors = [file for file in top.values() if file.name.endswith(".safetensors")]
    if tag is None and safetensors:
        return [*companions, top.get("model.safetensors") or _only(model_id, safetensors, "safetensors")]
    ggufs = [
        file
        for file in top.values()
        if file.name.lower().endswith(".gguf") and not file.name.lower().startswith("mmproj")
    ]
    if tag is not None:
        ggufs = [file for file in ggufs if _has_tag(file.name, tag)] or _refuse_tag(model_id, tag, ggufs)
    elif len(ggufs) > 1:
        ggufs = [file for file in ggufs if _has_tag(file.name, _DEFAULT_ENCODING)] or ggufs
    if not ggufs:
        others = [file.name for file in listing if file.name.endswith(_CODE_BEARING)]
        found = f"; it has {others[0]}, a format that is not fetched" if others else ""
        raise UnsupportedError(f"{model_id} has no .safetensors or .gguf weights{found}")
    chosen = _only(model_id, ggufs, "GGUF")
    if _SPLIT_GGUF.search(chosen.name):
        raise UnsupportedError(f"{model_id}: {chosen.name} is one part of a split GGUF file, which is not read")
    return [*companions, chosen]


def _has_tag(file_name: str, tag: str) -> bool:
    """Whether ``tag`` is the file's name, or the encoding at its end (``name-Q4_K_M.gguf``, ``name.q8_0.gguf``)."""
    stem = file_name.lower().removesuffix(".gguf")
    wanted = tag.lower().removesuffix(".gguf")
    return stem == wanted or stem.endswith((f"-{wanted}", f".{wanted}"))


def _refuse_tag(model_id: str, tag: str, ggufs: Sequence[RemoteFile]) -> NoReturn:
    names = ", ".join(sorted(file.name for file in ggufs)[:12]) or "no GGUF file"
    raise ModelNotFoundError(f"{model_id}: no file for the tag {tag!r}", hint=f"there is {names}")


def _only(model_id: str, files: Sequence[RemoteFile], kind: str) -> RemoteFile:
    if len(files) == 1:
        return files[0]
    names = ", ".join(sorted(file.name for file in files)[:12])
    hint = f"choose one with a tag, such as {model_id.partition(':')[0]}:Q8_0" if kind == "GGUF" else None
    raise UnsupportedError(f"{model_id} has {len(files)} {kind} files and none that is the model: {names}", hint=hint)
