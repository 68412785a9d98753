"""Sampling parameters: what is accepted, what is refused, and in which words."""

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from types import MappingProxyType

import pytest

from inference_pio.interfaces import (
    BeamSearchParams,
    InvalidRequestError,
    PoolingParams,
    SamplingParams,
    StructuredOutputs,
)

REFUSED = [
    ("n", 0, r"^n must be between 1 and 128, got 0$"),
    ("n", 129, r"^n must be between 1 and 128, got 129$"),
    ("n", 1.0, r"^n must be an integer, got 1\.0$"),
    ("n", True, r"^n must be an integer, got True$"),
    ("n", "1", r"^n must be an integer, got '1'$"),
    ("n", None, r"^n must be an integer, got None$"),
    ("temperature", -0.1, r"^temperature must be at least 0 and at most 100, got -0\.1$"),
    ("temperature", 100.5, r"^temperature must be at least 0 and at most 100, got 100\.5$"),
    ("temperature", math.nan, r"^temperature must be at least 0 .*got nan$"),
    ("temperature", math.inf, r"^temperature must be at least 0 .*got inf$"),
    ("temperature", "hot", r"^temperature must be a number, got 'hot'$"),
    ("temperature", None, r"^temperature must be a number, got None$"),
    ("temperature", True, r"^temperature must be a number, got True$"),
    ("temperature", 1j, r"^temperature must be a number, got 1j$"),
    ("top_k", -2, r"^top_k must be between -1 and 2147483648, got -2$"),
    ("top_k", 0.5, r"^top_k must be an integer, got 0\.5$"),
    ("top_p", 0, r"^top_p must be above 0 and at most 1, got 0$"),
    ("top_p", 1.01, r"^top_p must be above 0 and at most 1, got 1\.01$"),
    ("min_p", -0.01, r"^min_p must be at least 0 and at most 1, got -0\.01$"),
    ("min_p", 2, r"^min_p must be at least 0 and at most 1, got 2$"),
    ("typical_p", 0, r"^typical_p must be above 0 and at most 1, got 0$"),
    ("best_of", 0, r"^best_of must be between 1 and 128, got 0$"),
    ("bad_words", "no", r"^bad_words must be a list of non-empty strings, got 'no'$"),
    ("bad_words", [], r"^bad_words must be a list of non-empty strings, got \[\]$"),
    ("bad_words", ["a", ""], r"^bad_words must be a list of non-empty strings"),
    ("bad_words", ["a"] * 257, r"^bad_words must have at most 256 entries, got 257$"),
    ("structured_outputs", {"regex": "a"}, r"^structured_outputs must be StructuredOutputs, got \{'regex': 'a'\}$"),
    ("max_tokens", 0, r"^max_tokens must be between 1 and 2147483648, got 0$"),
    ("max_tokens", -1, r"^max_tokens must be between 1 and 2147483648, got -1$"),
    ("max_tokens", 16.0, r"^max_tokens must be an integer, got 16\.0$"),
    ("min_tokens", -1, r"^min_tokens must be between 0 and 16, got -1$"),
    ("min_tokens", 17, r"^min_tokens must be between 0 and 16, got 17$"),
    ("stop", 7, r"^stop must be a string or a list of strings, got 7$"),
    ("stop", ["a", 7], r"^stop must be a string or a list of strings, got \['a', 7\]$"),
    ("stop", b"a", r"^stop must be a string or a list of strings, got b'a'$"),
    ("stop", {"a": 1}, r"^stop must be a string or a list of strings, got \{'a': 1\}$"),
    ("stop", "", r"^stop must not contain an empty string$"),
    ("stop", ["a", ""], r"^stop must not contain an empty string$"),
    ("stop", ["a"] * 17, r"^stop must have at most 16 strings, got 17$"),
    ("stop_token_ids", 7, r"^stop_token_ids must be a list of non-negative integers, got 7$"),
    ("stop_token_ids", [1, -1], r"^stop_token_ids must be a list of non-negative integers, got \[1, -1\]$"),
    ("stop_token_ids", [1.0], r"^stop_token_ids must be a list of non-negative integers, got \[1\.0\]$"),
    ("stop_token_ids", [True], r"^stop_token_ids must be a list of non-negative integers, got \[True\]$"),
    ("seed", 0.5, r"^seed must be an integer, got 0\.5$"),
    ("seed", 2**64, r"^seed must be between -9223372036854775808 and 18446744073709551615, got 18446744073709551616$"),
    ("logprobs", -1, r"^logprobs must be between 0 and 20, got -1$"),
    ("logprobs", 21, r"^logprobs must be between 0 and 20, got 21$"),
    ("logprobs", True, r"^logprobs must be an integer, got True$"),
    ("prompt_logprobs", 21, r"^prompt_logprobs must be between 0 and 20, got 21$"),
    ("repetition_penalty", 0, r"^repetition_penalty must be at least 0.01 and at most 100, got 0$"),
    ("repetition_penalty", 1e-40, r"^repetition_penalty must be at least 0.01 and at most 100, got 1e-40$"),
    ("repetition_penalty", -1.0, r"^repetition_penalty must be at least 0.01 and at most 100, got -1\.0$"),
    ("presence_penalty", 2.5, r"^presence_penalty must be at least -2 and at most 2, got 2\.5$"),
    ("frequency_penalty", -2.5, r"^frequency_penalty must be at least -2 and at most 2, got -2\.5$"),
    ("logit_bias", [1], r"^logit_bias must map token ids to numbers, got \[1\]$"),
    ("logit_bias", {-1: 1.0}, r"^logit_bias must have non-negative token ids as keys, got -1$"),
    ("logit_bias", {"a": 1.0}, r"^logit_bias must have non-negative token ids as keys, got 'a'$"),
    ("logit_bias", {"-1": 1.0}, r"^logit_bias must have non-negative token ids as keys, got '-1'$"),
    ("logit_bias", {1.5: 1.0}, r"^logit_bias must have non-negative token ids as keys, got 1\.5$"),
    ("logit_bias", {True: 1.0}, r"^logit_bias must have non-negative token ids as keys, got True$"),
    ("logit_bias", {None: 1.0}, r"^logit_bias must have non-negative token ids as keys, got None$"),
    ("logit_bias", {5: 101}, r"^logit_bias\[5\] must be at least -100 and at most 100, got 101$"),
    ("logit_bias", {5: math.nan}, r"^logit_bias\[5\] must be at least -100 and at most 100, got nan$"),
    ("logit_bias", {5: "1"}, r"^logit_bias\[5\] must be a number, got '1'$"),
    ("ignore_eos", 1, r"^ignore_eos must be True or False, got 1$"),
    ("skip_special_tokens", None, r"^skip_special_tokens must be True or False, got None$"),
    ("include_stop_str_in_output", "yes", r"^include_stop_str_in_output must be True or False, got 'yes'$"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED, ids=[f"{name}={value!r}" for name, value, _ in REFUSED])
def test_a_bad_value_is_refused(name, value, message):
    """One line that names the parameter, the rule and the value; a ValueError too, with the usage exit code."""
    with pytest.raises(InvalidRequestError, match=message) as raised:
        SamplingParams(**{name: value})
    assert isinstance(raised.value, ValueError)
    assert raised.value.exit_code == 2


ACCEPTED = [
    {"n": 128},
    {"temperature": 0},
    {"temperature": Fraction(1, 2)},
    {"top_k": -1},
    {"top_k": 2**31},
    {"top_p": 1},
    {"min_p": 1.0},
    {"max_tokens": None, "min_tokens": 10**6},
    {"max_tokens": 5, "min_tokens": 5},
    {"stop": ["a"] * 16},
    {"stop": ("a", "\n")},
    {"seed": -(2**63)},
    {"seed": 2**64 - 1},
    {"logprobs": 0, "prompt_logprobs": 20},
    {"repetition_penalty": 100},
    {"repetition_penalty": 0.01},
    {"presence_penalty": -2, "frequency_penalty": 2},
    {"logit_bias": {}},
]


@pytest.mark.parametrize("values", ACCEPTED, ids=str)
def test_a_value_at_its_bound_is_accepted(values):
    """Bounds are inclusive, and any real or integral number will do."""
    params = SamplingParams(**values)
    for name, value in values.items():
        kept = getattr(params, name)
        assert list(kept) == list(value) if name == "stop" else kept == value


def test_defaults_are_those_of_vllm():
    """A script that relied on defaults keeps its meaning."""
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_tokens) == (1, 1.0, 1.0, 0, 16)
    assert (params.stop, params.stop_token_ids, params.logit_bias, params.seed) == ((), (), None, None)
    assert not params.greedy


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_strings_are_a_tuple(stop, expected):
    """However they were given; a lone string is one stop string, not its characters."""
    assert SamplingParams(stop=stop).stop_strings == expected


@pytest.mark.parametrize("bias", [{5: 1, "7": -2.5}, MappingProxyType({5: 1, 7: -2.5})])
def test_logit_bias_is_copied(bias):
    """Keys become integers (JSON has only strings), values floats; changing the argument later changes nothing."""
    params = SamplingParams(logit_bias=bias)
    assert params.logit_bias == {5: 1.0, 7: -2.5}
    assert params.logit_bias is not bias


def test_parameters_are_frozen_and_hashable():
    """Checked once, where they are made; so they must not change, and may be shared."""
    params = SamplingParams(temperature=0.0, stop=["a"], logit_bias={1: 2.0})
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'temperature'"):
        params.temperature = 1.0
    assert params == SamplingParams(temperature=0, stop=("a",), logit_bias={1: 2})
    assert hash(params) == hash(SamplingParams(temperature=0, stop=("a",), logit_bias={1: 2}))
    assert params.greedy


def test_parameters_have_names_only():
    """Positions would silently change their meaning when a parameter is added."""
    with pytest.raises(TypeError, match="positional argument"):
        SamplingParams(0.5)
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"^structured outputs need exactly one of json, regex, choice and grammar, got none$"),
        ({"regex": "a", "choice": ["b"]}, r"got \['regex', 'choice'\]$"),
        ({"json": 7}, r"^json must be a schema as text or as a mapping, got 7$"),
        ({"regex": ""}, r"^regex must be a non-empty string, got ''$"),
        ({"grammar": b"x"}, r"^grammar must be a non-empty string, got b'x'$"),
        ({"choice": []}, r"^choice must be a list of non-empty strings, got \[\]$"),
    ],
)
def test_structures_that_say_nothing_are_refused(arguments, message):
    """Exactly one form, of the right type."""
    with pytest.raises(InvalidRequestError, match=message):
        StructuredOutputs(**arguments)


def test_structures_are_kept():
    """An empty schema is a schema; choices become a tuple."""
    assert StructuredOutputs(json={}).json == {}
    assert StructuredOutputs(choice=["a", "b"]).choice == ("a", "b")
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="a+"), bad_words=["x"], n=2, best_of=5)
    assert params.structured_outputs.regex == "a+"
    assert params.bad_words == ("x",)
    assert params.num_sequences == 5
    assert SamplingParams(n=3).num_sequences == 3


def test_best_of_is_at_least_n():
    """There is nothing to choose from otherwise."""
    with pytest.raises(InvalidRequestError, match=r"^best_of must be between 3 and 128, got 2$"):
        SamplingParams(n=3, best_of=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_width": 0}, r"^beam_width must be between 1 and 128, got 0$"),
        ({"beam_width": 2, "max_tokens": 0}, r"^max_tokens must be between 1"),
        ({"beam_width": 2, "length_penalty": math.nan}, r"^length_penalty must be at least -10 .* got nan$"),
        ({"beam_width": 2, "ignore_eos": 1}, r"^ignore_eos must be True or False, got 1$"),
    ],
)
def test_beams_out_of_bounds_are_refused(arguments, message):
    """With the value and the bounds."""
    with pytest.raises(InvalidRequestError, match=message):
        BeamSearchParams(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": "max"}, "pooling must be 'mean' or 'last', got 'max'"),
        ({"pooling": None}, "pooling must be 'mean' or 'last', got None"),
        ({"pooling": ["mean"]}, r"pooling must be 'mean' or 'last', got \['mean'\]"),
        ({"normalize": 1}, "normalize must be True or False, got 1"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_bad_poolings_are_refused(values, message):
    """A vector is made in one of the known ways, or not at all."""
    with pytest.raises(InvalidRequestError, match=message):
        PoolingParams(**values)


def test_pooling_defaults_to_the_normalised_mean():
    """The default is what retrieval most often wants; equal parameters are equal."""
    params = PoolingParams()
    assert (params.pooling, params.normalize) == ("mean", True)
    assert PoolingParams(pooling="last", normalize=False) == PoolingParams(normalize=False, pooling="last")
    assert params != PoolingParams(pooling="last")
