"""What a server is told of a model before it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.core import LLM


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model whose files are there, and what it will take.

    Attributes:
        name: What it calls itself; empty where that is known only once it is loaded.
        nbytes: Weights and cache once it is loaded; 0 likewise.
        load: Loads it, within that; called in a thread.
        max_model_len: Tokens of its context with that; None where that is known only once it is loaded.
    """

    name: str
    nbytes: int
    load: Callable[[], LLM]
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that a server may load.

    Attributes:
        label: What messages call it until its name is known.
        plan: Finds its files and says what it takes, without loading it; called in a thread. Its argument is the
            memory that all models together may take, None for no bound.
        served_as: What requests call it; None for its own name.
    """

    label: str
    plan: Callable[[int | None], PlannedModel]
    served_as: str | None = None


def spec_of(label: str, load: Callable[[], LLM], *, served_as: str | None = None) -> ModelSpec:
    """A model of which nothing is known but how to load it: its memory is counted once it is loaded.

    Args:
        label: What messages call it until it says its own name.
        load: Loads it; called in a thread.
        served_as: What requests call it; None for its own name.
    """
    return ModelSpec(label=label, plan=lambda _budget: PlannedModel("", 0, load), served_as=served_as)
