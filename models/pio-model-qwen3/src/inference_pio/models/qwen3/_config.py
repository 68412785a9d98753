"""The config of a Qwen3 checkpoint, and what follows from it without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from inference_pio.config import build_config, rope_frequencies, token_ids
from inference_pio.interfaces import AttentionSpec, DynamicScaling, ModelShape, RopeParameters, YarnScaling

if TYPE_CHECKING:
    from collections.abc import Mapping

_Size = Annotated[int, Meta(ge=1, le=2**20)]
_Vocabulary = Annotated[int, Meta(ge=1, le=2**24)]
_MAX_CONTEXT = 2**24  # positions that are exact in float32, in which rotary angles are computed
_Context = Annotated[int, Meta(ge=1, le=_MAX_CONTEXT)]
_Depth = Annotated[int, Meta(ge=1, le=1024)]
_Epsilon = Annotated[float, Meta(gt=0.0, le=1.0)]
_LayerTypes = Annotated[tuple[Literal["full_attention", "sliding_attention"], ...], Meta(max_length=1024)]


class Qwen3Config(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and switches, under the names and with the defaults of ``config.json``.

    Attributes:
        vocab_size: ``V``.
        hidden_size: ``E``.
        intermediate_size: ``F``.
        num_hidden_layers: Decoder layers.
        num_attention_heads: ``H``.
        num_key_value_heads: ``K``; None is ``H``.
        head_dim: ``D``, independent of ``E / H``.
        hidden_act: Activation of the gate; the family has one.
        max_position_embeddings: Context length of training, in tokens.
        rms_norm_eps: Epsilon of every norm.
        rope: The rotary embedding.
        attention_bias: Whether the four projections of attention have a bias.
        use_sliding_window: Whether ``sliding_window`` counts at all.
        sliding_window: Keys that a query of a sliding layer sees.
        max_window_layers: First sliding layer, where ``layer_types`` does not say.
        layer_types: Kind of attention per layer.
        bos_token_id: First token of a sequence, or None.
        eos_token_id: Tokens that end a generation.

    Raises:
        ValueError: The sizes contradict each other.
    """

    vocab_size: _Vocabulary
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Depth
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size = 128
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: _Context = 32768
    rms_norm_eps: _Epsilon = 1e-6
    rope: RopeParameters
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: _Context | None = None
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    layer_types: _LayerTypes | None = None
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.kv_heads != 0:
            msg = (
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.kv_heads})"
            )
            raise ValueError(msg)
        if self.rope.partial_rotary_factor != 1.0:
            msg = f"this family turns whole heads, got partial_rotary_factor {self.rope.partial_rotary_factor:g}"
            raise ValueError(msg)
        rope_frequencies(self.head_dim, self.rope)  # raises where the two do not fit each other
        if self.context > _MAX_CONTEXT:
            msg = (
                f"a context of {self.context} tokens is beyond the {_MAX_CONTEXT} positions that rotary angles can tell"
            )
            raise ValueError(msg)
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            msg = f"layer_types has {len(self.layer_types)} entries for num_hidden_layers ({self.num_hidden_layers})"
            raise ValueError(msg)
        slides = self.use_sliding_window and self.sliding_window is not None
        if not slides and self.layer_types is not None and "sliding_attention" in self.layer_types:
            msg = (
                f"layer_types names sliding_attention, but use_sliding_window is {self.use_sliding_window} and "
                f"sliding_window is {self.sliding_window}"
            )
            raise ValueError(msg)

    @property
    def kv_heads(self) -> int:
        """``K``, resolved."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def context(self) -> int:
        """Context length in tokens: yarn and dynamic NTK extend that of training by their factor."""
        scaling = self.rope.scaling
        if isinstance(scaling, YarnScaling | DynamicScaling):
            return max(self.max_position_embeddings, int(scaling.original_max_position * scaling.factor))
        return self.max_position_embeddings

    def attention(self, index: int) -> AttentionSpec:
        """What attention computes in layer ``index``."""
        if self.layer_types is None:
            slides = self.use_sliding_window and index >= self.max_window_layers
        else:
            slides = self.layer_types[index] == "sliding_attention"
        return AttentionSpec(
            num_heads=self.num_attention_heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            window=self.sliding_window if slides else None,
        )


def parse_config(raw: Mapping[str, object], *, ignore_unknown: bool = False) -> Qwen3Config:
    """The config in ``raw``, a ``config.json``-shaped mapping.

    Raises:
        ConfigError: Unknown or missing key, value out of bounds, or sizes that contradict each other.
    """
    tokens = {
        "bos_token_id": next(iter(token_ids(raw, "bos_token_id")), None),
        "eos_token_id": token_ids(raw, "eos_token_id"),
    }
    return build_config(Qwen3Config, {**raw, **tokens}, ignore_unknown=ignore_unknown)


def model_shape(config: Qwen3Config, *, tied_head: bool) -> ModelShape:
    """What the engine must know of a model of ``config``."""
    return ModelShape(
        architecture="Qwen3ForCausalLM",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_position=config.context,
        attention=tuple(config.attention(index) for index in range(config.num_hidden_layers)),
        num_parameters=_num_parameters(config, tied_head=tied_head),
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_id,
    )


def _num_parameters(config: Qwen3Config, *, tied_head: bool) -> int:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    attention = hidden * (queries + 2 * keys) + queries * hidden + 2 * config.head_dim
    if config.attention_bias:
        attention += queries + 2 * keys + hidden
    layer = attention + 3 * hidden * inner + 2 * hidden
    embeddings = config.vocab_size * hidden * (1 if tied_head else 2)
    return embeddings + config.num_hidden_layers * layer + hidden
