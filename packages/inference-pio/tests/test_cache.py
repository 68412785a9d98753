"""``pio cache``: packed copies are listed, removed and cleared."""

from __future__ import annotations

import pytest


@pytest.fixture
def kept(pio, tiny_model, tmp_path, monkeypatch):
    """A cache with the packed copy that a first run has left."""
    monkeypatch.setenv("PIO_CACHE_DIR", str(tmp_path / "cache"))
    assert pio("run", "hi", "-m", tiny_model, "--executor", "native", "--max-tokens", 1).code == 0
    (entry,) = pio("cache", "list", "--json").json
    return entry


def test_copies_are_listed(pio, kept):
    """With key, size, day of last use and the model's name."""
    assert set(kept) == {"key", "label", "nbytes", "used"}
    assert kept["nbytes"] > 100_000
    lines = pio("cache", "list").out.splitlines()
    assert lines[0].split() == ["KEY", "SIZE", "USED", "MODEL"]
    assert lines[1].split()[0] == kept["key"][:12]
    assert lines[1].split()[-1] == kept["label"]


def test_a_copy_is_removed_by_name_or_key(pio, kept):
    """And what is not there is an error with what there is."""
    done = pio("cache", "remove", kept["key"][:12], "--json")
    assert done.json == [{"key": kept["key"], "label": kept["label"], "nbytes": kept["nbytes"]}]
    done = pio("cache", "remove", "nothing")
    assert done.code == 3
    assert "no packed copy is called 'nothing'; there are: none" in done.err
    assert pio("cache", "list").err.strip() == "no packed copies here"


def test_all_copies_are_cleared(pio, kept):
    """With how much that gives back."""
    assert pio("cache", "clear", "--json").json == {"bytes": kept["nbytes"]}
    assert pio("cache", "list", "--json").json == []


def test_no_copy_is_kept_where_none_is_wanted(pio, tiny_model, tmp_path, monkeypatch):
    """packed_cache_bytes=0."""
    monkeypatch.setenv("PIO_CACHE_DIR", str(tmp_path / "cache"))
    pio("run", "hi", "-m", tiny_model, "--executor", "native", "--max-tokens", 1, "--set", "packed_cache_bytes=0")
    assert pio("cache", "list", "--json").json == []
