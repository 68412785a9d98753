"""The native executor computes what the PyTorch modules compute: the program of a family is its model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference_pio.core.native_executor import NativeExecutor
from inference_pio.core.native_sampler import NativeSampler
from inference_pio.interfaces import CacheGroup, LowerableModel, UnsupportedError, group_layers
from inference_pio.kernels import (
    PAGE_SIZE_MULTIPLE,
    Interpreter,
    Parameters,
    Program,
    Runtime,
    instruction_sets,
    load_parameters,
)
from inference_pio.testing._compare import compare
from inference_pio.testing._engine_checks import check_embed, check_preempted, check_prefix_hit, check_speculative
from inference_pio.testing._equivalence import random_mix, random_schedule
from inference_pio.testing._run import paged_cache, random_pages, random_tokens, run_schedule, step_batch
from inference_pio.weights import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from inference_pio.core.native_executor import StepRuntime
    from inference_pio.testing._load import LoadedModel

_TOLERANCE = 1e-4
_MAX_TOKENS = 256


def check_native(loaded: LoadedModel, *, tolerance: float = _TOLERANCE, layouts: int = 3) -> None:
    """The program gives the logits of the PyTorch modules, over random mixes of chunks and decoding on scattered pages.

    The interpreter does, and the kernels of every instruction set that runs here; and in the real engine the native
    executor passes the checks of prefix caching, preemption, speculation and embeddings. Loads the checkpoint again, in
    float32 on the CPU, since tiles and cache in float32 are what can be held to ``tolerance``, 1e-4 at most.

    Raises:
        ParityError: They are not the same.
        UnsupportedError: The plugin has no lowering, a program cannot express the model, or the checkpoint is not
            stored in float32.
    """
    tolerance = min(tolerance, _TOLERANCE)
    loaded = loaded.reload()
    program, parameters = _lowered(loaded)
    values = {name: parameters.values(name) for name in parameters}
    runners: dict[str, Callable[..., StepRuntime]] = {"the interpreter": partial(Interpreter, program, values)}
    for instructions in instruction_sets():
        if instructions.usable:
            runners[f"{instructions.name} kernels"] = partial(
                Runtime, program, parameters, isa=instructions.name, threads=2, max_tokens=_MAX_TOKENS
            )
    for seed in range(layouts):
        _check_steps(loaded, runners, seed=seed, tolerance=tolerance)
    native = replace(loaded, executor=partial(_executor, loaded, program, parameters), page_multiple=PAGE_SIZE_MULTIPLE)
    for check in (check_prefix_hit, check_preempted, check_speculative, check_embed):
        check(native, tolerance=tolerance)


def _lowered(loaded: LoadedModel) -> tuple[Program, Parameters]:
    plugin = loaded.plugin
    if not isinstance(plugin, LowerableModel):
        raise UnsupportedError(f"{type(plugin).__name__} has no lower()")
    program = plugin.lower(loaded.config, tied_head=loaded.tied_head)
    assert isinstance(program, Program)
    source = open_weights(loaded.path)
    try:
        encodings = {source.info(name).encoding for name in source}
        if encodings != {"F32"}:
            raise UnsupportedError(
                f"a checkpoint in float32 is wanted, and this one has {', '.join(sorted(encodings))}"
            )
        weight_map = plugin.weight_map(loaded.config, source.format)
        return program, load_parameters(program, source, weight_map, tied_head=loaded.tied_head)
    finally:
        source.close()


def _executor(
    loaded: LoadedModel,
    program: Program,
    parameters: Parameters,
    *,
    num_pages: int,
    page_size: int,
    max_model_len: int,
) -> NativeExecutor:
    """The native executor with tiles and cache in float32."""
    groups = _groups(loaded, num_pages)
    runtime = Runtime(
        program,
        parameters,
        groups,
        group_layers(loaded.shape.cache_specs),
        page_size=page_size,
        kv_format="f32",
        max_tokens=_MAX_TOKENS,
        threads=2,
    )
    return NativeExecutor(
        runtime,
        sampler=NativeSampler(runtime),
        cache_groups=groups,
        page_size=page_size,
        max_model_len=max_model_len,
        dtype="F32",
        weight_bytes=parameters.nbytes,
        kv_cache_bytes=runtime.nbytes,
        summary="native executor under test",
    )


def _groups(loaded: LoadedModel, num_pages: int) -> tuple[CacheGroup, ...]:
    groups = group_layers(loaded.shape.cache_specs)
    return tuple(CacheGroup(kind=group.kind, window=group.window, num_pages=num_pages) for group in groups)


def _check_steps(
    loaded: LoadedModel, runners: dict[str, Callable[..., StepRuntime]], *, seed: int, tolerance: float
) -> None:
    """Each of ``runners`` gives the logits of the modules, step by step over one random schedule."""
    sequences = random_mix(loaded, seed=seed)
    lengths = [len(ids) for ids in sequences]
    page_size = PAGE_SIZE_MULTIPLE
    num_pages = sum(length // page_size + 2 for length in lengths)
    schedule = random_schedule(lengths, largest=19, seed=seed)
    pages = random_pages(lengths, num_pages=num_pages, page_size=page_size, seed=seed)
    cache = paged_cache(loaded, num_pages=num_pages, page_size=page_size)
    expected = run_schedule(loaded, sequences, schedule, cache=cache, pages=pages)
    layers = group_layers(loaded.shape.cache_specs)
    groups = _groups(loaded, num_pages)
    for name, make in runners.items():
        runner = make(groups, layers, page_size=page_size, kv_format="f32")
        _soil(loaded, runner, groups, page_size)
        actual = _run_steps(runner, sequences, schedule, pages, groups=groups, page_size=page_size)
        if isinstance(runner, Runtime):
            runner.close()
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            what = f"sequence {index} of {len(sequences)} by {name} (layout {seed}) against the modules"
            compare(what, ours, theirs, tolerance=tolerance)


def _soil(loaded: LoadedModel, runner: StepRuntime, groups: Sequence[CacheGroup], page_size: int) -> None:
    """Leave other sequences' keys and values in every page."""
    for page in range(groups[0].num_pages):
        ids = random_tokens(loaded, page_size, seed=page)
        runner.step(step_batch([ids], [0], [page_size], [[page]], page_size=page_size, groups=groups))


def _run_steps(
    runner: StepRuntime,
    sequences: Sequence[Sequence[int]],
    schedule: Sequence[Sequence[int]],
    pages: Sequence[Sequence[int]],
    **layout: Any,  # noqa: ANN401 - passed on as they are
) -> list[Tensor]:
    """Per sequence, logits float32 (tokens, V); as :func:`run_schedule`."""
    done = [0] * len(sequences)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for counts in schedule:
        batch = step_batch(sequences, done, counts, pages, **layout)
        rows = torch.from_numpy(np.array(runner.step(batch)))
        active = [index for index, count in enumerate(counts) if count]
        for index, part in zip(active, torch.split(rows, [counts[index] for index in active]), strict=True):
            logits[index].append(part)
            done[index] += counts[index]
    return [torch.cat(parts) for parts in logits]
