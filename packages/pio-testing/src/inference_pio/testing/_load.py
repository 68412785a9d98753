"""A model plugin's checkpoint, loaded the way the engine does it, without the engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from inference_pio.attention import get_backend
from inference_pio.config import gguf_to_hf, read_model_config
from inference_pio.interfaces import MANIFEST_NAME, CausalLM, read_manifest
from inference_pio.layers import DenseLinear, load_weights
from inference_pio.weights import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from inference_pio.interfaces import (
        AttentionBackend,
        Executor,
        KVCache,
        LinearMethod,
        ModelPlugin,
        ModelShape,
        PluginManifest,
        RaggedBatch,
        WeightSource,
    )
    from inference_pio.layers import LoadReport

_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its weights.

    Attributes:
        module: The plugin's model.
        shape: What the plugin says of it.
        config: The plugin's own config.
        tied_head: Whether the embedding serves as the head.
        dtype: What it computes in.
        device: Where it computes.
        report: What loading did.
        plugin: Where it comes from.
        path: Its checkpoint.
        reload: Loads the checkpoint once more; takes what :func:`load_model` takes, plugin and path apart. What is not
            given is as in :func:`load_model`, except for ``architecture``, which stays.
        executor: Makes an executor with a fresh cache, given ``num_pages``, ``page_size`` and ``max_model_len``; None
            for the torch executor over ``module``.
        page_multiple: The executor's page sizes are multiples of this many tokens.
    """

    module: nn.Module
    shape: ModelShape
    config: Any
    tied_head: bool
    dtype: torch.dtype
    device: torch.device
    report: LoadReport
    plugin: ModelPlugin[Any]
    path: Path
    reload: Callable[..., LoadedModel]
    executor: Callable[..., Executor] | None = None
    page_multiple: int = 1

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor, positions: Tensor, cache: KVCache, batch: RaggedBatch) -> Tensor:
        """Hidden states (N, E) of one step; see :meth:`CausalLM.forward`."""
        return cast("Tensor", self.module(token_ids, positions, cache, batch))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (R, V) of hidden states (R, E)."""
        return cast("CausalLM", self.module).logits(hidden)


def load_model(
    plugin: ModelPlugin[Any],
    path: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    backend: str | AttentionBackend = "sdpa",
    linear: LinearMethod | None = None,
    architecture: str | None = None,
) -> LoadedModel:
    """Open the weights at ``path``, parse the config, build on ``meta`` and stream the weights in.

    Args:
        plugin: The family's plugin.
        path: A folder with ``config.json``, or a GGUF file.
        dtype: Name of the torch dtype to load into.
        device: Where to load.
        backend: Attention backend, or the name of one.
        linear: Storage of linear weights; None is dense.
        architecture: Architecture string of a GGUF file; None takes it from the manifest beside the plugin.

    Raises:
        PioError: The checkpoint is not sound, or not one that the plugin serves.
        ValueError: A GGUF file, no ``architecture``, and no manifest that names one.
    """
    target = torch.device(device)
    source = open_weights(path)
    try:
        config = plugin.parse_config(_raw_config(plugin, path, source, architecture))
        weight_map = plugin.weight_map(config, source.format)
        tied_head = any(rule.optional and not set(rule.sources).issubset(source) for rule in weight_map.rules)
        attention = get_backend(backend, device=target) if isinstance(backend, str) else backend
        with torch.device("meta"):
            module = plugin.build(config, attention=attention, linear=linear or DenseLinear(), tied_head=tied_head)
        report = load_weights(module, source, weight_map, dtype=getattr(torch, dtype), device=target)
    finally:
        source.close()
    return LoadedModel(
        module=module.eval(),
        shape=plugin.shape(config, tied_head=tied_head),
        config=config,
        tied_head=tied_head,
        dtype=getattr(torch, dtype),
        device=target,
        report=report,
        plugin=plugin,
        path=path,
        reload=partial(load_model, plugin, path, architecture=architecture),
    )


def manifest_of(plugin: ModelPlugin[Any]) -> PluginManifest:
    """The manifest beside the module that defines ``plugin``.

    Raises:
        ValueError: There is none.
    """
    module = sys.modules[type(plugin).__module__]
    path = Path(module.__file__ or "").with_name(MANIFEST_NAME)
    if not path.is_file():
        raise ValueError(f"no {MANIFEST_NAME} beside {module.__name__}")
    return read_manifest(path)


def _raw_config(
    plugin: ModelPlugin[Any], path: Path, source: WeightSource, architecture: str | None
) -> dict[str, object]:
    if source.format != "gguf":
        return read_model_config(path if path.is_dir() else path.parent)
    if architecture is None:
        name = source.metadata["general.architecture"]
        served = dict(manifest_of(plugin).gguf)
        if name not in served:
            raise ValueError(f"the plugin serves the GGUF architectures {sorted(served)}, and {path} is {name!r}")
        architecture = served[str(name)]
    factors = source.decode(_ROPE_FACTORS).tolist() if _ROPE_FACTORS in source else None
    return gguf_to_hf(source.metadata, architecture=architecture, rope_factors=factors)
