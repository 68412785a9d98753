"""config.json and generation_config.json: read under bounds, never a reason to run code."""

from __future__ import annotations

import json

import pytest

from inference_pio.config import read_generation_config, read_model_config
from inference_pio.interfaces import (
    LimitExceededError,
    MalformedFileError,
    ModelNotFoundError,
    RemoteCodeRefusedError,
)

PLAIN = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}


@pytest.fixture
def folder(tmp_path):
    """A function that makes a model folder with these files."""

    def make(**files):
        for name, content in files.items():
            path = tmp_path / f"{name}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path

    return make


def test_config_is_read_as_it_is(folder):
    """No key is added, dropped or changed."""
    assert read_model_config(folder(config=PLAIN)) == PLAIN
    assert read_model_config(str(folder(config=PLAIN))) == PLAIN


def test_missing_config_is_not_found(tmp_path):
    """A folder without config.json is no model: exit code 3, and what a model folder holds."""
    with pytest.raises(ModelNotFoundError, match=r"no config\.json in .* \(a model folder holds") as caught:
        read_model_config(tmp_path)
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError, match="absent"):
        read_model_config(tmp_path / "absent")


def test_generation_config_is_optional(folder, tmp_path):
    """Absent means empty; present is read as it is."""
    assert read_generation_config(tmp_path) == {}
    assert read_generation_config(folder(generation_config={"top_k": 20})) == {"top_k": 20}


@pytest.mark.parametrize("read", [read_model_config, read_generation_config])
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[]", MalformedFileError, "content: must be an object, got list"),
        ("null", MalformedFileError, "content: must be an object, got NoneType"),
        ("{", MalformedFileError, "syntax: not JSON"),
        ('{"a": 1, "a": 2}', MalformedFileError, "a: key given twice"),
        ('{"rms_norm_eps": NaN}', MalformedFileError, "NaN is not JSON"),
        (" " * ((1 << 20) + 1), LimitExceededError, "size: more than 1048576 bytes"),
        ('{"a":' * 65 + "1" + "}" * 65, LimitExceededError, "deeper than 64 levels"),
    ],
)
def test_bad_file_is_refused(folder, read, content, error, message):
    """Both files stand under the same rules."""
    with pytest.raises(error, match=message):
        read(folder(config=content, generation_config=content))


CODE = [
    ("auto_map", {"AutoModelForCausalLM": "modeling_evil.Evil"}),
    ("auto_map", "modeling_evil.Evil"),
    ("custom_pipelines", {"text-generation": {"impl": "evil.Evil"}}),
    ("_attn_implementation", "someone/kernel"),
    ("_attn_implementation", "eager"),
    ("_attn_implementation_internal", "someone/kernel"),
    ("_attn_implementation_internal", {"text": "someone/kernel"}),
    ("hub_kernels", {"RMSNorm": "someone/kernel"}),
    ("use_kernel_forward_from_hub", "RMSNorm"),
    ("use_kernels", True),
    ("use_kernels", ["someone/kernel"]),
    ("a_kernel\nb", "x"),
]


@pytest.mark.parametrize(("key", "value"), CODE)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"text_config": x}, lambda x: {"list": [1, {"deep": x}]}])
def test_code_is_refused_at_any_depth(folder, key, value, wrap):
    """A config that asks for code is refused with the key and the way out."""
    path = folder(config=PLAIN | wrap({key: value}), generation_config=wrap({key: value}))
    for read in (read_model_config, read_generation_config):
        with pytest.raises(
            RemoteCodeRefusedError, match=r"asks to run code .* never done .*PIO_IGNORE_UNKNOWN_KEYS=1"
        ) as caught:
            read(path)
        assert repr(key)[1:-1] in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), CODE)
def test_code_can_be_left_out(folder, key, value):
    """On request the keys are dropped, at any depth, and all others stay."""
    path = folder(config=PLAIN | {key: value, "text_config": {"x": [{key: value, "y": 1}]}})
    assert read_model_config(path, ignore_code=True) == PLAIN | {"text_config": {"x": [{"y": 1}]}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("linear_conv_kernel_dim", 4),
        ("conv_kernel_sizes", [3, [5, 5]]),
        ("use_kernels", False),
        ("hub_kernels", None),
        ("auto_map", None),
        ("_attn_implementation", None),
        ("_attn_implementation_autoset", True),
        ("my_auto_map", "x"),
    ],
)
def test_sizes_and_nothing_are_no_code(folder, key, value):
    """Kernel sizes of convolutions, nulls, switches that are off and similar names pass."""
    config = PLAIN | {key: value}
    assert read_model_config(folder(config=config)) == config
