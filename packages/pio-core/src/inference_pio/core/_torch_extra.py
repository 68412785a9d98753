"""Whether the torch executor can run here, asked without importing it."""

from __future__ import annotations

from importlib.util import find_spec

from inference_pio.interfaces import MissingDependencyError

_NEEDED = {"torch": "torch", "inference_pio.layers": "pio-layers", "inference_pio.attention": "pio-attention"}
"""Modules that the extra ``torch`` brings, and the distributions that they come in."""


def check_torch_extra() -> None:
    """Refuse to go on where the torch executor cannot be imported because it is not installed.

    Raises:
        MissingDependencyError: Something of the extra is not installed; the message names it.
    """
    missing = [distribution for module, distribution in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"the torch executor needs {', '.join(missing)}, not installed here",
            hint='pip install "inference-pio[torch]"',
        )
