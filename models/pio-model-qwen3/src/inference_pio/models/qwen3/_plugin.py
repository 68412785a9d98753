"""The plugin object of the family. Imports torch only where the model is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.models.qwen3 import _config, _weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from inference_pio.interfaces import AttentionBackend, LinearMethod, ModelPlugin, ModelShape, WeightMap
    from inference_pio.kernels import Program
    from inference_pio.models.qwen3._config import Qwen3Config


class Qwen3Plugin:
    """``Qwen3ForCausalLM``: see :class:`inference_pio.interfaces.ModelPlugin` and ``LowerableModel`` there."""

    def parse_config(self, raw: Mapping[str, object], *, ignore_unknown: bool = False) -> Qwen3Config:
        """The config in ``raw``, a ``config.json``-shaped mapping.

        Raises:
            ConfigError: Unknown or missing key, value out of bounds, or sizes that contradict each other.
        """
        return _config.parse_config(raw, ignore_unknown=ignore_unknown)

    def shape(self, config: Qwen3Config, *, tied_head: bool) -> ModelShape:
        """What the engine must know of a model of ``config``."""
        return _config.model_shape(config, tied_head=tied_head)

    def weight_map(self, config: Qwen3Config, layout: str) -> WeightMap:
        """Rules for a checkpoint in ``layout``, ``"safetensors"`` or ``"gguf"``."""
        return _weights.weight_map(config, layout)

    def build(
        self, config: Qwen3Config, *, attention: AttentionBackend, linear: LinearMethod, tied_head: bool
    ) -> nn.Module:
        """The model on torch's current default device, uninitialised."""
        from inference_pio.models.qwen3._model import Qwen3Model

        return Qwen3Model(config, attention=attention, linear=linear, tied_head=tied_head)

    def lower(self, config: Qwen3Config, *, tied_head: bool) -> Program:
        """The model as a program for the native executor.

        Raises:
            UnsupportedError: The rotary frequencies change with the length of the sequence.
        """
        from inference_pio.models.qwen3.native import lower

        return lower(config, tied_head=tied_head)


PLUGIN: ModelPlugin[Qwen3Config] = Qwen3Plugin()
