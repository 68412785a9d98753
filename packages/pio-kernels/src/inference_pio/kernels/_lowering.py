"""A program as the structures that the native runtime reads."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from inference_pio.kernels._abi import (
    AttentionStruct,
    EmbedStruct,
    ExpertsStruct,
    HeadStruct,
    LayerCacheStruct,
    LinearStruct,
    NormStruct,
    ProgramStruct,
    RotaryStruct,
    RouteStruct,
    SegmentStruct,
)
from inference_pio.kernels._program import Attention, Embed, Experts, Head, Linear, Rotary, Route

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from inference_pio.kernels._packed_layout import PackedPart
    from inference_pio.kernels._parameters import Parameters
    from inference_pio.kernels._program import Norm, Op, Program

# Numbers of program.h's enumerations.
_EMBED, _ROTARY, _LINEAR, _ATTENTION, _ROUTE, _EXPERTS, _HEAD = range(7)
_ACTIVATIONS = {"none": 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}
_EPILOGUES = {"store": 0, "add": 1, "gated": 2}
_SCORINGS = {"softmax": 0, "sigmoid": 1, "softmax_of_chosen": 2}


class NativeProgram:
    """A program in C structures, which it keeps alive together with everything that they point to.

    Args:
        program: What to write down.
        parameters: Its parameters.
        caches: The cache of each layer.
        max_tokens: The most tokens of a step.
    """

    def __init__(
        self, program: Program, parameters: Parameters, caches: Mapping[int, LayerCacheStruct], *, max_tokens: int
    ) -> None:
        self._parameters = parameters
        self._caches = caches
        self._program = program
        self._kept: list[object] = [parameters]
        self._numbers = {name: number for number, name in enumerate(program.buffers)}
        ops = [self._op(op) for op in program.ops]
        widths = np.array([*program.buffers.values()], dtype=np.int32)
        self._kept += [ops, caches]
        self.struct = ProgramStruct(
            len(ops),
            len(widths),
            max_tokens,
            program.vocab_size,
            self._keep((ctypes.c_void_p * len(ops))(*map(ctypes.addressof, ops))),
            self._array(widths),
        )

    def _op(self, op: Op) -> ctypes.Structure:  # noqa: PLR0911 - one per kind
        match op:
            case Embed():
                (table,) = self._parameters.segments(op.weight)
                return EmbedStruct(_EMBED, self._numbers[op.out], op.scale, 0, self._segments([table]))
            case Rotary():
                return RotaryStruct(
                    _ROTARY,
                    self._numbers[op.out],
                    len(op.frequencies),
                    op.original_length,
                    op.factor,
                    0,
                    self._array(np.array(op.frequencies, np.float32)),
                    None if op.long_frequencies is None else self._array(np.array(op.long_frequencies, np.float32)),
                )
            case Linear():
                return self._linear(op)
            case Attention():
                return self._attention(op)
            case Route():
                return RouteStruct(
                    _ROUTE,
                    self._numbers[op.input],
                    self._numbers[op.weights],
                    self._numbers[op.experts],
                    op.num_experts,
                    op.chosen,
                    _SCORINGS[op.scoring],
                    op.normalise,
                    op.scale,
                    0,
                    self._vector(op.bias),
                )
            case Experts():
                return self._experts(op)
            case Head():
                return HeadStruct(
                    _HEAD,
                    self._numbers[op.input],
                    self._program.buffers[op.input],
                    len(self._parameters.segments(op.weight)),
                    op.scale,
                    op.softcap,
                    self._segments(self._parameters.segments(op.weight)),
                    self._norm(op.norm),
                )

    def _linear(self, op: Linear) -> LinearStruct:
        parts = self._parameters.segments(op.weight)
        return LinearStruct(
            _LINEAR,
            self._numbers[op.input],
            self._numbers[op.out],
            self._program.buffers[op.input],
            _EPILOGUES[op.epilogue],
            _ACTIVATIONS[op.activation],
            op.scale,
            len(parts),
            self._segments(parts, bias=op.bias, side_by_side=op.epilogue != "gated"),
            self._norm(op.norm),
        )

    def _attention(self, op: Attention) -> AttentionStruct:
        return AttentionStruct(
            _ATTENTION,
            self._numbers[op.qkv],
            self._numbers[op.out],
            -1 if op.rotary is None else self._numbers[op.rotary],
            op.heads,
            op.kv_heads,
            op.head_size,
            0 if op.rotary is None else self._program.buffers[op.rotary] // 2,
            op.interleaved,
            op.window or 0,
            op.scale,
            op.softcap,
            self._norm(op.query_norm),
            self._norm(op.key_norm),
            self._vector(op.sinks),
            ctypes.addressof(self._caches[op.layer]),
        )

    def _experts(self, op: Experts) -> ExpertsStruct:
        gate_up = self._parameters.segments(op.gate_up)
        return ExpertsStruct(
            _EXPERTS,
            self._numbers[op.input],
            self._numbers[op.out],
            self._numbers[op.weights],
            self._numbers[op.experts],
            self._numbers[op.inner],
            self._program.buffers[op.input],
            op.inner_size,
            op.num_experts,
            op.chosen,
            _ACTIVATIONS[op.activation],
            0,
            self._segments(gate_up[0::2], side_by_side=False),
            self._segments(gate_up[1::2], side_by_side=False),
            self._segments(self._parameters.segments(op.down), side_by_side=False),
            self._norm(op.norm),
        )

    def _segments(self, parts: Sequence[PackedPart], *, bias: str | None = None, side_by_side: bool = True) -> int:
        """Address of an array of segments; those ``side_by_side`` fill the output one after the other."""
        biases = self._vector(bias)
        return self._keep(
            (SegmentStruct * len(parts))(
                *(
                    SegmentStruct(
                        int(part.format or 0),
                        part.rows,
                        part.columns,
                        part.row if side_by_side else 0,
                        self._parameters.strips(part).ctypes.data,
                        None if biases is None else biases + 4 * part.row,
                    )
                    for part in parts
                )
            )
        )

    def _norm(self, norm: Norm | None) -> NormStruct:
        return (
            NormStruct(None, 0.0, 0.0) if norm is None else NormStruct(self._vector(norm.weight), norm.eps, norm.offset)
        )

    def _vector(self, name: str | None) -> int | None:
        return None if name is None else self._parameters.vector(name).ctypes.data

    def _array(self, values: NDArray[np.generic]) -> int:
        self._kept.append(values)
        return values.ctypes.data

    def _keep(self, values: ctypes.Array[Any]) -> int:
        self._kept.append(values)
        return ctypes.addressof(values)
