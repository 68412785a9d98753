"""The torch executor: a model's PyTorch modules on one device. The only module of the core that imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.attention import ContiguousKVCache, PagedKVCache, get_backend, ragged_batch
from inference_pio.core._memory import available_memory, check_weights, plan_cache
from inference_pio.interfaces import DoesNotFitError, InvalidRequestError, MissingDependencyError
from inference_pio.layers import DenseLinear, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from inference_pio.core._checkpoint import Checkpoint
    from inference_pio.interfaces import KVCache, StepBatch
    from inference_pio.layers import LoadReport

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "arm_bf16")


class TorchExecutor:
    """Runs a model's PyTorch modules.

    Args:
        model: A ``CausalLM`` on its device, weights loaded.
        cache: Keys and values of all layers, on the same device.
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
        max_model_len: int,
        device: torch.device,
        dtype: torch.dtype,
        report: LoadReport,
    ) -> None:
        self._model: torch.nn.Module | None = model
        self._cache: KVCache | None = cache
        self.max_model_len = max_model_len
        self.device = device
        self.dtype = dtype
        self.report = report
        self.num_pages = cache.num_pages
        self.page_size = cache.page_size

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Run the model over ``batch``; see :class:`inference_pio.interfaces.Executor`.

        Raises:
            DoesNotFitError: The device ran out of memory.
        """
        model, cache = self._model, self._cache
        if model is None or cache is None:
            msg = "the executor is closed"
            raise ValueError(msg)
        try:
            token_ids = torch.from_numpy(batch.token_ids).to(self.device)
            positions = torch.from_numpy(batch.positions).to(self.device)
            hidden = model(token_ids, positions, cache, ragged_batch(batch, self.device))
            if batch.logit_rows.size != batch.token_ids.size:
                hidden = hidden[torch.from_numpy(batch.logit_rows).to(self.device)]
            logits: torch.Tensor = model.logits(hidden)  # type: ignore[operator]  # nn.Module hides the method's type
        except (MemoryError, RuntimeError) as error:
            raise _as_memory_error(error, f"a step of {batch.token_ids.size} tokens") from error
        array: NDArray[np.float32] = logits.float().cpu().numpy()
        return array

    def close(self) -> None:
        """Free weights and cache. Harmless when called twice."""
        self._model = None
        self._cache = None


def build_torch_executor(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int = 8,
    attention: str = "auto",
    kv_cache: str = "auto",
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
        attention: Name of an attention backend, or ``"auto"``.
        kv_cache: ``"paged"``, ``"contiguous"``, or ``"auto"`` for paged.
        progress: Called with bytes done and bytes in all.

    Raises:
        DoesNotFitError: Weights or cache need more memory than there is.
        MissingDependencyError: The device or the attention backend is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    target = _device(device)
    chosen = _dtype(checkpoint, dtype, target)
    chosen_name = str(chosen).removeprefix("torch.")
    weight_bytes = checkpoint.shape.num_parameters * chosen.itemsize
    backend = get_backend(attention, device=target)
    available = _available(target)
    check_weights(checkpoint.name, weight_bytes, chosen_name, available)
    plan = plan_cache(
        checkpoint.shape,
        dtype_bytes=chosen.itemsize,
        available=available - weight_bytes,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        contiguous=kv_cache == "contiguous",
        page_multiple=backend.page_size_multiple,
    )
    with torch.device("meta"):
        model = checkpoint.plugin.build(
            checkpoint.config,
            attention=backend,
            linear=DenseLinear(),
            tied_head=checkpoint.tied_head,
        )
    specs = checkpoint.shape.attention
    try:
        report = load_weights(
            model, checkpoint.source, checkpoint.weight_map, dtype=chosen, device=target, progress=progress
        )
        cache: KVCache
        if kv_cache == "contiguous":
            cache = ContiguousKVCache(
                specs, num_sequences=plan.num_pages, max_length=plan.page_size, dtype=chosen, device=target
            )
        else:
            cache = PagedKVCache(specs, num_pages=plan.num_pages, page_size=plan.page_size, dtype=chosen, device=target)
    except (MemoryError, RuntimeError) as error:
        raise _as_memory_error(error, f"loading {checkpoint.name!r} in {chosen_name}") from error
    return TorchExecutor(
        model.eval(), cache, max_model_len=plan.max_model_len, device=target, dtype=chosen, report=report
    )


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
