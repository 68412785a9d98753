"""Programs: a model as a static list of fused operations over row buffers, without weights and without torch.

A row buffer holds one float32 row per token of a step. Parameters are named as the targets of the model's
``WeightMap``, so that one map serves the PyTorch modules and the program. ``N`` tokens of a step, ``E`` hidden size,
``V`` vocabulary, ``H`` query heads, ``K`` KV heads, ``D`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Activation = Literal["none", "silu", "gelu_tanh", "gelu"]
Epilogue = Literal["store", "add", "gated"]
Scoring = Literal["softmax", "sigmoid", "softmax_of_chosen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Root mean square norm of a row: ``x / sqrt(mean(x ** 2) + eps) * (weight + offset)``.

    Attributes:
        weight: Name of the parameter, (E,).
        eps: Epsilon.
        offset: 0, or 1 where weights are stored as differences from one.
    """

    weight: str
    eps: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """``out[n] = scale * weight[token n]``.

    Attributes:
        out: Buffer (N, E).
        weight: Name of the table, (V, E).
        scale: Factor.
    """

    out: str
    weight: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Cosines and sines of the step's positions: ``out[n] = factor * (cos(p f), sin(p f))``, ``p`` the position.

    Attributes:
        out: Buffer (N, 2 pairs): the cosines, then the sines.
        frequencies: Radians per position, (pairs,), float32 values.
        factor: Factor on both.
        long_frequencies: Taken for tokens of sequences longer than ``original_length``; None for none.
        original_length: In tokens; 0 without ``long_frequencies``.
    """

    out: str
    frequencies: tuple[float, ...]
    factor: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    original_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A product with what comes before and after it: ``out = epilogue(weight @ norm(input) + bias)``.

    ========= ==========================================================================
    epilogue  result
    ========= ==========================================================================
    store     ``out = activation(scale * y)``
    add       ``out += scale * y``
    gated     ``out = activation(y[:F]) * y[F:]``, ``F`` half of the rows of ``weight``
    ========= ==========================================================================

    Attributes:
        input: Buffer (N, columns).
        out: Buffer (N, rows), or (N, rows / 2) if gated.
        weight: Name of the matrix, (rows, columns).
        rows: Rows of the matrix.
        bias: Name of the bias, (rows,), or None.
        norm: Norm of the input, or None.
        epilogue: See above.
        activation: See above.
        scale: See above.
    """

    input: str
    out: str
    weight: str
    rows: int
    bias: str | None = None
    norm: Norm | None = None
    epilogue: Epilogue = "store"
    activation: Activation = "none"
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Norms and turns queries and keys, writes keys and values to the cache of a layer, and attends over it.

    Attributes:
        qkv: Buffer (N, (H + 2 K) D): query heads, key heads, value heads. Its queries and keys are changed in place.
        out: Buffer (N, H D).
        layer: Index of the layer whose cache it is.
        heads: ``H``.
        kv_heads: ``K``.
        head_size: ``D``.
        scale: Factor on the scores.
        rotary: Buffer of a :class:`Rotary`, or None to turn nothing. Its pairs are turned, the rest of a head is not.
        interleaved: Whether pairs are ``(2 i, 2 i + 1)`` instead of ``(i, i + pairs)``.
        window: Keys that a query sees, its own included; None for all before it.
        softcap: ``c > 0`` bounds scores: ``c tanh(s / c)``.
        query_norm: Norm of each query head, (D,), or None.
        key_norm: Norm of each key head, (D,), or None.
        sinks: Name of one more score per query head, (H,), that takes part in the softmax without a value, or None.
    """

    qkv: str
    out: str
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rotary: str | None = None
    interleaved: bool = False
    window: int | None = None
    softcap: float = 0.0
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    sinks: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The experts of each token and their weights, from the router's scores.

    Attributes:
        input: Buffer (N, num_experts) of scores.
        weights: Buffer (N, chosen): weights, most likely first.
        experts: Buffer (N, chosen): numbers of the experts.
        num_experts: Experts.
        chosen: Experts per token.
        scoring: What makes scores into weights.
        normalise: Whether the weights of a token are divided by their sum.
        scale: Factor on the weights.
        bias: Name of what is added to the scores for the choice alone, (num_experts,), or None.
    """

    input: str
    weights: str
    experts: str
    num_experts: int
    chosen: int
    scoring: Scoring = "softmax"
    normalise: bool = True
    scale: float = 1.0
    bias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """``out += sum_j weights_j down_j(activation(gate_j x) * up_j x)`` over the experts ``j`` of each token.

    Attributes:
        input: Buffer (N, E).
        out: Buffer (N, E).
        weights: Buffer of a :class:`Route`.
        experts: Buffer of a :class:`Route`.
        inner: Buffer (N, chosen * F) to work in.
        inner_size: ``F``.
        num_experts: Experts.
        chosen: Experts per token.
        gate_up: Name of the first matrices, (num_experts, 2 F, E): per expert gate, then up.
        down: Name of the second matrices, (num_experts, E, F).
        norm: Norm of the input, or None.
        activation: Of the gate.
    """

    input: str
    out: str
    weights: str
    experts: str
    inner: str
    inner_size: int
    num_experts: int
    chosen: int
    gate_up: str
    down: str
    norm: Norm | None = None
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Logits of the chosen rows: ``softcap(scale * weight @ norm(input))``.

    Attributes:
        input: Buffer (N, E).
        weight: Name of the matrix, (V, E).
        norm: Norm of the input, or None.
        scale: Factor.
        softcap: ``c > 0`` bounds logits: ``c tanh(l / c)``.
    """

    input: str
    weight: str
    norm: Norm | None = None
    scale: float = 1.0
    softcap: float = 0.0


Op = Embed | Rotary | Linear | Attention | Route | Experts | Head


@dataclass(frozen=True, slots=True)
class Program:
    """A model as operations.

    Attributes:
        ops: In order; the last is the head.
        buffers: Width of each row buffer by name, in numbers.
        vocab_size: ``V``.

    Raises:
        ValueError: An operation names no buffer, or sizes contradict each other.
    """

    ops: tuple[Op, ...]
    buffers: dict[str, int]
    vocab_size: int

    def __post_init__(self) -> None:
        if not self.ops or not isinstance(self.ops[-1], Head):
            raise ValueError("a program ends with its head")
        for index, op in enumerate(self.ops):
            problem = _problem(op, self.buffers)
            if problem is None and isinstance(op, Head) and index < len(self.ops) - 1:
                problem = "a program has one head"
            if problem is not None:
                raise ValueError(f"operation {index}, {type(op).__name__}: {problem}")
        _refuse_two_shapes(self.ops, self.buffers, self.vocab_size)

    @property
    def hidden_size(self) -> int:
        """``E``, the width of what the head reads."""
        head = self.ops[-1]
        assert isinstance(head, Head)
        return self.buffers[head.input]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name: matrices (rows, columns), those of experts (num_experts, rows, columns)."""
        return {name: shape for op in self.ops for name, shape in _uses(op, self.buffers, self.vocab_size)}


class ProgramBuilder:
    """Writes a program op by op; each method adds one and names the buffer that holds its result.

    Args:
        vocab_size: ``V``.
        hidden_size: ``E``.
        eps: Epsilon of every norm.
        norm_offset: Offset of every norm's weight.
    """

    def __init__(self, *, vocab_size: int, hidden_size: int, eps: float, norm_offset: float = 0.0) -> None:
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._eps = eps
        self._norm_offset = norm_offset
        self._ops: list[Op] = []
        self._buffers: dict[str, int] = {}

    def embed(self, weight: str, *, scale: float = 1.0) -> str:
        """The residual stream, which begins as the rows of ``weight``."""
        self._ops.append(Embed(out=self._buffer("x", self._hidden_size), weight=weight, scale=scale))
        return "x"

    def rotary(
        self,
        frequencies: tuple[float, ...],
        factor: float = 1.0,
        *,
        long_frequencies: tuple[float, ...] | None = None,
        original_length: int = 0,
        name: str = "rotary",
    ) -> str:
        """Angles for attention; models with several kinds of layers give each a ``name``."""
        out = self._buffer(name, 2 * len(frequencies))
        self._ops.append(
            Rotary(
                out=out,
                frequencies=frequencies,
                factor=factor,
                long_frequencies=long_frequencies,
                original_length=original_length,
            )
        )
        return out

    def linear(
        self,
        source: str,
        weight: str,
        rows: int,
        *,
        out: str,
        norm: str | None = None,
        bias: str | None = None,
        activation: Activation = "none",
    ) -> str:
        """``out = activation(weight @ norm(source) + bias)``."""
        self._linear(source, weight, rows, out, norm, bias, "store", activation, 1.0)
        return out

    def gated(
        self,
        source: str,
        weight: str,
        rows: int,
        *,
        out: str,
        norm: str | None = None,
        bias: str | None = None,
        activation: Activation = "silu",
    ) -> str:
        """``out = activation(gate) * up``; ``weight`` holds ``rows / 2`` rows of the gate, then as many of up."""
        self._linear(source, weight, rows, out, norm, bias, "gated", activation, 1.0)
        return out

    def add_linear(self, source: str, weight: str, *, to: str, bias: str | None = None, scale: float = 1.0) -> None:
        """``to += scale * (weight @ source + bias)``."""
        self._linear(source, weight, self._buffers[to], to, None, bias, "add", "none", scale)

    def attention(
        self,
        qkv: str,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        scale: float | None = None,
        rotary: str | None = None,
        interleaved: bool = False,
        window: int | None = None,
        softcap: float = 0.0,
        query_norm: str | None = None,
        key_norm: str | None = None,
        sinks: str | None = None,
        out: str = "attention",
    ) -> str:
        """Attention of one layer over its cache; ``scale`` is ``head_size ** -0.5`` where it is not given."""
        self._ops.append(
            Attention(
                qkv=qkv,
                out=self._buffer(out, heads * head_size),
                layer=layer,
                heads=heads,
                kv_heads=kv_heads,
                head_size=head_size,
                scale=head_size**-0.5 if scale is None else scale,
                rotary=rotary,
                interleaved=interleaved,
                window=window,
                softcap=softcap,
                query_norm=self._norm(query_norm),
                key_norm=self._norm(key_norm),
                sinks=sinks,
            )
        )
        return out

    def experts(
        self,
        source: str,
        *,
        to: str,
        router: str,
        gate_up: str,
        down: str,
        inner_size: int,
        num_experts: int,
        chosen: int,
        norm: str | None = None,
        scoring: Scoring = "softmax",
        normalise: bool = True,
        scale: float = 1.0,
        bias: str | None = None,
        activation: Activation = "silu",
    ) -> None:
        """A mixture of experts on ``source``, added to ``to``: router, choice, and the experts' products."""
        self.linear(source, router, num_experts, out="router", norm=norm)
        weights, numbers = self._buffer("expert_weights", chosen), self._buffer("expert_numbers", chosen)
        self._ops.append(
            Route(
                input="router",
                weights=weights,
                experts=numbers,
                num_experts=num_experts,
                chosen=chosen,
                scoring=scoring,
                normalise=normalise,
                scale=scale,
                bias=bias,
            )
        )
        self._ops.append(
            Experts(
                input=source,
                out=to,
                weights=weights,
                experts=numbers,
                inner=self._buffer("expert_inner", chosen * inner_size),
                inner_size=inner_size,
                num_experts=num_experts,
                chosen=chosen,
                gate_up=gate_up,
                down=down,
                norm=self._norm(norm),
                activation=activation,
            )
        )

    def head(
        self, source: str, weight: str, *, norm: str | None = None, scale: float = 1.0, softcap: float = 0.0
    ) -> Program:
        """The finished program."""
        self._ops.append(Head(input=source, weight=weight, norm=self._norm(norm), scale=scale, softcap=softcap))
        return Program(tuple(self._ops), dict(self._buffers), self._vocab_size)

    def _linear(
        self,
        source: str,
        weight: str,
        rows: int,
        out: str,
        norm: str | None,
        bias: str | None,
        epilogue: Epilogue,
        activation: Activation,
        scale: float,
    ) -> None:
        width = rows // 2 if epilogue == "gated" else rows
        self._ops.append(
            Linear(
                input=source,
                out=self._buffer(out, width),
                weight=weight,
                rows=rows,
                bias=bias,
                norm=self._norm(norm),
                epilogue=epilogue,
                activation=activation,
                scale=scale,
            )
        )

    def _norm(self, weight: str | None) -> Norm | None:
        return None if weight is None else Norm(weight=weight, eps=self._eps, offset=self._norm_offset)

    def _buffer(self, name: str, width: int) -> str:
        known = self._buffers.setdefault(name, width)
        if known != width:
            raise ValueError(f"buffer {name!r} is {known} wide, and {width} numbers per row are to go there")
        return name


def _problem(op: Op, buffers: dict[str, int]) -> str | None:  # noqa: PLR0911, PLR0912 - one per rule
    """What is wrong with ``op``, or None."""
    for role in ("input", "out", "qkv", "rotary", "weights", "experts", "inner"):
        name = getattr(op, role, None)
        if name is not None and name not in buffers:
            return f"no buffer {name!r}"
    match op:
        case Rotary():
            pairs = len(op.frequencies)
            if buffers[op.out] != 2 * pairs:
                return f"{pairs} frequencies do not fill a buffer of width {buffers[op.out]}"
            if op.long_frequencies is not None and len(op.long_frequencies) != pairs:
                return f"{len(op.long_frequencies)} long frequencies beside {pairs}"
        case Linear():
            width = op.rows // 2 if op.epilogue == "gated" else op.rows
            if buffers[op.out] != width or (op.epilogue == "gated" and op.rows % 2):
                return f"{op.rows} rows do not fill a buffer of width {buffers[op.out]}"
        case Attention():
            if op.heads % op.kv_heads:
                return f"{op.heads} query heads on {op.kv_heads} KV heads"
            if buffers[op.qkv] != (op.heads + 2 * op.kv_heads) * op.head_size:
                return f"a row of {op.qkv!r} holds {buffers[op.qkv]} numbers"
            if buffers[op.out] != op.heads * op.head_size:
                return f"a row of {op.out!r} holds {buffers[op.out]} numbers"
            if op.window is not None and op.window < 1:
                return f"a window of {op.window} keys"
            if op.rotary is not None and buffers[op.rotary] > op.head_size:
                return f"{buffers[op.rotary]} turned dimensions in heads of {op.head_size}"
        case Route():
            if not 1 <= op.chosen <= op.num_experts:
                return f"{op.chosen} of {op.num_experts} experts"
            if buffers[op.input] != op.num_experts:
                return f"a row of {op.input!r} holds {buffers[op.input]} scores"
            if not buffers[op.weights] == buffers[op.experts] == op.chosen:
                return f"rows of {op.weights!r} and {op.experts!r} do not hold {op.chosen} choices"
        case Experts():
            if buffers[op.inner] != op.chosen * op.inner_size:
                return f"a row of {op.inner!r} holds {buffers[op.inner]} numbers"
            if not buffers[op.weights] == buffers[op.experts] == op.chosen:
                return f"rows of {op.weights!r} and {op.experts!r} do not hold {op.chosen} choices"
            if buffers[op.input] != buffers[op.out]:
                return f"rows of {op.input!r} hold {buffers[op.input]} numbers, those of {op.out!r} {buffers[op.out]}"
        case _:
            pass
    return None


def _uses(  # noqa: PLR0912 - one per kind of parameter
    op: Op, buffers: dict[str, int], vocab_size: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of ``op``."""
    match op:
        case Embed():
            yield op.weight, (vocab_size, buffers[op.out])
        case Linear():
            yield op.weight, (op.rows, buffers[op.input])
            if op.bias is not None:
                yield op.bias, (op.rows,)
        case Attention():
            if op.query_norm is not None:
                yield op.query_norm.weight, (op.head_size,)
            if op.key_norm is not None:
                yield op.key_norm.weight, (op.head_size,)
            if op.sinks is not None:
                yield op.sinks, (op.heads,)
        case Route():
            if op.bias is not None:
                yield op.bias, (op.num_experts,)
        case Experts():
            yield op.gate_up, (op.num_experts, 2 * op.inner_size, buffers[op.input])
            yield op.down, (op.num_experts, buffers[op.out], op.inner_size)
        case Head():
            yield op.weight, (vocab_size, buffers[op.input])
        case Rotary():
            pass
    if isinstance(op, Linear | Experts | Head) and op.norm is not None:
        yield op.norm.weight, (buffers[op.input],)


def _refuse_two_shapes(ops: tuple[Op, ...], buffers: dict[str, int], vocab_size: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for op in ops:
        for name, shape in _uses(op, buffers, vocab_size):
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"parameter {name!r} is used as {shapes[name]} and as {shape}")
