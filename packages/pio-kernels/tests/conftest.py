"""The native library, for tests that call it below the Python API."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

import inference_pio.kernels


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The library in the installed package, its functions as ctypes finds them."""
    found = sorted(Path(inference_pio.kernels.__file__).parent.glob("libpio_kernels.*"))
    assert found, "the native library is not built: run `python build_native.py`"
    return ctypes.CDLL(str(found[0]))
