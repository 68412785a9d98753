"""Rotary embedding parameters as plain data.

Parsed by ``pio-config`` from checkpoints, computed by ``pio-layers``. One frozen class per scaling rule, so that a
rule's parameters cannot be mixed with another's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions divided by ``factor`` (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScaling:
    """NTK-aware base that grows with the sequence once it passes the original context.

    Attributes:
        factor: Extension factor.
        original_max_position: Context length of pre-training, in tokens.
    """

    factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's piecewise rule (Grattafiori et al. 2024, arXiv:2407.21783, and Meta's reference code).

    Attributes:
        factor: Division of the low frequencies.
        low_freq_factor: Wavelengths above ``original_max_position / low_freq_factor`` are scaled fully.
        high_freq_factor: Wavelengths below ``original_max_position / high_freq_factor`` are kept.
        original_max_position: Context length of pre-training, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), with the attention temperature folded into cos and sin.

    Attributes:
        factor: Extension factor ``s``.
        original_max_position: Context length of pre-training, in tokens.
        beta_fast: Rotations above which a dimension is extrapolated.
        beta_slow: Rotations below which a dimension is interpolated.
        attention_factor: Scale of cos and sin; None derives it from ``factor``, ``mscale`` and ``mscale_all_dim``.
        mscale: Numerator's coefficient of the derived scale, or None.
        mscale_all_dim: Denominator's coefficient of the derived scale, or None.
        truncate: Whether the correction range is rounded to whole dimensions.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): one factor per frequency, by sequence length.

    Attributes:
        short_factor: ``rotary_dim / 2`` divisors for sequences within ``original_max_position``.
        long_factor: ``rotary_dim / 2`` divisors for longer sequences.
        original_max_position: Context length of pre-training, in tokens.
        factor: Extension factor, from which ``attention_factor`` is derived when that is None.
        attention_factor: Scale of cos and sin, or None.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position: int
    factor: float
    attention_factor: float | None = None


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParameters:
    """All that a rotary embedding needs to know besides the head dimension.

    Attributes:
        theta: Base of the frequencies.
        partial_rotary_factor: Share of the head dimension that is rotated, in (0, 1].
        scaling: The scaling rule, or None for the default embedding.
    """

    theta: float
    partial_rotary_factor: float = 1.0
    scaling: RopeScaling | None = None
