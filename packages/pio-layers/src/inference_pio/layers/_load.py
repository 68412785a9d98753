"""Streaming of weights into a module that was built on ``meta``: each parameter is written once, or not at all."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inference_pio.interfaces import DoesNotFitError
from inference_pio.layers._plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from inference_pio.interfaces import TensorInfo, WeightMap, WeightSource
    from inference_pio.layers._plan import Assignment, Slot

CHUNK_BYTES = 2 * 2**20
"""Bound on a decoded chunk in float32: it stays in the cache between decoding and copying."""

_MAPPABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        bytes: Size of all parameters in the model's dtype, a tied head counted once: mapped and copied together.
        tensors: Tensors of the checkpoint that were used.
        mapped_bytes: Part of ``bytes`` that are views of the file's mapping, read when first touched.
        copied_bytes: Part of ``bytes`` that was written to memory of its own.
        encodings: Tensors per storage format, such as ``{"Q4_1": 210, "Q8_0": 1, "F32": 61}``.
    """

    bytes: int
    tensors: int
    mapped_bytes: int
    copied_bytes: int
    encodings: Mapping[str, int]


def load_weights(
    module: nn.Module,
    source: WeightSource,
    weight_map: WeightMap,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> LoadReport:
    """Fill ``module`` in place from ``source`` as ``weight_map`` says.

    A parameter made of one whole tensor that is stored in ``dtype`` becomes a view of the file's mapping if ``device``
    is the CPU: nothing is read now, and ``source`` may be closed. Any other gets one buffer, which is filled in chunks
    of rows, so that at most about 2 MiB (or one row, or one head) are held decoded at a time; the source's pages are
    released after each tensor. Everything is checked before the first byte is read: on an error in the checkpoint's
    header the module is as it was. PyTorch's thread count is 1 while a buffer is filled, and then what it was.

    Args:
        module: Built on ``meta``. Its parameters are replaced, shared ones by one shared parameter, none requires a
            gradient. Buffers count as parameters here: what can be computed should not be one.
        source: The tensors.
        weight_map: Which tensors make which parameter.
        dtype: Dtype of all parameters.
        device: Where they go.
        progress: Called with stored bytes done and in all, after each chunk; the last call has both equal.

    Returns:
        Sizes and counts.

    Raises:
        MalformedFileError: A tensor is missing, of another shape than its parameter, or of no use to the model.
        UnsupportedError: A tensor is stored in a format that has no decoder.
        DoesNotFitError: A parameter's buffer cannot be allocated.
        ValueError: ``dtype`` is not floating point, or the weight map does not fit the module.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    assignments = plan(module, source, weight_map)
    infos = [info for assignment in assignments for info in assignment.sources]
    total = sum(info.nbytes for info in infos)
    done = mapped_bytes = copied_bytes = 0
    for assignment in assignments:
        tensor = _mapped(assignment, source, dtype) if device.type == "cpu" else None
        if tensor is not None:
            mapped_bytes += tensor.nbytes
            done += assignment.sources[0].nbytes
            if progress is not None:
                progress(done, total)
        else:
            tensor = _allocate(assignment.slot, dtype, device)
            copied_bytes += tensor.nbytes
            with _one_thread():
                for stored in _fill(tensor, assignment, source):
                    done += stored
                    if progress is not None:
                        progress(done, total)
        _install(module, assignment.slot, tensor)
    return LoadReport(
        bytes=mapped_bytes + copied_bytes,
        tensors=len(infos),
        mapped_bytes=mapped_bytes,
        copied_bytes=copied_bytes,
        encodings=dict(Counter(info.encoding for info in infos)),
    )


def _mapped(assignment: Assignment, source: WeightSource, dtype: torch.dtype) -> Tensor | None:
    """A view of the file as the parameter, or None where it must be copied."""
    info = assignment.sources[0]
    if len(assignment.sources) > 1 or assignment.heads[0] or _MAPPABLE.get(info.encoding) is not dtype:
        return None
    array = source.array(info.name)
    if array is None or not array.flags.aligned:
        return None
    return torch.from_numpy(array).view(dtype)  # BF16 comes as uint16


def _allocate(slot: Slot, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape = tuple(slot.tensor.shape)
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        # PyTorch has no class of its own for the host's memory, and a subclass of RuntimeError for a device's.
        if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        size = slot.tensor.numel() * dtype.itemsize
        raise DoesNotFitError(
            f"no memory for the {size} bytes of parameter {slot.names[0]} {shape} in {dtype} on {device}",
            hint="use a smaller dtype or a smaller model",
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch from sharing out copies that take less time than waking its threads, which then spin for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fill(target: Tensor, assignment: Assignment, source: WeightSource) -> Iterator[int]:
    """Write the sources into the rows of ``target``; yields the stored bytes behind each chunk."""
    start = 0
    for info, heads in zip(assignment.sources, assignment.heads, strict=True):
        rows = info.shape[0]
        region = target[start : start + rows]
        start += rows
        done = 0
        for chunk in _chunks(info, heads):
            values = torch.from_numpy(source.decode(info.name, chunk))
            region[chunk].copy_(_half_split(values, rows // heads) if heads else values)
            stored = info.nbytes * chunk.stop // rows
            yield stored - done
            done = stored
        source.release(info.name)


def _chunks(info: TensorInfo, heads: int) -> Iterator[slice]:
    """Ranges of rows of about ``CHUNK_BYTES`` in float32, of whole heads where rows are reordered within heads."""
    rows = info.shape[0]
    unit = rows // heads if heads else 1
    row_bytes = 4 * info.numel // max(rows, 1)
    step = unit * max(1, CHUNK_BYTES // max(unit * row_bytes, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _half_split(values: Tensor, head_rows: int) -> Tensor:
    """Bring the rows of each head from ``a0 b0 a1 b1 ...`` to ``a0 a1 ... b0 b1 ...``; (a, b) are rotary pairs."""
    rest = values.shape[1:]
    pairs = values.view(-1, head_rows // 2, 2, *rest)  # (heads, pairs, 2, ...)
    return pairs.transpose(1, 2).reshape(-1, *rest)


def _install(module: nn.Module, slot: Slot, tensor: Tensor) -> None:
    new = nn.Parameter(tensor, requires_grad=False) if isinstance(slot.tensor, nn.Parameter) else tensor
    for name in slot.names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new)
