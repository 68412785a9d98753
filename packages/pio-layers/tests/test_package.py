"""The package's public names."""

import pytest

import inference_pio.layers


@pytest.mark.parametrize("name", inference_pio.layers.__all__)
def test_layers_exports_every_public_name(name):
    """Each name of ``__all__`` resolves to an object of that name."""
    assert getattr(inference_pio.layers, name).__name__ == name
