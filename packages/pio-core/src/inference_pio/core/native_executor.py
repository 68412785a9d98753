"""The native executor: a model's program on the CPU, one native call per step. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from inference_pio.core._memory import (
    HOST_BYTES,
    HOST_SHARE,
    available_memory,
    cache_budget,
    check_weights,
    plan_cache,
)
from inference_pio.core.native_sampler import NativeSampler
from inference_pio.interfaces import CacheGroup, KVSpec, LowerableModel, UnsupportedError, group_layers
from inference_pio.kernels import (
    DEFAULT_MAX_BYTES,
    PackedStore,
    Runtime,
    choose_instruction_set,
    load_parameters,
    packed_nbytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.core._checkpoint import Checkpoint
    from inference_pio.interfaces import Sampler, StepBatch
    from inference_pio.kernels import KVFormat, Program, Weights

KV_FORMATS: dict[str, KVFormat] = {
    "auto": "f16",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int8": "int8",
}
"""Formats of keys and values by the names of ``kv_cache_dtype``."""
PAGE_TOKENS = 32
"""Tokens per page. A page of 16 is a short run of memory: eight long sequences decode a tenth slower with those."""
KV_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1 + 4 / 32}
"""Bytes of an element of the cache; int8 has a scale per head, and 32 is the smallest head."""


class StepRuntime(Protocol):
    """What runs a program: ``inference_pio.kernels.Runtime``, or its ``Interpreter``."""

    hidden_size: int

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Logits (R, V), valid until the next step."""

    def hidden_states(self) -> NDArray[np.float32]:
        """What the head reads, (rows, E), of the rows that the latest step named; valid until the next."""

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group``, as if one after the other in this order."""


class NativeExecutor:
    """Runs a model's program; implements :class:`inference_pio.interfaces.HiddenStateExecutor`.

    Args:
        runtime: The program with its parameters and its cache; closed with the executor.
        sampler: Chooses from its logits.
        cache_groups: The pages of the runtime.
        page_size: Tokens per page.
        max_model_len: Tokens that one sequence may have.
        dtype: How the weights are kept, for people.
        weight_bytes: Size of the weights.
        kv_cache_bytes: Size of the cache.
        summary: What runs how, in a few words.
    """

    name = "native"
    device = "cpu"

    def __init__(
        self,
        runtime: StepRuntime,
        *,
        sampler: Sampler,
        cache_groups: tuple[CacheGroup, ...],
        page_size: int,
        max_model_len: int,
        dtype: str,
        weight_bytes: int,
        kv_cache_bytes: int,
        summary: str,
    ) -> None:
        self._runtime: StepRuntime | None = runtime
        self.sampler = sampler
        self.cache_groups = cache_groups
        self.page_size = page_size
        self.max_model_len = max_model_len
        self.dtype = dtype
        self.weight_bytes = weight_bytes
        self.kv_cache_bytes = kv_cache_bytes
        self.summary = summary

    @property
    def hidden_size(self) -> int:
        """``E``."""
        return self._open().hidden_size

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Run the program over ``batch``; see :class:`inference_pio.interfaces.Executor`.

        Returns:
            Logits float32 (R, V), valid until the next step.
        """
        return self._open().step(batch)

    def hidden_states(self) -> NDArray[np.float32]:
        """Hidden states (rows, E) of the latest step; see :class:`inference_pio.interfaces.HiddenStateExecutor`."""
        return self._open().hidden_states()

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group``, as if one after the other in this order."""
        self._open().copy_pages(group, sources, targets)

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Never asked for: the host is the device, so there are no host pages.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"no page of group {group} can move to host memory: {list(pages)} to {list(host_pages)}")

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Never asked for, as :meth:`swap_out`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"no page of group {group} can come from host memory: {list(host_pages)} to {list(pages)}")

    def _open(self) -> StepRuntime:
        if self._runtime is None:
            raise ValueError("the executor is closed")
        return self._runtime

    def close(self) -> None:
        """Free weights, cache and threads. Harmless when called twice."""
        runtime, self._runtime = self._runtime, None
        if isinstance(runtime, Runtime):
            runtime.close()


def build_native_executor(
    checkpoint: Checkpoint,
    *,
    weights: Weights = "auto",
    threads: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int = 64,
    max_step_tokens: int = 512,
    kv_cache_dtype: str = "auto",
    kv_cache_bytes: int | None = None,
    packed_cache: Path | None = None,
    packed_cache_bytes: int | None = None,
    isa: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NativeExecutor:
    """Lower the model, pack its weights or find them packed, and set up its cache.

    Args:
        checkpoint: The opened model.
        weights: As in ``inference_pio.kernels.load_parameters``.
        threads: Threads; None for one per physical core that this process may use.
        max_model_len: Tokens per sequence; None for the model's context or what fits.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        kv_cache_dtype: Of keys and values: a key of :data:`KV_FORMATS`.
        kv_cache_bytes: Bytes of the cache; None for a share of what is free.
        packed_cache: Folder of packed copies; None keeps none.
        packed_cache_bytes: What they may take; None for the store's own bound, 0 keeps none.
        isa: Instruction set by name; None for that of ``PIO_KERNELS``, or else the best that runs here.
        progress: Called with bytes done and bytes in all.

    Raises:
        ConfigError: ``PIO_KERNELS`` names an instruction set that there is not, or that cannot run here.
        UnsupportedError: The plugin has no lowering, a program cannot express the model, ``isa`` cannot run here, or an
            encoding or a head size has no kernels.
        DoesNotFitError: Weights or cache need more memory than there is.
        MalformedFileError: The weights do not fit the model.
    """
    program = lower(checkpoint)
    chosen = choose_instruction_set(isa)  # before weights are packed, which may take minutes
    kv_format = KV_FORMATS[kv_cache_dtype]
    weight_bytes = packed_bytes(checkpoint, program, weights)
    available = available_memory()
    check_weights(checkpoint.name, weight_bytes, "tiles", available)
    plan = plan_cache(
        checkpoint.shape,
        dtype_bytes=KV_BYTES[kv_format],
        budget=cache_budget(kv_cache_bytes, available - weight_bytes, share=HOST_SHARE, most=HOST_BYTES),
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        max_step_tokens=max_step_tokens,
        page_multiple=PAGE_TOKENS,
    )
    layer_groups = group_layers(checkpoint.shape.cache_specs)
    groups = tuple(
        CacheGroup(kind=group.kind, window=group.window, num_pages=pages)
        for group, pages in zip(layer_groups, plan.num_pages, strict=True)
    )
    store = None
    if packed_cache is not None and packed_cache_bytes != 0:
        store = PackedStore(packed_cache, DEFAULT_MAX_BYTES if packed_cache_bytes is None else packed_cache_bytes)
    parameters = load_parameters(
        program,
        checkpoint.source,
        checkpoint.weight_map,
        tied_head=checkpoint.tied_head,
        weights=weights,
        cache=store,
        progress=progress,
        threads=threads,
    )
    runtime = Runtime(
        program,
        parameters,
        groups,
        layer_groups,
        page_size=plan.page_size,
        kv_format=kv_format,
        max_tokens=max_step_tokens,
        threads=threads,
        isa=chosen.name,
    )
    formats = "/".join(sorted(parameters.formats, key=parameters.formats.__getitem__, reverse=True))
    team = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
    return NativeExecutor(
        runtime,
        sampler=NativeSampler(runtime),
        cache_groups=groups,
        page_size=plan.page_size,
        max_model_len=plan.max_model_len,
        dtype=formats,
        weight_bytes=parameters.nbytes,
        kv_cache_bytes=runtime.nbytes,
        summary=f"native executor, {runtime.isa}, {team}, {formats} tiles, {kv_format} cache",
    )


def packed_bytes(checkpoint: Checkpoint, program: Program, weights: Weights) -> int:
    """Bytes of the packed weights of ``program``, the model of ``checkpoint``.

    Raises:
        PioError: As :func:`build_native_executor`.
    """
    return packed_nbytes(
        program, checkpoint.source, checkpoint.weight_map, tied_head=checkpoint.tied_head, weights=weights
    )


def lower(checkpoint: Checkpoint) -> Program:
    """The model of ``checkpoint`` as a program.

    Raises:
        UnsupportedError: Its plugin has no lowering, or a program cannot express it.
    """
    plugin, installed = checkpoint.plugin, checkpoint.installed
    if not isinstance(plugin, LowerableModel):
        raise UnsupportedError(
            f"{installed.manifest.distribution} {installed.version} has no lowering for the native executor",
            hint="executor='torch'",
        )
    if not all(isinstance(spec, KVSpec) for spec in checkpoint.shape.cache_specs):
        raise UnsupportedError(
            f"{checkpoint.name!r} has layers that keep something else than keys and values, which the native executor "
            "cannot",
            hint="executor='torch'",
        )
    return cast("Program", plugin.lower(checkpoint.config, tied_head=checkpoint.tied_head))
