"""The plugin object of the family. Imports torch only where the model is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.models.llama import _config, _weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from inference_pio.interfaces import AttentionBackend, LinearMethod, ModelPlugin, ModelShape, WeightMap
    from inference_pio.kernels import Program
    from inference_pio.models.llama._config import LlamaConfig


class LlamaPlugin:
    """``LlamaForCausalLM``: see :class:`inference_pio.interfaces.ModelPlugin` and ``LowerableModel`` there."""

    def parse_config(self, raw: Mapping[str, object], *, ignore_unknown: bool = False) -> LlamaConfig:
        """The config in ``raw``, a ``config.json``-shaped mapping.

        Raises:
            ConfigError: Unknown or missing key, value out of bounds, or sizes that contradict each other.
        """
        return _config.parse_config(raw, ignore_unknown=ignore_unknown)

    def shape(self, config: LlamaConfig, *, tied_head: bool) -> ModelShape:
        """What the engine must know of a model of ``config``."""
        return _config.model_shape(config, tied_head=tied_head)

    def weight_map(self, config: LlamaConfig, layout: str) -> WeightMap:
        """Rules for a checkpoint in ``layout``, ``"safetensors"`` or ``"gguf"``."""
        return _weights.weight_map(config, layout)

    def build(
        self, config: LlamaConfig, *, attention: AttentionBackend, linear: LinearMethod, tied_head: bool
    ) -> nn.Module:
        """The model on torch's current default device, uninitialised."""
        from inference_pio.models.llama._model import LlamaModel

        return LlamaModel(config, attention=attention, linear=linear, tied_head=tied_head)

    def lower(self, config: LlamaConfig, *, tied_head: bool) -> Program:
        """The model as a program for the native executor.

        Raises:
            UnsupportedError: The rotary frequencies change with the length of the sequence.
        """
        from inference_pio.models.llama.native import lower

        return lower(config, tied_head=tied_head)


PLUGIN: ModelPlugin[LlamaConfig] = LlamaPlugin()
