"""The reference: transformers' own model of a checkpoint, computed plainly (eager attention)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from inference_pio.testing._tiny import quiet_transformers
from inference_pio.testing._trace import Trace, record_layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel


def load_reference(folder: Path, *, dtype: str = "float32") -> PreTrainedModel:
    """The model that transformers makes of the checkpoint in ``folder``, on the CPU, with eager attention.

    Args:
        folder: Holds ``config.json`` and safetensors.
        dtype: Name of the torch dtype to compute in.
    """
    auto_model: Any = transformers.AutoModelForCausalLM
    with quiet_transformers():
        model: PreTrainedModel = auto_model.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
        )
    return model


@torch.no_grad()
def reference_hidden_states(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Hidden states after the final norm, float32 (tokens, E), of ``token_ids`` in transformers' ``model``."""
    states: Tensor = model.base_model(torch.tensor([list(token_ids)]), use_cache=False).last_hidden_state[0].float()
    return states


@torch.no_grad()
def trace_reference(model: PreTrainedModel, token_ids: Sequence[int]) -> Trace:
    """Logits and hidden states of ``token_ids`` in one forward of transformers' ``model``."""
    with record_layers(model, model.config.num_hidden_layers) as layers:
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0].float()
    return Trace(logits=logits, layers=tuple(layers))
