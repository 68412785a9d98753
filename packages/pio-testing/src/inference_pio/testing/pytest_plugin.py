"""The pytest plugin: fixtures and markers for tests of models. Imports torch only in a fixture that needs it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from inference_pio.testing._checks import CHECK_NAMES
from inference_pio.testing._default_model import DEFAULT_MODEL_DISTRIBUTION, find_default_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inference_pio.interfaces import ModelPlugin

_MARKERS = (
    "gpu: needs a CUDA device; skipped with the reason where there is none",
    "real_model: needs the weights of the default model; skipped with the reason where they are not installed",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run."""
    if item.get_closest_marker("real_model") is not None and find_default_model() is None:
        pytest.skip(f"{DEFAULT_MODEL_DISTRIBUTION} is not installed")
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file; skips where the distribution that carries it is not installed."""
    path = find_default_model()
    if path is None:
        pytest.skip(f"{DEFAULT_MODEL_DISTRIBUTION} is not installed")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_checkpoint(family, **options)``: the folder of a tiny random checkpoint, written once per session.

    Takes what :func:`inference_pio.testing.tiny_checkpoint` takes, without the folder. Do not change the files.
    """
    from inference_pio.testing import tiny_checkpoint as write

    written: dict[str, Path] = {}

    def tiny(family: str, **options: Any) -> Path:  # noqa: ANN401 - passed on as they are
        key = repr((family, sorted(options.items())))
        if key not in written:
            written[key] = write(family, tmp_path_factory.mktemp(f"tiny-{family}-"), **options)
        return written[key]

    return tiny


@pytest.fixture(params=CHECK_NAMES)
def conformance_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Each check of the conformance kit in turn, as a function of a loaded model: one test becomes one per check.

    Skips what the machine has no products for, and ``native`` where a program cannot express the model.
    """
    from inference_pio.testing import conformance_checks

    if request.param == "deterministic":
        _skip_without_invariant_products()
    check: Callable[..., None] = conformance_checks()[request.param]
    return _or_skip(check) if request.param == "native" else check


def _or_skip(check: Callable[..., None]) -> Callable[..., None]:
    from inference_pio.interfaces import UnsupportedError

    @functools.wraps(check)
    def checked(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        try:
            check(*arguments, **options)
        except UnsupportedError as error:
            pytest.skip(str(error))

    return checked


def _skip_without_invariant_products() -> None:
    from inference_pio.attention import get_backend
    from inference_pio.interfaces import UnsupportedError

    try:
        get_backend("invariant")
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def conformance() -> Callable[[ModelPlugin[Any], Path], None]:
    """``conformance(plugin, path)``: load the checkpoint and run every check of the kit."""
    from inference_pio.testing import run_conformance

    return run_conformance
