"""The static manifest of a model plugin: read from ``pio-plugin.toml`` without importing the plugin."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from inference_pio.interfaces._errors import MalformedFileError, PathEscapeError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME = "pio-plugin.toml"
CAPABILITIES = frozenset(
    {
        "generate",
        "logprobs",
        "chunked-prefill",
        "paged-kv",
        "prefix-caching",
        "speculative-decoding",
        "deterministic",
        "embed",
        "native",
    }
)
GRANTS = frozenset({"gpu", "network", "read", "write"})

_MAX_BYTES = 64 * 1024
_API = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A model that users can ask for by name because its weights ship in a distribution.

    Attributes:
        name: Name on the command line.
        distribution: Distribution that carries the weights.
        version: The version that was tested.
        file: Path of the weights inside the distribution.
        license: SPDX identifier of the weights' licence.
    """

    name: str
    distribution: str
    version: str
    file: str
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginManifest:
    """What a model plugin declares about itself.

    Attributes:
        name: Short name of the family.
        distribution: Distribution that brings it.
        api: Contract version it was written for, ``major.minor``.
        architectures: Architecture strings it serves; the entry points carry the same names.
        gguf: Values of ``general.architecture`` that it serves, each with the architecture string it stands for.
        capabilities: What the conformance kit has passed for it; the engine refuses anything else.
        grants: What it asks of the machine beyond computing.
        models: Models registered by name.
        tool_call_parser: Name of the parser of its tool calls; None if it makes none.
        reasoning_parser: Name of the parser of its reasoning; None if it shows none.
    """

    name: str
    distribution: str
    api: str
    architectures: tuple[str, ...]
    gguf: tuple[tuple[str, str], ...] = ()
    capabilities: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    models: tuple[RegisteredModel, ...] = ()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None


def read_manifest(path: Path) -> PluginManifest:
    """Read and validate the manifest at ``path``.

    Raises:
        MalformedFileError: Unreadable, unknown or missing key, or a value of the wrong type.
        PathEscapeError: A registered model's file lies outside of its distribution.
    """
    data = _read_toml(path)
    known = {"schema", *PluginManifest.__dataclass_fields__}
    if unknown := sorted(data.keys() - known):
        raise MalformedFileError(path, unknown[0], f"unknown key; known keys are {', '.join(sorted(known))}")
    if data.get("schema") != 1 or isinstance(data["schema"], bool):
        raise MalformedFileError(path, "schema", f"must be 1, got {data.get('schema')!r}")
    api = _string(path, data, "api")
    if not _API.fullmatch(api):
        raise MalformedFileError(path, "api", f"must be 'major.minor', got {api!r}")
    gguf = data.get("gguf", {})
    if not isinstance(gguf, dict) or not all(isinstance(value, str) for value in gguf.values()):
        raise MalformedFileError(path, "gguf", f"must map strings to strings, got {gguf!r}")
    architectures = _strings(path, data, "architectures")
    if not architectures:
        raise MalformedFileError(path, "architectures", "must name at least one architecture")
    if strays := sorted(set(gguf.values()) - set(architectures)):
        raise MalformedFileError(path, "gguf", f"names architectures that the plugin does not serve: {strays}")
    return PluginManifest(
        name=_string(path, data, "name"),
        distribution=_string(path, data, "distribution"),
        api=api,
        architectures=architectures,
        gguf=tuple(gguf.items()),
        capabilities=_subset(path, data, "capabilities", CAPABILITIES),
        grants=_subset(path, data, "grants", GRANTS),
        models=tuple(_model(path, entry) for entry in _tables(path, data, "models")),
        tool_call_parser=_optional_string(path, data, "tool_call_parser"),
        reasoning_parser=_optional_string(path, data, "reasoning_parser"),
    )


def _read_toml(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MalformedFileError(path, "size", f"more than {_MAX_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MalformedFileError(path, "file", error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MalformedFileError(path, "syntax", str(error)) from error
    except RecursionError as error:
        raise MalformedFileError(path, "syntax", "nested too deeply") from error


def _model(path: Path, entry: dict[str, object]) -> RegisteredModel:
    fields = ("name", "distribution", "version", "file", "license")
    if unknown := sorted(entry.keys() - set(fields)):
        raise MalformedFileError(path, f"models.{unknown[0]}", f"unknown key; known keys are {', '.join(fields)}")
    model = RegisteredModel(**{field: _string(path, entry, field) for field in fields})
    file = PurePosixPath(model.file)
    if file.is_absolute() or ".." in file.parts or "\\" in model.file:
        raise PathEscapeError(path, "models.file", f"must lie within the distribution, got {model.file!r}")
    return model


def _string(path: Path, data: dict[str, object], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise MalformedFileError(path, key, f"must be a non-empty string, got {value!r}")
    return value


def _optional_string(path: Path, data: dict[str, object], key: str) -> str | None:
    return _string(path, data, key) if key in data else None


def _strings(path: Path, data: dict[str, object], key: str) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedFileError(path, key, f"must be a list of strings, got {value!r}")
    return tuple(value)


def _subset(path: Path, data: dict[str, object], key: str, allowed: frozenset[str]) -> frozenset[str]:
    values = frozenset(_strings(path, data, key))
    if strays := sorted(values - allowed):
        raise MalformedFileError(
            path, key, f"unknown value {strays[0]!r}; known values are {', '.join(sorted(allowed))}"
        )
    return values


def _tables(path: Path, data: dict[str, object], key: str) -> list[dict[str, object]]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise MalformedFileError(path, key, f"must be a list of tables, got {value!r}")
    return cast("list[dict[str, object]]", value)
