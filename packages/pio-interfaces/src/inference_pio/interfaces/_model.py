"""The base model and the base plugin: what a model distribution brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from inference_pio.interfaces._cache import KVSpec, StateSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from inference_pio.interfaces._attention import AttentionBackend, AttentionSpec, KVCache, RaggedBatch
    from inference_pio.interfaces._cache import LayerCacheSpec
    from inference_pio.interfaces._linear import LinearMethod
    from inference_pio.interfaces._weights import WeightMap

ConfigT = TypeVar("ConfigT")
ReadConfigT_contra = TypeVar("ReadConfigT_contra", contravariant=True)


@runtime_checkable
class CausalLM(Protocol):
    """A decoder that maps tokens of a ragged batch to logits. Implemented as a ``torch.nn.Module``.

    ``N`` tokens of the batch, ``R`` rows to sample, ``E`` hidden size, ``V`` vocabulary.
    """

    def forward(self, token_ids: Tensor, positions: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """Hidden states after the final norm, (N, E); writes this step's keys and values into ``cache``.

        Args:
            token_ids: int64 (N,).
            positions: int64 (N,).
            cache: Keys and values of all layers.
            batch: Layout of the step.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, E) to (R, V), in the dtype of ``hidden``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the engine and the planner must know of a model, without torch.

    Attributes:
        architecture: Architecture string, such as ``"LlamaForCausalLM"``.
        num_layers: Decoder layers.
        hidden_size: ``E``.
        vocab_size: ``V``, rows of the embedding.
        max_position: Context length in tokens.
        attention: Per layer of attention, what it computes.
        num_parameters: Parameters, a tied head counted once.
        bos_token_id: First token of a sequence, or None.
        eos_token_ids: Tokens that end a generation.
        cache: Per layer, what is kept of the past; empty where every layer keeps the keys and values of ``attention``.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_position: int
    attention: tuple[AttentionSpec, ...]
    num_parameters: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    cache: tuple[LayerCacheSpec, ...] = ()

    @property
    def cache_specs(self) -> tuple[LayerCacheSpec, ...]:
        """Per layer, what is kept of the past, resolved."""
        return self.cache or tuple(
            KVSpec(num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, window=spec.window)
            for spec in self.attention
        )

    @property
    def kv_elements_per_token(self) -> int:
        """What is stored per token over all layers while no window has been left behind, in elements."""
        return sum(spec.elements_per_token for spec in self.cache_specs if not isinstance(spec, StateSpec))


@runtime_checkable
class ModelPlugin(Protocol[ConfigT]):
    """One architecture family. Importing the plugin object must not import torch."""

    def parse_config(self, raw: Mapping[str, object], *, ignore_unknown: bool = False) -> ConfigT:
        """Frozen, validated config from a ``config.json``-shaped mapping (GGUF metadata arrive in the same spelling).

        Args:
            raw: The mapping.
            ignore_unknown: Accept keys that the family does not know, at the user's own risk.

        Raises:
            ConfigError: Unknown key, or value out of bounds.
        """

    def shape(self, config: ConfigT, *, tied_head: bool) -> ModelShape:
        """What the engine must know of a model of this config; ``tied_head`` if the checkpoint has no head."""

    def weight_map(self, config: ConfigT, layout: str) -> WeightMap:
        """How parameters are made from a checkpoint in layout ``"safetensors"`` or ``"gguf"``."""

    def build(
        self, config: ConfigT, *, attention: AttentionBackend, linear: LinearMethod, tied_head: bool
    ) -> nn.Module:
        """The model, a :class:`CausalLM`, on torch's current default device (``meta`` when the core calls)."""


@runtime_checkable
class LowerableModel(Protocol[ReadConfigT_contra]):
    """What a plugin has besides :class:`ModelPlugin` if the native executor can run its models.

    Its manifest then names the capability ``native``.
    """

    def lower(self, config: ReadConfigT_contra, *, tied_head: bool) -> object:
        """The model as an ``inference_pio.kernels.Program``; imports no torch.

        Its parameters are named as the targets of the plugin's :class:`WeightMap`; a tied head takes the name of the
        embedding's.

        Raises:
            UnsupportedError: A program cannot express something that the config asks for.
        """
