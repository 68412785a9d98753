"""What the mapping promises: writable views that never reach the file, views that outlast it, pages given back."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_pio.interfaces import DoesNotFitError, MalformedFileError
from inference_pio.weights import GGUFSource, SafetensorsSource, open_weights

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path):
    """Three tensors of several pages, not aligned to pages, of known content."""
    tensors = {name: np.arange(40_000, dtype=np.float32) + start for start, name in enumerate("abc")}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def expected(name):
    return np.arange(40_000, dtype=np.float32) + "abc".index(name)


def test_packed_bytes_are_read_only(file):
    """What is stored cannot be written to."""
    packed = open_weights(file).packed("a")
    with pytest.raises(ValueError, match="read-only"):
        packed[0] = 1


def test_views_are_copy_on_write(file):
    """Writing to a view changes this view and its siblings, but neither the file nor the stored bytes."""
    before = file.read_bytes()
    source = open_weights(file)
    view = source.array("b")
    assert view.flags.writeable
    view += 1
    np.testing.assert_array_equal(view, expected("b") + 1)
    np.testing.assert_array_equal(source.array("b"), expected("b") + 1)
    np.testing.assert_array_equal(source.decode("b"), expected("b"))
    np.testing.assert_array_equal(source.array("a"), expected("a"))
    assert file.read_bytes() == before


def test_views_outlast_the_source(file):
    """After close, and after the file is gone, views show what they showed."""
    source = open_weights(file)
    packed, view = source.packed("a"), source.array("b")
    source.close()
    source.close()
    file.unlink()
    del source
    gc.collect()
    np.testing.assert_array_equal(packed.view(np.float32), expected("a"))
    np.testing.assert_array_equal(view, expected("b"))


def test_closed_sources_say_so(file):
    """Asking a closed source is the caller's mistake; its header is still there."""
    with SafetensorsSource(file) as source:
        pass
    for ask in (source.packed, source.array, source.decode, source.release):
        with pytest.raises(ValueError, match=r"model.safetensors is closed"):
            ask("a")
    assert source.info("a").shape == (40_000,)
    assert len(source) == 3


def test_release_changes_nothing(file):
    """Data are right after release: packed, decoded, and views that were written to, of this tensor and neighbours."""
    source = open_weights(file)
    packed, view = source.packed("b"), source.array("b")
    view[:] = 7
    for name in "abc":
        source.decode(name)
        source.release(name)
    np.testing.assert_array_equal(packed.view(np.float32), expected("b"))
    np.testing.assert_array_equal(view, np.full(40_000, 7, np.float32))
    for name in "abc":
        np.testing.assert_array_equal(source.decode(name), expected(name))


@pytest.mark.parametrize("count", [0, 1, PAGE // 4 - 1, PAGE // 4, PAGE // 2, 3 * PAGE])
def test_release_of_less_than_a_page(count, tmp_path):
    """Tensors smaller than a page, or empty, are released without effect."""
    save_file({"w": np.ones(count, np.float32), "v": np.ones(5, np.float32)}, tmp_path / "model.safetensors")
    source = open_weights(tmp_path)
    source.release("w")
    np.testing.assert_array_equal(source.decode("w"), np.ones(count, np.float32))


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system has no MADV_DONTNEED")
def test_release_gives_pages_back(tmp_path):
    """Resident memory falls back after release, though the source stays open."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc/self/statm on this system")
    save_file({"w": np.ones(16 << 20, np.uint8)}, tmp_path / "model.safetensors")
    source = open_weights(tmp_path)
    packed = source.packed("w")

    def resident_file_pages():
        return int(statm.read_text().split()[2])

    before = resident_file_pages()
    assert int(packed[::PAGE].sum()) == (16 << 20) // PAGE
    touched = resident_file_pages()
    source.release("w")
    after = resident_file_pages()
    assert (touched - before) * PAGE > 15 << 20
    assert (after - before) * PAGE < 1 << 20


def test_decoding_needs_little_beside_the_result(tmp_path):
    """Loading 64 MiB of float32 peaks near that: pages are given back, temporaries are a chunk."""
    script = f"""
import resource, numpy as np
from inference_pio.weights import open_weights
source = open_weights({str(tmp_path)!r})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
results = []
for name in source:
    results.append(source.decode(name))
    source.release(name)
total = sum(result.nbytes for result in results)
assert total == 64 << 20
print((peak() - before) / total)
"""
    save_file({f"w{n}": np.zeros((1024, 1024), np.float16) for n in range(16)}, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.15


def test_opening_maps_but_does_not_read(tmp_path):
    """A file of 64 GiB, sparse, opens within 1 GiB of nothing: only address space is used."""
    path = tmp_path / "model.safetensors"
    size = 64 << 30
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    header += b" " * (-len(header) % 8)
    with path.open("wb") as sparse:
        sparse.write(len(header).to_bytes(8, "little") + header)
        sparse.truncate(8 + len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = open_weights(path)
    assert source.array("w")[size - 1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def test_no_address_space(tmp_path):
    """A file that cannot be mapped does not fit: an error with a way out, exit code 4."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as sparse:
        sparse.truncate(64 << 30)
    script = f"""
import resource
from inference_pio.interfaces import DoesNotFitError
from inference_pio.weights import open_weights
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    open_weights({str(path)!r})
except DoesNotFitError as error:
    print(error.exit_code, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("4 ")
    assert "no address space to map 68719476736 bytes (raise the limit on virtual memory (ulimit -v))" in done.stdout
    assert DoesNotFitError.exit_code == 4


def test_a_file_that_shrank(file):
    """A file cut between opening and the first writable view is noticed, not read beyond its end."""
    source = open_weights(file)
    os.truncate(file, 5000)
    with pytest.raises(MalformedFileError, match="size: the file shrank while it was open"):
        source.array("a")


def test_gguf_views_are_copy_on_write_too(tmp_path, write_gguf):
    """Both formats share the mapping."""
    path = write_gguf(tmp_path / "m.gguf", {"w": np.ones((64, 64), np.float32)})
    before = path.read_bytes()
    with GGUFSource(path) as source:
        view = source.array("w")
    view *= 3
    np.testing.assert_array_equal(view, np.full((64, 64), 3, np.float32))
    assert path.read_bytes() == before
