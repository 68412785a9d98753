"""Model registry and factory, the engine, and the offline ``LLM`` API. Importing it imports no torch."""

from inference_pio.core._async_engine import AsyncEngine, AsyncTokenStream
from inference_pio.core._checkpoint import Checkpoint, open_checkpoint
from inference_pio.core._engine import Engine
from inference_pio.core._inspect import EncodingUse, ModelReport, inspect_model
from inference_pio.core._llm import LLM
from inference_pio.core._locate import LocatedModel, locate_model
from inference_pio.core._registry import InstalledPlugin, Registry
from inference_pio.core._stream import TokenStream
from inference_pio.interfaces import CompletionOutput, Logprob, RequestOutput, SamplingParams

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncTokenStream",
    "Checkpoint",
    "CompletionOutput",
    "EncodingUse",
    "Engine",
    "InstalledPlugin",
    "LocatedModel",
    "Logprob",
    "ModelReport",
    "Registry",
    "RequestOutput",
    "SamplingParams",
    "TokenStream",
    "inspect_model",
    "locate_model",
    "open_checkpoint",
]
