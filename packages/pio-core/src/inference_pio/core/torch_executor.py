"""The torch executor: a model's PyTorch modules on one device. The only module of the core that imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_pio.attention import PagedKVCache, get_backend, ragged_batch
from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._memory import (
    DEVICE_SHARE,
    HOST_BYTES,
    HOST_SHARE,
    available_memory,
    cache_budget,
    check_weights,
    plan_cache,
)
from inference_pio.core.torch_sampler import TorchSampler
from inference_pio.interfaces import DoesNotFitError, InvalidRequestError, MissingDependencyError, UnsupportedError
from inference_pio.layers import DenseLinear, InvariantLinear, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from inference_pio.core._checkpoint import Checkpoint
    from inference_pio.interfaces import KVCache, Sampler, StepBatch
    from inference_pio.layers import LoadReport

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {**DTYPES, "int8": torch.int8}
_NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "arm_bf16")


class TorchExecutor:
    """Runs a model's PyTorch modules; implements :class:`inference_pio.interfaces.HiddenStateExecutor`.

    Args:
        model: A ``CausalLM`` on its device, weights loaded.
        cache: Keys and values of all layers, on the same device.
        hidden_size: ``E``.
        max_model_len: Tokens that one sequence may have.
        device: Where the model is.
        dtype: Of the weights.
        report: What loading did.
    """

    name = "torch"

    def __init__(
        self,
        model: torch.nn.Module,
        cache: KVCache,
        *,
        hidden_size: int,
        max_model_len: int,
        device: torch.device,
        dtype: torch.dtype,
        report: LoadReport,
    ) -> None:
        self._model: torch.nn.Module | None = model
        self._cache: KVCache | None = cache
        self._hidden: torch.Tensor | None = None  # of the rows that the latest step named, where they were computed
        self.hidden_size = hidden_size
        self.max_model_len = max_model_len
        self.device = device
        self.dtype = dtype
        self.report = report
        self.page_size = cache.page_size
        self.cache_groups = cache.groups
        self.kv_cache_bytes = cache.nbytes
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self.summary = f"torch executor, {str(dtype).removeprefix('torch.')} on {device}"
        self.sampler: Sampler = HostSampler() if device.type == "cpu" else TorchSampler(device)

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> object:
        """Run the model over ``batch``; see :class:`inference_pio.interfaces.Executor`.

        Returns:
            Logits float32 (R, V): a NumPy array on CPU, a tensor on any other device.

        Raises:
            DoesNotFitError: The device ran out of memory.
        """
        model, cache = self._open()
        try:
            token_ids = torch.from_numpy(batch.token_ids).to(self.device)
            positions = torch.from_numpy(batch.positions).to(self.device)
            hidden = model(token_ids, positions, cache, ragged_batch(batch, self.device))
            self._hidden = None if batch.hidden_rows is None else self._rows(hidden, batch.hidden_rows)
            logits: torch.Tensor = model.logits(self._rows(hidden, batch.logit_rows))  # type: ignore[operator]  # nn.Module hides the method's type
        except (MemoryError, RuntimeError) as error:
            raise _as_memory_error(error, f"a step of {batch.token_ids.size} tokens") from error
        logits = logits.float()
        return logits.numpy() if self.device.type == "cpu" else logits

    @torch.inference_mode()
    def hidden_states(self) -> NDArray[np.float32]:
        """Hidden states (rows, E) of the latest step; see :class:`inference_pio.interfaces.HiddenStateExecutor`."""
        self._open()
        if self._hidden is None:
            return np.empty((0, self.hidden_size), dtype=np.float32)
        rows: NDArray[np.float32] = self._hidden.float().cpu().numpy()
        return rows

    def _rows(self, hidden: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """``rows`` of ``hidden``, which are often all of them."""
        if rows.size == len(hidden) and (rows == np.arange(rows.size)).all():
            return hidden
        return hidden[torch.from_numpy(rows).to(self.device)]

    def copy_pages(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of ``group``, as if one after the other in this order."""
        self._open()[1].copy_pages(group, sources, targets)

    def swap_out(self, group: int, pages: Sequence[int], host_pages: Sequence[int]) -> None:
        """Copy ``pages`` of the device to ``host_pages`` of host memory."""
        self._open()[1].swap_out(group, pages, host_pages)

    def swap_in(self, group: int, host_pages: Sequence[int], pages: Sequence[int]) -> None:
        """Copy ``host_pages`` of host memory to ``pages`` of the device."""
        self._open()[1].swap_in(group, host_pages, pages)

    def _open(self) -> tuple[torch.nn.Module, KVCache]:
        if self._model is None or self._cache is None:
            msg = "the executor is closed"
            raise ValueError(msg)
        return self._model, self._cache

    def close(self) -> None:
        """Free weights and cache. Harmless when called twice."""
        self._hidden = None
        self._model = None
        self._cache = None


def build_torch_executor(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int = 64,
    max_step_tokens: int = 2048,
    attention: str = "auto",
    kv_cache: str = "auto",
    kv_cache_dtype: str = "auto",
    kv_cache_bytes: int | None = None,
    swap_bytes: int = 0,
    deterministic: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TorchExecutor:
    """Build the model on ``meta``, stream its weights to the device and set up its cache.

    Args:
        checkpoint: The opened model.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for what checkpoint and device favour.
        device: A torch device, or ``"auto"`` for CUDA where there is one.
        threads: Threads of torch's CPU operators, for the whole process; None leaves torch's choice.
        max_model_len: Tokens per sequence; None for the model's context or what fits.
        max_num_seqs: Sequences that run at once.
        max_step_tokens: Tokens that one step reads at most.
        attention: Name of an attention backend, or ``"auto"``.
        kv_cache: ``"paged"``, ``"contiguous"``, or ``"auto"`` for paged.
        kv_cache_dtype: Of keys and values: as ``dtype``, or ``"int8"``; ``"auto"`` is the dtype of the weights.
        kv_cache_bytes: Bytes of the cache; None for a share of what is free.
        swap_bytes: Bytes of host memory for pages of sequences that have to wait; of no use where the device is the
            host.
        deterministic: Whether a row's result may not depend on the other rows.
        progress: Called with bytes done and bytes in all.

    Raises:
        DoesNotFitError: Weights or cache need more memory than there is.
        MissingDependencyError: The device or the attention backend is not there.
        UnsupportedError: The attention backend cannot be used in the deterministic mode.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    target = _device(device)
    chosen = _dtype(checkpoint, dtype, target)
    chosen_name = str(chosen).removeprefix("torch.")
    kv_dtype = chosen if kv_cache_dtype == "auto" else KV_DTYPES[kv_cache_dtype]
    weight_bytes = checkpoint.shape.num_parameters * chosen.itemsize
    backend = get_backend(_backend_name(attention, deterministic=deterministic), device=target)
    available = _available(target)
    check_weights(checkpoint.name, weight_bytes, chosen_name, available)
    plan = plan_cache(
        checkpoint.shape,
        dtype_bytes=kv_bytes_per_element(kv_dtype),
        budget=_cache_budget(kv_cache_bytes, available - weight_bytes, target),
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        max_step_tokens=max_step_tokens,
        contiguous=kv_cache == "contiguous",
        page_multiple=backend.page_size_multiple,
        host_budget=0 if target.type == "cpu" else swap_bytes,
    )
    with torch.device("meta"):
        model = checkpoint.plugin.build(
            checkpoint.config,
            attention=backend,
            linear=InvariantLinear() if deterministic else DenseLinear(),
            tied_head=checkpoint.tied_head,
        )
    try:
        report = load_weights(
            model, checkpoint.source, checkpoint.weight_map, dtype=chosen, device=target, progress=progress
        )
        cache = PagedKVCache(
            checkpoint.shape.cache_specs,
            num_pages=plan.num_pages,
            page_size=plan.page_size,
            dtype=kv_dtype,
            device=target,
            num_host_pages=plan.num_host_pages,
        )
    except (MemoryError, RuntimeError) as error:
        raise _as_memory_error(error, f"loading {checkpoint.name!r} in {chosen_name}") from error
    return TorchExecutor(
        model.eval(),
        cache,
        hidden_size=checkpoint.shape.hidden_size,
        max_model_len=plan.max_model_len,
        device=target,
        dtype=chosen,
        report=report,
    )


def choose_dtypes(
    checkpoint: Checkpoint, dtype: str, kv_cache_dtype: str, device: str
) -> tuple[torch.dtype, torch.dtype]:
    """What :func:`build_torch_executor` takes for weights, and for keys and values.

    Raises:
        InvalidRequestError: An unknown dtype or device.
        MissingDependencyError: The device is not there.
    """
    chosen = _dtype(checkpoint, dtype, _device(device))
    return chosen, chosen if kv_cache_dtype == "auto" else KV_DTYPES[kv_cache_dtype]


def free_on(device: str) -> int:
    """Bytes that are free on a device, ``"auto"`` being the one that models are put on.

    Raises:
        InvalidRequestError: An unknown device.
        MissingDependencyError: It is not there.
    """
    return _available(_device(device))


def has_cuda() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def kv_bytes_per_element(dtype: torch.dtype) -> float:
    """Bytes that an element of the cache takes, its share of a scale included."""
    # int8 keeps one scale of 4 bytes per head; 32 is the smallest head that is in use.
    return 1 + 4 / 32 if dtype == torch.int8 else dtype.itemsize


def _backend_name(attention: str, *, deterministic: bool) -> str:
    if not deterministic:
        return attention
    if attention not in {"auto", "invariant"}:
        raise UnsupportedError(
            f"attention {attention!r} gives other bits in other company", hint="attention='invariant', or 'auto'"
        )
    return "invariant"


def _cache_budget(asked: int | None, free: int, device: torch.device) -> int:
    if device.type == "cpu":
        return cache_budget(asked, free, share=HOST_SHARE, most=HOST_BYTES)
    return cache_budget(asked, free, share=DEVICE_SHARE)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidRequestError(f"unknown device {name!r}", hint="give cpu, cuda, cuda:0, ... or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(f"device {name!r} is not there: torch finds no CUDA device", hint="device='cpu'")
    return device


def _dtype(checkpoint: Checkpoint, name: str, device: torch.device) -> torch.dtype:
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InvalidRequestError(f"unknown dtype {name!r}", hint=f"give {', '.join(DTYPES)} or auto")
    encodings = {checkpoint.source.info(tensor).encoding for tensor in checkpoint.source}
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float16 if encodings == {"F16"} else half
    if encodings == {"F32"}:
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(flag) for flag in _NATIVE_BF16) else torch.float32


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return available_memory()


def _as_memory_error(error: Exception, doing: str) -> Exception:
    """A running out of memory in the terms of a user; any other error as it is."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return DoesNotFitError(
            f"out of memory in {doing}", hint="lower max_model_len or max_num_seqs, or take a smaller model or dtype"
        )
    return error
