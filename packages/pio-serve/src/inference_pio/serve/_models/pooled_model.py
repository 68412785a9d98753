"""One model of a pool: where it stands between its files and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from inference_pio.core import EngineMetrics
    from inference_pio.serve._models.errors import Refusal
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._models.spec import ModelSpec, PlannedModel


class ModelState(StrEnum):
    """Where a model stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"
    """Loading it failed last time; it is tried again for whoever asks once :attr:`PooledModel.retry_at` has passed."""


@dataclass(slots=True, eq=False, kw_only=True)
class PooledModel:
    """A model and what became of it. Changed by the pool alone.

    Attributes:
        spec: Where it comes from.
        name: What requests call it; empty until it is known.
        planned: What it will take; None before its files were looked at.
        state: Where it stands.
        served: The loaded model; None where it is not loaded.
        at_start: Whether it is loaded because the server starts, rather than for a request.
        nbytes: Memory that is set aside for it now.
        leases: Requests that use it or wait for it.
        last_used: When the last lease began or ended, in seconds of the pool's clock.
        last_used_at: The same in seconds since 1970; None where there was none.
        moving: The task that loads or unloads it.
        refusal: Why it could not be loaded last time.
        failures: How often that was so in a row.
        retry_at: When loading may be tried again, in seconds of the pool's clock.
        created: When it was loaded last or became known, in seconds since 1970.
        max_model_len: Its context in tokens, once it was loaded.
        loads: How often it was loaded.
        unloads: How often it was unloaded.
        load_failures: How often loading failed.
        load_s: Seconds that its loads took together.
        past: What its engines had counted when it was unloaded last.
    """

    spec: ModelSpec
    name: str = ""
    planned: PlannedModel | None = None
    state: ModelState = ModelState.UNLOADED
    served: ServedModel | None = None
    at_start: bool = False
    nbytes: int = 0
    leases: int = 0
    last_used: float = 0.0
    last_used_at: float | None = None
    moving: asyncio.Task[Refusal | None] | None = None
    refusal: Refusal | None = None
    failures: int = 0
    retry_at: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    max_model_len: int | None = None
    loads: int = 0
    unloads: int = 0
    load_failures: int = 0
    load_s: float = 0.0
    past: EngineMetrics | None = None

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"model {self.name or self.spec.label!r}"

    @property
    def is_idle(self) -> bool:
        """Whether it may be unloaded."""
        return self.state is ModelState.LOADED and not self.leases
