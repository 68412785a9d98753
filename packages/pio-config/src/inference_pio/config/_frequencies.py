"""Frequencies of the rotary embedding, for every scaling rule, in NumPy alone.

Rotary position embedding (Su et al. 2021, arXiv:2104.09864) turns pair ``i`` of a head by ``position * inv_freq[i]``.
This module knows nothing of tensors, layouts or sequences: whoever turns the pairs (PyTorch modules, native kernels)
takes the same numbers from here. Powers are computed in float64 from float32 operands and rounded once, so they are
within one unit in the last place of any float32 implementation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference_pio.interfaces import RopeParameters


def rotary_dim(head_dim: int, rope: RopeParameters) -> int:
    """Dimensions of a head that are turned: ``head_dim * partial_rotary_factor``, rounded down.

    Args:
        head_dim: ``D``.
        rope: Parameters of the embedding.

    Raises:
        ValueError: The result is not a positive even number of at most ``head_dim``.
    """
    size = int(head_dim * rope.partial_rotary_factor)
    if size < 2 or size % 2 or size > head_dim:
        raise ValueError(
            f"head_dim {head_dim} * partial_rotary_factor {rope.partial_rotary_factor:g} must be an even number "
            f"between 2 and {head_dim}, got {size}"
        )
    return size


def rope_frequencies(
    head_dim: int, rope: RopeParameters, *, length: int | None = None
) -> tuple[NDArray[np.float32], float]:
    """Inverse frequencies and the factor on cos and sin.

    Args:
        head_dim: ``D``.
        rope: Parameters of the embedding.
        length: Length of the sequence in tokens, which the dynamic and longrope rules depend on. None takes any length
            within the original context; the other rules ignore it.

    Returns:
        ``inv_freq`` float32 (rotary_dim / 2,), radians per position, and ``attention_factor``.

    Raises:
        ValueError: The parameters fit no rotary embedding of this head dimension.
    """
    size = rotary_dim(head_dim, rope)
    if rope.theta <= 1.0:
        raise ValueError(f"theta must be above 1, got {rope.theta:g}")
    scaling = rope.scaling
    match scaling:
        case None:
            return _inverse_powers(rope.theta, size), 1.0
        case LinearScaling():
            return _inverse_powers(rope.theta, size) / np.float32(scaling.factor), 1.0
        case DynamicScaling():
            return _inverse_powers(_dynamic_theta(rope.theta, size, scaling, length), size), 1.0
        case Llama3Scaling():
            return _llama3(_inverse_powers(rope.theta, size), scaling), 1.0
        case YarnScaling():
            return _yarn(rope.theta, size, scaling), _yarn_attention_factor(scaling)
        case LongRopeScaling():
            return _longrope(rope.theta, size, scaling, length), _longrope_attention_factor(scaling)


def _powers(theta: float, size: int) -> NDArray[np.float32]:
    """``theta ** (2i / size)``, float32 (size / 2,)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    # The base goes through float32 as well: that is what the checkpoints were trained and are checked with.
    return np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)


def _inverse_powers(theta: float, size: int) -> NDArray[np.float32]:
    return np.float32(1.0) / _powers(theta, size)


def _dynamic_theta(theta: float, size: int, scaling: DynamicScaling, length: int | None) -> float:
    """The NTK-aware base for a sequence of ``length``: grows once the original context is passed."""
    if size == 2:
        raise ValueError("dynamic rope scaling needs a rotary dimension above 2, got 2")
    if length is None or length <= scaling.original_max_position:
        return theta
    growth = scaling.factor * length / scaling.original_max_position - (scaling.factor - 1.0)
    return float(theta * growth ** (size / (size - 2)))


def _llama3(inv_freq: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Keep short wavelengths, divide long ones by the factor, and blend linearly in between."""
    wavelength = np.float32(2.0 * math.pi) / inv_freq
    turns = np.float32(scaling.original_max_position) / wavelength
    span = scaling.high_freq_factor - scaling.low_freq_factor
    if span <= 0.0:
        raise ValueError(
            f"llama3 high_freq_factor must be above low_freq_factor, got {scaling.high_freq_factor:g} and "
            f"{scaling.low_freq_factor:g}"
        )
    keep = np.clip((turns - np.float32(scaling.low_freq_factor)) / np.float32(span), 0.0, 1.0).astype(np.float32)
    blend: NDArray[np.float32] = (np.float32(1.0) - keep) * (inv_freq / np.float32(scaling.factor)) + keep * inv_freq
    return blend


def _yarn(theta: float, size: int, scaling: YarnScaling) -> NDArray[np.float32]:
    """NTK-by-parts (section 3.2): extrapolate fast dimensions, interpolate slow ones, ramp in between."""

    def dimension(rotations: float) -> float:
        """The dimension that makes ``rotations`` full turns over the original context."""
        turns = scaling.original_max_position / (rotations * 2.0 * math.pi)
        return size * math.log(turns) / (2.0 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without dividing by zero
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    powers = _powers(theta, size)
    interpolated = np.float32(1.0) / (np.float32(scaling.factor) * powers)
    extrapolated = np.float32(1.0) / powers
    blend: NDArray[np.float32] = (interpolated * ramp + extrapolated * (np.float32(1.0) - ramp)).astype(np.float32)
    return blend


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    """Factor on cos and sin (equation 22), with DeepSeek's ``mscale`` coefficients where both are given."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def temperature(coefficient: float) -> float:
        return 1.0 if scaling.factor <= 1.0 else 0.1 * coefficient * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)


def _longrope(theta: float, size: int, scaling: LongRopeScaling, length: int | None) -> NDArray[np.float32]:
    long = length is not None and length > scaling.original_max_position
    divisors = scaling.long_factor if long else scaling.short_factor
    if len(divisors) != size // 2:
        name = "long_factor" if long else "short_factor"
        raise ValueError(f"longrope {name} must have {size // 2} numbers (rotary_dim / 2), got {len(divisors)}")
    return np.float32(1.0) / (np.asarray(divisors, dtype=np.float32) * _powers(theta, size))


def _longrope_attention_factor(scaling: LongRopeScaling) -> float:
    """Factor on cos and sin (section 4.3)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(scaling.factor) / math.log(scaling.original_max_position))
