"""What importing costs: neither torch nor NumPy, and no format that no file asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import inference_pio.config

HEAVY = ["torch", "numpy", "transformers", "yaml", "safetensors"]


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after `code`."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.fixture(scope="module")
def bare():
    """Modules of an interpreter that imports nothing (site files may import some)."""
    return modules_after("")


@pytest.mark.parametrize(
    "code",
    [
        "import inference_pio.config",
        "from inference_pio.config import load_settings; load_settings(env={}, flags={'threads': 2})",
        "from inference_pio.config import gguf_to_hf; gguf_to_hf({'general.architecture': 'llama'}, architecture='X')",
    ],
)
def test_no_heavy_module_is_imported(bare, code):
    """Importing the package, loading settings and reading metadata import no tensor library and no YAML."""
    found = modules_after(code) - bare
    assert "inference_pio.config" in found
    assert found.isdisjoint(HEAVY)


def test_yaml_is_imported_for_a_yaml_file(tmp_path):
    """The test above would notice YAML: a YAML file brings it in."""
    (tmp_path / "pio.yaml").write_text("threads: 2")
    code = f"""
from pathlib import Path
from inference_pio.config import load_settings
load_settings(env={{}}, cwd=Path({str(tmp_path)!r}))
"""
    assert "yaml" in modules_after(code)


def test_rotary_frequencies_import_numpy_and_no_torch():
    """Native kernels take the frequencies from here without paying for torch."""
    code = """
from inference_pio.config import rope_frequencies
from inference_pio.interfaces import RopeParameters
assert rope_frequencies(64, RopeParameters(theta=1e5))[0].shape == (32,)
"""
    found = modules_after(code)
    assert "numpy" in found
    assert "torch" not in found


def test_unknown_name_is_an_attribute_error():
    """A wrong name fails as in any module."""
    with pytest.raises(AttributeError, match=r"module 'inference_pio.config' has no attribute 'rope_frequency'"):
        inference_pio.config.rope_frequency  # noqa: B018 - the lookup is what is tested


def test_public_names():
    """`__all__` is sorted, complete and true."""
    names = inference_pio.config.__all__
    assert names == sorted(names, key=lambda name: (not name[0].isupper(), name))
    assert all(hasattr(inference_pio.config, name) for name in names)
