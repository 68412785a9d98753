"""Qwen3 as a program for the native executor: what ``_model.py`` says in PyTorch, op by op, without torch.

Parameters bear the names of ``_weights.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.config import rope_frequencies
from inference_pio.interfaces import DynamicScaling, LongRopeScaling, UnsupportedError
from inference_pio.kernels import ProgramBuilder

if TYPE_CHECKING:
    from inference_pio.kernels import Program
    from inference_pio.models.qwen3._config import Qwen3Config


def lower(config: Qwen3Config, *, tied_head: bool) -> Program:
    """The model of ``config`` as a program; ``tied_head`` if the embedding serves as the head.

    Raises:
        UnsupportedError: The rotary frequencies change with the length of the sequence.
    """
    program = ProgramBuilder(vocab_size=config.vocab_size, hidden_size=config.hidden_size, eps=config.rms_norm_eps)
    x = program.embed("embedding.weight")
    rotary = _rotary(program, config)
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        qkv = program.linear(
            x,
            f"{layer}attention.qkv.weight",
            (config.num_attention_heads + 2 * config.kv_heads) * config.head_dim,
            out="qkv",
            norm=f"{layer}attention_norm.weight",
            bias=f"{layer}attention.qkv.bias" if config.attention_bias else None,
        )
        attended = program.attention(
            qkv,
            layer=index,
            heads=config.num_attention_heads,
            kv_heads=config.kv_heads,
            head_size=config.head_dim,
            rotary=rotary,
            window=config.attention(index).window,
            query_norm=f"{layer}attention.query_norm.weight",
            key_norm=f"{layer}attention.key_norm.weight",
        )
        program.add_linear(
            attended,
            f"{layer}attention.output.weight",
            to=x,
            bias=f"{layer}attention.output.bias" if config.attention_bias else None,
        )
        inner = program.gated(
            x,
            f"{layer}mlp.gate_up.weight",
            2 * config.intermediate_size,
            out="inner",
            norm=f"{layer}mlp_norm.weight",
        )
        program.add_linear(inner, f"{layer}mlp.down.weight", to=x)
    return program.head(x, "embedding.weight" if tied_head else "head.weight", norm="norm.weight")


def _rotary(program: ProgramBuilder, config: Qwen3Config) -> str:
    scaling = config.rope.scaling
    if isinstance(scaling, DynamicScaling):
        raise UnsupportedError(
            "dynamic NTK scaling changes the rotary frequencies with every token, and a program's are fixed",
            hint="executor='torch'",
        )
    frequencies, factor = rope_frequencies(config.head_dim, config.rope)
    if not isinstance(scaling, LongRopeScaling):
        return program.rotary(tuple(frequencies.tolist()), factor)
    original = scaling.original_max_position
    beyond, _ = rope_frequencies(config.head_dim, config.rope, length=original + 1)
    return program.rotary(
        tuple(frequencies.tolist()), factor, long_frequencies=tuple(beyond.tolist()), original_length=original
    )
