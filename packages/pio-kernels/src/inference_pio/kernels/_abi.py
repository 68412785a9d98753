"""Twins of the structures of ``native/program.h``, field by field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_uint32, c_void_p
from typing import ClassVar

Fields = list[tuple[str, type]]


class SegmentStruct(Structure):
    """``Segment``."""

    _fields_: ClassVar[Fields] = [
        ("format", c_uint32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("out_column", c_int32),
        ("strips", c_void_p),
        ("bias", c_void_p),
    ]


class NormStruct(Structure):
    """``Norm``."""

    _fields_: ClassVar[Fields] = [("weight", c_void_p), ("eps", c_float), ("offset", c_float)]


class EmbedStruct(Structure):
    """``EmbedOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("out", c_int32),
        ("scale", c_float),
        ("reserved", c_uint32),
        ("table", c_void_p),
    ]


class RotaryStruct(Structure):
    """``RotaryOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("out", c_int32),
        ("pairs", c_int32),
        ("original_length", c_int32),
        ("factor", c_float),
        ("reserved", c_uint32),
        ("frequencies", c_void_p),
        ("long_frequencies", c_void_p),
    ]


class LinearStruct(Structure):
    """``LinearOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("in", c_int32),
        ("out", c_int32),
        ("width", c_int32),
        ("epilogue", c_uint32),
        ("activation", c_uint32),
        ("scale", c_float),
        ("num_segments", c_int32),
        ("segments", c_void_p),
        ("norm", NormStruct),
    ]


class LayerCacheStruct(Structure):
    """``LayerCache``."""

    _fields_: ClassVar[Fields] = [
        ("pages", c_void_p),
        ("page_bytes", c_int64),
        ("format", c_uint32),
        ("group", c_int32),
        ("page_size", c_int32),
        ("reserved", c_int32),
    ]


class AttentionStruct(Structure):
    """``AttentionOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("qkv", c_int32),
        ("out", c_int32),
        ("rotary", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_size", c_int32),
        ("pairs", c_int32),
        ("interleaved", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("query_norm", NormStruct),
        ("key_norm", NormStruct),
        ("sinks", c_void_p),
        ("cache", c_void_p),
    ]


class RouteStruct(Structure):
    """``RouteOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("in", c_int32),
        ("weights", c_int32),
        ("experts", c_int32),
        ("num_experts", c_int32),
        ("chosen", c_int32),
        ("scoring", c_uint32),
        ("normalise", c_int32),
        ("scale", c_float),
        ("reserved", c_uint32),
        ("bias", c_void_p),
    ]


class ExpertsStruct(Structure):
    """``ExpertsOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("in", c_int32),
        ("out", c_int32),
        ("weights", c_int32),
        ("experts", c_int32),
        ("inner", c_int32),
        ("width", c_int32),
        ("inner_width", c_int32),
        ("num_experts", c_int32),
        ("chosen", c_int32),
        ("activation", c_uint32),
        ("reserved", c_uint32),
        ("gate", c_void_p),
        ("up", c_void_p),
        ("down", c_void_p),
        ("norm", NormStruct),
    ]


class HeadStruct(Structure):
    """``HeadOp``."""

    _fields_: ClassVar[Fields] = [
        ("kind", c_uint32),
        ("in", c_int32),
        ("width", c_int32),
        ("num_segments", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("segments", c_void_p),
        ("norm", NormStruct),
    ]


class GroupTablesStruct(Structure):
    """``GroupTables``."""

    _fields_: ClassVar[Fields] = [("block_tables", c_void_p), ("stride", c_int64), ("slots", c_void_p)]


class BatchStruct(Structure):
    """``Batch``."""

    _fields_: ClassVar[Fields] = [
        ("num_tokens", c_int32),
        ("num_sequences", c_int32),
        ("num_logits", c_int32),
        ("num_groups", c_int32),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("query_starts", c_void_p),
        ("sequence_lengths", c_void_p),
        ("logit_rows", c_void_p),
        ("groups", c_void_p),
        ("logits", c_void_p),
        ("hidden_rows", c_void_p),
        ("hidden", c_void_p),
        ("num_hidden", c_int32),
        ("reserved", c_int32),
        ("largest_wanted", c_void_p),
    ]


class ProgramStruct(Structure):
    """``Program``."""

    _fields_: ClassVar[Fields] = [
        ("num_ops", c_int32),
        ("num_buffers", c_int32),
        ("max_tokens", c_int32),
        ("vocab_size", c_int32),
        ("ops", c_void_p),
        ("buffer_widths", c_void_p),
    ]


class SamplingStruct(Structure):
    """``Sampling``."""

    _fields_: ClassVar[Fields] = [
        ("rows", c_int32),
        ("vocab_size", c_int32),
        ("stride", c_int64),
        ("logit_rows", c_void_p),
        ("masks", c_void_p),
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("typical_p", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("uniforms", c_void_p),
        ("chosen", c_void_p),
    ]


# C's names of the structures above.
STRUCTURES: dict[str, type[Structure]] = {
    "Segment": SegmentStruct,
    "Norm": NormStruct,
    "EmbedOp": EmbedStruct,
    "RotaryOp": RotaryStruct,
    "LinearOp": LinearStruct,
    "LayerCache": LayerCacheStruct,
    "AttentionOp": AttentionStruct,
    "RouteOp": RouteStruct,
    "ExpertsOp": ExpertsStruct,
    "HeadOp": HeadStruct,
    "GroupTables": GroupTablesStruct,
    "Batch": BatchStruct,
    "Program": ProgramStruct,
    "Sampling": SamplingStruct,
}
