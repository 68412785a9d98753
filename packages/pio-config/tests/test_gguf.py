"""GGUF metadata in the spelling of config.json: the real file, files of the reference writer, and what is refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from inference_pio.config import build_config, gguf_to_hf, parse_rope, token_ids
from inference_pio.interfaces import (
    ConfigError,
    LinearScaling,
    LongRopeScaling,
    RopeParameters,
    YarnScaling,
)


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """What a dense family declares."""

    hidden_size: Annotated[int, Meta(ge=1)]
    intermediate_size: Annotated[int, Meta(ge=1)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_attention_heads: Annotated[int, Meta(ge=1)]
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: Annotated[int, Meta(ge=1)]
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeParameters


def test_real_smollm2(smollm2_metadata):
    """The real file's metadata become exactly its model's config."""
    raw = gguf_to_hf(smollm2_metadata, architecture="LlamaForCausalLM")
    assert raw == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 30,
        "max_position_embeddings": 8192,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": pytest.approx(1e-5, rel=1e-7),
        "rope_theta": 100000.0,
        "vocab_size": 49152,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert token_ids(raw, "eos_token_id") == (2,)
    config = build_config(Decoder, raw)
    assert config.rope == RopeParameters(theta=100000.0)
    assert config.head_dim * config.num_attention_heads == config.hidden_size


def test_names_agree_with_transformers():
    """Every key that transformers maps for these architectures lands under the name that transformers gives it."""
    ggml = pytest.importorskip("transformers.integrations.ggml", reason="the oracle for names is not installed")
    for arch in ("llama", "qwen2", "qwen3"):
        # rope.dimension_count is head_dim to transformers; here the ratio of the two decides, tested below.
        names = {k: v for k, v in ggml.GGUF_CONFIG_MAPPING[arch].items() if v and k != "rope.dimension_count"}
        metadata = {f"{arch}.{key}": 64 + number for number, key in enumerate(names)} | {"general.architecture": arch}
        raw = gguf_to_hf(metadata, architecture="X")
        assert {name: raw[name] for name in names.values()} == {
            name: metadata[f"{arch}.{key}"] for key, name in names.items()
        }
        assert raw[ggml.GGUF_CONFIG_MAPPING["general"]["architecture"]] == arch


@pytest.fixture
def reference_file(tmp_path):
    """A function that has the gguf package write a file, and read its metadata back."""
    gguf = pytest.importorskip("gguf", reason="the reference writer of GGUF files is not installed")

    def make(arch, fill):
        path = tmp_path / "x.gguf"
        writer = gguf.GGUFWriter(path, arch)
        fill(writer, gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}

    return make


def qwen3(writer, gguf):
    """Metadata as the reference converter writes them for a yarn-scaled Qwen3-0.6B."""
    writer.add_block_count(28)
    writer.add_context_length(131072)
    writer.add_embedding_length(1024)
    writer.add_feed_forward_length(3072)
    writer.add_head_count(16)
    writer.add_head_count_kv(8)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_freq_base(1000000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32768)
    writer.add_token_list(["a", "b", "c", "d"])
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(2)


def test_qwen3_with_yarn(reference_file):
    """Head dimension from key_length, yarn, the vocabulary from the tokens, both end tokens."""
    raw = gguf_to_hf(reference_file("qwen3", qwen3), architecture="Qwen3ForCausalLM")
    assert (raw["head_dim"], raw["vocab_size"], raw["eos_token_id"]) == (128, 4, [3, 2])
    config = build_config(Decoder, raw)
    assert config.rope == RopeParameters(theta=1000000.0, scaling=YarnScaling(factor=4.0, original_max_position=32768))


def test_linear_scaling(reference_file):
    """The linear rule of the reference writer."""

    def fill(writer, gguf):
        writer.add_context_length(4096)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    raw = gguf_to_hf(reference_file("llama", fill), architecture="X")
    assert parse_rope(raw, max_position=4096).scaling == LinearScaling(factor=8.0)


BASE = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 10,
}


def rope_of(**keys):
    """The rotary parameters of BASE with these `llama.rope.*` keys; a double underscore stands for a dot."""
    extra = {f"llama.rope.{key.replace('__', '.')}": value for key, value in keys.items()}
    return parse_rope(gguf_to_hf(BASE | extra, architecture="X"), max_position=512)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({}, None),
        ({"scaling__type": "none", "scaling__factor": 4.0}, None),
        ({"scaling__type": "linear"}, None),
        ({"scaling__type": "linear", "scaling__factor": 3.0}, LinearScaling(factor=3.0)),
        ({"scaling__factor": 1.0}, None),
        ({"scaling__factor": 0.0}, None),
        ({"scaling__factor": 2.0}, LinearScaling(factor=2.0)),
        ({"scale_linear": 4.0}, LinearScaling(factor=4.0)),
        ({"scaling__type": "yarn", "scaling__factor": 2.0}, YarnScaling(factor=2.0, original_max_position=512)),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 2.0,
                "scaling__yarn_beta_fast": 64.0,
                "scaling__yarn_beta_slow": 2.0,
                "scaling__finetuned": True,
                "scaling__attn_factor": 1.0,
                "scaling__yarn_log_multiplier": 0.0,
            },
            YarnScaling(factor=2.0, original_max_position=512, beta_fast=64.0, beta_slow=2.0),
        ),
    ],
)
def test_scaling_keys(keys, scaling):
    """Each spelling of a scaling rule, and each way to say that there is none."""
    assert rope_of(**keys).scaling == scaling


@pytest.mark.parametrize(("rotated", "share"), [(None, 1.0), (16, 1.0), (8, 0.5), (4, 0.25)])
def test_partial_rotation(rotated, share):
    """`rope.dimension_count` below the head dimension rotates a part of each head."""
    assert rope_of(**({} if rotated is None else {"dimension_count": rotated})).partial_rotary_factor == share


def test_partial_rotation_is_exact_after_rounding():
    """The share times the head dimension gives the rotated dimensions back for every even pair that occurs."""
    for head_dim in range(2, 513, 2):
        for rotated in range(2, head_dim, 2):
            metadata = BASE | {"llama.attention.key_length": head_dim, "llama.rope.dimension_count": rotated}
            share = parse_rope(gguf_to_hf(metadata, architecture="X"), max_position=1).partial_rotary_factor
            assert int(head_dim * share) == rotated


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"llama.rope.scaling.type": "longrope"},
            "llama.rope.scaling.type 'longrope' is not supported; supported are none",
        ),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.factor is missing"),
        ({"llama.rope.scaling.type": 3}, "llama.rope.scaling.type 3 is not supported"),
        ({"llama.rope.dimension_count": 17}, "llama.rope.dimension_count 17 must be from 1 to the head dimension 16"),
        ({"llama.rope.dimension_count": 0}, "llama.rope.dimension_count 0 must be"),
        ({"llama.rope.dimension_count": "8"}, "llama.rope.dimension_count '8' must be"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length 8 is not the head dimension 16"),
        ({"general.architecture": None}, "general.architecture must be a non-empty string, got None"),
        ({"general.architecture": ""}, "general.architecture must be a non-empty string, got ''"),
    ],
)
def test_refusals(extra, message):
    """What metadata cannot express, or contradict, is refused under the key's GGUF name."""
    with pytest.raises(ConfigError, match=f"^GGUF metadata: {message}") as caught:
        gguf_to_hf(BASE | extra, architecture="X")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.logit_scale", 0.5),
    ],
)
def test_key_that_changes_the_computation_is_refused_by_a_family_without_it(key, value):
    """An unknown key of the architecture reaches the family's strict check under its GGUF name."""
    raw = gguf_to_hf(BASE | {key: value}, architecture="X")
    assert raw[key] == value
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        build_config(Decoder, raw)
    assert build_config(Decoder, raw, ignore_unknown=True).hidden_size == 64


def test_family_can_read_such_a_key_by_alias():
    """A family that knows the key names its field."""

    class Mixture(Decoder, frozen=True, kw_only=True):
        num_experts: int

    raw = gguf_to_hf(BASE | {"llama.expert_count": 8}, architecture="X")
    assert build_config(Mixture, raw, aliases={"llama.expert_count": "num_experts"}).num_experts == 8


def test_neutral_keys_are_passed_over():
    """Writers state the number of experts, none, for dense models too."""
    extra = {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.tensor_data_layout": "Meta AI original pth"}
    assert gguf_to_hf(BASE | extra, architecture="X") == gguf_to_hf(BASE, architecture="X")


def test_missing_keys_are_reported_by_the_family():
    """A file without the sizes is refused with all that is missing, not with a crash."""
    raw = gguf_to_hf({"general.architecture": "llama"}, architecture="X")
    with pytest.raises(ConfigError, match="hidden_size, intermediate_size, num_hidden_layers, num_attention_heads"):
        build_config(Decoder, raw | {"max_position_embeddings": 8})


@pytest.mark.parametrize("value", ["x", 0, -1, [], None, 1.5])
@pytest.mark.parametrize("key", ["llama.attention.head_count", "llama.embedding_length", "llama.block_count"])
def test_hostile_sizes(key, value):
    """Sizes of the wrong type or sign end in our error."""
    with pytest.raises(ConfigError, match=r"must be|missing"):
        build_config(Decoder, gguf_to_hf(BASE | {key: value}, architecture="X"))


def test_values_per_layer():
    """A value per layer becomes one where all agree, and is refused by a family of equal layers where not."""
    raw = gguf_to_hf(BASE | {"llama.attention.head_count_kv": [2, 2]}, architecture="X")
    assert build_config(Decoder, raw).num_key_value_heads == 2
    raw = gguf_to_hf(BASE | {"llama.attention.head_count_kv": [2, 4]}, architecture="X")
    with pytest.raises(ConfigError, match=r"num_key_value_heads must be .*, got \[2, 4\]"):
        build_config(Decoder, raw)


def test_numpy_values_become_plain():
    """A reader may hand over NumPy scalars and arrays."""
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    metadata = BASE | {
        "llama.attention.head_count_kv": numpy.array([2, 2], dtype=numpy.int32),
        "llama.rope.freq_base": numpy.float32(500000.0),
        "tokenizer.ggml.eos_token_id": numpy.uint32(7),
    }
    raw = gguf_to_hf(metadata, architecture="X")
    assert {type(raw[key]) for key in ("num_key_value_heads", "eos_token_id")} == {int}
    assert build_config(Decoder, raw).rope.theta == 500000.0


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, None),
        ({"eos": 2}, 2),
        ({"eos": 2, "eot": 2}, 2),
        ({"eos": 0, "eot": 3, "eom": 4}, [0, 3, 4]),
        ({"eot": 3}, 3),
    ],
)
def test_end_tokens(ids, expected):
    """End of text, of turn and of message all end a generation."""
    metadata = BASE | {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    assert gguf_to_hf(metadata, architecture="X").get("eos_token_id") == expected


def test_llama3_factors_from_the_tensor():
    """Llama 3's divisors arrive as a tensor and come out as one rule for every length, without attention factor."""
    factors = [1.0, 1.0, 4.5, 8.0, 8.0, 8.0, 8.0, 8.0]
    raw = gguf_to_hf(BASE, architecture="LlamaForCausalLM", rope_factors=factors)
    assert build_config(Decoder, raw).rope.scaling == LongRopeScaling(
        short_factor=tuple(factors),
        long_factor=tuple(factors),
        original_max_position=512,
        factor=1.0,
        attention_factor=1.0,
    )
    with pytest.raises(ConfigError, match=r"rope\.scaling\.type and the tensor rope_freqs\.weight exclude each other"):
        gguf_to_hf(BASE | {"llama.rope.scaling.factor": 2.0}, architecture="X", rope_factors=factors)


def test_llama3_factors_compute_what_transformers_computes():
    """The divisors that the reference converter stores, read by us, give transformers' llama3 frequencies."""
    torch = pytest.importorskip("torch", reason="transformers computes frequencies with torch")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason="the oracle is not installed")
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    llama3 = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072, "rope_theta": 5e5}
    config = transformers.LlamaConfig(rope_scaling=llama3, **sizes)
    expected, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 1.0 / (5e5 ** (torch.arange(0, 64, 2, dtype=torch.float64) / 64))
    factors = (plain / expected).float().tolist()

    raw = gguf_to_hf(BASE | {"llama.rope.freq_base": 5e5}, architecture="LlamaForCausalLM", rope_factors=factors)
    ours = transformers.LlamaConfig(rope_scaling=dict(raw["rope_scaling"]), **sizes)
    for length in (None, 10, 100_000):
        found, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS["longrope"](ours, seq_len=length)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        assert attention_factor == 1.0
