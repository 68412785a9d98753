"""Packed weights on disk: used when they are whole, packed again when they are not, never in the way."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from inference_pio.interfaces import WeightMap, WeightRule
from inference_pio.kernels import PackedStore, ProgramBuilder, load_parameters
from inference_pio.kernels._packed_layout import lay_out
from inference_pio.kernels._packed_store import content_key
from inference_pio.kernels._weight_plan import plan_weights

MAP = WeightMap(rules=(WeightRule(target="table", sources=("table",)), WeightRule(target="norm", sources=("norm",))))


def program():
    builder = ProgramBuilder(vocab_size=64, hidden_size=64, eps=1e-6)
    return builder.head(builder.embed("table"), "table", norm="norm")


@pytest.fixture
def source(memory_source):
    rng = np.random.default_rng(0)
    memory_source.add_values("table", rng.normal(size=(64, 64)).astype(np.float32))
    memory_source.add_values("norm", rng.normal(size=64).astype(np.float32))
    return memory_source


@pytest.fixture
def load(source):
    """Loads the small model through a store."""
    return lambda store, **options: load_parameters(program(), source, MAP, tied_head=True, cache=store, **options)


def the_file(folder):
    (path,) = folder.glob("*.pack")
    return path


def test_a_second_start_finds_the_copy(tmp_path, load):
    """The same values, read-only, and progress that ends."""
    store = PackedStore(tmp_path / "deep" / "folder")
    first = load(store)
    seen: list[tuple[int, int]] = []
    second = load(store, progress=lambda *done: seen.append(done))
    assert (first.cached, second.cached) == (False, True)
    assert seen[-1][0] == seen[-1][1]
    for name in first:
        np.testing.assert_array_equal(first.values(name), second.values(name))
    with pytest.raises(ValueError, match="read-only"):
        second.vector("norm")[0] = 1
    assert second.vector("norm").ctypes.data % 64 == 0


def test_copies_are_listed_and_removed(tmp_path, load):
    """By key, with what people know the model by; removing one that is in use disturbs nobody."""
    store = PackedStore(tmp_path / "store")
    assert store.list() == []
    assert store.clear() == 0
    load(store)
    used = load(store)
    (entry,) = store.list()
    assert entry.label == "weights.bin"
    assert entry.nbytes == the_file(store.folder).stat().st_size
    assert store.remove(entry.key)
    assert not store.remove(entry.key)
    assert np.isfinite(used.values("table")).all()
    load(store)
    assert store.clear() == entry.nbytes
    with pytest.raises(ValueError, match=r"a key is a hexadecimal digest, got '\.\./x'"):
        store.remove("../x")


DAMAGES = {
    "a bit of the data": (lambda b: b[:-70] + bytes([b[-70] ^ 1]) + b[-69:], "checksum is wrong"),
    "a bit of the header": (lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], "header is damaged"),
    "a bit of the digest": (lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:], "header is damaged"),
    "truncated data": (lambda b: b[:-1], "bytes instead of"),
    "truncated header": (lambda b: b[:60], "header is damaged"),
    "truncated to nothing": (lambda _: b"", "truncated"),
    "more than it should be": (lambda b: b + b"x", "bytes instead of"),
    "another version": (lambda b: b[:8] + (99).to_bytes(4, "little") + b[12:], "format version 99, not 2"),
    "a huge header": (lambda b: b[:12] + (2**31).to_bytes(4, "little") + b[16:], "claims 2147483648 bytes"),
    "another file": (lambda b: b"GGUF" + b[4:], "no file of packed weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_copies_are_packed_again(damage, tmp_path, load, caplog):
    """With one sentence that says what is wrong, the right values, and a whole copy for the next time."""
    change, reason = DAMAGES[damage]
    store = PackedStore(tmp_path / "store")
    expected = load(store).values("table")
    path = the_file(store.folder)
    path.write_bytes(change(path.read_bytes()))
    assert [entry.key for entry in store.list()] == [path.stem]
    with caplog.at_level(logging.WARNING):
        again = load(store)
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert record.getMessage().endswith("they are packed again")
    np.testing.assert_array_equal(again.values("table"), expected)
    assert not again.cached
    assert load(store).cached


def test_another_models_copy_is_not_used(tmp_path, load, source, caplog):
    """A file under the wrong name is found out by its own key."""
    store = PackedStore(tmp_path / "store")
    load(store)
    path = the_file(store.folder)
    source.add_values("norm", np.ones(64, dtype=np.float32))
    load(store)
    (other,) = set(store.folder.glob("*.pack")) - {path}
    path.replace(other)
    with caplog.at_level(logging.WARNING):
        assert not load(store).cached
    assert "it holds other weights" in caplog.text


def test_key_follows_everything_that_was_packed(source):
    """Another tensor, format, rule or file time is another key; the same is the same."""

    def key(weights="auto", rule_map=MAP):
        assignments = plan_weights(program(), source, rule_map, tied_head=True)
        return content_key(source, lay_out(program(), assignments, weights))

    first = key()
    assert re.fullmatch("[0-9a-f]{40}", first)
    assert key() == first
    assert key("int8") != first
    reordered = (WeightRule(target="table", sources=("table",), heads=(2,)), MAP.rules[1])
    assert key(rule_map=WeightMap(rules=reordered)) != first
    info, stored = source.tensors["table"]
    changed = stored.copy()
    changed[len(changed) // 2] ^= 1
    source.tensors["table"] = (info, changed)
    assert key() != first
    source.tensors["table"] = (info, stored)
    assert key() == first
    os.utime(source.file, ns=(1, 1))
    assert key() != first


def test_least_recently_used_copies_give_way(tmp_path, load, source):
    """The bound holds over all copies; a copy that was just used stays."""
    store = PackedStore(tmp_path / "store")
    keys = []
    for index in range(3):
        source.add_values("norm", np.full(64, index, dtype=np.float32))
        load(store)
        (entry,) = [entry for entry in store.list() if entry.key not in keys]
        keys.append(entry.key)
        os.utime(store.folder / f"{entry.key}.pack", (1000 + index, 1000 + index))
    store.max_bytes = 3 * entry.nbytes
    source.add_values("norm", np.zeros(64, dtype=np.float32))
    assert load(store).cached  # the first of them, used now
    source.add_values("norm", np.full(64, 9, dtype=np.float32))
    load(store)
    left = {entry.key for entry in store.list()}
    assert len(left) == 3
    assert keys[0] in left
    assert keys[1] not in left
    assert sum(entry.nbytes for entry in store.list()) <= store.max_bytes


def test_a_copy_beyond_the_bound_is_not_kept(tmp_path, load, caplog):
    """Nothing else is removed for it either."""
    store = PackedStore(tmp_path / "store", max_bytes=100)
    with caplog.at_level(logging.INFO):
        assert not load(store).cached
    assert "are not kept: the cache may hold 100" in caplog.text
    assert not store.folder.exists()


def test_a_folder_that_cannot_be_written_is_told_of_once(tmp_path, load, caplog):
    """The model loads all the same."""
    (tmp_path / "file").touch()
    store = PackedStore(tmp_path / "file" / "store")
    with caplog.at_level(logging.WARNING):
        assert not load(store).cached
        assert not load(store).cached
    told = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert len(told) == 1
    assert "every start packs them again" in told[0]


@pytest.mark.skipif(sys.platform == "win32" or getattr(os, "geteuid", lambda: 1)() == 0, reason="root writes anywhere")
def test_a_read_only_folder_still_serves(tmp_path, load):
    """Copies in it are used; new ones are not kept."""
    store = PackedStore(tmp_path / "store")
    load(store)
    store.folder.chmod(0o500)
    try:
        assert load(store).cached
        assert not load(store, weights="int8").cached
    finally:
        store.folder.chmod(0o700)


def test_leftovers_of_dead_writers_go(tmp_path, load):
    """A temporary file is removed an hour after it was last written, not before."""
    store = PackedStore(tmp_path / "store")
    store.folder.mkdir()
    old, new = store.folder / "a.pack.tmp", store.folder / "b.pack.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (1000, 1000))
    load(store)
    assert not old.exists()
    assert new.exists()


def test_a_folder_in_place_of_a_copy_is_not_opened(tmp_path, load, caplog):
    """Nor is anything else that is no regular file; what cannot be replaced is told of."""
    store = PackedStore(tmp_path / "store")
    load(store)
    path = the_file(store.folder)
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        assert not load(store).cached
    assert "not a regular file" in caplog.text
    assert "cannot be kept" in caplog.text
    assert not list(store.folder.glob("*.tmp"))


SAVES_MANY = """
import pickle, sys
from inference_pio.kernels import PackedStore
folder, key, layout, data = pickle.load(sys.stdin.buffer)
store = PackedStore(folder)
for _ in range(20):
    store.save(key, layout, data, label="same")
    assert store.open(key, layout) is not None
"""


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to itself", "link to nothing"])
def test_what_is_no_file_is_neither_waited_for_nor_listed(kind, tmp_path, load):
    """Whatever has the name of a copy: listing, clearing and loading end, and leave alone what is no copy."""
    if sys.platform == "win32":
        pytest.skip("has no FIFOs, and links need a privilege")
    store = PackedStore(tmp_path)
    expected = load(store)
    path = the_file(tmp_path)
    path.unlink()
    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to itself": lambda: path.symlink_to(path),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
    }[kind]()
    assert store.list() == []
    assert store.clear() == 0
    assert path.is_symlink() or path.exists()
    np.testing.assert_array_equal(load(store).values("table"), expected.values("table"))


def test_a_file_in_place_of_the_folder_is_told_of_once(tmp_path, load, caplog):
    """No copy can be there, which is not worth a word; that none can be kept is worth one."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert not load(PackedStore(tmp_path / "file" / "packed")).cached
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["packed weights cannot be kept"]


def test_concurrent_writers_leave_a_whole_copy(tmp_path, source, load):
    """Processes that write the same copy at once never show each other half of one."""
    folder = tmp_path / "store"
    load(PackedStore(folder))
    layout = lay_out(program(), plan_weights(program(), source, MAP, tied_head=True), "auto")
    key = the_file(folder).stem
    data = PackedStore(folder).open(key, layout).copy()
    command = [sys.executable, "-c", SAVES_MANY]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        writer.stdin.write(pickle.dumps((folder, key, layout, data)))
        writer.stdin.flush()
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
    np.testing.assert_array_equal(PackedStore(folder).open(key, layout), data)
    assert not list(folder.glob("*.tmp"))
