"""Where downloaded models are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_pio.config import Settings, cache_dir
from inference_pio.interfaces import ConfigError

HOME = {"HOME": "/home/x"}


@pytest.mark.parametrize(
    ("setting", "env", "expected"),
    [
        (None, HOME, "/home/x/.cache/pio"),
        (None, HOME | {"XDG_CACHE_HOME": "/c"}, "/c/pio"),
        (None, HOME | {"XDG_CACHE_HOME": "relative"}, "/home/x/.cache/pio"),
        (None, HOME | {"XDG_CACHE_HOME": ""}, "/home/x/.cache/pio"),
        (None, HOME | {"XDG_CACHE_HOME": "/c", "PIO_CACHE_DIR": "/p"}, "/p"),
        ("/s", HOME | {"XDG_CACHE_HOME": "/c", "PIO_CACHE_DIR": "/p"}, "/s"),
        ("~/s", HOME, "/home/x/s"),
        ("~", HOME, "/home/x"),
        ("/a/../b", HOME, "/b"),
    ],
)
def test_cache_dir(setting, env, expected):
    """The setting, the variable, the XDG folder, the home folder, in this order."""
    assert cache_dir(Settings(cache_dir=setting), env) == Path(expected)


def test_relative_cache_dir_is_made_absolute(tmp_path, monkeypatch):
    """A relative folder means the one under the current folder now, not under a later one."""
    monkeypatch.chdir(tmp_path)
    assert cache_dir(Settings(cache_dir="models"), HOME) == tmp_path / "models"


def test_process_environment_is_the_default(monkeypatch):
    """Without `env` the process's own environment counts."""
    monkeypatch.setenv("PIO_CACHE_DIR", "/from/env")
    assert cache_dir(Settings()) == Path("/from/env")


def test_user_without_home(load, monkeypatch):
    """A container's nameless user has no home: settings load without a user file, the cache asks for a folder."""

    def no_home():
        message = "Could not determine home directory."
        raise RuntimeError(message)

    monkeypatch.setattr(Path, "home", no_home)
    assert load(env={"HOME": ""}).settings == Settings()
    with pytest.raises(ConfigError, match=r"no folder for downloaded models.*\(set PIO_CACHE_DIR\)"):
        cache_dir(Settings(), {})
    assert cache_dir(Settings(), {"XDG_CACHE_HOME": "/c"}) == Path("/c/pio")
