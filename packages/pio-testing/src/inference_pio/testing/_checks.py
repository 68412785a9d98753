"""The names of the conformance kit's checks, and the capability that each one proves. Imports nothing heavy."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CAPABILITY_OF_CHECK: Mapping[str, str] = MappingProxyType(
    {
        "step_by_step": "generate",
        "batched": "generate",
        "logit_rows": "logprobs",
        "chunked": "chunked-prefill",
        "paged": "paged-kv",
        "prefix_hit": "prefix-caching",
        "preempted": "generate",
        "speculative": "speculative-decoding",
        "deterministic": "deterministic",
        "embed": "embed",
        "native": "native",
    }
)
"""By name of a check, the capability of a manifest that it proves."""

CHECK_NAMES = tuple(CAPABILITY_OF_CHECK)
