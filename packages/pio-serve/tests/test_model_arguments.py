"""What the command line calls models, and sizes of memory."""

from __future__ import annotations

import click
import pytest

from inference_pio.config import load_settings
from inference_pio.interfaces import ConfigError
from inference_pio.serve import ServeSettings
from inference_pio.serve._models.files import memory_budget, model_spec, named_models
from inference_pio.serve._settings import MEMORY_SHARE
from inference_pio.serve._size import SizeType


def test_models_have_names_of_their_own_or_given_ones():
    """What stands before the first equals sign, whatever comes behind it."""
    assert named_models(["a", "b=org/b", "c:v1=./c=2.gguf"], None) == [
        (None, "a"),
        ("b", "org/b"),
        ("c:v1", "./c=2.gguf"),
    ]
    assert named_models(["a"], "chat") == [("chat", "a")]


def test_file_whose_name_has_an_equals_sign_is_a_model(tmp_path, monkeypatch):
    """As it stands, where it is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.gguf").write_bytes(b"")
    assert named_models(["a=b.gguf"], None) == [(None, "a=b.gguf")]


@pytest.mark.parametrize(
    ("arguments", "served_as", "said"),
    [
        (["=m"], None, "'=m' is not NAME=MODEL"),
        (["name="], None, "'name=' is not NAME=MODEL"),
        (["a b=m"], None, "'a b=m' is not NAME=MODEL"),
        (["-a=m"], None, "'-a=m' is not NAME=MODEL"),
        (["x" * 129 + "=m"], None, "is not NAME=MODEL"),
        (["näme=m"], None, "is not NAME=MODEL"),
        (["a=m", "a=n"], None, "two models are called 'a'"),
        (["a", "b"], "chat", "--served-model-name names one model, and there are 2"),
        (["a=m"], "chat", "--served-model-name 'chat' and 'a=m' both name the model"),
    ],
)
def test_names_that_are_none_are_refused(arguments, served_as, said):
    """With the argument."""
    with pytest.raises(ConfigError) as caught:
        named_models(arguments, served_as)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1), ("8589934592", 2**33), ("8GiB", 2**33), ("8G", 2**33), ("8gi", 2**33), ("8 GiB", 2**33),
        ("1.5k", 1536), ("8GB", 8 * 10**9), ("512MiB", 2**29), ("1T", 2**40), ("7b", 7),
    ],
)  # fmt: skip
def test_sizes(text, nbytes):
    """Powers of two, but where the unit is one of powers of ten."""
    assert SizeType().convert(text, None, None) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "8X", "GiB", "8GiBs", "1e9", "0.1", "8 iB", "nan", "٨GiB"])
def test_sizes_that_are_none_are_refused(text):
    """With what is meant."""
    with pytest.raises(click.BadParameter, match="is no size: give bytes, or a number with KiB, MiB, GiB or TiB"):
        SizeType().convert(text, None, None)


def test_several_models_have_a_bound_and_one_has_none():
    """A share of what is free, unless one is given."""
    from inference_pio.core import free_memory

    settings = load_settings(flags={"executor": "native"}).settings
    assert memory_budget(None, settings, 1) is None
    assert memory_budget(5, settings, 1) == memory_budget(5, settings, 2) == 5
    free = free_memory(executor="native")
    assert 0.5 * MEMORY_SHARE * free < memory_budget(None, settings, 2) < 2 * MEMORY_SHARE * free


def test_draft_model_goes_with_one_model_without_a_budget():
    """Nobody counts its memory; n-grams take none."""
    drafted = load_settings(flags={"executor": "native", "speculative": "smaller"}).settings
    assert memory_budget(None, drafted, 1) is None
    for asked, count in ((None, 2), (2**30, 1)):
        with pytest.raises(ConfigError, match="speculative 'smaller' is a model that drafts for one model"):
            memory_budget(asked, drafted, count)
    assert memory_budget(9, load_settings(flags={"speculative": "ngram"}).settings, 2) == 9


def test_plan_knows_the_name_only_where_it_must(tiny_model):
    """One model says it when it is loaded: the start need not wait for what is installed to be looked through."""
    settings = load_settings(flags={"model": str(tiny_model("of-its-own")), "executor": "native"}).settings
    assert model_spec(settings, served_as=None).plan(None).name == ""
    assert model_spec(settings, served_as=None, by_name=True).plan(None).name == "of-its-own"
    planned = model_spec(settings, served_as=None).plan(2**30)
    assert planned.name == "of-its-own"
    assert 2**18 < planned.nbytes < 2**25
    assert planned.max_model_len == 256
    assert model_spec(settings, served_as=None).label == "of-its-own"


@pytest.mark.parametrize(
    ("name", "value"), [("memory_budget", 0), ("unload_idle_s", -1.0), ("unload_idle_s", 0), ("preload", "some")]
)
def test_settings_out_of_bounds_are_refused(name, value):
    """With name and value."""
    with pytest.raises(ConfigError, match=f"{name} must be .*, got {value!r}"):
        ServeSettings(**{name: value})
