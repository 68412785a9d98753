"""Fused CPU programs for language models: one native call per step, NumPy as the reference. No torch."""

from inference_pio.kernels._program import (
    Attention,
    Embed,
    Experts,
    Head,
    Linear,
    Norm,
    Op,
    Program,
    ProgramBuilder,
    Rotary,
    Route,
)

__all__ = [
    "Attention",
    "Embed",
    "Experts",
    "Head",
    "Linear",
    "Norm",
    "Op",
    "Program",
    "ProgramBuilder",
    "Rotary",
    "Route",
]
