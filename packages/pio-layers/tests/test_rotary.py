"""The rotary embedding against the model families of transformers that use each variant and layout."""

import math

import pytest
import torch
from transformers import CohereConfig, Glm4Config, GlmConfig, LlamaConfig, Phi3Config, Qwen3Config
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.glm4 import modeling_glm4
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen3 import modeling_qwen3

from inference_pio.config import rope_frequencies
from inference_pio.interfaces import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeParameters,
    YarnScaling,
)
from inference_pio.layers import RotaryEmbedding, apply_rotary

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}
FACTORS = tuple(1.0 + 0.1 * i for i in range(16)), tuple(1.0 + i for i in range(16))


def rotate_with(module, embedding, positions, q, k):
    """The queries and keys (N, H, D) turned by a family's own code, in its own layout (1, H, N, D)."""
    cos, sin = embedding(q, positions[None])
    turned = module.apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    return [tensor[0].transpose(0, 1) for tensor in turned]


def llama_like(config_class, rope, *, max_position=131072, **more):
    return config_class(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=max_position, rope_parameters=rope, **more
    )


VARIANTS = {
    "llama default": (
        modeling_llama,
        "LlamaRotaryEmbedding",
        llama_like(LlamaConfig, {"rope_type": "default", "rope_theta": 1e5}),
        RopeParameters(theta=1e5),
        False,
    ),
    "llama linear": (
        modeling_llama,
        "LlamaRotaryEmbedding",
        llama_like(LlamaConfig, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
        RopeParameters(theta=1e4, scaling=LinearScaling(factor=4.0)),
        False,
    ),
    "llama llama3": (
        modeling_llama,
        "LlamaRotaryEmbedding",
        llama_like(
            LlamaConfig,
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        RopeParameters(
            theta=5e5,
            scaling=Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192),
        ),
        False,
    ),
    "qwen3 yarn": (
        modeling_qwen3,
        "Qwen3RotaryEmbedding",
        llama_like(
            Qwen3Config,
            {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
            head_dim=32,
        ),
        RopeParameters(theta=1e6, scaling=YarnScaling(factor=4.0, original_max_position=32768)),
        False,
    ),
    "phi3 partial": (
        modeling_phi3,
        "Phi3RotaryEmbedding",
        llama_like(
            Phi3Config,
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
            pad_token_id=0,
        ),
        RopeParameters(theta=1e4, partial_rotary_factor=0.75),
        False,
    ),
    "cohere interleaved": (
        modeling_cohere,
        "CohereRotaryEmbedding",
        llama_like(CohereConfig, {"rope_type": "default", "rope_theta": 1e4}),
        RopeParameters(theta=1e4),
        True,
    ),
    "glm interleaved partial": (
        modeling_glm,
        "GlmRotaryEmbedding",
        llama_like(GlmConfig, {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, head_dim=32),
        RopeParameters(theta=1e4, partial_rotary_factor=0.5),
        True,
    ),
    "glm4 interleaved partial": (
        modeling_glm4,
        "Glm4RotaryEmbedding",
        llama_like(Glm4Config, {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, head_dim=32),
        RopeParameters(theta=1e4, partial_rotary_factor=0.5),
        True,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 5, 512])
def test_rotary_equals_the_family_that_uses_it(name, dtype, tokens, rng):
    """Rule, layout, share and dtype: the turned queries and keys are those of the reference model."""
    module, class_name, config, rope, interleaved = VARIANTS[name]
    q = torch.randn(tokens, 3, 32, generator=rng).to(dtype)
    k = torch.randn(tokens, 1, 32, generator=rng).to(dtype)
    positions = torch.arange(tokens) + 17
    rotary = RotaryEmbedding(32, rope, max_position=131072, interleaved=interleaved)
    assert not rotary.needs_lengths
    with torch.inference_mode():
        cos, sin = rotary.cos_sin(positions, dtype=dtype)
        ours = [apply_rotary(x, cos, sin, interleaved=interleaved) for x in (q, k)]
        theirs = rotate_with(module, getattr(module, class_name)(config), positions, q, k)
    for out, expected in zip(ours, theirs, strict=True):
        assert (out.dtype, out.shape) == (dtype, expected.shape)
        torch.testing.assert_close(out, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("position", [0, 1, 8191, 131071, 1_000_000])
def test_rotary_angles_are_those_of_transformers_at_far_positions(position):
    """Angles are float32 products in both, so equal frequencies give equal bits up to a million and beyond."""
    config = llama_like(LlamaConfig, {"rope_type": "default", "rope_theta": 5e5})
    reference = modeling_llama.LlamaRotaryEmbedding(config)
    rotary = RotaryEmbedding(32, RopeParameters(theta=5e5), max_position=2**20)
    same = torch.from_numpy(rope_frequencies(32, RopeParameters(theta=5e5))[0]) == reference.inv_freq
    assert same.float().mean() > 0.9
    cos, sin = rotary.cos_sin(torch.tensor([position]))
    expected_cos, expected_sin = reference(torch.zeros(1), torch.tensor([[position]]))
    both = torch.cat((same, same))
    assert torch.equal(cos[0, 0][both], expected_cos[0, 0][both])
    sign = torch.cat((-torch.ones(16), torch.ones(16)))
    assert torch.equal(sin[0, 0][both], (sign * expected_sin[0, 0])[both])


@pytest.mark.parametrize("position", [1, 1000, 1_000_000])
def test_rotary_angles_are_as_good_as_float32_allows(position):
    """Against float64: the error of an angle is the rounding of one product and of the frequency."""
    rope = RopeParameters(theta=1e4)
    cos, sin = RotaryEmbedding(64, rope, max_position=2**20).cos_sin(torch.tensor([position]))
    angles = position * 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    bound = position * 2.0**-22 + 1e-6
    torch.testing.assert_close(cos[0, 0, :32].double(), angles.cos(), rtol=0, atol=bound)
    torch.testing.assert_close(sin[0, 0, 32:].double(), angles.sin(), rtol=0, atol=bound)


LENGTHS = [[1], [64], [65], [64, 65], [10, 300, 65, 300, 64, 1000]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_by_length_equals_each_sequence_alone(lengths, kind, interleaved):
    """In a ragged batch every token has the angles of its own sequence's length, as transformers gives it alone."""
    rope, theirs = {
        "dynamic": (
            RopeParameters(theta=1e4, scaling=DynamicScaling(factor=2.0, original_max_position=64)),
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        ),
        "longrope": (
            RopeParameters(
                theta=1e4,
                scaling=LongRopeScaling(
                    short_factor=FACTORS[0], long_factor=FACTORS[1], original_max_position=64, factor=8.0
                ),
            ),
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": list(FACTORS[0]),
                "long_factor": list(FACTORS[1]),
                "original_max_position_embeddings": 64,
                "factor": 8.0,
            },
        ),
    }[kind]
    rotary = RotaryEmbedding(32, rope, max_position=2048, interleaved=interleaved)
    assert rotary.needs_lengths
    positions = torch.tensor(lengths) - 1
    cos, sin = rotary.cos_sin(positions, torch.tensor(lengths))
    pairs = slice(1, None, 2) if interleaved else slice(16, None)
    for row, position in enumerate(positions.tolist()):
        if kind == "dynamic":
            config = llama_like(LlamaConfig, dict(theirs), max_position=64)
            embedding = modeling_llama.LlamaRotaryEmbedding(config)
        else:
            config = llama_like(Phi3Config, dict(theirs), max_position=512, pad_token_id=0)
            config.original_max_position_embeddings = 64
            embedding = modeling_phi3.Phi3RotaryEmbedding(config)
        expected_cos, expected_sin = embedding(torch.zeros(1), torch.tensor([[position]]))
        torch.testing.assert_close(cos[row, 0, pairs], expected_cos[0, 0, :16], rtol=0, atol=2e-4)
        torch.testing.assert_close(sin[row, 0, pairs], expected_sin[0, 0, :16], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "scaling",
    [
        DynamicScaling(factor=2.0, original_max_position=64),
        LongRopeScaling(short_factor=FACTORS[0], long_factor=FACTORS[1], original_max_position=64, factor=8.0),
    ],
)
def test_rotary_by_length_checks_its_lengths_and_takes_none_of_either(scaling):
    """Missing and mis-shaped lengths are errors that say both shapes; an empty step is fine."""
    rotary = RotaryEmbedding(32, RopeParameters(theta=1e4, scaling=scaling), max_position=2048)
    empty = torch.zeros(0, dtype=torch.int64)
    assert rotary.cos_sin(empty, empty)[0].shape == (0, 1, 32)
    with pytest.raises(ValueError, match=r"lengths of shape \(3,\), got none"):
        rotary.cos_sin(torch.arange(3))
    with pytest.raises(ValueError, match=r"lengths of shape \(3,\), got \(2,\)"):
        rotary.cos_sin(torch.arange(3), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_apply_rotary_is_a_rotation_of_complex_pairs(interleaved, share, rng):
    """The definition: each pair as a complex number times ``exp(i * angle)``; the rest passes through untouched."""
    rope = RopeParameters(theta=1e4, partial_rotary_factor=share)
    rotary = RotaryEmbedding(16, rope, max_position=128, interleaved=interleaved)
    positions = torch.tensor([0, 3, 100])
    x = torch.randn(3, 2, 16, generator=rng)
    out = apply_rotary(x, *rotary.cos_sin(positions), interleaved=interleaved)
    size = rotary.rotary_dim
    first, second = (
        (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(0, size // 2), slice(size // 2, size))
    )
    angles = positions[:, None].double() * 1e4 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turned = torch.complex(x[..., first].double(), x[..., second].double()) * torch.exp(1j * angles)[:, None]
    torch.testing.assert_close(out[..., first].double(), turned.real, rtol=0, atol=1e-5)
    torch.testing.assert_close(out[..., second].double(), turned.imag, rtol=0, atol=1e-5)
    assert torch.equal(out[..., size:], x[..., size:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_apply_rotary_takes_views_and_leaves_its_input(interleaved, rng):
    """Heads may be a slice of a merged projection; the result is new, the input unchanged, casts made on demand."""
    rotary = RotaryEmbedding(8, RopeParameters(theta=1e4), max_position=128, interleaved=interleaved)
    cos, sin = rotary.cos_sin(torch.arange(5))
    qkv = torch.randn(5, 6, 8, generator=rng)
    before = qkv.clone()
    out = apply_rotary(qkv[:, 1:4], cos, sin, interleaved=interleaved)
    torch.testing.assert_close(out, apply_rotary(qkv[:, 1:4].contiguous(), cos, sin, interleaved=interleaved))
    assert torch.equal(qkv, before)
    out.zero_()
    assert torch.equal(qkv, before)
    half = qkv.to(torch.bfloat16)
    cast = apply_rotary(half, cos.to(torch.bfloat16), sin.to(torch.bfloat16), interleaved=interleaved)
    assert torch.equal(apply_rotary(half, cos, sin, interleaved=interleaved), cast)


def test_apply_rotary_has_gradients(rng):
    """A rotation's gradient is the rotation back, so norms are kept."""
    rotary = RotaryEmbedding(8, RopeParameters(theta=1e4), max_position=16)
    x = torch.randn(4, 2, 8, generator=rng, requires_grad=True)
    out = apply_rotary(x, *rotary.cos_sin(torch.arange(4)))
    (out**2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_rotary_scales_by_the_attention_factor():
    """YaRN's temperature is folded into cos and sin."""
    scaling = YarnScaling(factor=4.0, original_max_position=64)
    rotary = RotaryEmbedding(32, RopeParameters(theta=1e4, scaling=scaling), max_position=256)
    cos, sin = rotary.cos_sin(torch.tensor([5]))
    assert rotary.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full((1, 1, 32), rotary.attention_factor))


def test_rotary_built_on_meta_needs_no_weights():
    """No parameter, no buffer: what is built on ``meta`` works on any device, and in either grad mode."""
    with torch.device("meta"):
        rotary = RotaryEmbedding(32, RopeParameters(theta=1e4), max_position=64)
    assert not rotary.state_dict()
    assert not list(rotary.buffers())
    with torch.inference_mode():
        inside = rotary.cos_sin(torch.arange(3))
    outside = rotary.cos_sin(torch.arange(3, dtype=torch.int32))
    assert inside[0].device.type == "cpu"
    assert torch.equal(inside[0], outside[0])
    assert "interleaved=False" in repr(rotary)


@pytest.mark.parametrize("max_position", [0, -1, 2**24 + 1])
def test_rotary_refuses_positions_that_float32_cannot_hold(max_position):
    """Beyond 2**24 two positions would be the same number."""
    with pytest.raises(ValueError, match=f"max_position must be between 1 and 16777216, got {max_position}"):
        RotaryEmbedding(32, RopeParameters(theta=1e4), max_position=max_position)
