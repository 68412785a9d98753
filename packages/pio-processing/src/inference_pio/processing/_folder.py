"""Tokenizers out of a model folder, in the files that Hugging Face models carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.interfaces import MalformedFileError, UnsupportedError
from inference_pio.processing._files import read_json_object, read_text
from inference_pio.processing._pieces import rule_from_decoder
from inference_pio.processing._template import MAX_TEMPLATE_BYTES
from inference_pio.processing._tokenizer import DEFAULT_TEMPLATE, Tokenizer
from inference_pio.processing._tokenizer_json import build_backend

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import tokenizers

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
# A config may list every added token and hold templates; the largest in use are a little over one megabyte.
MAX_CONFIG_BYTES = 16 * 1024 * 1024
MAX_TEMPLATES = 32

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


def tokenizer_from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder.

    Read are ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json``, ``chat_template.jinja`` and
    ``additional_chat_templates/*.jinja``. What ``tokenizer.json`` says of the tokens around a text counts, whatever
    ``add_bos_token`` in the config says, as in transformers 5.

    Returns:
        The tokenizer, or None if the folder has no vocabulary file.

    Raises:
        MalformedFileError: A file that breaks the rules of its format, or one beyond the limits on size and depth.
        UnsupportedError: A vocabulary without ``tokenizer.json``, or a decoder that is not known here.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if others := [name for name in _OTHER_VOCABULARIES if (folder / name).exists()]:
            raise UnsupportedError(
                f"{folder} has {others[0]}, but no tokenizer.json",
                hint="convert it: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            )
        return None
    backend = build_backend(path, read_json_object(path, max_bytes=MAX_TOKENIZER_BYTES))
    config = _optional_object(folder / "tokenizer_config.json")
    named = _named_tokens(folder, config)
    _mark_special(backend, [*named.values(), *_extra_special(folder, config)])
    decoder = backend.decoder
    return Tokenizer(
        backend,
        rule_from_decoder(None if decoder is None else decoder.__getstate__().decode()),
        special_tokens=named,
        chat_templates=_templates(folder, config),
    )


def _optional_object(path: Path) -> dict[str, object]:
    return read_json_object(path, max_bytes=MAX_CONFIG_BYTES) if path.exists() else {}


def _named_tokens(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Special tokens by role: the config's, else those of ``special_tokens_map.json``."""
    named: dict[str, str] = {}
    sources = (
        (folder / "special_tokens_map.json", _optional_object(folder / "special_tokens_map.json")),
        (folder / "tokenizer_config.json", config),
    )
    for path, values in sources:
        for role in _ROLES:
            if values.get(role) is not None:
                named[role] = _spelling(path, role, values[role])
    return named


def _extra_special(folder: Path, config: Mapping[str, object]) -> list[str]:
    """Special tokens without a role."""
    path = folder / "tokenizer_config.json"
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        items = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(items, list):
            raise MalformedFileError(path, key, f"must be a list or an object, got {type(value).__name__}")
        found += [_spelling(path, key, item) for item in items]
    return found


def _spelling(path: Path, field: str, value: object) -> str:
    """A token given as a string, or as an object with its string in ``content``."""
    spelling = value.get("content") if isinstance(value, dict) else value
    if not isinstance(spelling, str):
        raise MalformedFileError(path, field, f"must be a token, got {value!r:.80}")
    return spelling


def _mark_special(backend: tokenizers.Tokenizer, spellings: list[str]) -> None:
    """Make tokens special that the vocabulary has, but that ``tokenizer.json`` does not mark."""
    from tokenizers import AddedToken

    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [
        spelling
        for spelling in dict.fromkeys(spellings)
        if spelling not in marked and backend.token_to_id(spelling) is not None
    ]
    backend.add_special_tokens([AddedToken(spelling, special=True, normalized=False) for spelling in missing])


def _templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Template sources by name; files of their own take precedence over the config."""
    templates = _config_templates(folder / "tokenizer_config.json", config.get("chat_template"))
    legacy = folder / "chat_template.json"
    if legacy.exists():
        templates |= _config_templates(
            legacy, read_json_object(legacy, max_bytes=MAX_CONFIG_BYTES).get("chat_template")
        )
    files = {DEFAULT_TEMPLATE: folder / "chat_template.jinja"}
    extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files |= {path.stem: path for path in extra[:MAX_TEMPLATES]}
    return templates | {
        name: read_text(path, max_bytes=MAX_TEMPLATE_BYTES) for name, path in files.items() if path.exists()
    }


def _config_templates(path: Path, value: object) -> dict[str, str]:
    """A template given as a string, or several as a list of objects with ``name`` and ``template``."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    templates: dict[str, str] = {}
    for entry in value if isinstance(value, list) and len(value) <= MAX_TEMPLATES else [None]:
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise MalformedFileError(path, "chat_template", "must be a string or a list of named templates")
        templates[name] = source
    return templates
