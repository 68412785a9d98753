"""Model registry and factory, the engine, and the offline ``LLM`` API.

Names are imported when first used: whoever lists plugins or describes a model waits for no engine, and nobody but the
torch executor for torch.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.core._async_engine import AsyncEngine
    from inference_pio.core._checkpoint import Checkpoint, open_checkpoint
    from inference_pio.core._draft_model import DraftModelProposer
    from inference_pio.core._drafting import Drafting
    from inference_pio.core._engine import Engine
    from inference_pio.core._footprint import Footprint, free_memory, plan_footprint
    from inference_pio.core._inspect import EncodingUse, ModelReport, inspect_model
    from inference_pio.core._llm import LLM
    from inference_pio.core._locate import LocatedModel, locate_model
    from inference_pio.core._metrics import Counter, EngineMetrics, Gauge, Histogram
    from inference_pio.core._proposers import DraftRequest, NgramProposer, Proposer
    from inference_pio.core._registry import InstalledPlugin, Registry
    from inference_pio.core._sampler_state import SamplerState
    from inference_pio.core._speculation import SpeculationControl
    from inference_pio.core._stamps import RequestStamps
    from inference_pio.core._stream import TokenStream
    from inference_pio.core._token_stream import AsyncTokenStream
    from inference_pio.interfaces import (
        BeamSearchParams,
        CompletionOutput,
        EmbeddingOutput,
        Logprob,
        PoolingParams,
        RequestOutput,
        SamplingParams,
        StructuredOutputs,
    )

_MODULES = MappingProxyType(
    {
        "LLM": "inference_pio.core._llm",
        "AsyncEngine": "inference_pio.core._async_engine",
        "AsyncTokenStream": "inference_pio.core._token_stream",
        "BeamSearchParams": "inference_pio.interfaces",
        "Checkpoint": "inference_pio.core._checkpoint",
        "CompletionOutput": "inference_pio.interfaces",
        "Counter": "inference_pio.core._metrics",
        "DraftModelProposer": "inference_pio.core._draft_model",
        "DraftRequest": "inference_pio.core._proposers",
        "Drafting": "inference_pio.core._drafting",
        "EmbeddingOutput": "inference_pio.interfaces",
        "EncodingUse": "inference_pio.core._inspect",
        "Engine": "inference_pio.core._engine",
        "EngineMetrics": "inference_pio.core._metrics",
        "Footprint": "inference_pio.core._footprint",
        "Gauge": "inference_pio.core._metrics",
        "Histogram": "inference_pio.core._metrics",
        "InstalledPlugin": "inference_pio.core._registry",
        "LocatedModel": "inference_pio.core._locate",
        "Logprob": "inference_pio.interfaces",
        "ModelReport": "inference_pio.core._inspect",
        "NgramProposer": "inference_pio.core._proposers",
        "PoolingParams": "inference_pio.interfaces",
        "Proposer": "inference_pio.core._proposers",
        "Registry": "inference_pio.core._registry",
        "RequestOutput": "inference_pio.interfaces",
        "RequestStamps": "inference_pio.core._stamps",
        "SamplerState": "inference_pio.core._sampler_state",
        "SamplingParams": "inference_pio.interfaces",
        "SpeculationControl": "inference_pio.core._speculation",
        "StructuredOutputs": "inference_pio.interfaces",
        "TokenStream": "inference_pio.core._stream",
        "free_memory": "inference_pio.core._footprint",
        "inspect_model": "inference_pio.core._inspect",
        "locate_model": "inference_pio.core._locate",
        "open_checkpoint": "inference_pio.core._checkpoint",
        "plan_footprint": "inference_pio.core._footprint",
    }
)

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncTokenStream",
    "BeamSearchParams",
    "Checkpoint",
    "CompletionOutput",
    "Counter",
    "DraftModelProposer",
    "DraftRequest",
    "Drafting",
    "EmbeddingOutput",
    "EncodingUse",
    "Engine",
    "EngineMetrics",
    "Footprint",
    "Gauge",
    "Histogram",
    "InstalledPlugin",
    "LocatedModel",
    "Logprob",
    "ModelReport",
    "NgramProposer",
    "PoolingParams",
    "Proposer",
    "Registry",
    "RequestOutput",
    "RequestStamps",
    "SamplerState",
    "SamplingParams",
    "SpeculationControl",
    "StructuredOutputs",
    "TokenStream",
    "free_memory",
    "inspect_model",
    "locate_model",
    "open_checkpoint",
    "plan_footprint",
]


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
