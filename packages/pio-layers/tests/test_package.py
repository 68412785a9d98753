"""What importing the package costs, and that its names are there."""

import subprocess
import sys

import pytest

import inference_pio.layers

PUBLIC = sorted(inference_pio.layers.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_layers_exports_every_public_name(name):
    """Each name of ``__all__`` resolves to an object of that name."""
    assert getattr(inference_pio.layers, name).__name__ == name


def test_layers_dir_lists_the_public_names():
    """``dir`` shows names that were not resolved yet."""
    assert dir(inference_pio.layers) == PUBLIC


def test_layers_unknown_name_is_an_attribute_error():
    """A wrong name fails as in any module."""
    with pytest.raises(AttributeError, match=r"module 'inference_pio.layers' has no attribute 'LayerNorm'"):
        inference_pio.layers.LayerNorm  # noqa: B018 - the lookup is what is tested


@pytest.mark.parametrize(
    "statement",
    ["import inference_pio.layers", "from inference_pio.layers.frequencies import rope_frequencies, rotary_dim"],
)
def test_layers_frequencies_import_no_torch(statement):
    """Native kernels take the frequencies from here without paying for torch."""
    code = f"{statement}; import sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_layers_rope_frequencies_run_without_torch():
    """Computing them imports no torch either."""
    code = (
        "from inference_pio.layers import rope_frequencies; from inference_pio.interfaces import RopeParameters; "
        "import sys; f, a = rope_frequencies(64, RopeParameters(theta=1e5)); print(f.shape, a, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "(32,) 1.0 False"
