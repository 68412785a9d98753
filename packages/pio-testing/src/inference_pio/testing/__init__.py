"""Conformance kit for model plugins: tiny checkpoints, parity with transformers, equivalences of cache and engine.

Names are imported when first used, so that the pytest plugin costs a session nothing that does not test models.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.testing._checks import CAPABILITY_OF_CHECK, CHECK_NAMES
from inference_pio.testing._default_model import find_default_model

if TYPE_CHECKING:
    from inference_pio.testing._benchmark import forward_benchmark
    from inference_pio.testing._compare import ParityError
    from inference_pio.testing._conformance import conformance_checks, run_conformance
    from inference_pio.testing._determinism import check_deterministic
    from inference_pio.testing._embedding_parity import check_embedding_parity
    from inference_pio.testing._engine_checks import check_embed, check_preempted, check_prefix_hit, check_speculative
    from inference_pio.testing._equivalence import (
        check_batched,
        check_chunked,
        check_logit_rows,
        check_paged,
        check_step_by_step,
    )
    from inference_pio.testing._gguf_reference import load_gguf_reference
    from inference_pio.testing._gguf_writer import write_gguf
    from inference_pio.testing._load import LoadedModel, load_model
    from inference_pio.testing._native import check_native
    from inference_pio.testing._parity import ParityReport, check_parity
    from inference_pio.testing._plugin import check_plugin
    from inference_pio.testing._reference import load_reference, reference_hidden_states, trace_reference
    from inference_pio.testing._run import contiguous_cache, paged_cache, random_pages, run_schedule, trace_model
    from inference_pio.testing._tiny import TINY_SIZES, fill_random, rope_variants, tiny_checkpoint
    from inference_pio.testing._trace import Trace

_MODULES = MappingProxyType(
    {
        "LoadedModel": "_load",
        "ParityError": "_compare",
        "ParityReport": "_parity",
        "TINY_SIZES": "_tiny",
        "Trace": "_trace",
        "check_batched": "_equivalence",
        "check_chunked": "_equivalence",
        "check_deterministic": "_determinism",
        "check_embed": "_engine_checks",
        "check_embedding_parity": "_embedding_parity",
        "check_logit_rows": "_equivalence",
        "check_native": "_native",
        "check_paged": "_equivalence",
        "check_parity": "_parity",
        "check_plugin": "_plugin",
        "check_preempted": "_engine_checks",
        "check_prefix_hit": "_engine_checks",
        "check_speculative": "_engine_checks",
        "check_step_by_step": "_equivalence",
        "conformance_checks": "_conformance",
        "contiguous_cache": "_run",
        "fill_random": "_tiny",
        "forward_benchmark": "_benchmark",
        "load_gguf_reference": "_gguf_reference",
        "load_model": "_load",
        "load_reference": "_reference",
        "paged_cache": "_run",
        "random_pages": "_run",
        "reference_hidden_states": "_reference",
        "rope_variants": "_tiny",
        "run_conformance": "_conformance",
        "run_schedule": "_run",
        "tiny_checkpoint": "_tiny",
        "trace_model": "_run",
        "trace_reference": "_reference",
        "write_gguf": "_gguf_writer",
    }
)

__all__ = [
    "CAPABILITY_OF_CHECK",
    "CHECK_NAMES",
    "TINY_SIZES",
    "LoadedModel",
    "ParityError",
    "ParityReport",
    "Trace",
    "check_batched",
    "check_chunked",
    "check_deterministic",
    "check_embed",
    "check_embedding_parity",
    "check_logit_rows",
    "check_native",
    "check_paged",
    "check_parity",
    "check_plugin",
    "check_preempted",
    "check_prefix_hit",
    "check_speculative",
    "check_step_by_step",
    "conformance_checks",
    "contiguous_cache",
    "fill_random",
    "find_default_model",
    "forward_benchmark",
    "load_gguf_reference",
    "load_model",
    "load_reference",
    "paged_cache",
    "random_pages",
    "reference_hidden_states",
    "rope_variants",
    "run_conformance",
    "run_schedule",
    "tiny_checkpoint",
    "trace_model",
    "trace_reference",
    "write_gguf",
]


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
