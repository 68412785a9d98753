"""What settings say of the model and of how it runs, in the words of whoever loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference_pio.config._paths import cache_dir

if TYPE_CHECKING:
    from inference_pio.config._settings import Settings


def model_arguments(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of ``inference_pio.core.LLM``, by name, ``model`` among them.

    How requests are sampled, ``seed`` included, is no part of them.

    Raises:
        ConfigError: As :func:`cache_dir`.
    """
    return {
        "model": settings.model,
        "executor": settings.executor,
        "dtype": settings.dtype,
        "device": settings.device,
        "threads": settings.threads,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "attention": settings.attention,
        "kv_cache": settings.kv_cache,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "enable_prefix_caching": settings.enable_prefix_caching,
        # Text is taken as it stands, so this word is how a flag takes back what a file says.
        "speculative": None if settings.speculative == "none" else settings.speculative,
        "num_speculative_tokens": settings.num_speculative_tokens,
        "deterministic": settings.deterministic,
        "cache_dir": cache_dir(settings),
        "packed_cache_bytes": settings.packed_cache_bytes,
        "ignore_unknown_keys": settings.ignore_unknown_keys,
        "hub_endpoint": settings.hub_endpoint,
    }
