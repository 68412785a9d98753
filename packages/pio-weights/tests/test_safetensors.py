"""Reading safetensors files that are right, held to what the safetensors library writes and reads."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inference_pio.interfaces import MalformedFileError, UnsupportedError, WeightSource
from inference_pio.weights import SafetensorsSource, open_weights

FLOATS = ("float64", "float32", "float16")
OTHERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")


def test_every_dtype_is_a_view(tmp_path):
    """Each tensor comes as a view in its own dtype and shape, equal to what the library reads."""
    rng = np.random.default_rng(0)
    tensors = {dtype: (rng.standard_normal((3, 5, 7)) * 50).astype(dtype) for dtype in (*FLOATS, *OTHERS)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np", "note": "line\nline"})
    source = open_weights(tmp_path / "model.safetensors")
    assert isinstance(source, SafetensorsSource)
    assert isinstance(source, WeightSource)
    assert source.format == "safetensors"
    assert source.metadata == {"format": "np", "note": "line\nline"}
    theirs = load_file(tmp_path / "model.safetensors")
    assert sorted(source) == sorted(theirs)
    assert len(source) == len(theirs)
    for name, expected in theirs.items():
        view = source.array(name)
        assert view is not None
        assert view.dtype == expected.dtype
        assert not view.flags.owndata
        assert source.info(name).shape == (3, 5, 7)
        assert source.info(name).nbytes == expected.nbytes
        np.testing.assert_array_equal(view, expected)
        assert source.packed(name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_decode_to_float32(dtype, tmp_path):
    """Whole and by rows, as NumPy converts them."""
    values = np.random.default_rng(1).standard_normal((6, 4)).astype(dtype)
    save_file({"w": values}, tmp_path / "model.safetensors")
    source = open_weights(tmp_path)
    for rows in (None, slice(0, 2), slice(5, 6), slice(3, 3), slice(-2, None)):
        decoded = source.decode("w", rows)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, values.astype(np.float32)[slice(None) if rows is None else rows])


@pytest.mark.parametrize("dtype", OTHERS)
def test_other_dtypes_do_not_decode(dtype, tmp_path):
    """Integers and booleans have no float form."""
    save_file({"w": np.ones(3, dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"tensor 'w' is stored as .*array\(\) gives its elements as they are"):
        open_weights(tmp_path).decode("w")


@pytest.mark.parametrize(
    ("dtype", "name"), [("BF16", "bfloat16"), ("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")]
)
def test_types_that_numpy_lacks(dtype, name, tmp_path, safetensors_bytes):
    """BF16 and float8 come as bit patterns, and decode to their values."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the oracle of these types is not installed")
    values = np.random.default_rng(2).standard_normal((8, 4)).astype(getattr(ml_dtypes, name))
    bits = values.view(np.uint16 if dtype == "BF16" else np.uint8)
    header = {"w": {"dtype": dtype, "shape": [8, 4], "data_offsets": [0, bits.nbytes]}}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bits.tobytes()))
    source = open_weights(tmp_path)
    assert source.array("w").dtype == bits.dtype
    np.testing.assert_array_equal(source.array("w"), bits)
    np.testing.assert_array_equal(source.decode("w"), values.astype(np.float32))
    np.testing.assert_array_equal(source.decode("w", slice(2, 5)), values[2:5].astype(np.float32))


def test_scalars_and_an_empty_tensor(tmp_path):
    """No dimensions, and no elements."""
    save_file({"s": np.array(2.5, np.float32), "e": np.empty((0, 3), np.float32)}, tmp_path / "model.safetensors")
    source = open_weights(tmp_path)
    assert source.array("s").shape == ()
    assert float(source.decode("s")) == 2.5
    assert source.array("e").shape == (0, 3)
    assert source.decode("e", slice(0, 2)).shape == (0, 3)


def test_a_file_without_tensors(tmp_path, safetensors_bytes):
    """An empty header is a valid file."""
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({}))
    assert list(open_weights(tmp_path)) == []


def test_iteration_follows_the_bytes(tmp_path, safetensors_bytes):
    """Whatever the order of the header, tensors come in the order they lie in, so that reading is sequential."""
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
        "c": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(range(8))))
    source = open_weights(tmp_path)
    assert list(source) == ["c", "a", "b"]
    assert source.packed("b").tolist() == [6, 7]


def test_unaligned_tensors_have_no_view(tmp_path, safetensors_bytes):
    """A float behind an odd number of bytes: no view, but it decodes."""
    values = np.arange(3, dtype=np.float32)
    header = {
        "pad": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F32", "shape": [3], "data_offsets": [3, 15]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, b"abc" + values.tobytes()))
    source = open_weights(tmp_path)
    assert source.array("w") is None
    np.testing.assert_array_equal(source.decode("w"), values)
    assert source.array("pad").tobytes() == b"abc"


def test_booleans_are_checked_when_asked_for(tmp_path, safetensors_bytes):
    """A BOOL of another byte than 0 and 1 would be undefined behaviour later: it is refused, without the others."""
    header = {
        "good": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]},
        "bad": {"dtype": "BOOL", "shape": [2], "data_offsets": [2, 4]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, b"\0\1\1\7"))
    source = open_weights(tmp_path)
    np.testing.assert_array_equal(source.array("good"), [False, True])
    with pytest.raises(MalformedFileError, match="tensor 'bad': a BOOL that is neither 0 nor 1"):
        source.array("bad")
