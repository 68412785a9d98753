"""The conformance kit: every check, by name, and all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference_pio.interfaces import LowerableModel
from inference_pio.testing._checks import CHECK_NAMES
from inference_pio.testing._determinism import check_deterministic
from inference_pio.testing._engine_checks import check_embed, check_preempted, check_prefix_hit, check_speculative
from inference_pio.testing._equivalence import (
    check_batched,
    check_chunked,
    check_logit_rows,
    check_paged,
    check_step_by_step,
)
from inference_pio.testing._load import load_model
from inference_pio.testing._native import check_native

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inference_pio.interfaces import ModelPlugin


def conformance_checks() -> dict[str, Callable[..., None]]:
    """The checks by name, in the order of :data:`CHECK_NAMES`: functions of a loaded model, ``tolerance`` optional."""
    functions: tuple[Callable[..., None], ...] = (
        check_step_by_step,
        check_batched,
        check_logit_rows,
        check_chunked,
        check_paged,
        check_prefix_hit,
        check_preempted,
        check_speculative,
        check_deterministic,
        check_embed,
        check_native,
    )
    return dict(zip(CHECK_NAMES, functions, strict=True))


def run_conformance(
    plugin: ModelPlugin[Any], path: Path, *, backend: str = "sdpa", architecture: str | None = None
) -> None:
    """Load the checkpoint at ``path`` in float32 and run every check; ``native`` if the plugin has a lowering.

    Raises:
        ParityError: A check fails.
        UnsupportedError: This machine has no row-invariant products.
    """
    loaded = load_model(plugin, path, backend=backend, architecture=architecture)
    for name, check in conformance_checks().items():
        if name != "native" or isinstance(plugin, LowerableModel):
            check(loaded)
