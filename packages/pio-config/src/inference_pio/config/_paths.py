"""Where the user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.config._settings import Settings


def cache_dir(settings: Settings, env: Mapping[str, str] | None = None) -> Path:
    """The folder for downloaded models, absolute; it need not exist yet.

    The setting ``cache_dir`` (relative to the current folder, ``~`` allowed), else ``PIO_CACHE_DIR``, else ``pio`` in
    ``XDG_CACHE_HOME``, else ``~/.cache/pio``.

    Args:
        settings: As loaded.
        env: The environment; None takes the process's own.

    Raises:
        ConfigError: None of these is set and the user has no home folder.
    """
    env = os.environ if env is None else env
    if chosen := settings.cache_dir or env.get("PIO_CACHE_DIR"):
        path = Path(chosen)
        home = home_folder(env)
        if path.parts[0] == "~" and home is not None:
            path = home.joinpath(*path.parts[1:])
        return Path(os.path.abspath(path))  # noqa: PTH100 - resolves no links, unlike resolve()
    base = _base(env, "XDG_CACHE_HOME", ".cache")
    if base is None:
        raise ConfigError("no folder for downloaded models: the user has no home folder", hint="set PIO_CACHE_DIR")
    return base / "pio"


def config_folder(env: Mapping[str, str]) -> Path | None:
    """The folder of the user's settings file: ``pio`` in ``XDG_CONFIG_HOME``, else ``~/.config/pio``."""
    base = _base(env, "XDG_CONFIG_HOME", ".config")
    return None if base is None else base / "pio"


def home_folder(env: Mapping[str, str]) -> Path | None:
    """The user's home folder by ``env``, else by the system; None for a user without one, as in some containers."""
    if home := env.get("HOME"):
        return Path(home)
    try:
        return Path.home()
    except RuntimeError:
        return None


def _base(env: Mapping[str, str], variable: str, folder: str) -> Path | None:
    # The XDG base directory specification: a path that is not absolute is to be ignored.
    base = Path(env.get(variable, ""))
    if base.is_absolute():
        return base
    home = home_folder(env)
    return None if home is None else home / folder
