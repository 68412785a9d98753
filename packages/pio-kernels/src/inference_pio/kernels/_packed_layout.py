"""Where packed weights lie in one stretch of memory, on disk as in RAM. Follows from the program and the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from inference_pio.interfaces import UnsupportedError
from inference_pio.kernels._program import Embed, Experts, Head, Linear
from inference_pio.kernels._tiles import TILE_INPUTS, TileFormat, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from inference_pio.kernels._program import Program
    from inference_pio.kernels._weight_plan import Assignment, Part

Weights = Literal["auto", "bf16", "int8"]
"""What matrices that are stored in floating point may become; block formats stay what they are."""

ALIGNMENT = 64
"""Of what is packed, in bytes: a line of the processor's cache."""

_FLOATS = ("F64", "F32", "F16", "BF16")
# The tile that keeps all of an encoding's precision. F64 has none of its own: no model needs it.
_TILES: Mapping[str, TileFormat] = MappingProxyType(
    {
        "F64": TileFormat.F32,
        "F32": TileFormat.F32,
        "F16": TileFormat.F16,
        "BF16": TileFormat.BF16,
        "Q4_0": TileFormat.Q4,
        "Q4_1": TileFormat.Q4_MIN,
        "Q5_0": TileFormat.Q5,
        "Q5_1": TileFormat.Q5_MIN,
        "Q8_0": TileFormat.Q8,
        "Q4_K": TileFormat.Q4_MIN,
        "Q5_K": TileFormat.Q5_MIN,
        "Q6_K": TileFormat.Q6,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPart:
    """A segment of a matrix in tiles, or a vector of float32.

    Attributes:
        name: The parameter.
        format: Of the tiles; None for a vector.
        row: First row, among those of the parameter.
        rows: How many; elements of a vector.
        columns: Elements per row.
        offset: Where it begins, in bytes.
        nbytes: Size.
    """

    name: str
    format: TileFormat | None
    row: int
    rows: int
    columns: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Every packed part, and what it is made from.

    Attributes:
        parts: In order of their offsets.
        origins: What each part is made from: one run of rows for a segment, any number for a vector.
        nbytes: Size of the whole.
    """

    parts: tuple[PackedPart, ...]
    origins: tuple[tuple[Part, ...], ...]
    nbytes: int

    def table(self) -> list[list[str | int | None]]:
        """The parts as JSON has them."""
        return [
            [p.name, None if p.format is None else int(p.format), p.row, p.rows, p.columns, p.offset, p.nbytes]
            for p in self.parts
        ]


def lay_out(program: Program, assignments: Sequence[Assignment], weights: Weights) -> PackedLayout:
    """The layout of all parameters.

    Raises:
        UnsupportedError: A tensor is stored in a format that has no tile, or a matrix is made of pieces that the
            program cannot use as such.
        ValueError: ``weights`` is none of its choices.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be 'auto', 'bf16' or 'int8', got {weights!r}")
    pieces = _pieces(program)
    screened = {op.weight for op in program.ops if isinstance(op, Head) and op.scale > 0 and op.softcap == 0}
    parts: list[PackedPart] = []
    origins: list[tuple[Part, ...]] = []
    offset = 0
    for assignment in assignments:
        for tile_format, origin in _split(assignment, pieces.get(assignment.name, 0), weights):
            if tile_format == TileFormat.Q8 and assignment.name in screened and origin[0].info.encoding != "F64":
                tile_format = TileFormat.Q8_SPLIT  # noqa: PLW2901 - the same numbers in another order
            row, rows = origin[0].row, sum(part.rows for part in origin)
            columns = assignment.columns
            nbytes = 4 * rows if tile_format is None else packed_bytes(tile_format, rows, columns)
            parts.append(
                PackedPart(
                    name=assignment.name,
                    format=tile_format,
                    row=row,
                    rows=rows,
                    columns=columns,
                    offset=offset,
                    nbytes=nbytes,
                )
            )
            origins.append(origin)
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return PackedLayout(tuple(parts), tuple(origins), offset)


def _pieces(program: Program) -> dict[str, int]:
    """Segments of equally many rows that a matrix must consist of, where the program needs a certain number."""
    pieces: dict[str, int] = {}
    for op in program.ops:
        match op:
            case Embed():
                pieces[op.weight] = 1
            case Linear(epilogue="gated"):
                pieces[op.weight] = 2
            case Experts():
                pieces[op.gate_up], pieces[op.down] = 2 * op.num_experts, op.num_experts
    return pieces


def _split(
    assignment: Assignment, pieces: int, weights: Weights
) -> Iterator[tuple[TileFormat | None, tuple[Part, ...]]]:
    """The parts of one parameter, each with its format and origin."""
    if assignment.is_vector:
        yield None, assignment.parts
        return
    parts = list(assignment.parts)
    if pieces:
        parts = list(_cut(parts, assignment.rows // pieces))
        if len(parts) != pieces:
            raise UnsupportedError(
                f"parameter {assignment.name} is made of {len(parts)} tensors or parts of tensors, and the native "
                f"executor can use it in {pieces}",
                hint="executor='torch'",
            )
    for part in parts:
        yield _format(part, assignment.columns, weights), (part,)


def _cut(parts: Sequence[Part], every: int) -> Iterator[Part]:
    """The same rows, cut wherever the number of a row is a multiple of ``every``."""
    for part in parts:
        done = 0
        while done < part.rows:
            row = part.row + done
            rows = min(part.rows - done, every - row % every)
            if rows < part.rows and part.heads:
                raise ValueError(f"tensor {part.info.name!r} is reordered by heads and cut at row {row + rows}")
            yield type(part)(info=part.info, stored=part.stored + done, row=row, rows=rows, heads=part.heads)
            done += rows


def _format(part: Part, columns: int, weights: Weights) -> TileFormat:
    encoding = part.info.encoding
    tile_format = _TILES.get(encoding)
    if tile_format is None:
        raise UnsupportedError(
            f"{part.info.file}: tensor {part.info.name!r} is stored as {encoding}, which the native executor has no "
            f"tiles for",
            hint=f"executor='torch', or a file in one of {', '.join(_TILES)}",
        )
    if encoding not in _FLOATS or weights == "auto":
        if encoding not in _FLOATS and columns % TILE_INPUTS:
            raise UnsupportedError(
                f"{part.info.file}: tensor {part.info.name!r} has {columns} columns in {encoding}, not a multiple of "
                f"{TILE_INPUTS}",
                hint="executor='torch'",
            )
        return tile_format
    return TileFormat.BF16 if weights == "bf16" else TileFormat.Q8
