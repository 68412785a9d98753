"""Rotary parameters: both spellings, every rule, held against transformers' own reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.config import parse_rope
from inference_pio.interfaces import (
    ConfigError,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeParameters,
    YarnScaling,
)

CONTEXT = 8192
SHORT = [1.0 + 0.25 * i for i in range(8)]
LONG = [2.0 + 0.5 * i for i in range(8)]

# (rule, its keys, the scaling they mean at a context of 8192)
RULES = [
    ("default", {}, None),
    ("linear", {"factor": 2.0}, LinearScaling(factor=2.0)),
    ("dynamic", {"factor": 4}, DynamicScaling(factor=4.0, original_max_position=CONTEXT)),
    (
        "dynamic",
        {"factor": 4.0, "original_max_position_embeddings": 2048},
        DynamicScaling(factor=4.0, original_max_position=CONTEXT),
    ),
    (
        "llama3",
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 2048},
        Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=2048),
    ),
    (
        "llama3",
        {"factor": 32, "low_freq_factor": 1, "high_freq_factor": 4},
        Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=CONTEXT),
    ),
    ("yarn", {"factor": 2.0}, YarnScaling(factor=2.0, original_max_position=CONTEXT)),
    (
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 2048},
        YarnScaling(factor=4.0, original_max_position=2048),
    ),
    (
        "yarn",
        {
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 64,
            "beta_slow": 2,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
            "truncate": False,
        },
        YarnScaling(
            factor=40.0,
            original_max_position=4096,
            beta_fast=64.0,
            beta_slow=2.0,
            mscale=1.0,
            mscale_all_dim=0.707,
            truncate=False,
        ),
    ),
    (
        "yarn",
        {
            "factor": None,
            "original_max_position_embeddings": 2048,
            "beta_fast": 0,
            "beta_slow": None,
            "mscale": 0,
            "attention_factor": 1.5,
            "truncate": None,
        },
        YarnScaling(factor=4.0, original_max_position=2048, attention_factor=1.5),
    ),
    (
        "longrope",
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 2048},
        LongRopeScaling(short_factor=tuple(SHORT), long_factor=tuple(LONG), original_max_position=2048, factor=4.0),
    ),
    (
        "longrope",
        {"short_factor": SHORT, "long_factor": LONG, "factor": 32.0, "attention_factor": 1.25},
        LongRopeScaling(
            short_factor=tuple(SHORT),
            long_factor=tuple(LONG),
            original_max_position=CONTEXT,
            factor=32.0,
            attention_factor=1.25,
        ),
    ),
    (
        "longrope",
        {"short_factor": SHORT, "long_factor": LONG},
        LongRopeScaling(short_factor=tuple(SHORT), long_factor=tuple(LONG), original_max_position=CONTEXT, factor=1.0),
    ),
]
OUTSIDE = [{}, {"rope_theta": 5e5}, {"rope_theta": 1000000, "partial_rotary_factor": 0.5}]


def spellings(rule, keys, outside):
    """The same rule as checkpoints write it: the old way under both names, the new way, and mixtures of them."""
    yield outside | {"rope_scaling": keys | {"type": rule}}
    yield outside | {"rope_scaling": keys | {"rope_type": rule}}
    yield outside | {"rope_scaling": keys | {"rope_type": rule, "type": rule}, "rope_parameters": None}
    yield outside | {"rope_parameters": keys | {"rope_type": rule}, "rope_scaling": None}
    yield {"rope_parameters": keys | outside | {"rope_type": rule}}
    if not keys:
        yield outside
        yield outside | {"rope_scaling": None}
        yield outside | {"rope_parameters": {}}


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(("rule", "keys", "scaling"), RULES)
def test_every_spelling_means_the_same(rule, keys, scaling, outside):
    """The parameters depend on what is said, not on where it is written."""
    expected = RopeParameters(
        theta=float(outside.get("rope_theta", 10000.0)),
        partial_rotary_factor=outside.get("partial_rotary_factor", 1.0),
        scaling=scaling,
    )
    for raw in spellings(rule, keys, outside):
        assert parse_rope(raw, max_position=CONTEXT) == expected, raw


def reference(raw):
    """What transformers makes of `raw` by the time its rotary embedding computes, in the names of our parameters."""
    transformers = pytest.importorskip("transformers", reason="the oracle for rotary parameters is not installed")
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=CONTEXT, **raw)
    config.standardize_rope_params()
    found = config.rope_parameters
    scaling = {
        key: found[key]
        for key in ("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "short_factor", "long_factor")
        if found.get(key) is not None
    }
    rule = found["rope_type"]
    if rule == "dynamic":
        scaling["original_max_position"] = config.max_position_embeddings
    if rule in ("llama3", "yarn", "longrope"):
        scaling["original_max_position"] = found["original_max_position_embeddings"]
    if rule in ("yarn", "longrope"):
        scaling.setdefault("factor", CONTEXT / found["original_max_position_embeddings"])
    if rule == "yarn":
        scaling["beta_fast"] = found.get("beta_fast") or 32
        scaling["beta_slow"] = found.get("beta_slow") or 1
        scaling["truncate"] = found.get("truncate", True)
        scaling |= {key: found[key] for key in ("mscale", "mscale_all_dim") if found.get(key)}
    return rule, found["rope_theta"], found.get("partial_rotary_factor", 1.0), scaling


CLASSES = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
}


def agrees_with_reference(raw):
    """Whether `parse_rope` and transformers read `raw` alike."""
    rule, theta, share, scaling = reference(raw)
    for key in ("short_factor", "long_factor"):
        if key in scaling:
            scaling[key] = tuple(scaling[key])
    expected = CLASSES[rule](**scaling) if rule != "default" else None
    assert parse_rope(raw, max_position=CONTEXT) == RopeParameters(
        theta=theta, partial_rotary_factor=share, scaling=expected
    )


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(
    ("rule", "keys"),
    [(rule, {k: v for k, v in keys.items() if k != "truncate" or v is not None}) for rule, keys, _ in RULES],
)
def test_rules_agree_with_transformers(rule, keys, outside):
    """Every rule in every spelling: the parameters that transformers standardises to."""
    for raw in spellings(rule, keys, outside):
        agrees_with_reference(raw)


@pytest.mark.parametrize("table", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 2048}])
@pytest.mark.parametrize(
    "keys",
    [
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
    ],
)
def test_original_length_beside_the_table_wins(table, inside, keys):
    """Phi-3 writes the length of pre-training beside the table; rules without such a length do not look at it."""
    if keys["rope_type"] == "linear":
        inside = {}
    agrees_with_reference({table: keys | inside, "original_max_position_embeddings": 1024})


@given(
    inner_theta=st.none() | st.floats(1.5, 1e9),
    outer_theta=st.none() | st.floats(1.5, 1e9),
    inner_share=st.none() | st.sampled_from([0.25, 0.5, 1.0]),
    outer_share=st.none() | st.sampled_from([0.25, 0.5, 1.0]),
)
def test_inside_wins_over_beside(inner_theta, outer_theta, inner_share, outer_share):
    """Base and rotated share: within the table, else beside it, else the default."""
    inside = {"rope_theta": inner_theta, "partial_rotary_factor": inner_share}
    beside = {"rope_theta": outer_theta, "partial_rotary_factor": outer_share}
    parsed = parse_rope(beside | {"rope_parameters": inside}, max_position=CONTEXT)
    assert parsed.theta == (inner_theta or outer_theta or 10000.0)
    assert parsed.partial_rotary_factor == (inner_share or outer_share or 1.0)


def test_default_theta_is_the_familys():
    """A family whose reference has another default base says so."""
    assert parse_rope({}, max_position=1, default_theta=1e6).theta == 1e6
    assert parse_rope({"rope_theta": 5.0}, max_position=1, default_theta=1e6).theta == 5.0


YARN = {"rope_type": "yarn", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "^model config: rope_scaling: unknown rope type 'mrope'; known are default, dynamic, .*, yarn",
        ),
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, r"unknown rope type 'yarm'.*\(did you mean 'yarn'\?\)$"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "unknown rope type 'proportional'"),
        ({"rope_parameters": {"rope_type": 3}}, "unknown rope type 3;"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, "of type default: unknown key 'mrope_section'"),
        ({"rope_scaling": {"factor": 2.0}}, "of type default: unknown key 'factor'"),
        ({"rope_scaling": YARN | {"beta_fats": 1}}, r"unknown key 'beta_fats' \(did you mean 'beta_fast'\?\)$"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "type 'linear' and rope_type 'yarn' disagree",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 4.0}},
            "rope_scaling and rope_parameters disagree",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters has a table per layer type",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling must be a table, got 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling of type linear: factor missing$"),
        ({"rope_scaling": {"type": "yarn"}}, "factor or original_max_position_embeddings missing$"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor missing$"),
        ({"rope_scaling": {"type": "longrope", "short_factor": SHORT}}, "long_factor missing$"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be a finite number from 1 to .*, got 0.5$"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "got nan$"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "got '2'$"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "must be an integer from 1 .*, got 0$"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": "x"},
            "original_max_position_embeddings must be .*, got 'x'$",
        ),
        (
            {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}},
            "beta_fast must be at least beta_slow 2.0, got 1.0$",
        ),
        ({"rope_scaling": YARN | {"attention_factor": -1}}, "attention_factor must be .*, got -1$"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "high_freq_factor must be above low_freq_factor 1.0, got 1.0$",
        ),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 0}}, "low_freq_factor must be .*, got 0$"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG[1:]}},
            "must be of one length, got 8 and 7$",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []}},
            r"short_factor must be .*, got \[\]$",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": [0.0], "long_factor": [1.0]}}, r"got \[0.0\]$"),
        ({"rope_theta": 1}, "rope_theta must be a finite number above 1 .*, got 1$"),
        ({"rope_theta": float("inf")}, "got inf$"),
        ({"rope_theta": True}, "got True$"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor must be .*, got 0$"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be .*, got 1.5$"),
    ],
)
def test_refusals(raw, message):
    """What cannot be computed, or only guessed, is one line that names the place and the value."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_rope(raw, max_position=CONTEXT)
    assert "\n" not in str(caught.value)


def test_two_spellings_that_agree():
    """Some checkpoints carry the same table under both names, for old and new readers."""
    raw = {"rope_scaling": YARN, "rope_parameters": dict(YARN)}
    assert parse_rope(raw, max_position=CONTEXT) == parse_rope({"rope_scaling": YARN}, max_position=CONTEXT)


def test_unknown_keys_can_be_passed_over():
    """The setting that ignores unknown keys reaches into the table."""
    raw = {"rope_scaling": YARN | {"finetuned": True}}
    assert parse_rope(raw, max_position=CONTEXT, ignore_unknown=True).scaling == YarnScaling(
        factor=2.0, original_max_position=CONTEXT
    )
