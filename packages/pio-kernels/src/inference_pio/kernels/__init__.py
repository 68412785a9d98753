"""Fused CPU programs for language models: one native call per step, NumPy as the reference. No torch.

Names are imported when first used: who runs a program waits for neither its interpreter nor the reference of packing.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.kernels._interpreter import Interpreter, KVFormat
    from inference_pio.kernels._library import InstructionSet, choose_instruction_set, default_threads, instruction_sets
    from inference_pio.kernels._limits import measure_limits
    from inference_pio.kernels._pack_reference import pack_reference
    from inference_pio.kernels._packed_layout import Weights
    from inference_pio.kernels._packed_store import DEFAULT_MAX_BYTES, PackedEntry, PackedStore
    from inference_pio.kernels._parameters import Parameters, load_parameters, packed_nbytes
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
    from inference_pio.kernels._runtime import PAGE_SIZE_MULTIPLE, Runtime, page_bytes
    from inference_pio.kernels._tiles import TileFormat, unpack

_MODULES = MappingProxyType(
    {
        "DEFAULT_MAX_BYTES": "inference_pio.kernels._packed_store",
        "PAGE_SIZE_MULTIPLE": "inference_pio.kernels._runtime",
        "Attention": "inference_pio.kernels._program",
        "Embed": "inference_pio.kernels._program",
        "Experts": "inference_pio.kernels._program",
        "Head": "inference_pio.kernels._program",
        "InstructionSet": "inference_pio.kernels._library",
        "Interpreter": "inference_pio.kernels._interpreter",
        "KVFormat": "inference_pio.kernels._interpreter",
        "Linear": "inference_pio.kernels._program",
        "Norm": "inference_pio.kernels._program",
        "Op": "inference_pio.kernels._program",
        "PackedEntry": "inference_pio.kernels._packed_store",
        "PackedStore": "inference_pio.kernels._packed_store",
        "Parameters": "inference_pio.kernels._parameters",
        "Program": "inference_pio.kernels._program",
        "ProgramBuilder": "inference_pio.kernels._program",
        "Rotary": "inference_pio.kernels._program",
        "Route": "inference_pio.kernels._program",
        "Runtime": "inference_pio.kernels._runtime",
        "TileFormat": "inference_pio.kernels._tiles",
        "Weights": "inference_pio.kernels._packed_layout",
        "choose_instruction_set": "inference_pio.kernels._library",
        "default_threads": "inference_pio.kernels._library",
        "instruction_sets": "inference_pio.kernels._library",
        "load_parameters": "inference_pio.kernels._parameters",
        "measure_limits": "inference_pio.kernels._limits",
        "pack_reference": "inference_pio.kernels._pack_reference",
        "packed_nbytes": "inference_pio.kernels._parameters",
        "page_bytes": "inference_pio.kernels._runtime",
        "unpack": "inference_pio.kernels._tiles",
    }
)

__all__ = [
    "DEFAULT_MAX_BYTES",
    "PAGE_SIZE_MULTIPLE",
    "Attention",
    "Embed",
    "Experts",
    "Head",
    "InstructionSet",
    "Interpreter",
    "KVFormat",
    "Linear",
    "Norm",
    "Op",
    "PackedEntry",
    "PackedStore",
    "Parameters",
    "Program",
    "ProgramBuilder",
    "Rotary",
    "Route",
    "Runtime",
    "TileFormat",
    "Weights",
    "choose_instruction_set",
    "default_threads",
    "instruction_sets",
    "load_parameters",
    "measure_limits",
    "pack_reference",
    "packed_nbytes",
    "page_bytes",
    "unpack",
]


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
