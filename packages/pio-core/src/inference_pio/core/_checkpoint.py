"""A model's files, opened and understood without torch: header, config, plugin, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_pio.config import gguf_to_hf, read_generation_config, read_model_config, token_ids
from inference_pio.interfaces import MalformedFileError
from inference_pio.processing import tokenizer_from_folder, tokenizer_from_gguf
from inference_pio.weights import open_weights

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.core._locate import LocatedModel
    from inference_pio.core._registry import InstalledPlugin, Registry
    from inference_pio.interfaces import ModelPlugin, ModelShape, WeightMap, WeightSource
    from inference_pio.processing import Tokenizer

# Divisors of the rotary frequencies: the one part of a GGUF file's config that is a tensor.
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened model.

    Attributes:
        name: What to call it.
        path: The weight file or folder.
        source: Its tensors.
        installed: The plugin's manifest and version.
        plugin: The plugin itself.
        config: The family's own frozen config.
        weight_map: How parameters are made from ``source``.
        tied_head: Whether the checkpoint has no head of its own.
        shape: What the engine must know.
        generation: Sampling defaults that came with the model, in config.json's spelling.
        eos_token_ids: Tokens that end a generation, from every place that names some.
    """

    name: str
    path: Path
    source: WeightSource
    installed: InstalledPlugin
    plugin: ModelPlugin[Any]
    config: object
    weight_map: WeightMap
    tied_head: bool
    shape: ModelShape
    generation: dict[str, object]
    eos_token_ids: tuple[int, ...]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the weights, or None if none did."""
        if self.source.format == "gguf":
            return tokenizer_from_gguf(self.source.metadata)
        return tokenizer_from_folder(_folder(self.path))


def open_checkpoint(located: LocatedModel, registry: Registry, *, ignore_unknown_keys: bool = False) -> Checkpoint:
    """Open the weights of ``located``, read its config and find its plugin. Reads no tensor, imports no torch.

    Raises:
        MissingPluginError: No installed plugin serves the architecture.
        ConfigError: The config has an unknown key or a value out of bounds.
        MalformedFileError: A file breaks the rules of its format.
    """
    source = open_weights(located.path)
    generation: dict[str, object] = {}
    if source.format == "gguf":
        raw = _gguf_config(located.path, source, registry)
    else:
        folder = _folder(located.path)
        raw = read_model_config(folder, ignore_code=ignore_unknown_keys)
        generation = read_generation_config(folder, ignore_code=ignore_unknown_keys)
    architecture = _architecture(located.path, raw)
    installed = registry.by_architecture(architecture)
    plugin = installed.load(architecture)
    config = plugin.parse_config(raw, ignore_unknown=ignore_unknown_keys)
    weight_map = plugin.weight_map(config, source.format)
    tied_head = any(rule.optional and not all(name in source for name in rule.sources) for rule in weight_map.rules)
    shape = plugin.shape(config, tied_head=tied_head)
    eos = dict.fromkeys((*shape.eos_token_ids, *token_ids(generation, "eos_token_id")))
    return Checkpoint(
        name=located.name,
        path=located.path,
        source=source,
        installed=installed,
        plugin=plugin,
        config=config,
        weight_map=weight_map,
        tied_head=tied_head,
        shape=shape,
        generation=generation,
        eos_token_ids=tuple(eos),
    )


def _gguf_config(path: Path, source: WeightSource, registry: Registry) -> dict[str, object]:
    name = source.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise MalformedFileError(path, "general.architecture", f"must be a string, got {name!r}")
    _, architecture = registry.by_gguf(name)
    factors = source.decode(_ROPE_FACTORS).tolist() if _ROPE_FACTORS in source else None
    return gguf_to_hf(source.metadata, architecture=architecture, rope_factors=factors)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _architecture(path: Path, raw: dict[str, object]) -> str:
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise MalformedFileError(
            path, "architectures", f"config.json must list one architecture name, got {architectures!r}"
        )
    return architectures[0]
