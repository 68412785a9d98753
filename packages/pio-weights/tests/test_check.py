"""The optional check for NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_pio.interfaces import MalformedFileError
from inference_pio.weights import check_finite, open_weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1, 299, 300, 1499])
def test_the_row_is_named(value, row, tmp_path):
    """The first bad row is found, in whatever chunk it is."""
    weights = np.zeros((1500, 4000), np.float16)
    weights[row, 17] = value
    save_file({"good": np.ones(3, np.float32), "bad": weights}, tmp_path / "model.safetensors")
    source = open_weights(tmp_path)
    with pytest.raises(MalformedFileError, match=f"model.safetensors: tensor 'bad': row {row} holds NaN or infinity"):
        check_finite(source)
    check_finite(source, ["good"])


def test_finite_weights_pass(tmp_path):
    """Integers are passed over; scalars and empty tensors are no trouble."""
    tensors = {
        "w": np.ones((3, 5), np.float32),
        "ids": np.arange(5),
        "scalar": np.array(1.0, np.float32),
        "empty": np.empty((0, 7), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    check_finite(open_weights(tmp_path))


def test_scalar_nan(tmp_path):
    """A scalar counts as a row."""
    save_file({"s": np.array(np.nan, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(MalformedFileError, match="tensor 's': row 0 holds NaN"):
        check_finite(open_weights(tmp_path))


def test_block_formats_are_checked(tmp_path, write_gguf, random_blocks):
    """A scale of infinity in a quantised tensor is found."""
    packed = random_blocks("Q4_K", 6).reshape(3, -1)
    packed[2, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    source = open_weights(write_gguf(tmp_path / "m.gguf", {"w": ("Q4_K", packed)}))
    with pytest.raises(MalformedFileError, match="tensor 'w': row 2 holds NaN or infinity"):
        check_finite(source)
