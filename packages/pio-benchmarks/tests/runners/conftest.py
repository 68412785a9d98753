"""Tiny random models that the runners run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inference_pio.testing import tiny_checkpoint, write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> Callable[..., Path]:
    """Writes a tiny random checkpoint of a family: safetensors in float32, no tokenizer."""

    def make(family: str, **overrides: object) -> Path:
        return tiny_checkpoint(family, tmp_path_factory.mktemp(family), **overrides)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoints) -> Path:
    """A tiny Llama as safetensors."""
    return tiny_checkpoints("llama")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder, tmp_path_factory) -> Path:
    """The same as a GGUF file in Q8_0, without a tokenizer."""
    return write_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", encoding="Q8_0")
