"""The one rotary embedding: every scaling rule, both layouts, full or partial.

The frequencies come from :func:`inference_pio.config.rope_frequencies`; here they meet positions and tensors. Per step
of the model ``cos_sin`` is called once, and ``apply_rotary`` once or twice per layer, so the signs of the rotation are
folded into ``sin`` where they cost nothing: pair ``(a, b)`` becomes ``(a, b) * cos + (b, a) * (-sin, sin)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inference_pio.config import rope_frequencies, rotary_dim
from inference_pio.interfaces import DynamicScaling, LongRopeScaling

if TYPE_CHECKING:
    from inference_pio.interfaces import RopeParameters

EXACT_POSITIONS = 2**24
"""Positions below this are exact in float32, in which the angles are computed."""


class RotaryEmbedding(nn.Module):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864).

    Holds no parameter and no buffer, so that it needs no weights and can be built on ``meta``: frequencies are computed
    at the first use on each device. Angles are computed in float32 as ``position * inv_freq``; the product's rounding
    makes them good to ``position * 2**-24`` radians, the accuracy that the models were trained with. There is no table
    of angles: computing a step's takes about as long as looking them up.

    Args:
        head_dim: ``D``.
        rope: Base, scaling rule and rotated share.
        max_position: Longest sequence that will be asked for, in tokens.
        interleaved: Layout of the pairs within the rotated part of a head: ``(0, 1), (2, 3), ...`` if true, otherwise
            half-split, ``(0, R/2), (1, R/2 + 1), ...``.

    Raises:
        ValueError: The parameters fit no rotary embedding, or positions would not be exact in float32.
    """

    def __init__(self, head_dim: int, rope: RopeParameters, *, max_position: int, interleaved: bool = False) -> None:
        super().__init__()
        if not 1 <= max_position <= EXACT_POSITIONS:
            raise ValueError(f"max_position must be between 1 and {EXACT_POSITIONS}, got {max_position}")
        self.head_dim = head_dim
        self.rotary_dim = rotary_dim(head_dim, rope)
        self.rope = rope
        self.max_position = max_position
        self.interleaved = interleaved
        self.attention_factor = rope_frequencies(head_dim, rope)[1]
        self._frequencies: dict[tuple[torch.device, int | None], Tensor] = {}

    @property
    def needs_lengths(self) -> bool:
        """Whether the angles depend on the length of the sequence (dynamic and longrope scaling)."""
        return isinstance(self.rope.scaling, DynamicScaling | LongRopeScaling)

    def cos_sin(
        self, positions: Tensor, lengths: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """What :func:`apply_rotary` needs for the tokens at ``positions``.

        Args:
            positions: Integers (N,), each below ``max_position``.
            lengths: int64 (N,), the length of the sequence that each token belongs to, this step's tokens included.
                Needed if ``needs_lengths``, otherwise ignored. Keys that were cached while the sequence was shorter
                keep the angles of that length.
            dtype: Dtype of the result, best that of the activations: the cast is then done once, not once per layer.

        Returns:
            ``cos`` and ``sin``, (N, 1, rotary_dim) each, times the attention factor, in the layout of this embedding.
            ``sin`` is negative for the first of each pair.

        Raises:
            ValueError: ``lengths`` missing, or not of the shape of ``positions``.
        """
        angles = positions.view(-1, 1, 1) * self._signed_frequencies(positions, lengths)  # int * float32: float32
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos.to(dtype), sin.to(dtype)

    def _signed_frequencies(self, positions: Tensor, lengths: Tensor | None) -> Tensor:
        """Inverse frequencies, negative for the first of each pair: (rotary_dim,) or per token (N, 1, rotary_dim)."""
        if not self.needs_lengths:
            return self._cached(positions.device, None)
        if lengths is None or lengths.shape != positions.shape:
            got = "none" if lengths is None else str(tuple(lengths.shape))
            raise ValueError(f"this rope scaling needs lengths of shape {tuple(positions.shape)}, got {got}")
        scaling = self.rope.scaling
        if isinstance(scaling, LongRopeScaling):
            long = (lengths > scaling.original_max_position).view(-1, 1, 1)
            beyond = scaling.original_max_position + 1
            return torch.where(long, self._cached(positions.device, beyond), self._cached(positions.device, None))
        # Dynamic: one base per length. A step holds few lengths, and reading them costs less than a second formula.
        distinct, which = torch.unique(lengths, return_inverse=True)
        rows = [self._signed(positions.device, length) for length in distinct.tolist()]
        return torch.stack([self._cached(positions.device, None), *rows])[which + 1].unsqueeze(1)

    def _cached(self, device: torch.device, length: int | None) -> Tensor:
        key = (device, length)
        if key not in self._frequencies:
            self._frequencies[key] = self._signed(device, length)
        return self._frequencies[key]

    def _signed(self, device: torch.device, length: int | None) -> Tensor:
        inv_freq = torch.from_numpy(rope_frequencies(self.head_dim, self.rope, length=length)[0])
        pairs = torch.stack((-inv_freq, inv_freq), dim=1 if self.interleaved else 0)
        return pairs.flatten().to(device)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.head_dim}, {self.rope}, max_position={self.max_position}, interleaved={self.interleaved}"


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Turn the first ``rotary_dim`` dimensions of each head; the others pass through.

    Args:
        x: (N, H, D), of any strides; not changed. The heads may be those of queries and keys side by side, which costs
            one call less.
        cos: From :meth:`RotaryEmbedding.cos_sin`, (N, 1, rotary_dim). Cast to the dtype of ``x`` if it has another.
        sin: The same.
        interleaved: The layout that ``cos`` and ``sin`` were made for.

    Returns:
        A new (N, H, D) in the dtype of ``x``.
    """
    if cos.dtype is not x.dtype:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return _rotate(x, cos, sin, interleaved=interleaved)
    return torch.cat((_rotate(x[..., :size], cos, sin, interleaved=interleaved), x[..., size:]), dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    size = x.shape[-1]
    partner = x.view(*x.shape[:-1], size // 2, 2).flip(-1).flatten(-2) if interleaved else x.roll(size // 2, -1)
    return (x * cos).addcmul_(partner, sin)
