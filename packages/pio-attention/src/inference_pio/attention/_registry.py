"""Attention backends by name, found by entry point and imported only when asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from inference_pio.interfaces import AttentionBackend, BrokenDependencyError, MissingPluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import torch

ENTRY_POINT_GROUP = "inference_pio.attention"
"""Each entry point names a callable without arguments that returns an ``AttentionBackend``."""


def backend_names() -> tuple[str, ...]:
    """Names of the installed backends, in alphabetical order; none of them is imported."""
    return tuple(sorted(entry_points(group=ENTRY_POINT_GROUP).names))


def get_backend(name: str = "auto", *, device: torch.device | None = None) -> AttentionBackend:
    """Make the backend registered as ``name``.

    Args:
        name: One of ``backend_names()``, or ``"auto"``.
        device: Where it will run; what ``"auto"`` goes by. Today that is SDPA on every device: FlashAttention-2 asks
            for page sizes and dtypes that a caller has to choose on purpose.

    Raises:
        MissingPluginError: No installed distribution registers ``name``.
        BrokenDependencyError: The distribution that registers it cannot be imported, or brings something else.
        MissingDependencyError: The backend needs an optional distribution that is not installed.
        UnsupportedError: The backend cannot run on this machine.
    """
    chosen = _choose(device) if name == "auto" else name
    found = _find(chosen)
    try:
        factory = found.load()
    except (ImportError, AttributeError) as error:
        raise BrokenDependencyError(
            f"attention backend {chosen!r} ({found.value}) cannot be imported: {error}",
            hint=f"reinstall {_distribution(found)}",
        ) from error
    backend = factory()
    if not isinstance(backend, AttentionBackend):
        raise BrokenDependencyError(
            f"attention backend {chosen!r} ({found.value}) is a {type(backend).__name__}, not an AttentionBackend",
            hint=f"report it to the authors of {_distribution(found)}",
        )
    return backend


def _choose(device: torch.device | None) -> str:  # noqa: ARG001 - the seam where devices will differ
    return "sdpa"


def _find(name: str) -> EntryPoint:
    candidates = {found.value: found for found in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if not candidates:
        installed = backend_names()
        near = get_close_matches(name, installed, n=1)
        raise MissingPluginError(
            f"no attention backend is named {name!r}; installed are: {', '.join(installed) or 'none'}",
            hint=f"did you mean {near[0]!r}?" if near else "install the distribution that brings it",
        )
    if len(candidates) > 1:
        owners = ", ".join(sorted(f"{value} of {_distribution(found)}" for value, found in candidates.items()))
        raise BrokenDependencyError(
            f"attention backend {name!r} is registered more than once: {owners}", hint="uninstall all but one"
        )
    return next(iter(candidates.values()))


def _distribution(found: EntryPoint) -> str:
    return found.dist.name if found.dist is not None else "its distribution"
