"""What importing the package costs: nothing that is not used."""

import subprocess
import sys

import pytest

import inference_pio.kernels


def test_running_imports_neither_the_interpreter_nor_the_reference_of_packing():
    """What starts a program waits for what runs it alone."""
    code = """
import sys
from inference_pio.kernels import PackedStore, ProgramBuilder, Runtime, load_parameters
print(*(name for name in sys.modules if name.startswith("inference_pio.kernels.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert {"_runtime", "_parameters", "_program"} <= found
    assert found.isdisjoint({"_interpreter", "_limits", "_pack_reference"})


def test_public_names_are_there():
    """Each is found, and ``dir`` shows names that were not used yet."""
    names = inference_pio.kernels.__all__
    assert all(hasattr(inference_pio.kernels, name) for name in names)
    assert dir(inference_pio.kernels) == sorted(names)
    assert set(inference_pio.kernels._MODULES) == set(names)


def test_an_unknown_name_is_an_attribute_error():
    """A wrong name fails as in any module."""
    with pytest.raises(AttributeError, match=r"module 'inference_pio.kernels' has no attribute 'Runtimes'"):
        inference_pio.kernels.Runtimes  # noqa: B018 - the lookup is what is tested
