"""Programs on the native library: one call per step."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Self

import numpy as np

from inference_pio.interfaces import DoesNotFitError, UnsupportedError
from inference_pio.kernels._abi import BatchStruct, GroupTablesStruct, LayerCacheStruct, SamplingStruct
from inference_pio.kernels._batch_check import check_batch
from inference_pio.kernels._library import choose_instruction_set, default_threads, load_library
from inference_pio.kernels._lowering import NativeProgram
from inference_pio.kernels._memory import allocate
from inference_pio.kernels._program import Attention

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from inference_pio.interfaces import CacheGroup, GroupTables, LayerGroup, SamplingBatch, StepBatch
    from inference_pio.kernels._interpreter import KVFormat
    from inference_pio.kernels._parameters import Parameters
    from inference_pio.kernels._program import Program

PAGE_SIZE_MULTIPLE = 16
"""Pages hold whole blocks of this many tokens."""
HEAD_SIZE_MULTIPLE = 8

# Tokens times heads or experts of a token are counted in 32 bits.
_MAX_TOKENS = 2**20
_MAX_THREADS = 4096
_ALIGNMENT = 64  # bytes, of a layer's part of a page
_KV_FORMATS = {"f16": 0, "bf16": 1, "int8": 2, "f32": 3}


def page_bytes(kv_format: KVFormat, page_size: int, kv_heads: int, head_size: int) -> int:
    """Bytes of one page of one layer's keys and values.

    Raises:
        ValueError: No such format.
        UnsupportedError: There are no kernels for pages or heads of this size.
    """
    if kv_format not in _KV_FORMATS:
        raise ValueError(f"kv_format must be one of {', '.join(_KV_FORMATS)}, got {kv_format!r}")
    if page_size < 1 or page_size % PAGE_SIZE_MULTIPLE or head_size < 1 or head_size % HEAD_SIZE_MULTIPLE:
        raise UnsupportedError(
            f"pages of {page_size} tokens with heads of {head_size} have no native kernels: they work on multiples of "
            f"{PAGE_SIZE_MULTIPLE} and {HEAD_SIZE_MULTIPLE}",
            hint="executor='torch'",
        )
    return int(load_library().pio_page_bytes(_KV_FORMATS[kv_format], page_size, kv_heads, head_size))


class Runtime:
    """Runs a program over steps of the engine, natively, keeping keys and values in pages of its own.

    Not to be used from several threads at once. A context manager that closes it. In a forked process it starts threads
    of its own when it is first used there.

    Args:
        program: What to run.
        parameters: Its parameters; kept.
        caches: Pages of each group.
        layer_groups: The layers of each group, in the same order.
        page_size: ``P``.
        kv_format: How keys and values are stored.
        max_tokens: The most tokens of a step; memory for intermediate rows is taken for so many.
        threads: That compute, the caller's own included; None takes as many as there are cores to use.
        isa: Instruction set by name; None takes ``PIO_KERNELS`` of the environment, or else the best one.

    Attributes:
        isa: Name of the instruction set.
        threads: How many threads compute.
        hidden_size: ``E``.

    Raises:
        DoesNotFitError: There is no memory for the cache or the intermediate rows, or numbers are beyond all reason.
        UnsupportedError: There are no kernels for this instruction set, or for pages or heads of this size.
        ConfigError: No instruction set has this name.
        ValueError: A layer of the program is in no group, or sees more keys than its group keeps.
    """

    def __init__(
        self,
        program: Program,
        parameters: Parameters,
        caches: Sequence[CacheGroup],
        layer_groups: Sequence[LayerGroup],
        *,
        page_size: int,
        kv_format: KVFormat = "f16",
        max_tokens: int,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        if max_tokens < 1 or (threads is not None and threads < 1):
            raise ValueError(f"max_tokens and threads must be at least 1, got {max_tokens} and {threads}")
        if max_tokens > _MAX_TOKENS or (threads or 1) > _MAX_THREADS:
            raise DoesNotFitError(
                f"steps of {max_tokens} tokens on {threads or default_threads()} threads are beyond what the native "
                f"runtime can: {_MAX_TOKENS} tokens on {_MAX_THREADS} threads",
                hint="use fewer",
            )
        if len(caches) != len(layer_groups):
            raise ValueError(f"{len(caches)} caches for {len(layer_groups)} groups of layers")
        chosen = choose_instruction_set(isa)
        self.isa = chosen.name
        self.threads = default_threads() if threads is None else threads
        self._library = load_library()
        self._groups = tuple(layer_groups)
        self._num_pages = tuple(cache.num_pages for cache in caches)
        self._page_size = page_size
        self._vocab_size = program.vocab_size
        self._max_tokens = max_tokens
        self._pages: list[NDArray[np.uint8]] = []  # of each group, (pages, bytes)
        layers = self._make_caches(program, caches, kv_format)
        self._windows = _windows(program, layer_groups)
        self._native = NativeProgram(program, parameters, layers, max_tokens=max_tokens)
        self._logits = np.empty((0, program.vocab_size), dtype=np.float32)
        self.hidden_size = program.hidden_size
        self._hidden = np.empty((0, self.hidden_size), dtype=np.float32)
        self._num_hidden = 0
        self._tables = (GroupTablesStruct * len(caches))()
        self._batch = BatchStruct(num_groups=len(caches), groups=ctypes.addressof(self._tables))
        self._isa_index = chosen.index
        self._handle: int | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Size of the cache, in bytes."""
        return sum(pages.nbytes for pages in self._pages)

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Logits (R, V) of the rows that ``batch`` asks for; keys and values of its tokens are stored.

        Of rows of which only the largest are wanted, others may be ``-inf``: where the head's tiles are of 8 bits, it
        reads three quarters of them and what of the rest the largest may need.

        The array is valid until the next step, as is what :meth:`hidden_states` gives.

        Raises:
            ValueError: The batch is larger than ``max_tokens``, or an array of it is not what it should be.
        """
        handle = self._open()
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        hidden = 0 if batch.hidden_rows is None else len(batch.hidden_rows)
        if max(tokens, rows, hidden) > self._max_tokens:
            raise ValueError(
                f"{tokens} tokens, {rows} logit rows and {hidden} hidden rows, and the runtime was made for "
                f"{self._max_tokens}"
            )
        check_batch(
            batch,
            vocab_size=self._vocab_size,
            num_pages=self._num_pages,
            windows=self._windows,
            page_size=self._page_size,
        )
        if rows > len(self._logits):
            self._logits = np.empty((rows, self._vocab_size), dtype=np.float32)
        if hidden > len(self._hidden):
            self._hidden = np.empty((hidden, self.hidden_size), dtype=np.float32)
        self._num_hidden = hidden
        logits = self._logits[:rows]
        if tokens == 0:
            return logits
        native = self._batch
        native.num_tokens, native.num_sequences, native.num_logits = tokens, len(batch.seq_lens), rows
        native.token_ids = _address(batch.token_ids)
        native.positions = _address(batch.positions)
        native.query_starts = _address(batch.query_starts)
        native.sequence_lengths = _address(batch.seq_lens)
        native.logit_rows = _address(batch.logit_rows)
        native.logits = _address(self._logits)
        native.largest_wanted = None if batch.largest_wanted is None else _address(batch.largest_wanted)
        native.num_hidden = hidden
        if batch.hidden_rows is not None:
            native.hidden_rows = _address(batch.hidden_rows)
            native.hidden = _address(self._hidden)
        groups: tuple[StepBatch | GroupTables, ...] = (batch, *batch.others)
        for place, tables in zip(self._tables, groups, strict=True):
            place.block_tables = _address(tables.block_tables)
            place.stride = tables.block_tables.shape[1]
            place.slots = _address(tables.slot_mapping)
        status = self._library.pio_runtime_step(handle, ctypes.addressof(native))
        assert status == 0, "the batch was checked"
        return logits

    def hidden_states(self) -> NDArray[np.float32]:
        """What the head reads, (rows, E): after its norm, of the ``hidden_rows`` of the latest step; until the next."""
        return self._hidden[: self._num_hidden]

    def sample(self, logits: NDArray[np.float32], batch: SamplingBatch) -> NDArray[np.int64]:
        """The chosen token of each draw, (R,), -1 where no logit is finite or one is NaN.

        Args:
            logits: float32 (rows, V), rows contiguous; not changed.
            batch: How to choose. Edits of logits must have been made before.

        Raises:
            ValueError: ``batch`` has edits, or an array is not what it should be.
        """
        handle = self._open()
        if logits.dtype != np.float32 or logits.ndim != 2 or logits.shape[1] != self._vocab_size:
            raise ValueError(f"logits must be float32 (R, {self._vocab_size}), got {logits.dtype} {logits.shape}")
        if not (batch.bias is batch.repetition is batch.penalties is None):
            raise ValueError("edits of logits must be made before sampling")
        values = np.ascontiguousarray(logits)
        draws = len(batch.rows)
        chosen = np.empty(draws, dtype=np.int64)
        if draws == 0:
            return chosen
        arrays = _sampling_arrays(batch, len(values), self._vocab_size)
        native = SamplingStruct(draws, self._vocab_size, self._vocab_size, chosen=chosen.ctypes.data)
        for name, array in arrays.items():
            setattr(native, name, None if array is None else array.ctypes.data)
        status = self._library.pio_runtime_sample(handle, values.ctypes.data, ctypes.addressof(native))
        assert status == 0, "the arrays were checked"
        return chosen

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group`` in every layer of it, as if one after the other in this order.

        Raises:
            ValueError: A page is not one of the group's.
        """
        self._open()
        for page in (*sources, *targets):
            if not 0 <= page < self._num_pages[group]:
                raise ValueError(f"group {group} has pages 0..{self._num_pages[group] - 1}, not {page}")
        pages = self._pages[group]
        for source, target in zip(sources, targets, strict=True):
            pages[target] = pages[source]

    def close(self) -> None:
        """Give threads, cache and intermediate memory back. Harmless when called twice."""
        self._free()
        self._handle = None
        self._pages.clear()

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the runtime is closed")
        if self._process != os.getpid():
            # A fork copies memory but no thread: weights and cache are here, who shared the work is not.
            self._free.detach()
            return self._start()
        return self._handle

    def _start(self) -> int:
        """Take threads and intermediate memory, in this process."""
        handle = self._library.pio_runtime_new(ctypes.addressof(self._native.struct), self._isa_index, self.threads)
        if not handle:
            raise DoesNotFitError(
                f"no memory or threads for steps of {self._max_tokens} tokens on {self.threads} threads",
                hint="use fewer tokens per step",
            )
        self._process = os.getpid()
        self._free = weakref.finalize(self, _free, self._library, int(handle), self._process)
        self._handle = int(handle)
        return self._handle

    def _make_caches(
        self, program: Program, caches: Sequence[CacheGroup], kv_format: KVFormat
    ) -> dict[int, LayerCacheStruct]:
        """Take memory for the pages; what the native runtime must know of each layer's, by layer.

        A page holds the keys and values of all layers of its group, one layer after the other: a short sequence touches
        few (huge) pages of the system, and a page is copied as one piece.
        """
        group_of = {layer: index for index, group in enumerate(self._groups) for layer in group.layers}
        sizes: list[dict[int, int]] = [{} for _ in self._groups]
        for op in program.ops:
            if not isinstance(op, Attention):
                continue
            if op.layer not in group_of or op.layer in sizes[group_of[op.layer]]:
                problem = "twice in the program" if op.layer in group_of else f"in none of {len(self._groups)} groups"
                raise ValueError(f"layer {op.layer} is {problem}")
            size = page_bytes(kv_format, self._page_size, op.kv_heads, op.head_size)
            sizes[group_of[op.layer]][op.layer] = -(-size // _ALIGNMENT) * _ALIGNMENT
        structs: dict[int, LayerCacheStruct] = {}
        for group, (layers, cache) in enumerate(zip(sizes, caches, strict=True)):
            stride = sum(layers.values())
            pages = allocate(cache.num_pages * stride, f"the {cache.num_pages} pages of group {group}")
            self._pages.append(pages.reshape(cache.num_pages, stride))
            offset = 0
            for layer, size in layers.items():
                structs[layer] = LayerCacheStruct(
                    pages.ctypes.data + offset, stride, _KV_FORMATS[kv_format], group, self._page_size, 0
                )
                offset += size
        return structs


def _free(library: ctypes.CDLL, handle: int, process: int) -> None:
    """Free a native runtime in the process that made it: in a fork of that, its threads could be waited for forever."""
    if os.getpid() == process:
        library.pio_runtime_free(handle)


def _address(array: NDArray[np.generic]) -> int:
    """Where a contiguous array lies; faster than ``array.ctypes``, which costs as much as a small product."""
    if array.flags.writeable and array.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # stubs know no buffers yet
    return array.ctypes.data


def _windows(program: Program, layer_groups: Sequence[LayerGroup]) -> tuple[int | None, ...]:
    """Per group, keys that its layers look back to at most; None for all."""
    windows: list[int | None] = []
    for group in layer_groups:
        used = [op.window for op in program.ops if isinstance(op, Attention) and op.layer in group.layers]
        widest = None if None in used else max((window for window in used if window is not None), default=None)
        if group.window is not None and used and (widest is None or widest > group.window):
            raise ValueError(f"layers see {widest or 'all'} keys, and their group keeps {group.window}")
        windows.append(widest)
    return tuple(windows)


def _sampling_arrays(batch: SamplingBatch, rows: int, vocab_size: int) -> dict[str, NDArray[np.generic] | None]:
    """The arrays of a draw under the names of the C structure, checked."""
    draws = len(batch.rows)
    wanted: dict[str, tuple[NDArray[np.generic], type[np.generic]]] = {
        "logit_rows": (batch.rows, np.int64),
        "temperature": (batch.temperature, np.float32),
        "top_k": (batch.top_k, np.int32),
        "typical_p": (batch.typical_p, np.float32),
        "top_p": (batch.top_p, np.float32),
        "min_p": (batch.min_p, np.float32),
        "uniforms": (batch.uniforms, np.float64),
    }
    arrays: dict[str, NDArray[np.generic] | None] = {}
    for name, (array, dtype) in wanted.items():
        if array.dtype != dtype or array.shape != (draws,):
            raise ValueError(f"{name} must be {np.dtype(dtype)} ({draws},), got {array.dtype} {array.shape}")
        arrays[name] = np.ascontiguousarray(array)
    if batch.rows.min() < 0 or batch.rows.max() >= rows:
        raise ValueError(f"rows must be in 0..{rows - 1}, got {batch.rows.tolist()}")
    words = -(-vocab_size // 32)
    if batch.masks is not None and (batch.masks.dtype != np.int32 or batch.masks.shape != (draws, words)):
        raise ValueError(f"masks must be int32 ({draws}, {words}), got {batch.masks.dtype} {batch.masks.shape}")
    arrays["masks"] = None if batch.masks is None else np.ascontiguousarray(batch.masks)
    return arrays
