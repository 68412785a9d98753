"""Limits that keep reading a hostile file cheap."""

from __future__ import annotations

from dataclasses import dataclass, fields

_MIB = 1024 * 1024
_HEADER_CEILING = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a weight file may claim before it is refused with ``LimitExceededError``.

    The defaults hold every published model known to us with room to spare. Each can be raised for a file that needs it:
    ``open_weights(path, limits=Limits(max_string_bytes=1 << 20))``.

    Attributes:
        max_safetensors_tensors: Tensors of a safetensors file.
        max_name_bytes: Bytes of a tensor name.
        max_elements: Elements of one tensor; sizes of zero count as one, so that empty shapes are bounded too.
        max_safetensors_header: Bytes of a safetensors header; at most 100,000,000, the format's own bound.
        max_safetensors_rank: Dimensions of a safetensors tensor.
        max_index_bytes: Bytes of the index of a sharded checkpoint.
        max_shards: Files of a sharded checkpoint.
        max_gguf_tensors: Tensors of a GGUF file.
        max_gguf_keys: Key-value pairs of a GGUF file.
        max_gguf_metadata: Bytes of all key-value pairs of a GGUF file together.
        max_string_bytes: Bytes of a GGUF string.
        max_array_string_bytes: Bytes of a string inside a GGUF array, which is where tokens and merges are.
        max_array_elements: Elements of a GGUF array.
        max_alignment: Alignment of a GGUF file, in bytes.
    """

    max_safetensors_tensors: int = 100_000
    max_name_bytes: int = 512
    max_elements: int = 1 << 40
    max_safetensors_header: int = 16 * _MIB
    max_safetensors_rank: int = 8
    max_index_bytes: int = 16 * _MIB
    max_shards: int = 2_000
    max_gguf_tensors: int = 65_536
    max_gguf_keys: int = 65_536
    max_gguf_metadata: int = 64 * _MIB
    max_string_bytes: int = 64 * 1024
    max_array_string_bytes: int = 4 * 1024
    max_array_elements: int = 16 * 1024 * 1024
    max_alignment: int = _MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                msg = f"{field.name} must be a positive integer, got {value!r}"
                raise ValueError(msg)
        if self.max_safetensors_header > _HEADER_CEILING:
            msg = f"max_safetensors_header must be at most {_HEADER_CEILING}, got {self.max_safetensors_header}"
            raise ValueError(msg)


DEFAULT_LIMITS = Limits()
