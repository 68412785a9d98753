"""Model registry and factory, the engine, and the offline ``LLM`` API. Importing it imports no torch."""

from inference_pio.core._async_engine import AsyncEngine, AsyncTokenStream
from inference_pio.core._checkpoint import Checkpoint, open_checkpoint
from inference_pio.core._draft_model import DraftModelProposer
from inference_pio.core._drafting import Drafting
from inference_pio.core._engine import Engine
from inference_pio.core._inspect import EncodingUse, ModelReport, inspect_model
from inference_pio.core._llm import LLM
from inference_pio.core._locate import LocatedModel, locate_model
from inference_pio.core._metrics import EngineMetrics
from inference_pio.core._proposers import DraftRequest, NgramProposer, Proposer
from inference_pio.core._registry import InstalledPlugin, Registry
from inference_pio.core._sampler_state import SamplerState
from inference_pio.core._speculation import SpeculationControl
from inference_pio.core._stream import TokenStream
from inference_pio.interfaces import (
    BeamSearchParams,
    CompletionOutput,
    Logprob,
    RequestOutput,
    SamplingParams,
    StructuredOutputs,
)

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncTokenStream",
    "BeamSearchParams",
    "Checkpoint",
    "CompletionOutput",
    "DraftModelProposer",
    "DraftRequest",
    "Drafting",
    "EncodingUse",
    "Engine",
    "EngineMetrics",
    "InstalledPlugin",
    "LocatedModel",
    "Logprob",
    "ModelReport",
    "NgramProposer",
    "Proposer",
    "Registry",
    "RequestOutput",
    "SamplerState",
    "SamplingParams",
    "SpeculationControl",
    "StructuredOutputs",
    "TokenStream",
    "inspect_model",
    "locate_model",
    "open_checkpoint",
]
