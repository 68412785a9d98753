"""Tiny random checkpoints of a reference architecture, written by transformers.

Small enough for a test, and random in every parameter: norms and biases are perturbed too, since a model that forgets
one of them would otherwise pass a parity test.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

TINY_SIZES: Mapping[str, object] = MappingProxyType(
    {
        "vocab_size": 131,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
"""Sizes of a tiny checkpoint, by their names in ``config.json``: rows divide by 32, so block formats can hold them."""

_FAMILY_SIZES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    # A head size that is not hidden_size / num_attention_heads, as in the real checkpoints of the family.
    {"qwen3": MappingProxyType({"head_dim": 32})}
)

_SPREAD = 0.3


def tiny_checkpoint(
    family: str, folder: Path, *, seed: int = 0, dtype: str = "float32", sharded: bool = False, **overrides: object
) -> Path:
    """Write a tiny random checkpoint into ``folder``: ``config.json`` and safetensors, no tokenizer.

    Args:
        family: ``model_type`` of transformers, such as ``"llama"`` or ``"qwen3"``.
        folder: Where to write; created if missing.
        seed: Seed of all parameters; the same seed and sizes give the same values.
        dtype: Name of the stored torch dtype.
        sharded: Split the weights over several files with an index.
        overrides: Config values in transformers' spelling, beside or instead of :data:`TINY_SIZES`.

    Returns:
        ``folder``.
    """
    sizes = {**TINY_SIZES, **_FAMILY_SIZES.get(family, {}), **overrides}
    config = transformers.AutoConfig.for_model(family, **sizes)
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_config(config)
    fill_random(model, seed=seed)
    model.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    nbytes = sum(tensor.nbytes for tensor in _distinct_tensors(model))
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=nbytes // 3 if sharded else 2 * nbytes)
    return folder


def rope_variants(head_dim: int) -> dict[str, dict[str, object]]:
    """``rope_parameters`` of every scaling rule, with numbers that matter within a tiny checkpoint's context.

    Args:
        head_dim: ``D``; longrope has one factor per pair of dimensions.

    Returns:
        By name of the rule, a value for the ``rope_parameters`` override of :func:`tiny_checkpoint`.
    """
    pairs = range(head_dim // 2)
    return {
        "default": {"rope_type": "default", "rope_theta": 10_000.0},
        "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
        "llama3": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "yarn": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "longrope": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0 + 0.1 * pair for pair in pairs],
            "long_factor": [1.5 + 0.5 * pair for pair in pairs],
        },
    }


def fill_random(model: nn.Module, *, seed: int) -> None:
    """Fill every parameter and stored buffer of ``model``, in place.

    Matrices get a standard deviation of ``fan_in ** -0.5``, so that activations and attention scores stay near 1 and a
    mistake shows in the logits. Vectors keep their initial value (1 for a norm, 0 for a bias) plus noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in _distinct_tensors(model):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:
                tensor.add_(noise, alpha=_SPREAD)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def _distinct_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and stored buffers, a tied one once."""
    return list({tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Run without transformers' progress bars, and give them back afterwards."""
    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
