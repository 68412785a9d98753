"""An executor by name, with a cache that just holds what is going to be measured."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from inference_pio.config import Settings, cache_dir
from inference_pio.core import Registry, locate_model, open_checkpoint
from inference_pio.interfaces import InvalidRequestError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.core import Checkpoint
    from inference_pio.interfaces import Executor, ModelShape

EXECUTORS = ("auto", "native", "torch")
DTYPES = {
    "torch": ("auto", "float32", "bfloat16", "float16"),
    "native": ("auto", "bfloat16", "int8"),
}
"""Weights that each executor can hold; ``"auto"`` is what it favours, for the native one what the file stores."""
STEP_TOKENS = 512
"""Tokens that one step reads at most, as in llama.cpp's benchmark and in our engine."""

_NATIVE = "inference_pio.core.native_executor"
_KERNELS = "inference_pio.kernels"
_SPARE_BYTES = 32 << 20


def open_model(model: str | Path, *, download: bool = True) -> Checkpoint:
    """The model that ``model`` names; reads no tensor.

    Raises:
        PioError: It is not there, its files are not sound, or no plugin serves them.
    """
    registry = Registry.discover()
    located = locate_model(model, registry, cache_dir=cache_dir(Settings()), download=download)
    return open_checkpoint(located, registry)


def build_executor(
    checkpoint: Checkpoint, name: str, cases: Sequence[Case], *, threads: int, dtype: str = "auto"
) -> Executor:
    """The executor ``name`` for ``checkpoint``, with room for the largest of ``cases``.

    Args:
        checkpoint: The opened model.
        name: ``"native"``, ``"torch"``, or ``"auto"`` for the native one where it is there and supports the model.
        cases: What will be run.
        threads: Threads that compute.
        dtype: Of the weights: one of :data:`DTYPES` of the executor.

    Raises:
        InvalidRequestError: There is no such executor or dtype, or a case is longer than the model's context.
        MissingDependencyError: What the executor needs is not installed.
        UnsupportedError: The native executor does not support the model, and was asked for by name.
        DoesNotFitError: The weights or the cache do not fit into memory.
    """
    if name not in EXECUTORS:
        raise InvalidRequestError(f"unknown executor {name!r}", hint=f"give {', '.join(EXECUTORS)}")
    able = [each for each in DTYPES if name in {each, "auto"}]
    if not any(dtype in DTYPES[each] for each in able):
        raise InvalidRequestError(
            f"the executor {name!r} has no dtype {dtype!r}",
            hint=f"give {', '.join(dict.fromkeys(known for each in able for known in DTYPES[each]))}",
        )
    longest = max(case.length for case in cases)
    if longest > checkpoint.shape.max_position:
        raise InvalidRequestError(
            f"a case of {longest} tokens is beyond the context of {checkpoint.shape.max_position} of "
            f"{checkpoint.name!r}",
            hint="a smaller --context, --prompt or --gen",
        )
    if name == "native" or (name == "auto" and dtype in {"auto", "int8"}):
        try:
            return _build_native(checkpoint, cases, threads=threads, dtype=dtype)
        except (MissingDependencyError, UnsupportedError):
            if name == "native" or dtype == "int8":
                raise
    return _build_torch(checkpoint, cases, threads=threads, dtype=dtype)


def _build_native(checkpoint: Checkpoint, cases: Sequence[Case], *, threads: int, dtype: str) -> Executor:
    for module, distribution in ((_NATIVE, "pio-core"), (_KERNELS, "pio-kernels")):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"the native executor needs a {distribution} with {module}",
                hint=f"pip install --upgrade {distribution}, or --executor torch",
            )
    executor: Executor = importlib.import_module(_NATIVE).build_native_executor(
        checkpoint,
        weights={"bfloat16": "bf16"}.get(dtype, dtype),
        threads=threads,
        max_model_len=max(2, *(case.length for case in cases)),
        max_num_seqs=max(case.batch for case in cases),
        max_step_tokens=STEP_TOKENS,
        kv_cache_dtype="auto",
        kv_cache_bytes=cache_bytes(checkpoint.shape, cases),
        progress=None,
    )
    return executor


def _build_torch(checkpoint: Checkpoint, cases: Sequence[Case], *, threads: int, dtype: str) -> Executor:
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("the torch executor needs torch, which is not installed", hint="pip install torch")
    from inference_pio.core.torch_executor import build_torch_executor

    return build_torch_executor(
        checkpoint,
        dtype=dtype,
        device="cpu",
        threads=threads,
        max_model_len=max(2, *(case.length for case in cases)),
        max_num_seqs=max(case.batch for case in cases),
        max_step_tokens=STEP_TOKENS,
        kv_cache_bytes=cache_bytes(checkpoint.shape, cases),
    )


def cache_bytes(shape: ModelShape, cases: Sequence[Case]) -> int:
    """Bytes that the largest case takes in float32, whole pages counted, and some to spare."""
    tokens = max(case.batch * (case.length + 64) for case in cases)
    return tokens * shape.kv_elements_per_token * 4 + _SPARE_BYTES


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the weights that a step reads, as the file stores them: all but an embedding that is no head too."""
    source, shape = checkpoint.source, checkpoint.shape
    matrices = [source.info(name) for rule in checkpoint.weight_map.rules for name in rule.sources if name in source]
    tables = [info for info in matrices if info.shape == (shape.vocab_size, shape.hidden_size)]
    total = sum(info.nbytes for info in matrices)
    return total if checkpoint.tied_head or len(tables) < 2 else total - tables[0].nbytes
