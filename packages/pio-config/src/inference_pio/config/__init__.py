"""Layered settings that know their origin, and model configs from ``config.json`` and GGUF metadata. No torch.

``rope_frequencies`` and ``rotary_dim`` are resolved on first use: they need NumPy, which settings do not wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.config._build import build_config, token_ids
from inference_pio.config._files import read_json
from inference_pio.config._gguf import gguf_to_hf
from inference_pio.config._model_arguments import model_arguments
from inference_pio.config._model_files import read_generation_config, read_model_config
from inference_pio.config._paths import cache_dir
from inference_pio.config._resolve import ResolvedSettings, SettingRow, load_settings
from inference_pio.config._rope import parse_rope
from inference_pio.config._settings import Settings

if TYPE_CHECKING:
    from inference_pio.config._frequencies import rope_frequencies, rotary_dim

__all__ = [
    "ResolvedSettings",
    "SettingRow",
    "Settings",
    "build_config",
    "cache_dir",
    "gguf_to_hf",
    "load_settings",
    "model_arguments",
    "parse_rope",
    "read_generation_config",
    "read_json",
    "read_model_config",
    "rope_frequencies",
    "rotary_dim",
    "token_ids",
]


def __getattr__(name: str) -> object:
    if name not in {"rope_frequencies", "rotary_dim"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inference_pio.config import _frequencies

    return getattr(_frequencies, name)


def __dir__() -> list[str]:
    return sorted(__all__)
