"""Frequencies against transformers' own, rule by rule."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from inference_pio.config import rope_frequencies, rotary_dim
from inference_pio.interfaces import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeParameters,
    YarnScaling,
)

ONE_ULP = 2.4e-7  # relative; reference powers are float32 themselves
SIZES = [(64, 1.0), (128, 1.0), (96, 1.0), (80, 1.0), (256, 0.25), (128, 0.5), (96, 0.75)]
THETAS = [10000.0, 100000.0, 500000.0, 1e6, 5e6]


def reference(head_dim, rope, *, length=None, max_position=131072):
    """``(inv_freq, attention_factor)`` of transformers for a dict in its own spelling."""
    rope = dict(rope)
    if rope["rope_type"] == "default":  # the only variant of the function that knows a partial embedding
        config = Phi3Config(hidden_size=2 * head_dim, num_attention_heads=2, pad_token_id=0, rope_parameters=rope)
        return Phi3RotaryEmbedding.compute_default_rope_parameters(config)
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rope_parameters=rope,
    )
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, None, seq_len=length)


def assert_equals_reference(head_dim, ours, theirs, **lengths):
    inv_freq, factor = rope_frequencies(head_dim, ours, length=lengths.get("length"))
    expected, expected_factor = reference(head_dim, theirs, **lengths)
    assert inv_freq.dtype == np.float32
    np.testing.assert_allclose(inv_freq, expected.numpy(), rtol=ONE_ULP, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize("theta", THETAS)
def test_default_frequencies_equal_transformers(head_dim, share, theta):
    """Without a scaling rule, full and partial."""
    ours = RopeParameters(theta=theta, partial_rotary_factor=share)
    theirs = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
    assert_equals_reference(head_dim, ours, theirs)


def test_default_frequencies_are_mostly_the_same_bits():
    """Powers are rounded correctly, so that angles at far positions agree too; the reference's differ in 1 of 100."""
    same = total = 0
    for head_dim, theta in [(d, t) for d in (64, 80, 96, 128, 256) for t in THETAS]:
        ours, _ = rope_frequencies(head_dim, RopeParameters(theta=theta))
        theirs, _ = reference(head_dim, {"rope_type": "default", "rope_theta": theta})
        same, total = same + int((ours == theirs.numpy()).sum()), total + ours.size
    assert same >= 0.97 * total


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize("factor", [1.0, 4.0, 2.5])
def test_linear_frequencies_equal_transformers(head_dim, share, factor):
    """Position interpolation."""
    ours = RopeParameters(theta=1e4, partial_rotary_factor=share, scaling=LinearScaling(factor=factor))
    theirs = {"rope_type": "linear", "rope_theta": 1e4, "partial_rotary_factor": share, "factor": factor}
    assert_equals_reference(head_dim, ours, theirs)


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize("length", [None, 1, 2048, 2049, 5000, 100000])
def test_dynamic_frequencies_equal_transformers(head_dim, share, length):
    """NTK-aware base: unchanged within the original context, growing beyond."""
    scaling = DynamicScaling(factor=2.0, original_max_position=2048)
    ours = RopeParameters(theta=1e4, partial_rotary_factor=share, scaling=scaling)
    theirs = {"rope_type": "dynamic", "rope_theta": 1e4, "partial_rotary_factor": share, "factor": 2.0}
    assert_equals_reference(head_dim, ours, theirs, length=length, max_position=2048)


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize(
    "factor, low, high, original", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4, 2, 16, 256)]
)
def test_llama3_frequencies_equal_transformers(head_dim, share, factor, low, high, original):
    """Long wavelengths divided, short ones kept, a blend between them."""
    scaling = Llama3Scaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original)
    ours = RopeParameters(theta=5e5, partial_rotary_factor=share, scaling=scaling)
    theirs = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "partial_rotary_factor": share,
        "factor": float(factor),
        "low_freq_factor": float(low),
        "high_freq_factor": float(high),
        "original_max_position_embeddings": original,
    }
    assert_equals_reference(head_dim, ours, theirs)


YARN_EXTRAS = [
    {},
    {"attention_factor": 1.25},
    {"mscale": 0.707, "mscale_all_dim": 0.5},
    {"mscale": 1.0, "mscale_all_dim": 1.0},
    {"mscale": 0.707},
    {"truncate": False},
    {"beta_fast": 16.0, "beta_slow": 2.0},
    {"beta_fast": 4.0, "beta_slow": 4.0},
]


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize("extras", YARN_EXTRAS, ids=str)
def test_yarn_frequencies_equal_transformers(head_dim, share, factor, extras):
    """The ramp, its truncation, and every way to the attention factor."""
    scaling = YarnScaling(factor=factor, original_max_position=32768, **extras)
    ours = RopeParameters(theta=1e6, partial_rotary_factor=share, scaling=scaling)
    theirs = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "partial_rotary_factor": share,
        "factor": factor,
        "original_max_position_embeddings": 32768,
        **extras,
    }
    assert_equals_reference(head_dim, ours, theirs)


@pytest.mark.parametrize("theta, original", [(20.0, 2000), (10000.0, 64), (10000.0, 4)])
def test_yarn_ramp_stays_within_the_head(theta, original):
    """Where the ramp would begin before the first dimension or end after the last, it is cut there."""
    ours = RopeParameters(theta=theta, scaling=YarnScaling(factor=4.0, original_max_position=original))
    theirs = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": 4.0,
        "original_max_position_embeddings": original,
    }
    assert_equals_reference(16, ours, theirs)


@pytest.mark.parametrize("head_dim, share", SIZES)
@pytest.mark.parametrize("length", [None, 4096, 4097, 131072])
@pytest.mark.parametrize("attention_factor", [None, 1.19])
def test_longrope_frequencies_equal_transformers(head_dim, share, length, attention_factor):
    """Short factors within the original context, long ones beyond."""
    pairs = int(head_dim * share) // 2
    short, long = tuple(1.0 + 0.01 * i for i in range(pairs)), tuple(1.0 + 0.7 * i for i in range(pairs))
    scaling = LongRopeScaling(
        short_factor=short,
        long_factor=long,
        original_max_position=4096,
        factor=32.0,
        attention_factor=attention_factor,
    )
    ours = RopeParameters(theta=1e4, partial_rotary_factor=share, scaling=scaling)
    theirs = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": share,
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": 4096,
        "factor": 32.0,
        "attention_factor": attention_factor,
    }
    assert_equals_reference(head_dim, ours, theirs, length=length)


def test_longrope_without_extension_keeps_the_scale():
    """A factor of one needs no temperature."""
    scaling = LongRopeScaling(short_factor=(1.0,) * 4, long_factor=(2.0,) * 4, original_max_position=64, factor=1.0)
    assert rope_frequencies(8, RopeParameters(theta=1e4, scaling=scaling))[1] == 1.0


@pytest.mark.parametrize("head_dim, share, size", [(64, 1.0, 64), (256, 0.25, 64), (128, 0.5, 64), (100, 0.1, 10)])
def test_rotary_dim_is_the_share_of_the_head(head_dim, share, size):
    """Rounded down, as in the checkpoints' own code."""
    assert rotary_dim(head_dim, RopeParameters(theta=1e4, partial_rotary_factor=share)) == size


@pytest.mark.parametrize("head_dim, share", [(63, 1.0), (64, 0.0), (64, 1.5), (10, 0.5), (64, 0.01)])
def test_rotary_dim_refuses_odd_and_empty_rotations(head_dim, share):
    """The message says which numbers met."""
    with pytest.raises(ValueError, match=rf"head_dim {head_dim} \* partial_rotary_factor .* must be an even number"):
        rope_frequencies(head_dim, RopeParameters(theta=1e4, partial_rotary_factor=share))


def test_rope_frequencies_refuse_parameters_that_fit_no_embedding():
    """Each rule names the value it cannot work with."""
    with pytest.raises(ValueError, match="theta must be above 1, got 1"):
        rope_frequencies(64, RopeParameters(theta=1.0))
    two = DynamicScaling(factor=2.0, original_max_position=16)
    with pytest.raises(ValueError, match="rotary dimension above 2, got 2"):
        rope_frequencies(2, RopeParameters(theta=1e4, scaling=two), length=99)
    flat = Llama3Scaling(factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0, original_max_position=16)
    with pytest.raises(ValueError, match="high_freq_factor must be above low_freq_factor, got 4 and 4"):
        rope_frequencies(64, RopeParameters(theta=1e4, scaling=flat))
    uneven = LongRopeScaling(short_factor=(1.0,) * 32, long_factor=(1.0,) * 3, original_max_position=16, factor=2.0)
    with pytest.raises(ValueError, match=r"long_factor must have 32 numbers \(rotary_dim / 2\), got 3"):
        rope_frequencies(64, RopeParameters(theta=1e4, scaling=uneven), length=99)


def test_reference_powers_are_float32():
    """The oracle computes in float32, which is what the tolerance of one unit in the last place rests on."""
    inv_freq, _ = reference(64, {"rope_type": "default", "rope_theta": 1e4})
    assert inv_freq.dtype == torch.float32
