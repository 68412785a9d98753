"""Programs in plain NumPy: the reference that says what each operation computes.

Letters: ``N`` tokens of a step, ``B`` sequences, ``R`` rows with logits, ``E`` width of a row, ``V`` vocabulary, ``H``
query heads, ``K`` KV heads, ``D`` head size, ``P`` page size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from inference_pio.kernels._numbers import bf16_bits, bf16_values, quantised_activations, quantised_blocks
from inference_pio.kernels._program import Attention, Embed, Experts, Head, Linear, Rotary, Route

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from inference_pio.interfaces import CacheGroup, GroupTables, LayerGroup, StepBatch
    from inference_pio.kernels._program import Activation, Norm, Op, Program

    Array = NDArray[np.floating]

KVFormat = Literal["f16", "bf16", "int8", "f32"]
"""How keys and values are stored."""


class Interpreter:
    """Runs a program over steps of the engine, keeping keys and values in pages of its own.

    Slow and plain. :class:`Runtime` computes the same, to rounding; their constructors take the same first arguments.

    Args:
        program: What to run.
        parameters: The values of every parameter by name: matrices (rows, columns), those of experts (num_experts,
            rows, columns), vectors.
        caches: Pages of each group.
        layer_groups: The layers of each group, in the same order.
        page_size: ``P``.
        kv_format: What keys and values are rounded to when they are stored.
        quantise_activations: Whether the inputs of products are rounded to blocks of int8 as for quantised weights:
            always, never, or for the products with the matrices named.
        dtype: What is computed in: float32, or float64.

    Attributes:
        hidden_size: ``E``.

    Raises:
        ValueError: A layer of the program is in no group, or a parameter is missing.
    """

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, NDArray[np.float32]],
        caches: Sequence[CacheGroup],
        layer_groups: Sequence[LayerGroup],
        *,
        page_size: int,
        kv_format: KVFormat = "f32",
        quantise_activations: bool | Collection[str] = False,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        missing = program.parameters.keys() - parameters.keys()
        if missing:
            raise ValueError(f"the program needs parameters that are not given: {', '.join(sorted(missing))}")
        self._program = program
        self.hidden_size = program.hidden_size
        self._hidden = np.empty((0, self.hidden_size), dtype=np.float32)
        self._values = {name: np.asarray(parameters[name], dtype=dtype) for name in program.parameters}
        self._dtype = dtype
        self._kv_format = kv_format
        every = self._values.keys()
        self._quantised = frozenset(
            (every if quantise_activations else ()) if isinstance(quantise_activations, bool) else quantise_activations
        )
        self._page_size = page_size
        self._groups = tuple(layer_groups)
        self._group_of = {layer: index for index, group in enumerate(layer_groups) for layer in group.layers}
        self._keys: dict[int, Array] = {}
        self._cached_values: dict[int, Array] = {}
        for op in program.ops:
            if isinstance(op, Attention):
                if op.layer not in self._group_of:
                    raise ValueError(f"layer {op.layer} of the program is in none of {len(self._groups)} groups")
                slots = caches[self._group_of[op.layer]].num_pages * page_size
                self._keys[op.layer] = np.zeros((slots, op.kv_heads, op.head_size), dtype=dtype)
                self._cached_values[op.layer] = np.zeros((slots, op.kv_heads, op.head_size), dtype=dtype)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Logits (R, V) of the rows that ``batch`` asks for; keys and values of its tokens are stored."""
        tokens = len(batch.token_ids)
        buffers = {name: np.zeros((tokens, width), dtype=self._dtype) for name, width in self._program.buffers.items()}
        with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 1 / (1 + exp(-x)) zero
            for op in self._program.ops[:-1]:
                self._run(op, buffers, batch)
        head = self._program.ops[-1]
        assert isinstance(head, Head)
        wanted = batch.logit_rows[:0] if batch.hidden_rows is None else batch.hidden_rows
        self._hidden = self._norm(head.norm, buffers[head.input][wanted]).astype(np.float32)
        logits = head.scale * self._product(head.weight, head.norm, buffers[head.input][batch.logit_rows])
        if head.softcap > 0:
            logits = head.softcap * np.tanh(logits / head.softcap)
        return logits.astype(np.float32)

    def hidden_states(self) -> NDArray[np.float32]:
        """What the head reads, (rows, E): after its norm, of the ``hidden_rows`` of the latest step."""
        return self._hidden

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group`` in every layer of it, as if one after the other in this order."""
        for layer in self._groups[group].layers:
            for store in (self._keys[layer], self._cached_values[layer]):
                pages = store.reshape(-1, self._page_size, *store.shape[1:])
                for source, target in zip(sources, targets, strict=True):
                    pages[target] = pages[source]

    def _run(self, op: Op, buffers: dict[str, Array], batch: StepBatch) -> None:
        match op:
            case Embed():
                buffers[op.out][:] = op.scale * self._values[op.weight][batch.token_ids]
            case Rotary():
                buffers[op.out][:] = _rotary(op, batch)
            case Linear():
                self._linear(op, buffers)
            case Attention():
                self._attention(op, buffers, batch)
            case Route():
                bias = None if op.bias is None else self._values[op.bias]
                buffers[op.weights][:], buffers[op.experts][:] = _route(op, buffers[op.input], bias)
            case Experts():
                self._experts(op, buffers)
            case Head():
                raise AssertionError("the head is the last operation, and runs on its own")

    def _linear(self, op: Linear, buffers: dict[str, Array]) -> None:
        y = self._product(op.weight, op.norm, buffers[op.input])
        if op.bias is not None:
            y = y + self._values[op.bias]
        match op.epilogue:
            case "store":
                buffers[op.out][:] = _activate(op.activation, op.scale * y)
            case "add":
                buffers[op.out][:] += op.scale * y
            case "gated":
                gate, up = np.split(y, 2, axis=1)
                buffers[op.out][:] = _activate(op.activation, gate) * up

    def _attention(self, op: Attention, buffers: dict[str, Array], batch: StepBatch) -> None:
        heads, kv_heads, size = op.heads, op.kv_heads, op.head_size
        qkv = buffers[op.qkv].reshape(-1, heads + 2 * kv_heads, size)  # (N, H + 2 K, D)
        queries = self._norm(op.query_norm, qkv[:, :heads])
        keys = self._norm(op.key_norm, qkv[:, heads : heads + kv_heads])
        if op.rotary is not None:
            angles = buffers[op.rotary][:, None]  # (N, 1, 2 pairs)
            queries, keys = (_turn(x, angles, interleaved=op.interleaved) for x in (queries, keys))
        tables, slots = _tables(batch, self._group_of[op.layer])
        self._keys[op.layer][slots] = _stored(keys, self._kv_format)
        self._cached_values[op.layer][slots] = _stored(qkv[:, heads + kv_heads :], self._kv_format)
        sinks = None if op.sinks is None else self._values[op.sinks]
        out = buffers[op.out].reshape(-1, heads, size)
        for sequence, table in enumerate(tables):
            rows = slice(batch.query_starts[sequence], batch.query_starts[sequence + 1])
            first = _first_key(op.window, int(batch.positions[rows.start]))
            seen = np.arange(first, batch.seq_lens[sequence])  # positions of the keys, (S,)
            where = table[seen // self._page_size].astype(np.int64) * self._page_size + seen % self._page_size
            visible = _visible(batch.positions[rows], seen, op.window)
            past_keys, past_values = self._keys[op.layer][where], self._cached_values[op.layer][where]
            out[rows] = _attend(op, queries[rows], past_keys, past_values, visible, sinks)

    def _experts(self, op: Experts, buffers: dict[str, Array]) -> None:
        x = self._norm(op.norm, buffers[op.input])
        gate_up, down = self._values[op.gate_up], self._values[op.down]
        if op.gate_up in self._quantised:
            x = quantised_activations(x, outliers=op.norm is not None).astype(self._dtype)
        numbers = buffers[op.experts].astype(np.int64)
        added = np.zeros_like(buffers[op.out])
        for token, choice in np.ndindex(*numbers.shape):
            expert = numbers[token, choice]
            gate, up = np.split(gate_up[expert] @ x[token], 2)
            inner = _activate(op.activation, gate) * up
            if op.down in self._quantised:
                inner = quantised_activations(inner, outliers=False).astype(self._dtype)
            added[token] += buffers[op.weights][token, choice] * (down[expert] @ inner)
        buffers[op.out][:] += added

    def _product(self, name: str, norm: Norm | None, x: Array) -> Array:
        """``norm(x) @ W.T``: (N, columns) to (N, rows)."""
        x = self._norm(norm, x)
        if name in self._quantised:
            x = quantised_activations(x, outliers=norm is not None).astype(self._dtype)
        y: Array = x @ self._values[name].T
        return y

    def _norm(self, norm: Norm | None, x: Array) -> Array:
        if norm is None:
            return x
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._dtype(norm.eps))
        normed: Array = x * scale * (self._values[norm.weight] + self._dtype(norm.offset))
        return normed


def _rotary(op: Rotary, batch: StepBatch) -> Array:
    frequencies = np.broadcast_to(np.array(op.frequencies, np.float32), (len(batch.positions), len(op.frequencies)))
    if op.long_frequencies is not None:
        lengths = np.repeat(batch.seq_lens, np.diff(batch.query_starts))[:, None]  # (N, 1)
        frequencies = np.where(lengths > op.original_length, np.array(op.long_frequencies, np.float32), frequencies)
    # The product is rounded to float32, as the reference implementations of models do; what follows is not.
    angles = (batch.positions[:, None].astype(np.float32) * frequencies).astype(np.float64)
    return op.factor * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _turn(x: Array, angles: Array, *, interleaved: bool) -> Array:
    """Turn the pairs ``(a, b)`` of each head to ``(a cos - b sin, b cos + a sin)``: (N, heads, D) by (N, 1, 2 m)."""
    cos, sin = np.split(angles, 2, axis=-1)
    pairs = cos.shape[-1]
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(pairs), slice(pairs, 2 * pairs))
    )
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned


def _stored(x: Array, kv_format: KVFormat) -> Array:
    """What is left of keys or values (N, K, D) once they are in the cache."""
    match kv_format:
        case "f32":
            return x
        case "f16":
            return x.astype(np.float16).astype(x.dtype)
        case "bf16":
            return bf16_values(bf16_bits(x.astype(np.float32))).astype(x.dtype)
        case "int8":
            return quantised_blocks(x, block=x.shape[-1]).astype(x.dtype)


def _tables(batch: StepBatch, group: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    tables: StepBatch | GroupTables = batch if group == 0 else batch.others[group - 1]
    return tables.block_tables, tables.slot_mapping


def _first_key(window: int | None, position: int) -> int:
    """Position of the first key that a query at ``position`` sees."""
    return 0 if window is None else max(0, position - window + 1)


def _visible(queries: NDArray[np.int64], keys: NDArray[np.int64], window: int | None) -> NDArray[np.bool_]:
    """Which query (Q,) sees which key (S,), by position: (Q, S)."""
    distance = queries[:, None] - keys
    return (distance >= 0) & (distance < (np.inf if window is None else window))


def _attend(
    op: Attention, queries: Array, keys: Array, values: Array, visible: NDArray[np.bool_], sinks: Array | None
) -> Array:
    """Softmax attention: queries (Q, H, D), keys and values (S, K, D), to (Q, H, D)."""
    group = op.heads // op.kv_heads
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)  # (S, H, D)
    scores = op.scale * np.einsum("qhd,shd->hqs", queries, keys)
    if op.softcap > 0:
        scores = op.softcap * np.tanh(scores / op.softcap)
    scores = np.where(visible, scores, -np.inf)
    if sinks is not None:
        sink = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, sink], axis=2)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    out: Array = np.einsum("hqs,shd->qhd", weights[..., : len(keys)], values)
    return out


def _route(op: Route, scores: Array, bias: Array | None) -> tuple[Array, NDArray[np.int64]]:
    """Weights and numbers of the chosen experts, each (N, chosen); of equals the lower number comes first."""
    if op.scoring == "sigmoid":
        likely = 1 / (1 + np.exp(-scores))
    else:
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
    rank = scores if bias is None else likely + bias
    experts = np.argsort(-rank, axis=1, kind="stable")[:, : op.chosen]
    weights = np.take_along_axis(likely, experts, axis=1)
    if op.normalise or op.scoring == "softmax_of_chosen":
        weights /= weights.sum(axis=1, keepdims=True)
    return op.scale * weights, experts


def _activate(activation: Activation, x: Array) -> Array:
    y: Array = x
    match activation:
        case "silu":
            y = x / (1 + np.exp(-x))
        case "gelu_tanh":
            y = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        case "gelu":
            y = x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2
        case "none":
            pass
    return y
