"""The parameters of a program in memory, in tiles: packed from a checkpoint, or read from a copy packed before."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.kernels._memory import allocate
from inference_pio.kernels._pack import pack_all, stored_bytes
from inference_pio.kernels._packed_layout import lay_out
from inference_pio.kernels._packed_store import content_key
from inference_pio.kernels._tiles import unpack
from inference_pio.kernels._weight_plan import plan_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from inference_pio.interfaces import WeightMap, WeightSource
    from inference_pio.kernels._packed_layout import PackedLayout, PackedPart, Weights
    from inference_pio.kernels._packed_store import PackedStore
    from inference_pio.kernels._program import Program


class Parameters:
    """Every parameter of a program: matrices in tiles, vectors in float32, in one stretch of memory.

    Args:
        shapes: Shape of each parameter in the program.
        layout: Where the parts lie.
        data: The bytes, (layout.nbytes,); not to be changed.
        cached: Whether they were packed before.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], layout: PackedLayout, data: NDArray[np.uint8], *, cached: bool
    ) -> None:
        self.cached = cached
        self._shapes = dict(shapes)
        self._layout = layout
        self._data = data
        self._parts: dict[str, list[PackedPart]] = {name: [] for name in shapes}
        for part in layout.parts:
            self._parts[part.name].append(part)

    @property
    def nbytes(self) -> int:
        """Size of all of them."""
        return self._layout.nbytes

    @property
    def formats(self) -> Mapping[str, int]:
        """Bytes in tiles of each format, such as ``{"Q4Min": 66355200, "Q8": 30081024}``."""
        sizes: Counter[str] = Counter()
        for part in self._layout.parts:
            if part.format is not None:
                sizes[part.format.label] += part.nbytes
        return dict(sizes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def segments(self, name: str) -> tuple[PackedPart, ...]:
        """The segments of a matrix in order of its rows, those of all experts one after the other."""
        return tuple(self._parts[name])

    def strips(self, part: PackedPart) -> NDArray[np.uint8]:
        """The packed bytes of a segment, flat: a view."""
        return self._data[part.offset : part.offset + part.nbytes]

    def vector(self, name: str) -> NDArray[np.float32]:
        """A vector: a view."""
        (part,) = self._parts[name]
        return self.strips(part).view(np.float32)

    def values(self, name: str) -> NDArray[np.float32]:
        """A parameter's float32 values in the shape that the program gives it: what the kernels compute with."""
        if len(self._shapes[name]) == 1:
            return self.vector(name).copy()
        return np.concatenate([self._unpacked(part) for part in self._parts[name]]).reshape(self._shapes[name])

    def _unpacked(self, part: PackedPart) -> NDArray[np.float32]:
        assert part.format is not None, "vectors have no segments"
        return unpack(part.format, self.strips(part), part.rows, part.columns)


def load_parameters(
    program: Program,
    source: WeightSource,
    weight_map: WeightMap,
    *,
    tied_head: bool,
    weights: Weights = "auto",
    cache: PackedStore | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Parameters:
    """The parameters of ``program`` from the tensors of ``source``, as ``weight_map`` says.

    Everything is checked before the first tensor is read. Each source is packed by itself, so a matrix that is stacked
    from tensors of several formats keeps them all. The source's pages are released as soon as they are packed.

    Args:
        program: Names the parameters and their shapes.
        source: The tensors.
        weight_map: Which tensors make which parameter. The sources of an expert's matrices are either one matrix each,
            in order, or hold all experts in their first dimension and are joined expert by expert.
        tied_head: Whether the checkpoint has no head; the program then names the embedding for it.
        weights: What matrices in floating point become: ``"auto"`` keeps what is stored, ``"bf16"`` rounds, ``"int8"``
            quantises blocks of 32. Block formats stay what they are.
        cache: Where packed copies are kept, or None to pack anew.
        progress: Called with stored bytes done and in all; the last call has both equal.
        threads: That pack; None takes as many as there are cores to use.

    Raises:
        MalformedFileError: A tensor is missing, of another shape than its parameter, or of no use to the model.
        UnsupportedError: A tensor is stored in a format without a tile.
        DoesNotFitError: There is no memory for the packed weights.
        ValueError: The weight map does not fit the program.
    """
    assignments = plan_weights(program, source, weight_map, tied_head=tied_head)
    layout = lay_out(program, assignments, weights)
    total = sum(stored_bytes(part) for origin in layout.origins for part in origin)
    key = "" if cache is None else content_key(source, layout)
    data = None if cache is None else cache.open(key, layout)
    if data is not None:
        if progress is not None:
            progress(total, total)
        return Parameters(program.parameters, layout, data, cached=True)
    data = allocate(layout.nbytes, "packed weights")
    done = 0
    for stored in pack_all(layout, source, data, threads):
        done += stored
        if progress is not None:
            progress(done, total)
    if cache is not None:
        cache.save(key, layout, data, label=_label(source))
    return Parameters(program.parameters, layout, data, cached=False)


def packed_nbytes(
    program: Program, source: WeightSource, weight_map: WeightMap, *, tied_head: bool, weights: Weights = "auto"
) -> int:
    """Bytes that :func:`load_parameters` will take for the same arguments; nothing is read but what describes tensors.

    Raises:
        PioError: As :func:`load_parameters`.
        ValueError: The weight map does not fit the program.
    """
    return lay_out(program, plan_weights(program, source, weight_map, tied_head=tied_head), weights).nbytes


def _label(source: WeightSource) -> str:
    """What people know the weights by: the name of their file, or of the folder of several."""
    files = sorted({source.info(name).file for name in source})
    return files[0].name if len(files) == 1 else files[0].parent.name
