"""Layered settings: which value holds, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inference_pio.config._paths import config_folder, home_folder
from inference_pio.config._settings import Settings, setting_types
from inference_pio.config._sources import (
    Entry,
    from_environment,
    from_flags,
    from_project,
    from_user_file,
    from_user_folder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingRow(msgspec.Struct, frozen=True):
    """One setting for display.

    Attributes:
        key: Its name.
        value: The value that holds: a string, a number, a truth value or None.
        origin: Where that came from.
    """

    key: str
    value: str | int | float | bool | None
    origin: str


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings and where each came from.

    Attributes:
        settings: The values that hold.
        origins: Origin by key, for every key.
    """

    settings: Settings
    origins: Mapping[str, str]

    def origin(self, key: str) -> str:
        """Where the value of ``key`` came from, such as ``"env PIO_DTYPE"`` or ``"default"``.

        Raises:
            KeyError: There is no such setting.
        """
        return self.origins[key]

    def rows(self) -> tuple[SettingRow, ...]:
        """All settings in their documented order; ``msgspec.json.encode`` takes them as they are."""
        return tuple(SettingRow(key, getattr(self.settings, key), origin) for key, origin in self.origins.items())


def load_settings(
    *,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user_file: Path | None = None,
) -> ResolvedSettings:
    """The settings that hold, by precedence: flag, environment, project file, user file, default.

    The project file is ``pio.toml``, ``pio.yaml``, ``pio.yml``, ``pio.json`` or ``[tool.pio]`` of ``pyproject.toml`` in
    ``cwd`` (not in its parents: what runs must not depend on a folder that someone else may write). The user file is
    ``config.toml``, ``.yaml``, ``.yml`` or ``.json`` in ``$XDG_CONFIG_HOME/pio``, by default ``~/.config/pio``. Every
    layer is checked, also where a higher one overrides it.

    Args:
        flags: Settings from the command line by key; None values were not given. Strings may stand for any type.
        env: The environment; None takes the process's own.
        cwd: The project's folder; None takes the current one.
        user_file: The user's file; None looks in the user's configuration folder.

    Raises:
        ConfigError: An unknown key, a value of the wrong type or out of bounds, an unreadable file, or two files of one
            layer.
    """
    env = os.environ if env is None else env
    layers = (
        _user_layer(env, user_file),
        from_project(Path.cwd() if cwd is None else cwd),
        from_environment(env),
        from_flags({} if flags is None else flags),
    )
    chosen: dict[str, Entry] = {}
    for layer in layers:
        chosen.update(layer)
    origins = {key: chosen[key].origin if key in chosen else "default" for key in setting_types()}
    values = {key: entry.value for key, entry in chosen.items()}
    return ResolvedSettings(msgspec.convert(values, Settings), origins)


def _user_layer(env: Mapping[str, str], user_file: Path | None) -> dict[str, Entry]:
    if user_file is not None:
        return from_user_file(user_file, _from_home(user_file, env))
    folder = config_folder(env)
    return {} if folder is None else from_user_folder(folder, _from_home(folder, env))


def _from_home(path: Path, env: Mapping[str, str]) -> str:
    """``path`` as a user would write it."""
    home = home_folder(env)
    if home is not None and path.is_relative_to(home):
        return f"~/{path.relative_to(home).as_posix()}"
    return str(path)
