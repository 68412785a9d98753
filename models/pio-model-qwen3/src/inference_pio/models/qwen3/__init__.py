"""Qwen3, the dense models."""

from inference_pio.models.qwen3._plugin import PLUGIN

__all__ = ["PLUGIN"]
