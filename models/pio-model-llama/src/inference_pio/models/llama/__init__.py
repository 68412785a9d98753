"""Llama and the models of its architecture, such as SmolLM2."""

from inference_pio.models.llama._plugin import PLUGIN

__all__ = ["PLUGIN"]
