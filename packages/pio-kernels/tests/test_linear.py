"""Products with packed matrices, and the row kernels around them, in every instruction set that this machine runs."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Q4, Q4_MIN, Q5, Q5_MIN, Q6, Q8, Q8_SPLIT, BF16, F16, F32 = range(10)
QUANTISED = (Q4, Q4_MIN, Q5, Q5_MIN, Q6, Q8, Q8_SPLIT)
FORMATS = ("q4", "q4min", "q5", "q5min", "q6", "q8", "q8split", "bf16", "f16", "f32")
QUANT_BYTES = {Q4: 256, Q4_MIN: 256, Q5: 320, Q5_MIN: 320, Q6: 384, Q8: 512, Q8_SPLIT: 512}
STORE, ADD, GATED = range(3)
NO_ACTIVATION, SILU, GELU_TANH, GELU_ERF = range(4)
EPSILON = 2.0**-24


# --- What native/kernels.h declares -----------------------------------------------------------------------------------


class Segment(ctypes.Structure):
    _fields_ = (
        ("format", ctypes.c_uint32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("out_column", ctypes.c_int32),
        ("strips", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_float), ("offset", ctypes.c_float))


OUTLIER = np.dtype([("input", "<i4"), ("value", "<f4")])
OUTLIER_COLUMN = np.dtype([("input", "<i4"), ("values", "<f4", 8)])
QUANT_BLOCK = np.dtype(
    [("values", "i1", 32), ("scale", "<f4"), ("sums", "<i2", 2), ("zero_sum", "<i4"), ("pair", "<i2", 2)]
)


class Rows(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("blocks", ctypes.c_void_p),
        ("outliers", ctypes.c_void_p),
        ("num_outliers", ctypes.c_void_p),
        ("bf16", ctypes.c_void_p),
        ("f32", ctypes.c_void_p),
        ("outlier_columns", ctypes.c_void_p),
        ("num_outlier_columns", ctypes.c_void_p),
        ("block_sums", ctypes.c_void_p),
        ("sum_steps", ctypes.c_void_p),
    )


class LinearTask(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.POINTER(Segment)),
        ("up", ctypes.POINTER(Segment)),
        ("x", ctypes.POINTER(Rows)),
        ("rows", ctypes.c_int32),
        ("in_rows", ctypes.c_void_p),
        ("out_rows", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("epilogue", ctypes.c_uint32),
        ("activation", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    )


class ScreenTask(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.POINTER(Segment)),
        ("x", ctypes.POINTER(Rows)),
        ("slack", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("at_least", ctypes.c_void_p),
        ("at_most", ctypes.c_void_p),
        ("strips", ctypes.c_int32),
    )


_VOID_P, _I32, _I64, _F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Kernels(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("norm", ctypes.CFUNCTYPE(None, _VOID_P, ctypes.POINTER(Norm), _I32, _VOID_P)),
        ("prepare", ctypes.CFUNCTYPE(None, _VOID_P, ctypes.c_uint32, _I32, ctypes.POINTER(Rows))),
        ("group_outliers", ctypes.CFUNCTYPE(None, ctypes.POINTER(Rows), _I32, _I32)),
        ("embed", ctypes.CFUNCTYPE(None, ctypes.POINTER(Segment), _I64, _F32, _VOID_P)),
        ("linear", ctypes.CFUNCTYPE(None, ctypes.POINTER(LinearTask), _I32, _I32)),
        ("screen", ctypes.CFUNCTYPE(None, ctypes.POINTER(ScreenTask), _I32, _I32)),
        ("finish_logits", ctypes.CFUNCTYPE(None, _VOID_P, _I64, _F32, _F32)),
        *((name, _VOID_P) for name in ("write_kv", "attend", "merge", "sample")),
        ("rows_at_once", _I32),
    )


@pytest.fixture(params=("scalar", "neon", "avx2", "avx2vnni", "avx512", "avx512bf16"))
def kernels(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Kernels:
    """The kernels of one instruction set."""
    library.pio_isa_name.restype = ctypes.c_char_p
    library.pio_kernels.restype = ctypes.POINTER(Kernels)
    for number in itertools.count():
        name = library.pio_isa_name(number)
        if name is None:
            pytest.skip(f"this build has no {request.param}")
        if name.decode() == request.param:
            table = library.pio_kernels(number)
            if not table:
                pytest.skip(f"this processor, or this build, has no {request.param}")
            return table.contents  # type: ignore[no-any-return] - ctypes is untyped here
    raise AssertionError


# --- Matrices and rows ------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """What a product sums up: per tile, or half of one, and per minimum."""

    exact: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    count: int


@dataclass(frozen=True)
class Matrix:
    """A random matrix in tiles, and what program.h says that it holds.

    Attributes:
        tiles: (strips, tiles, bytes), without minima; those of Q8_SPLIT as of Q8.
        quants: (rows, inputs), less the quant of zero; inputs padded to whole tiles.
        scales: (rows, inputs), for each weight its scale.
        minima: (rows, inputs), for each weight its minimum.
        behind: (strips, bytes), what lies behind the tiles.
    """

    format: int
    rows: int
    columns: int
    tiles: NDArray[np.uint8]
    quants: NDArray[np.float64]
    scales: NDArray[np.float64]
    minima: NDArray[np.float64]
    bias: NDArray[np.float32] | None
    behind: NDArray[np.uint8] | None = None

    @cached_property
    def strips(self) -> NDArray[np.uint8]:
        """The matrix as the library takes it."""
        if self.behind is not None:
            return np.concatenate([self.tiles.reshape(len(self.tiles), -1), self.behind], axis=1)
        return _split(self.tiles) if self.format == Q8_SPLIT else self.tiles

    @property
    def weights(self) -> NDArray[np.float64]:
        return self.scales * self.quants + self.minima

    def segment(self, out_column: int = 0) -> Segment:
        bias = self.bias.ctypes.data if self.bias is not None else None
        return Segment(self.format, self.rows, self.columns, out_column, self.strips.ctypes.data, bias)


def _per_row(numbers: NDArray[np.float16]) -> NDArray[np.float64]:
    """(strips, tiles, 16) numbers behind quants as (rows, tiles)."""
    strips, tiles, _ = numbers.shape
    return numbers.astype(np.float64).transpose(0, 2, 1).reshape(16 * strips, tiles)


def _quants_of(form: int, tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Quants of (strips, tiles, bytes) as (rows, inputs), by the table in program.h."""
    count = tiles.shape[:2]
    if form in (Q8, Q8_SPLIT):
        quants = tiles[..., :512].reshape(*count, 8, 16, 4).astype(np.int64) - 128
    else:
        shared = tiles[..., :256].reshape(*count, 4, 16, 4).astype(np.int64)
        quants = np.concatenate([shared & 15, shared >> 4], axis=2)
        if form in (Q5, Q5_MIN):
            fifth = tiles[..., 256:320].reshape(*count, 1, 16, 4).astype(np.int64)
            quants |= (fifth >> np.arange(8).reshape(8, 1, 1) & 1) << 4
        if form == Q6:
            upper = tiles[..., 256:384].reshape(*count, 2, 1, 16, 4).astype(np.int64)
            pairs = upper >> 2 * np.arange(4).reshape(4, 1, 1) & 3
            quants |= pairs.reshape(*count, 8, 16, 4) << 4
        quants -= {Q4: 8, Q5: 16, Q6: 32}.get(form, 0)
    strips, tiles_per_strip = count
    return quants.transpose(0, 3, 1, 2, 4).reshape(16 * strips, 32 * tiles_per_strip).astype(np.float64)


def _split(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles of Q8 as program.h has those of Q8_SPLIT, flat."""
    quants = tiles[..., :512].reshape(-1, 2, 4, 64)  # half, group, lane
    nibbles = quants[:, 0] >> 4 | quants[:, 1] & 0xF0
    shifts = 2 * np.arange(4, dtype=np.uint8).reshape(4, 1)
    middle = ((quants >> 2 & 3) << shifts).sum(2, dtype=np.uint8)
    lowest = ((quants & 3) << shifts).sum(2, dtype=np.uint8)
    parts = (nibbles.reshape(-1, 256), middle.reshape(-1, 128), tiles.reshape(-1, 544)[:, 512:])
    return np.concatenate([np.concatenate(parts, axis=1).reshape(-1), lowest.reshape(-1)])


def _random_minima(rng: np.random.Generator, strips: int, tiles: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """What lies behind tiles, (strips, bytes), and the minima (16 strips, tiles) that it says."""
    largest = np.abs(rng.standard_normal((strips, 16)) * 0.1).astype(np.float16)
    largest[rng.random(largest.shape) < 0.05] = 0
    steps = rng.integers(-8192, 8193, (strips, tiles, 16)).astype(np.int16)
    padded = np.concatenate([steps, np.zeros((strips, tiles % 2, 16), np.int16)], axis=1)
    pairs = np.ascontiguousarray(padded.reshape(strips, -1, 2, 16).transpose(0, 1, 3, 2))
    behind = np.concatenate([pairs.view(np.uint8).reshape(strips, -1), largest.view(np.uint8)], axis=1)
    minima = largest.astype(np.float64)[:, None] / 8192 * steps
    return behind, minima.transpose(0, 2, 1).reshape(16 * strips, tiles)


def _random_quantised(rng: np.random.Generator, form: int, strips: int, tiles: int) -> tuple[NDArray[Any], ...]:
    numbers = 2 if form == Q6 else 1
    quants = rng.integers(0, 256, (strips, tiles, QUANT_BYTES[form]), dtype=np.uint8)
    halves = (rng.standard_normal((strips, tiles, numbers, 16)) * 0.01).astype(np.float16)
    halves[rng.random(halves.shape) < 0.05] = 0
    halves[rng.random(halves.shape) < 0.05] *= np.float16(2.0**-10)  # subnormal
    packed = np.concatenate([quants, halves.reshape(strips, tiles, -1).view(np.uint8)], axis=2)
    first = _per_row(halves[:, :, 0])
    second = _per_row(halves[:, :, -1])
    scales = np.repeat(first, 32, axis=1)
    if form == Q6:
        scales = np.repeat(np.stack([first, second], axis=2).reshape(16 * strips, 2 * tiles), 16, axis=1)
    return packed, _quants_of(form, packed), scales, np.zeros_like(scales)


def _random_float(rng: np.random.Generator, form: int, strips: int, tiles: int) -> tuple[NDArray[Any], ...]:
    weights = (rng.standard_normal((strips, 16, tiles, 32)) * 0.05).astype(np.float32)
    if form == BF16:
        weights = (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)
        halves = (weights.view(np.uint32) >> 16).astype(np.uint16)
        packed: NDArray[Any] = halves.reshape(strips, 16, tiles, 16, 2).transpose(0, 2, 3, 1, 4)
    else:
        stored = weights.astype(np.float16 if form == F16 else np.float32)
        weights = stored.astype(np.float32)
        packed = stored.transpose(0, 2, 3, 1)
    flat = np.ascontiguousarray(packed).reshape(strips, tiles, -1).view(np.uint8)
    quants = weights.reshape(16 * strips, 32 * tiles).astype(np.float64)
    return flat, quants, np.ones_like(quants), np.zeros_like(quants)


def random_matrix(rng: np.random.Generator, form: int, rows: int, columns: int, *, bias: bool = False) -> Matrix:
    """A matrix of random tiles; rows and inputs past its own hold no zeros here, so that reading them would show."""
    strips, tiles = -(-rows // 16), -(-columns // 32)
    make = _random_quantised if form in QUANTISED else _random_float
    packed, quants, scales, minima = make(rng, form, strips, tiles)
    behind = None
    if form in (Q4_MIN, Q5_MIN):
        behind, of_tiles = _random_minima(rng, strips, tiles)
        minima = np.repeat(of_tiles, 32, axis=1)
    added = rng.standard_normal(rows).astype(np.float32) if bias else None
    numbers = (quants[:rows], scales[:rows], minima[:rows])
    return Matrix(form, rows, columns, np.ascontiguousarray(packed), *numbers, added, behind)


KINDS, KEEP_OUTLIERS = 7, 8  # RowsKind


class Prepared:
    """Rows of activations as `prepare` leaves them; every array begins as garbage."""

    def __init__(
        self, kernels: Kernels, x: NDArray[np.float32], *, outliers: bool = True, grouped: bool = False
    ) -> None:
        self.count, self.columns = x.shape
        self.stride = -(-self.columns // 32) * 32
        self.blocks = np.empty((self.count, self.stride // 32), QUANT_BLOCK)
        self.blocks[:] = (77, np.nan, 7777, 7777, 7777)
        self.outliers = np.empty((self.count, self.stride // 32), OUTLIER)
        self.outliers[:] = (77, np.nan)
        self.num_outliers = np.full(self.count, 7777, np.int32)
        self.bf16 = np.full((self.count, self.stride), 0x7FC0, np.uint16)
        self.f32 = np.full((self.count, self.stride), np.nan, np.float32)
        self.outlier_columns = np.empty(self.outliers.shape, OUTLIER_COLUMN)
        self.outlier_columns[:] = (77, np.nan)
        self.num_outlier_columns = np.full(self.count, 7777, np.int32)
        self.block_sums = np.full((self.count, self.stride // 32), np.nan, np.float32)
        self.sum_steps = np.full(self.count, np.nan, np.float32)
        arrays = (self.blocks, self.outliers, self.num_outliers, self.bf16, self.f32)
        self.rows = Rows(self.count, self.columns, self.stride, *(array.ctypes.data for array in arrays))
        self.rows.block_sums, self.rows.sum_steps = self.block_sums.ctypes.data, self.sum_steps.ctypes.data
        kinds = KINDS | (KEEP_OUTLIERS if outliers else 0)
        for row in range(self.count):
            # Its own memory, so that reading past the row's end shows in sanitizers.
            inputs = x[row].copy()
            kernels.prepare(inputs.ctypes.data, kinds, row, self.rows)
        if grouped:
            self.rows.outlier_columns = self.outlier_columns.ctypes.data
            self.rows.num_outlier_columns = self.num_outlier_columns.ctypes.data
            kernels.group_outliers(self.rows, 0, self.count)
        self.values = self.blocks["values"].reshape(self.count, self.stride)
        self.scales = self.blocks["scale"]
        self.sums = self.blocks["sums"].reshape(self.count, self.stride // 16)
        number = np.arange(self.stride // 32)
        self.rounded_sums = self.blocks["pair"][:, number // 2 * 2, number % 2].astype(np.int64)

    def terms(self, matrix: Matrix, rows: NDArray[np.int64]) -> Terms:
        """W x of (chosen rows, outputs), in double precision from what the arrays hold."""
        tiles = self.stride // 32
        if matrix.format not in QUANTISED:
            x = self.f32.astype(np.float64)
            if matrix.format == BF16:
                x = (self.bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            x = x[rows]
            return Terms(x @ matrix.weights.T, np.abs(x) @ np.abs(matrix.weights).T, self.stride)
        values = self.values[rows].astype(np.float64).reshape(len(rows), 2 * tiles, 16)
        factors = np.repeat(self.scales[rows].astype(np.float64), 2, axis=1)
        quants = matrix.quants.reshape(-1, 2 * tiles, 16)
        sums = np.einsum("nbk,rbk->nrb", values, quants) * factors[:, None] * matrix.scales[:, ::16]
        kept_sums = self.rounded_sums * self.sum_steps.astype(np.float64)[:, None]
        minima = matrix.minima[:, ::32] * kept_sums[rows][:, None]
        apart = self.apart()[rows] @ matrix.weights.T
        magnitude = np.abs(sums).sum(2) + np.abs(minima).sum(2) + np.abs(self.apart()[rows]) @ np.abs(matrix.weights).T
        return Terms(sums.sum(2) + minima.sum(2) + apart, magnitude, 3 * tiles + int(self.num_outliers.max(initial=0)))

    def kept(self) -> NDArray[np.float64]:
        """The inputs as they are kept, outliers included, (count, stride)."""
        return self.values * np.repeat(self.scales.astype(np.float64), 32, axis=1) + self.apart()

    def apart(self) -> NDArray[np.float64]:
        """The outliers where they stand, zeros elsewhere, (count, stride)."""
        inputs = np.zeros((self.count, self.stride))
        for row, number in enumerate(self.num_outliers):
            inputs[row, self.outliers["input"][row, :number]] = self.outliers["value"][row, :number]
        return inputs


def bound(terms: Terms) -> NDArray[np.float64]:
    """What rounding may change: one of a sum's magnitude per term, and four for factors and the epilogue."""
    return (terms.count + 4) * EPSILON * terms.magnitude + 1e-30


def run_linear(
    kernels: Kernels,
    x: Prepared,
    matrix: Matrix,
    y: NDArray[np.float32],
    *,
    up: Matrix | None = None,
    in_rows: NDArray[np.int32] | None = None,
    out_rows: NDArray[np.int32] | None = None,
    row_scales: NDArray[np.float32] | None = None,
    epilogue: int = STORE,
    activation: int = NO_ACTIVATION,
    scale: float = 1.0,
    out_column: int = 0,
    rows: int | None = None,
) -> None:
    """One product into ``y``, strip after strip in two calls, as threads do it."""

    def address(array: NDArray[Any] | None) -> int | None:
        return None if array is None else array.ctypes.data

    segment = matrix.segment(out_column)
    task = LinearTask(
        ctypes.pointer(segment),
        ctypes.pointer(up.segment(out_column)) if up is not None else None,
        ctypes.pointer(x.rows),
        x.count if rows is None else rows,
        address(in_rows),
        address(out_rows),
        address(row_scales),
        y.ctypes.data,
        y.shape[1],
        epilogue,
        activation,
        scale,
    )
    strips = -(-matrix.rows // 16)
    kernels.linear(task, 0, strips // 2)
    kernels.linear(task, strips // 2, strips)


def activate(activation: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Activations in double precision."""
    if activation == SILU:
        return x / (1 + np.exp(-x))
    if activation == GELU_TANH:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == GELU_ERF:
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250727)


# --- Products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", range(10), ids=FORMATS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 15, 130, 258])
def test_product_is_that_of_the_tiles(kernels: Kernels, rng: np.random.Generator, form: int, count: int) -> None:
    """Every format, over row counts that take every path, is within rounding of the product in double precision."""
    matrix = random_matrix(rng, form, 41, 96, bias=True)
    x = Prepared(kernels, rng.standard_normal((count, 96)).astype(np.float32) * 3)
    y = np.full((count, 50), np.nan, np.float32)
    run_linear(kernels, x, matrix, y, out_column=5)
    terms = x.terms(matrix, np.arange(count))
    assert matrix.bias is not None
    expected = terms.exact + matrix.bias
    assert np.all(np.abs(y[:, 5:46] - expected) <= bound(terms) + 2 * EPSILON * np.abs(expected))
    assert np.isnan(y[:, :5]).all()
    assert np.isnan(y[:, 46:]).all()


@pytest.mark.parametrize("form", range(10), ids=FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 32), (17, 33), (15, 31), (48, 2080), (33, 64), (31, 4130)])
@pytest.mark.parametrize("count", [3, 18])
def test_any_shape_will_do(
    kernels: Kernels, rng: np.random.Generator, form: int, rows: int, columns: int, count: int
) -> None:
    """Outputs that are no multiple of 16, and inputs that are none of 32, are those of the matrix alone."""
    matrix = random_matrix(rng, form, rows, columns)
    x = Prepared(kernels, rng.standard_normal((count, columns)).astype(np.float32))
    y = np.full((count, rows + 1), np.nan, np.float32)
    run_linear(kernels, x, matrix, y)
    terms = x.terms(matrix, np.arange(count))
    assert np.all(np.abs(y[:, :rows] - terms.exact) <= bound(terms))
    assert np.isnan(y[:, rows]).all()


@pytest.mark.parametrize("form", QUANTISED, ids=FORMATS[: len(QUANTISED)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_sums_do_not_overflow(kernels: Kernels, form: int, sign: int) -> None:
    """Quants, minima and activations at their limits leave no intermediate number's range."""
    matrix = random_matrix(np.random.default_rng(1), form, 16, 64)
    behind = None if matrix.behind is None else matrix.behind.copy()
    if behind is not None:
        behind[:, :64] = np.full((1, 32), -8192, np.int16).view(np.uint8)
        matrix.minima[:] = -behind[:, 64:].view(np.float16).astype(np.float64).reshape(16, 1)
    for byte in (0x00, 0xFF):
        tiles = matrix.tiles.copy()
        tiles[..., : QUANT_BYTES[form]] = byte
        quants = _quants_of(form, tiles)
        x = Prepared(kernels, np.full((19, 64), 127 * sign, np.float32))
        assert np.all(x.values == 127 * sign)
        assert np.all(x.rounded_sums == 32767 * sign)
        y = np.empty((19, 16), np.float32)
        filled = Matrix(form, 16, 64, tiles, quants, matrix.scales, matrix.minima, None, behind)
        run_linear(kernels, x, filled, y)
        terms = x.terms(filled, np.arange(19))
        assert np.all(np.abs(y - terms.exact) <= bound(terms))


@pytest.mark.parametrize("form", [Q4_MIN, Q6, BF16, F32], ids=lambda form: FORMATS[form])
@pytest.mark.parametrize("activation", [NO_ACTIVATION, SILU, GELU_TANH, GELU_ERF])
@pytest.mark.parametrize("epilogue", [STORE, ADD, GATED], ids=("store", "add", "gated"))
def test_epilogues_follow_their_formulas(
    kernels: Kernels, rng: np.random.Generator, form: int, activation: int, epilogue: int
) -> None:
    """Bias, scale, rows gathered and scattered, a scale per row, activation, sum and gate are as program.h has them."""
    matrix = random_matrix(rng, form, 23, 64, bias=True)
    up = random_matrix(rng, (form + 1) % 9, 23, 64, bias=True)
    assert matrix.bias is not None
    assert up.bias is not None
    x = Prepared(kernels, rng.standard_normal((20, 64)).astype(np.float32))
    in_rows = rng.permutation(20)[:19].astype(np.int32)
    out_rows = rng.permutation(21)[:19].astype(np.int32)
    row_scales = rng.standard_normal(19).astype(np.float32)
    y = rng.standard_normal((21, 23)).astype(np.float32)
    before = y.astype(np.float64)
    run_linear(
        kernels, x, matrix, y, up=up if epilogue == GATED else None, in_rows=in_rows, out_rows=out_rows,
        row_scales=row_scales, epilogue=epilogue, activation=activation, scale=0.75, rows=19,
    )  # fmt: skip
    product = x.terms(matrix, in_rows.astype(np.int64))
    biased = product.exact + matrix.bias
    slack = bound(product) + 1e-6 * (1 + np.abs(biased))
    if epilogue == GATED:
        gate_by = x.terms(up, in_rows.astype(np.int64))
        factor = gate_by.exact + up.bias
        expected = activate(activation, biased) * factor
        slack = 1.2 * slack * np.abs(factor) + np.abs(expected) * 1e-6 + bound(gate_by) * (1 + np.abs(biased))
    else:
        scaled = 0.75 * row_scales[:, None] * biased
        slack = slack * (1 + np.abs(row_scales[:, None])) + 1e-6
        expected = before[out_rows] + scaled if epilogue == ADD else activate(activation, scaled)
    assert np.all(np.abs(y[out_rows] - expected) <= slack)
    untouched = np.setdiff1d(np.arange(21), out_rows)
    np.testing.assert_array_equal(y[untouched], before[untouched].astype(np.float32))


@pytest.mark.parametrize("activation", [SILU, GELU_TANH, GELU_ERF], ids=("silu", "gelu_tanh", "gelu_erf"))
def test_activations_are_accurate(kernels: Kernels, activation: int) -> None:
    """Over the whole range, within 1e-6 of the larger of 1 and the result; finite wherever float32 is."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e30, -200, -88, -1e-20, 0, 1e-20, 88, 200, 1e30]])
    x = x.astype(np.float32)
    identity = np.zeros((1, 1, 32, 16), np.float32)
    identity[0, 0, 0, 0] = 1
    quants = identity.reshape(32, 16).T.astype(np.float64)
    matrix = Matrix(F32, 1, 1, identity.view(np.uint8), quants, quants, quants, None)
    y = np.empty((len(x), 1), np.float32)
    run_linear(kernels, Prepared(kernels, x[:, None].copy()), matrix, y, activation=activation)
    with np.errstate(over="ignore"):
        expected = activate(activation, x.astype(np.float64))
    assert np.all(np.abs(y[:, 0] - expected) <= 1e-6 * np.maximum(1, np.abs(expected)))


def test_activations_keep_nan(kernels: Kernels) -> None:
    """What is no number stays none, whatever comes after."""
    for form, activation in itertools.product((F32, Q8, Q4_MIN, BF16), (NO_ACTIVATION, SILU, GELU_TANH, GELU_ERF)):
        matrix = random_matrix(np.random.default_rng(2), form, 16, 32)
        x = np.ones((2, 32), np.float32)
        x[1, 3] = np.nan
        y = np.zeros((2, 16), np.float32)
        run_linear(kernels, Prepared(kernels, x), matrix, y, activation=activation)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).all()


def test_no_rows_and_no_strips_write_nothing(kernels: Kernels, rng: np.random.Generator) -> None:
    """An empty batch, or an empty range of strips, leaves the output as it is."""
    matrix = random_matrix(rng, Q4, 16, 32)
    x = Prepared(kernels, np.ones((1, 32), np.float32))
    y = np.full((1, 16), 5, np.float32)
    run_linear(kernels, x, matrix, y, rows=0)
    np.testing.assert_array_equal(y, 5)


# --- Bounds -----------------------------------------------------------------------------------------------------------


def screen_bounds(kernels: Kernels, x: Prepared, matrix: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `screen` says of each row and strip: at least, at most; with the slack that screen.h has."""
    blocks = x.stride // 32
    slack = (1.5 * np.abs(x.values.reshape(x.count, blocks, 32).astype(np.float64)).sum(2) + 0.5) * x.scales
    slack += 1.5 * np.abs(x.apart()).reshape(x.count, blocks, 32).sum(2)
    slack = np.ascontiguousarray(slack * (1 + 6e-5 * (blocks + 1)), np.float32)
    strips = -(-matrix.rows // 16)
    bounds = np.full((2, x.count, strips), np.nan, np.float32)
    segment = matrix.segment()
    task = ScreenTask(
        ctypes.pointer(segment), ctypes.pointer(x.rows), slack.ctypes.data, x.count,
        bounds[0].ctypes.data, bounds[1].ctypes.data, strips,
    )  # fmt: skip
    kernels.screen(task, 0, strips // 2)
    kernels.screen(task, strips // 2, strips)
    return bounds[0], bounds[1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (41, 33), (129, 1024)])
def test_products_lie_within_their_bounds(
    kernels: Kernels, rng: np.random.Generator, count: int, rows: int, columns: int
) -> None:
    """The largest product of a strip reaches the lower bound, none exceeds the upper one; and bounds are no wider than
    the two bits that are not read can make them.
    """
    matrix = random_matrix(rng, Q8_SPLIT, rows, columns)
    x = rng.standard_normal((count, columns)).astype(np.float32)
    x[:, ::50] *= 30  # outliers
    prepared = Prepared(kernels, x)
    at_least, at_most = screen_bounds(kernels, prepared, matrix)
    y = np.full((count, rows), np.nan, np.float32)
    run_linear(kernels, prepared, matrix, y)
    widths = 1.5 * np.abs(prepared.kept()) @ np.abs(matrix.scales).T
    for strip in range(-(-rows // 16)):
        largest = y[:, 16 * strip : 16 * strip + 16].max(1)
        width = widths[:, 16 * strip : 16 * strip + 16].max(1)
        assert np.all(at_least[:, strip] <= largest)
        assert np.all(at_most[:, strip] >= largest)
        assert np.all(at_most[:, strip] - at_least[:, strip] <= 4.2 * width + 1e-6)


def test_bounds_hold_at_their_edges(kernels: Kernels) -> None:
    """Lower bits that all pull one way, of weights with scales of either sign: bounds are reached, and not crossed."""
    rng = np.random.default_rng(5)
    for low in (0, 3):
        for sign in (-1, 1):
            matrix = random_matrix(rng, Q8_SPLIT, 16, 96)
            tiles = matrix.tiles.copy()
            tiles[..., :512] = tiles[..., :512] & 0xFC | low
            matrix = Matrix(Q8_SPLIT, 16, 96, tiles, _quants_of(Q8_SPLIT, tiles), matrix.scales, matrix.minima, None)
            x = Prepared(kernels, sign * np.abs(rng.standard_normal((1, 96))).astype(np.float32))
            at_least, at_most = screen_bounds(kernels, x, matrix)
            y = np.empty((1, 16), np.float32)
            run_linear(kernels, x, matrix, y)
            assert at_least[0, 0] <= y.max() <= at_most[0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_ruled_out_by_what_is_no_number(kernels: Kernels, rng: np.random.Generator, value: float) -> None:
    """A row that is not finite may have any product: no strip is below another one."""
    matrix = random_matrix(rng, Q8_SPLIT, 40, 64)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    x[0, 40] = value
    at_least, at_most = screen_bounds(kernels, Prepared(kernels, x), matrix)
    assert np.all(at_least == -np.inf)
    assert np.all(at_most == np.inf)


# --- Rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(QUANTISED), ids=lambda form: FORMATS[form])
@pytest.mark.parametrize("count", [1, 3, 8, 13, 150])
@pytest.mark.parametrize("grouped", [False, True], ids=["by row", "grouped"])
def test_outliers_count_exactly(
    kernels: Kernels, rng: np.random.Generator, form: int, count: int, grouped: bool
) -> None:
    """One input far beyond the others of its block costs them no steps, wherever it stands, and is not rounded."""
    matrix = random_matrix(rng, form, 23, 160, bias=True)
    x = rng.standard_normal((count, 160)).astype(np.float32)
    places = rng.integers(0, 32, (count, 5)) + np.arange(0, 160, 32)
    np.put_along_axis(x, places[:, :4], rng.choice([-1e3, 40.0, 1e4], (count, 4)).astype(np.float32), axis=1)
    x[:, 128:130] = 50.0  # two that are as large: neither is one
    rows = Prepared(kernels, x, grouped=grouped)
    assert rows.num_outliers.tolist() == [4] * count
    np.testing.assert_array_equal(rows.outliers["input"][:, :4], places[:, :4])
    y = np.empty((count, 23), np.float32)
    run_linear(kernels, rows, matrix, y)
    terms = rows.terms(matrix, np.arange(count))
    bias = 0.0 if matrix.bias is None else matrix.bias
    assert np.all(np.abs(y - (terms.exact + bias)) <= bound(terms) + EPSILON * np.abs(y))


def test_outliers_of_a_group_are_sorted_by_columns(kernels: Kernels, rng: np.random.Generator) -> None:
    """Each column stands once, with what every row of the group keeps of it; rows differ in how many they have."""
    x = rng.uniform(-1, 1, (13, 320)).astype(np.float32)
    outliers = rng.integers(0, 4, x.shape) * (rng.random(x.shape) < 0.02) * 100
    x = np.where(outliers, outliers, x).astype(np.float32)
    rows = Prepared(kernels, x, grouped=True)
    apart = rows.apart()
    sizes = {8: [8, 4, 1], 4: [4, 4, 4, 1], 1: [1] * 13}[kernels.rows_at_once]
    assert len({*rows.num_outliers.tolist()}) > 2
    first = 0
    for size in sizes:
        columns = rows.outlier_columns[first:].reshape(-1)[: rows.num_outlier_columns[first]]
        group = apart[first : first + size]
        np.testing.assert_array_equal(columns["input"], np.flatnonzero(group.any(axis=0)))
        np.testing.assert_array_equal(columns["values"][:, :size], group[:, columns["input"]].T)
        first += size


def test_outliers_stay_where_nobody_asks_for_them(kernels: Kernels) -> None:
    """Without the kind, a block's largest input has the value 127, however large it is."""
    x = np.ones((1, 64), np.float32)
    x[0, 40] = 1000.0
    rows = Prepared(kernels, x, outliers=False)
    assert rows.num_outliers.tolist() == [0]
    assert rows.values[0, 40] == 127
    assert rows.values[0, 32:40].tolist() == [0] * 8


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 32, 33, 48, 96, 100, 576, 1056])
def test_prepare_quantises_blocks(kernels: Kernels, rng: np.random.Generator, columns: int) -> None:
    """Each block of 32 has its largest magnitude at 127, sums fit, padding is zero, outliers are apart."""
    x = (rng.standard_normal((3, columns)) * 10 ** rng.uniform(-6, 6, (3, 1))).astype(np.float32)
    rows = Prepared(kernels, x)
    padded = np.zeros((3, rows.stride), np.float32)
    padded[:, :columns] = x
    apart = rows.apart().astype(np.float32)
    two = np.sort(np.abs(padded.reshape(3, -1, 32)), axis=2)[..., -2:]
    np.testing.assert_array_equal(
        (apart.reshape(3, -1, 32) != 0).sum(2), (two[..., 1] > 2.5 * two[..., 0]) & (two[..., 0] > 0)
    )
    np.testing.assert_array_equal(apart[apart != 0], padded[apart != 0])
    blocks = (padded - apart).reshape(3, -1, 32)
    largest = np.abs(blocks).max(2)
    np.testing.assert_array_equal(rows.scales, largest / np.float32(127))
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, 0).astype(np.float32)
    np.testing.assert_array_equal(rows.values.reshape(blocks.shape), np.rint(blocks * inverse[..., None]))
    np.testing.assert_array_equal(rows.sums, rows.values.reshape(3, -1, 16).sum(2, dtype=np.int32))
    np.testing.assert_array_equal(rows.blocks["zero_sum"], -128 * rows.sums.reshape(3, -1, 2).sum(2, dtype=np.int32))
    np.testing.assert_array_equal(rows.f32, padded)


@pytest.mark.parametrize("columns", [32, 64, 96, 576, 1056, 32 * 300])
def test_sums_are_rounded_to_steps_of_the_largest(kernels: Kernels, rng: np.random.Generator, columns: int) -> None:
    """So that their products with minima stay within int32 however long a row is; a row of zeros has none."""
    x = (rng.standard_normal((4, columns)) * np.repeat(rng.lognormal(size=(4, columns // 32)), 32, axis=1)).astype(
        np.float32
    )
    x[3] = 0
    rows = Prepared(kernels, x)
    sums = rows.values.reshape(4, -1, 32).sum(2, dtype=np.int64) * rows.scales.astype(np.float64)
    most = min(32767, (2**31 - 1) // 8192 // (columns // 32))
    np.testing.assert_array_equal(np.abs(rows.rounded_sums).max(axis=1)[:3], most)
    assert not rows.rounded_sums[3].any()
    assert rows.sum_steps[3] == 0
    steps = rows.sum_steps.astype(np.float64)[:, None]
    assert np.all(np.abs(rows.rounded_sums * steps - sums) <= steps / 2 * (1 + 1e-3))
    assert not rows.blocks["pair"][:, 1::2].any()
    if columns // 32 % 2:
        assert not rows.blocks["pair"][:, -1, 1].any()


def test_prepare_rounds_bfloat16_to_even(kernels: Kernels) -> None:
    """Ties go to even, magnitudes past the largest to infinity, and a NaN stays one."""
    bits = np.array(
        [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0xFF800000, 0x7F800001, 0x00008000, 0x80000000],
        np.uint32,
    )
    rows = Prepared(kernels, bits.view(np.float32)[None])
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80, 0x7FC0, 0x0000, 0x8000]
    np.testing.assert_array_equal(rows.bf16[0, :9], np.array(expected, np.uint16))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1.1e35])
@pytest.mark.parametrize("at", [0, 15, 16, 31])
@pytest.mark.parametrize("outliers", [True, False])
def test_prepare_marks_blocks_that_are_not_finite(kernels: Kernels, number: float, at: int, outliers: bool) -> None:
    """A block with an infinity or a NaN, or what is as good as one, has an outlier NaN; its neighbours are as ever."""
    x = np.ones((1, 96), np.float32)
    x[0, 32 + at] = number
    x[0, 70] = 9.0
    rows = Prepared(kernels, x, outliers=outliers)
    found = rows.outliers[0, : rows.num_outliers[0]]
    assert found["input"].tolist() == ([32, 70] if outliers else [32])
    assert np.isnan(found["value"][0])
    assert np.all(rows.values[0].reshape(3, 32).any(axis=1) == [True, False, True])
    assert np.isfinite(rows.scales).all()
    assert np.isfinite(rows.sum_steps).all()


def test_prepare_takes_tiny_blocks_for_zero(kernels: Kernels) -> None:
    """Magnitudes that nothing could be divided by are zero."""
    rows = Prepared(kernels, np.array([[9e-28] * 32 + [1.1e-27] * 32 + [0] * 32], np.float32))
    assert (rows.values[0].reshape(3, 32)[:, 0] != 0).tolist() == [False, True, False]


@pytest.mark.parametrize("columns", [1, 7, 16, 30, 64, 576])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_is_that_of_the_paper(kernels: Kernels, rng: np.random.Generator, columns: int, offset: float) -> None:
    """x / sqrt(mean(x^2) + eps) * (w + offset), in place as well, and not past the row's end."""
    x = rng.standard_normal(columns).astype(np.float32) * 5
    weight = rng.standard_normal(columns).astype(np.float32)
    norm = Norm(weight.ctypes.data, 1e-5, offset)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide**2) + 1e-5) * (weight + offset)
    y = np.full(columns + 1, np.nan, np.float32)
    kernels.norm(x.ctypes.data, norm, columns, y.ctypes.data)
    np.testing.assert_allclose(y[:columns], expected, rtol=2e-6, atol=1e-30)
    assert np.isnan(y[columns])
    kernels.norm(x.ctypes.data, norm, columns, x.ctypes.data)
    np.testing.assert_array_equal(x, y[:columns])


@pytest.mark.parametrize("form", range(10), ids=FORMATS)
def test_embed_reads_one_row(kernels: Kernels, rng: np.random.Generator, form: int) -> None:
    """Each row of a packed table, scaled."""
    matrix = random_matrix(rng, form, 35, 70)
    for row in (0, 15, 16, 34):
        y = np.full(71, np.nan, np.float32)
        kernels.embed(matrix.segment(), row, 3.0, y.ctypes.data)
        np.testing.assert_allclose(y[:70], 3 * matrix.weights[row, :70], rtol=1e-6, atol=1e-8)
        assert np.isnan(y[70])


@pytest.mark.parametrize("n", [1, 16, 37])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (1.0, 30.0), (2.0, 5.0)])
def test_logits_are_scaled_and_capped(
    kernels: Kernels, rng: np.random.Generator, n: int, scale: float, softcap: float
) -> None:
    """softcap * tanh(scale * y / softcap), to float32's precision of the result."""
    y = (rng.standard_normal(n + 1) * 40).astype(np.float32)
    before = y.astype(np.float64) * scale
    expected = softcap * np.tanh(before / softcap) if softcap else before
    last = y[n]
    kernels.finish_logits(y.ctypes.data, n, scale, softcap)
    np.testing.assert_allclose(y[:n], expected[:n], rtol=1e-6)
    assert y[n] == last
