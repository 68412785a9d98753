"""From what the command line calls models to what loads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inference_pio.interfaces import ConfigError
from inference_pio.serve._models.spec import ModelSpec, PlannedModel
from inference_pio.serve._settings import MEMORY_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference_pio.config import Settings
    from inference_pio.core import LLM

_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,127}", re.ASCII)


def named_models(arguments: Sequence[str], served_as: str | None) -> list[tuple[str | None, str]]:
    """What requests call each model, None for its own name, and the model.

    Args:
        arguments: Each a model, or ``NAME=MODEL``. What is there as a file or a folder is a model as it stands.
        served_as: What requests call the only one.

    Raises:
        ConfigError: A name that is none or comes twice, or one beside several models.
    """
    found = [_split(argument) for argument in arguments]
    if served_as is not None:
        if len(found) > 1:
            raise ConfigError(
                f"--served-model-name names one model, and there are {len(found)}", hint="give NAME=MODEL for each"
            )
        if found[0][0] is not None:
            raise ConfigError(f"--served-model-name {served_as!r} and {arguments[0]!r} both name the model")
        found = [(served_as, found[0][1])]
    names = [name for name, _ in found if name is not None]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two models are called {twice!r}", hint="give each a name of its own: NAME=MODEL")
    return found


def model_spec(
    settings: Settings, *, served_as: str | None, kv_cache_bytes: int | None = None, by_name: bool = False
) -> ModelSpec:
    """The model of the settings, for a server.

    Args:
        settings: Name the model, and say how to run it.
        served_as: What requests call it; None for its own name.
        kv_cache_bytes: What its cache may take; None for a share of what is there.
        by_name: Whether its name must be known before it is loaded, also without a budget.
    """

    def plan(budget: int | None) -> PlannedModel:
        from inference_pio.config import cache_dir
        from inference_pio.core import Registry, locate_model, plan_footprint

        if budget is None:
            name = ""
            if by_name:
                files, endpoint = cache_dir(settings), settings.hub_endpoint
                name = locate_model(settings.model, Registry.discover(), cache_dir=files, endpoint=endpoint).name
            return PlannedModel(name, 0, loader(settings, kv_cache_bytes=kv_cache_bytes))
        found = plan_footprint(
            settings.model,
            memory_bytes=budget,
            kv_cache_bytes=kv_cache_bytes,
            executor=settings.executor,
            dtype=settings.dtype,
            device=settings.device,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            attention=settings.attention,
            kv_cache=settings.kv_cache,
            kv_cache_dtype=settings.kv_cache_dtype,
            deterministic=settings.deterministic,
            cache_dir=cache_dir(settings),
            ignore_unknown_keys=settings.ignore_unknown_keys,
            hub_endpoint=settings.hub_endpoint,
        )
        within = msgspec.structs.replace(settings, max_model_len=found.max_model_len)
        load = loader(within, kv_cache_bytes=found.kv_cache_bytes)
        return PlannedModel(found.name, found.nbytes, load, found.max_model_len)

    return ModelSpec(label=served_as or Path(settings.model).name, plan=plan, served_as=served_as)


def loader(settings: Settings, *, kv_cache_bytes: int | None = None) -> Callable[[], LLM]:
    """What loads the model that the settings name."""

    def load() -> LLM:
        from inference_pio.config import model_arguments
        from inference_pio.core import LLM

        return LLM(**model_arguments(settings), kv_cache_bytes=kv_cache_bytes, seed=settings.seed)

    return load


def memory_budget(asked: int | None, settings: Settings, count: int) -> int | None:
    """Bytes that weights and caches of ``count`` models may take: what was asked for, else a share of what is free.

    One model has no bound unless one is asked for: the core sizes its cache by what is free.

    Raises:
        ConfigError: There is a draft model, whose memory nobody counts.
    """
    if asked is None and count == 1:
        return None
    if settings.speculative not in {None, "none", "ngram"}:
        raise ConfigError(
            f"speculative {settings.speculative!r} is a model that drafts for one model without --memory-budget",
            hint="--speculative ngram drafts for any",
        )
    if asked is not None:
        return asked
    from inference_pio.core import free_memory

    return int(free_memory(executor=settings.executor, device=settings.device) * MEMORY_SHARE)


def _split(argument: str) -> tuple[str | None, str]:
    name, equals, model = argument.partition("=")
    if not equals or Path(argument).expanduser().exists():
        return None, argument
    if not _NAME.fullmatch(name) or not model:
        raise ConfigError(
            f"{argument!r} is not NAME=MODEL",
            hint="a name has up to 128 letters, digits and . _ : / @ + -, and begins with a letter or a digit",
        )
    return name, model
