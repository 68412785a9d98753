"""What a model is, from its headers alone: the facts behind ``pio show``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.config import Settings, cache_dir
from inference_pio.core._checkpoint import open_checkpoint
from inference_pio.core._locate import locate_model
from inference_pio.core._registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from inference_pio.core._checkpoint import Checkpoint

_KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingUse:
    """How much of a checkpoint is stored in one encoding.

    Attributes:
        encoding: Such as ``BF16`` or ``Q4_K``.
        tensors: Number of tensors.
        nbytes: Stored bytes.
    """

    encoding: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What a model is.

    Attributes:
        name: What to call it.
        path: The weight file or folder.
        format: ``"safetensors"`` or ``"gguf"``.
        architecture: Architecture string.
        plugin: Distribution and version that serves it.
        parameters: Parameters, a tied head counted once.
        encodings: Stored encodings, the largest first.
        stored_bytes: Bytes of all tensors as stored.
        weight_bytes: Bytes of all parameters once loaded, by dtype.
        kv_bytes_per_token: Cache bytes per token over all layers, by dtype.
        context_length: In tokens.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        num_heads: Query heads of the first layer.
        num_kv_heads: KV heads of the first layer.
        head_dim: Of the first layer.
        sliding_window: Smallest window of any layer, or None.
        vocab_size: Rows of the embedding.
        tied_head: Whether the head is the embedding.
        chat_template: Whether a chat template came with the model.
    """

    name: str
    path: Path
    format: str
    architecture: str
    plugin: str
    parameters: int
    encodings: tuple[EncodingUse, ...]
    stored_bytes: int
    weight_bytes: dict[str, int]
    kv_bytes_per_token: dict[str, int]
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None
    vocab_size: int
    tied_head: bool
    chat_template: bool


def inspect_model(
    model: str | Path,
    *,
    cache: Path | None = None,
    ignore_unknown_keys: bool = False,
    registry: Registry | None = None,
) -> ModelReport:
    """Describe ``model`` from headers and config alone: no tensor is read, nothing is fetched, no torch is imported.

    Args:
        model: A registered name, a folder, a weight file, or the id of a model pulled before.
        cache: Where pulled models lie; None for the default place.
        ignore_unknown_keys: Accept unknown keys in the model's config.
        registry: Installed plugins; None discovers them.

    Raises:
        ModelNotFoundError: Nothing on this machine matches.
        PioError: As :func:`open_checkpoint`.
    """
    registry = registry or Registry.discover()
    located = locate_model(model, registry, cache_dir=cache or cache_dir(Settings()), download=False)
    return report(open_checkpoint(located, registry, ignore_unknown_keys=ignore_unknown_keys))


def report(checkpoint: Checkpoint) -> ModelReport:
    """Describe an opened checkpoint."""
    source, shape = checkpoint.source, checkpoint.shape
    uses: dict[str, tuple[int, int]] = {}
    for name in source:
        info = source.info(name)
        tensors, nbytes = uses.get(info.encoding, (0, 0))
        uses[info.encoding] = (tensors + 1, nbytes + info.nbytes)
    windows = [spec.window for spec in shape.attention if spec.window is not None]
    first = shape.attention[0]
    installed = checkpoint.installed
    return ModelReport(
        name=checkpoint.name,
        path=checkpoint.path,
        format=source.format,
        architecture=shape.architecture,
        plugin=f"{installed.manifest.distribution} {installed.version}",
        parameters=shape.num_parameters,
        encodings=tuple(
            EncodingUse(encoding=encoding, tensors=tensors, nbytes=nbytes)
            for encoding, (tensors, nbytes) in sorted(uses.items(), key=lambda item: -item[1][1])
        ),
        stored_bytes=sum(nbytes for _, nbytes in uses.values()),
        weight_bytes={dtype: shape.num_parameters * size for dtype, size in _KV_BYTES.items()},
        kv_bytes_per_token={dtype: shape.kv_elements_per_token * size for dtype, size in _KV_BYTES.items()},
        context_length=shape.max_position,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=first.num_heads,
        num_kv_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        sliding_window=min(windows, default=None),
        vocab_size=shape.vocab_size,
        tied_head=checkpoint.tied_head,
        chat_template=_has_chat_template(checkpoint),
    )


def _has_chat_template(checkpoint: Checkpoint) -> bool:
    if checkpoint.source.format == "gguf":
        return "tokenizer.chat_template" in checkpoint.source.metadata
    tokenizer = checkpoint.tokenizer()
    return tokenizer is not None and tokenizer.chat_template is not None
