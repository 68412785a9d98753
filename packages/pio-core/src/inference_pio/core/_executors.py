"""Which executor computes a model: the one that was asked for, or the one that machine, model and options favour.

Asks for nothing that would import torch where the native executor can do.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from inference_pio.core._threads import limit_spinning
from inference_pio.core._torch_extra import check_torch_extra
from inference_pio.interfaces import (
    BrokenDependencyError,
    Executor,
    LowerableModel,
    MissingDependencyError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.core._assembly import EngineOptions
    from inference_pio.core._checkpoint import Checkpoint

_LOG = logging.getLogger(__name__)
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Device files of NVIDIA's driver, of GPUs under WSL, and of AMD's driver, whose devices torch calls CUDA too."""


class ModelExecutor(Executor, Protocol):
    """An executor as its builder gives it, with what is told to people."""

    @property
    def max_model_len(self) -> int:
        """Tokens that one sequence may have."""

    @property
    def device(self) -> object:
        """Where the model is."""

    @property
    def dtype(self) -> object:
        """How the weights are kept."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""

    @property
    def kv_cache_bytes(self) -> int:
        """Size of the cache."""

    @property
    def summary(self) -> str:
        """What runs how, in a few words."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the native executor does not run a model.

    Attributes:
        reason: A clause that follows "because".
        hint: The way out.
        chosen: Whether an option or the machine decides so, rather than something that the model or the installation
            lacks: then nobody need be told.
    """

    reason: str
    hint: str
    chosen: bool


def build_executor(
    checkpoint: Checkpoint,
    options: EngineOptions,
    *,
    max_model_len: int | None,
    is_draft: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ModelExecutor, str | None]:
    """The executor of ``checkpoint``, and why it is not the native one if ``"auto"`` might have made it that.

    Args:
        checkpoint: The opened model.
        options: How to load and run it.
        max_model_len: Tokens per sequence; None for the model's context or what fits.
        is_draft: Whether it drafts for another model: what ``options`` say of the cache is then not about it.
        progress: Called with bytes done and bytes in all.

    Raises:
        ConfigError: ``PIO_KERNELS`` forces an instruction set on the native executor that cannot run here.
        UnsupportedError: The executor asked for cannot run the model, or none that is installed can.
        PioError: The weights are not sound, or do not fit.
    """
    if options.executor == "torch":
        return _build_torch(checkpoint, options, max_model_len, is_draft, progress), None
    obstacle = find_obstacle(checkpoint, options)
    if obstacle is None:
        try:
            return _build_native(checkpoint, options, max_model_len, is_draft, progress), None
        except (UnsupportedError, MissingDependencyError, BrokenDependencyError) as error:
            obstacle = Obstacle(error.message, error.hint or "executor='torch'", chosen=False)
    if options.executor == "native" or options.dtype == "int8":
        raise UnsupportedError(
            f"the native executor does not run {checkpoint.name!r}: {obstacle.reason}", hint=obstacle.hint
        )
    try:
        check_torch_extra()
    except MissingDependencyError as error:
        if obstacle.chosen:
            raise
        raise UnsupportedError(
            f"the native executor does not run {checkpoint.name!r}: {obstacle.reason}; and {error.message}",
            hint=error.hint,
        ) from error
    level = logging.INFO if obstacle.chosen else logging.WARNING
    _LOG.log(level, "%s runs on the torch executor, not the native one: %s", checkpoint.name, obstacle.reason)
    return _build_torch(checkpoint, options, max_model_len, is_draft, progress), obstacle.reason


def find_obstacle(checkpoint: Checkpoint, options: EngineOptions) -> Obstacle | None:
    """What keeps the native executor from running ``checkpoint``, as far as is known before its weights are packed."""
    installed = checkpoint.installed
    capabilities = installed.manifest.capabilities
    asked = (
        ("device", options.device not in {"auto", "cpu"}, "it runs on the CPU"),
        ("dtype", options.dtype not in {"auto", "int8"}, "it computes on weights as they are stored, or in int8"),
        ("attention", options.attention != "auto", "it has its own"),
        ("kv_cache", options.kv_cache == "contiguous", "its cache has pages"),
        ("deterministic", options.deterministic, "how it divides the work depends on what else runs"),
    )
    for name, refused, why in asked:
        if refused:
            value = getattr(options, name)
            hint = f"leave {name} out, or executor='torch'"
            return Obstacle(f"{name}={value!r} is asked for, and {why}", hint, chosen=True)
    if options.executor == "auto" and options.device == "auto" and finds_cuda():
        return Obstacle("there is a CUDA device", "device='cpu'", chosen=True)
    if not {"native", "paged-kv"} <= capabilities or not isinstance(checkpoint.plugin, LowerableModel):
        name = installed.manifest.distribution
        return Obstacle(f"{name} {installed.version} has no lowering for it", "executor='torch'", chosen=False)
    return None


def native_weights(options: EngineOptions) -> Literal["auto", "int8"]:
    """What the native executor makes of matrices in floating point."""
    return "int8" if options.dtype == "int8" else "auto"


def _build_native(
    checkpoint: Checkpoint,
    options: EngineOptions,
    max_model_len: int | None,
    is_draft: bool,
    progress: Callable[[int, int], None] | None,
) -> ModelExecutor:
    from inference_pio.core.native_executor import build_native_executor

    return build_native_executor(
        checkpoint,
        weights=native_weights(options),
        threads=options.threads,
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_step_tokens=options.step_tokens,
        kv_cache_dtype="auto" if is_draft else options.kv_cache_dtype,
        kv_cache_bytes=None if is_draft else options.kv_cache_bytes,
        packed_cache=options.packed_cache,
        packed_cache_bytes=options.packed_cache_bytes,
        progress=progress,
    )


def _build_torch(
    checkpoint: Checkpoint,
    options: EngineOptions,
    max_model_len: int | None,
    is_draft: bool,
    progress: Callable[[int, int], None] | None,
) -> ModelExecutor:
    if options.dtype == "int8":
        raise UnsupportedError(
            "the torch executor keeps no weights in int8", hint="executor='native', or another dtype"
        )
    check_torch_extra()
    # Imported here, so that importing the API, or failing above, does not wait for torch.
    limit_spinning()
    from inference_pio.core.torch_executor import build_torch_executor

    paged = "paged-kv" in checkpoint.installed.manifest.capabilities
    return build_torch_executor(
        checkpoint,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_step_tokens=options.step_tokens,
        attention=options.attention,
        kv_cache="contiguous" if options.kv_cache == "auto" and not paged else options.kv_cache,
        kv_cache_dtype="auto" if is_draft else options.kv_cache_dtype,
        kv_cache_bytes=None if is_draft else options.kv_cache_bytes,
        swap_bytes=0 if is_draft else options.swap_bytes,
        deterministic=options.deterministic,
        progress=progress,
    )


def finds_cuda() -> bool:
    """Whether there is a CUDA device that torch can use; torch is asked only where a GPU's driver is."""
    if importlib.util.find_spec("torch") is None or not _has_gpu_driver():
        return False
    limit_spinning()
    from inference_pio.core.torch_executor import has_cuda

    return has_cuda()


def _has_gpu_driver() -> bool:
    if sys.platform == "win32":
        return (Path("C:/Windows/System32/nvcuda.dll")).exists()
    return any(Path(name).exists() for name in _GPU_FILES)
