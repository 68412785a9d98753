"""Fused CPU programs for language models: one native call per step, NumPy as the reference. No torch."""

from inference_pio.kernels._interpreter import Interpreter, KVFormat
from inference_pio.kernels._library import InstructionSet, choose_instruction_set, default_threads, instruction_sets
from inference_pio.kernels._limits import measure_limits
from inference_pio.kernels._pack_reference import pack_reference
from inference_pio.kernels._packed_layout import Weights
from inference_pio.kernels._packed_store import DEFAULT_MAX_BYTES, PackedEntry, PackedStore
from inference_pio.kernels._parameters import Parameters, load_parameters
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
    "page_bytes",
    "unpack",
]
