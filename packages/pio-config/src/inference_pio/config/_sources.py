"""Where settings come from: flags, environment, files. Each becomes a layer of checked values with their origins."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.config._files import decode_json, read_bytes
from inference_pio.config._settings import setting_types
from inference_pio.config._text import did_you_mean, nearest, shown, shown_key
from inference_pio.config._values import convert
from inference_pio.interfaces import ConfigError, LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PROJECT_FILES = ("pio.toml", "pio.yaml", "pio.yml", "pio.json")
USER_FILES = ("config.toml", "config.yaml", "config.yml", "config.json")

_PREFIX = "PIO_"
_OTHER_VARIABLES = ("PIO_DEBUG", "PIO_NO_PROGRESS")
_MAX_BYTES = 64 << 10
_MAX_YAML_BRACKETS = 500
_MAX_PYPROJECT_BYTES = 1 << 20

# A folder that someone else wrote must not send downloads, and the token that goes with them, to a host of its choice.
_NOT_IN_PROJECTS = ("hub_endpoint",)


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked value and where it came from."""

    value: object
    origin: str


def from_flags(flags: Mapping[str, object]) -> dict[str, Entry]:
    """Settings given on the command line, by key; a flag that is None was not given."""
    layer: dict[str, Entry] = {}
    for key, value in flags.items():
        origin = f"flag --{shown_key(key).replace('_', '-')}"
        _check_key(key, origin)
        if value is not None:
            layer[key] = Entry(_checked(key, value, origin, from_text=True), origin)
    return layer


def from_environment(env: Mapping[str, str]) -> dict[str, Entry]:
    """Settings in ``PIO_<KEY>``; a variable that is empty counts as not set.

    Other programs may use the prefix, so an unknown name is an error only if it looks like a slip of a known one.
    """
    layer: dict[str, Entry] = {}
    known = {_PREFIX + key.upper(): key for key in setting_types()}
    for name in sorted(env):
        if not name.startswith(_PREFIX) or name in _OTHER_VARIABLES or not env[name]:
            continue
        if name in known:
            origin = f"env {name}"
            layer[known[name]] = Entry(_checked(known[name], env[name], origin, from_text=True), origin)
        elif match := nearest(
            name.removeprefix(_PREFIX), [n.removeprefix(_PREFIX) for n in (*known, *_OTHER_VARIABLES)], cutoff=0.8
        ):
            raise ConfigError(f"env {name}: unknown setting", hint=f"did you mean {_PREFIX}{match}?")
    return layer


def from_project(folder: Path) -> dict[str, Entry]:
    """Settings of the project: ``pio.toml``, ``.yaml``, ``.yml`` or ``.json``, or ``[tool.pio]`` of ``pyproject.toml``.

    Only ``folder`` itself is looked at: a parent folder may belong to someone else.
    """
    found = [(f"./{name}", table) for name in PROJECT_FILES if (table := _read(folder / name, f"./{name}")) is not None]
    pyproject = _read_pyproject(folder / "pyproject.toml")
    if pyproject is not None:
        found.append(("[tool.pio] in pyproject.toml", pyproject))
    layer = _only(found)
    for key in _NOT_IN_PROJECTS:
        if key in layer:
            raise ConfigError(
                f"{layer[key].origin}: {key} cannot be set by a project", hint=f"set {_PREFIX}{key.upper()} instead"
            )
    return layer


def from_user_file(path: Path, origin: str) -> dict[str, Entry]:
    """Settings in the file at ``path``; an empty layer if there is none."""
    table = _read(path, origin)
    return {} if table is None else _layer(table, origin)


def from_user_folder(folder: Path, shown_folder: str) -> dict[str, Entry]:
    """Settings in the one ``config.*`` file of the user's configuration folder."""
    named = [(f"{shown_folder}/{name}", folder / name) for name in USER_FILES]
    return _only([(origin, table) for origin, path in named if (table := _read(path, origin)) is not None])


def _only(found: list[tuple[str, dict[str, object]]]) -> dict[str, Entry]:
    if len(found) > 1:
        names = " and ".join(origin for origin, _ in found)
        raise ConfigError(f"settings in more than one place: {names}", hint="keep one of them")
    return _layer(found[0][1], found[0][0]) if found else {}


def _layer(table: Mapping[str, object], origin: str) -> dict[str, Entry]:
    for key in table:
        _check_key(key, origin)
    return {key: Entry(_checked(key, value, origin), origin) for key, value in table.items()}


def _check_key(key: object, origin: str) -> None:
    known = setting_types()
    if key not in known:
        hint = did_you_mean(str(key).replace("-", "_"), known) or f"settings are {', '.join(known)}"
        raise ConfigError(f"{origin}: unknown setting {shown(key)}", hint=hint)


def _checked(key: str, value: object, origin: str, *, from_text: bool = False) -> object:
    return convert(value, setting_types()[key], what=f"{origin}: {key}", from_text=from_text)


def _read(path: Path, origin: str) -> dict[str, object] | None:
    """The table in a settings file, or None if there is no such file."""
    data = _content(path, origin)
    if data is None:
        return None
    if path.suffix == ".json":
        table = _json(data, path, origin)
    elif path.suffix in {".yaml", ".yml"}:
        table = _yaml(data, origin)
    else:
        table = _toml(data, origin)
    return _table(table, origin)


def _read_pyproject(path: Path) -> dict[str, object] | None:
    origin = "[tool.pio] in pyproject.toml"
    data = _content(path, "pyproject.toml", _MAX_PYPROJECT_BYTES)
    # Most projects do not mention us: then their file costs one search, and its mistakes are not ours to report.
    if data is None or b"pio" not in data:
        return None
    tools = _toml(data, "pyproject.toml").get("tool", {})
    if not isinstance(tools, dict) or "pio" not in tools:
        return None
    return _table(tools["pio"], origin)


def _content(path: Path, origin: str, max_bytes: int = _MAX_BYTES) -> bytes | None:
    try:
        return read_bytes(path, max_bytes=max_bytes)
    except FileNotFoundError:
        return None
    except MalformedFileError as error:
        raise ConfigError(f"{origin}: {error.problem}") from error


def _table(value: object, origin: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: must hold a table of settings, got {shown(value)}")
    return value


def _toml(data: bytes, origin: str) -> dict[str, object]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{origin}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error


def _json(data: bytes, path: Path, origin: str) -> object:
    try:
        return decode_json(data, path)
    except (MalformedFileError, LimitExceededError) as error:
        raise ConfigError(f"{origin}: {error.field}: {error.problem}") from error


def _yaml(data: bytes, origin: str) -> object:
    """One plain document: no aliases (they can grow without bound) and no key twice (YAML readers differ on it)."""
    import yaml

    try:
        text = data.decode("utf-8")
        # The scanner's time grows with the square of open brackets: a small file could take minutes.
        if text.count("[") + text.count("{") > _MAX_YAML_BRACKETS:
            raise ConfigError(f"{origin}: more than {_MAX_YAML_BRACKETS} brackets")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{origin}: YAML aliases are not allowed")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}
        if isinstance(node, yaml.MappingNode):
            _check_unique((key.value for key, _ in node.value), origin)
        return yaml.load(text, Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error


def _check_unique(keys: Iterable[object], origin: str) -> None:
    seen: list[object] = []
    for key in keys:
        if key in seen:
            raise ConfigError(f"{origin}: {shown_key(key)}: key given twice")
        seen.append(key)
