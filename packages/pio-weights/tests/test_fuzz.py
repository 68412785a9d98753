"""Mutated files: whatever a byte says, the outcome is a PioError or tensors inside the file."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_pio.interfaces import PioError
from inference_pio.weights import GGUFSource, SafetensorsSource, decodable_encodings

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
LONG = settings(max_examples=10_000, deadline=None, suppress_health_check=CHECKS)
PROCESSOR_SECONDS = 2.0  # a file of some hundred bytes takes a thousandth of this; a loop over what it claims does not

# Overwrite bytes, cut the file, or plant the 64-bit numbers that overflow.
NUMBERS = st.sampled_from([0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
MUTATION = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 10**6), st.integers(0, 255)),
    st.tuples(st.just("u32"), st.integers(0, 10**6), NUMBERS.map(lambda number: number % 2**32)),
    st.tuples(st.just("u64"), st.integers(0, 10**6), NUMBERS),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 10**6), st.integers(0, 255)),
)


def mutate(data, mutations):
    out = bytearray(data)
    for kind, place, value in mutations:
        at = place % (len(out) + 1)
        if kind == "byte":
            out[at : at + 1] = bytes([value])
        elif kind == "u32":
            out[at : at + 4] = struct.pack("<I", value)
        elif kind == "u64":
            out[at : at + 8] = struct.pack("<Q", value)
        elif kind == "cut":
            del out[at:]
        else:
            out[at:at] = bytes([value])
    return bytes(out)


def read_everything(kind, path):
    """Open and use every tensor; only PioError may come out, and soon."""
    start = time.thread_time()
    size = path.stat().st_size
    message = ""
    try:
        with kind(path) as source:
            for name in source:
                info = source.info(name)
                assert 0 <= info.nbytes <= size
                assert source.packed(name).size == info.nbytes
                view = source.array(name)
                assert view is None or view.shape == info.shape
                if info.encoding in decodable_encodings():
                    assert source.decode(name).shape == info.shape
                source.release(name)
    except PioError as error:
        message = str(error)
    assert "\n" not in message
    assert time.thread_time() - start < PROCESSOR_SECONDS


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.fixture
def small_gguf(gguf_bytes):
    """A valid file with one of everything."""
    tokens = b"".join(string(f"token{index}") for index in range(40)) + string("") + string("a\0b")
    keys = [
        ("general.architecture", 8, string("llama")),
        ("general.alignment", 4, struct.pack("<I", 32)),
        ("t.tokens", 9, struct.pack("<IQ", 8, 42) + tokens),
        ("t.scores", 9, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 3.0)),
        ("t.flag", 7, b"\1"),
        ("t.big", 10, struct.pack("<Q", 2**60)),
    ]
    tensors = [("f", [4, 2], 0, 0), ("q", [32, 1], 3, 32), ("k", [256], 12, 64), ("x", [32], 20, 224)]
    return gguf_bytes(keys, tensors, bytes(range(256)))


@pytest.fixture
def small_safetensors(safetensors_bytes):
    """A valid file with one of everything."""
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BOOL", "shape": [8], "data_offsets": [24, 32]},
        "h": {"dtype": "BF16", "shape": [4], "data_offsets": [32, 40]},
        "e": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [40, 41]},
    }
    return safetensors_bytes(header, bytes(24) + b"\0\1" * 4 + bytes(9))


@FUZZ
@given(mutations=st.lists(MUTATION, max_size=4))
def test_mutated_gguf(mutations, tmp_path, small_gguf):
    """Only PioError comes out of a damaged GGUF file, quickly."""
    path = tmp_path / "m.gguf"
    path.write_bytes(mutate(small_gguf, mutations))
    read_everything(GGUFSource, path)


@FUZZ
@given(mutations=st.lists(MUTATION, max_size=4))
def test_mutated_safetensors(mutations, tmp_path, small_safetensors):
    """Only PioError comes out of a damaged safetensors file, quickly."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(mutate(small_safetensors, mutations))
    read_everything(SafetensorsSource, path)


@pytest.mark.slow
@LONG
@given(mutations=st.lists(MUTATION, max_size=6))
def test_mutated_gguf_for_long(mutations, tmp_path, small_gguf):
    """The same, many times over."""
    path = tmp_path / "m.gguf"
    path.write_bytes(mutate(small_gguf, mutations))
    read_everything(GGUFSource, path)


@pytest.mark.slow
@LONG
@given(mutations=st.lists(MUTATION, max_size=6))
def test_mutated_safetensors_for_long(mutations, tmp_path, small_safetensors):
    """The same, many times over."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(mutate(small_safetensors, mutations))
    read_everything(SafetensorsSource, path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w", "\ud800"]), children),
        st.fixed_dictionaries({"dtype": children, "shape": children, "data_offsets": children}),
    ),
    max_leaves=12,
)


@FUZZ
@given(
    header=st.dictionaries(st.sampled_from(["w", "v", "__metadata__", "", "\ud800", "../x"]), JSON),
    data=st.binary(max_size=16),
)
def test_arbitrary_safetensors_headers(header, data, tmp_path, safetensors_bytes):
    """Any JSON at all as a header."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    read_everything(SafetensorsSource, path)


@FUZZ
@given(index=JSON)
def test_arbitrary_indexes(index, tmp_path):
    """Any JSON at all as an index."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    read_everything(SafetensorsSource, path)


@FUZZ
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(data, tmp_path):
    """Any bytes at all behind either magic."""
    for kind, head in ((GGUFSource, b"GGUF\3\0\0\0"), (SafetensorsSource, b"")):
        path = tmp_path / "file"
        path.write_bytes(head + data)
        read_everything(kind, path)


def test_the_seeds_are_valid(tmp_path, small_gguf, small_safetensors):
    """Unmutated, both files are read in full: the fuzzing starts from the inside."""
    (tmp_path / "m.gguf").write_bytes(small_gguf)
    (tmp_path / "m.safetensors").write_bytes(small_safetensors)
    source = GGUFSource(tmp_path / "m.gguf")
    assert list(source) == ["f", "q", "k", "x"]
    assert len(source.metadata["t.tokens"]) == 42
    assert list(SafetensorsSource(tmp_path / "m.safetensors")) == ["w", "b", "h", "e"]
    np.testing.assert_array_equal(source.packed("f"), np.arange(32, dtype=np.uint8))
