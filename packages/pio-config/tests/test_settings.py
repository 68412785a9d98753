"""Settings: which value holds, where it came from, and what is refused."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.config import Settings, load_settings
from inference_pio.interfaces import ConfigError


def test_defaults_hold_where_nothing_is_set(load):
    """Without any source every value is the default, and says so."""
    resolved = load()
    assert resolved.settings == Settings()
    assert {row.origin for row in resolved.rows()} == {"default"}
    assert [row.key for row in resolved.rows()] == [field.name for field in msgspec.structs.fields(Settings)]


def test_each_layer_overrides_the_one_below(load, home, project, write):
    """Flag over environment over project file over user file over default, each with its own origin."""
    write(home / ".config/pio/config.toml", "max_num_seqs = 1\ntop_k = 1\nthreads = 1\nseed = 1\n")
    write(project / "pio.toml", "max_num_seqs = 2\ntop_k = 2\nthreads = 2\n")
    resolved = load(env={"PIO_MAX_NUM_SEQS": "3", "PIO_TOP_K": "3"}, flags={"max_num_seqs": 4})
    found = {row.key: (row.value, row.origin) for row in resolved.rows()}
    assert found["max_num_seqs"] == (4, "flag --max-num-seqs")
    assert found["top_k"] == (3, "env PIO_TOP_K")
    assert found["threads"] == (2, "./pio.toml")
    assert found["seed"] == (1, "~/.config/pio/config.toml")
    assert found["dtype"] == ("auto", "default")


LAYERS = ("user", "project", "env", "flag")
ORIGINS = {
    "user": "{user}",
    "project": "./pio.toml",
    "env": "env PIO_MAX_NUM_SEQS",
    "flag": "flag --max-num-seqs",
}


@given(given_layers=st.dictionaries(st.sampled_from(LAYERS), st.integers(1, 65536)))
def test_highest_layer_that_sets_a_key_wins(tmp_path_factory, given_layers):
    """For any subset of layers the highest one's value and origin hold."""
    folder = tmp_path_factory.mktemp("layers")
    user_file = folder / "user.toml"
    for layer, path in (("user", user_file), ("project", folder / "pio.toml")):
        if layer in given_layers:
            path.write_text(f"max_num_seqs = {given_layers[layer]}")
    resolved = load_settings(
        flags={"max_num_seqs": given_layers.get("flag")},
        env={"HOME": "/home/nobody"}
        | ({"PIO_MAX_NUM_SEQS": str(given_layers["env"])} if "env" in given_layers else {}),
        cwd=folder,
        user_file=user_file,
    )
    winner = next((layer for layer in reversed(LAYERS) if layer in given_layers), None)
    assert resolved.settings.max_num_seqs == (64 if winner is None else given_layers[winner])
    expected = "default" if winner is None else ORIGINS[winner].format(user=user_file)
    assert resolved.origin("max_num_seqs") == expected


def test_rows_are_json_able(load):
    """What `pio config show --json` prints is the rows as they are."""
    rows = msgspec.json.decode(msgspec.json.encode(load(env={"PIO_TOP_P": "0.5"}).rows()))
    assert {"key": "top_p", "value": 0.5, "origin": "env PIO_TOP_P"} in rows


def test_origin_of_unknown_key_raises(load):
    """Asking for a setting that does not exist is a mistake of the calling code."""
    with pytest.raises(KeyError, match="dtyp"):
        load().origin("dtyp")


def test_settings_are_frozen(load):
    """Settings cannot be changed after loading."""
    with pytest.raises(AttributeError, match="immutable"):
        load().settings.dtype = "float16"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PIO_THREADS", "4", 4),
        ("PIO_THREADS", " 4 ", 4),
        ("PIO_THREADS", "none", None),
        ("PIO_THREADS", "NULL", None),
        ("PIO_MAX_TOKENS", "none", None),
        ("PIO_TEMPERATURE", "0", 0.0),
        ("PIO_TEMPERATURE", "0.7", 0.7),
        ("PIO_TOP_K", "-1", -1),
        ("PIO_SEED", "-5", -5),
        ("PIO_DTYPE", "bfloat16", "bfloat16"),
        ("PIO_DEVICE", "cuda:1", "cuda:1"),
        ("PIO_MAX_NUM_BATCHED_TOKENS", "1024", 1024),
        ("PIO_MAX_NUM_BATCHED_TOKENS", "none", None),
        ("PIO_KV_CACHE_DTYPE", "int8", "int8"),
        ("PIO_ENABLE_PREFIX_CACHING", "off", False),
        ("PIO_ENABLE_PREFIX_CACHING", "none", None),
        ("PIO_SPECULATIVE", "ngram", "ngram"),
        ("PIO_SPECULATIVE", "none", "none"),
        ("PIO_NUM_SPECULATIVE_TOKENS", "8", 8),
        ("PIO_DETERMINISTIC", "1", True),
        ("PIO_SYSTEM", "none", "none"),
        ("PIO_SYSTEM", "12", "12"),
        ("PIO_CACHE_DIR", "/x", "/x"),
        ("PIO_HUB_ENDPOINT", "https://hub.example", "https://hub.example"),
        *(("PIO_IGNORE_UNKNOWN_KEYS", text, True) for text in ("1", "true", "True", "YES", "on")),
        *(("PIO_IGNORE_UNKNOWN_KEYS", text, False) for text in ("0", "false", "FALSE", "no", "off")),
    ],
)
def test_environment_text_becomes_typed(load, name, text, value):
    """Numbers, truth values and none are read from text; strings stay as they are."""
    resolved = load(env={name: text})
    key = name.removeprefix("PIO_").lower()
    found = getattr(resolved.settings, key)
    assert (found, type(found)) == (value, type(value))
    assert resolved.origin(key) == f"env {name}"


def test_empty_variable_counts_as_unset(load):
    """`PIO_MODEL= pio run` is the usual way to take a variable back."""
    resolved = load(env={"PIO_MODEL": ""})
    assert (resolved.settings.model, resolved.origin("model")) == (Settings().model, "default")


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ({"threads": 4}, "threads", 4),
        ({"threads": "4"}, "threads", 4),
        ({"ignore_unknown_keys": "true"}, "ignore_unknown_keys", True),
        ({"ignore_unknown_keys": False}, "ignore_unknown_keys", False),
        ({"max_tokens": "none"}, "max_tokens", None),
        ({"model": "x"}, "model", "x"),
    ],
)
def test_flags_may_be_typed_or_text(load, flags, key, value):
    """Flags come typed from the command line's parser or as text from `--set key=value`."""
    resolved = load(flags=flags)
    assert getattr(resolved.settings, key) == value
    assert resolved.origin(key) == f"flag --{key.replace('_', '-')}"


def test_flag_of_none_was_not_given(load):
    """An option that the user left out does not hide what lies below."""
    assert load(flags={"dtype": None}, env={"PIO_DTYPE": "float16"}).settings.dtype == "float16"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"env": {"PIO_THREADS": "abc"}},
            r"^env PIO_THREADS: threads must be an integer from 1 to 4096 or none, got 'abc'$",
        ),
        ({"env": {"PIO_THREADS": "0"}}, r"from 1 to 4096 or none, got '0'$"),
        ({"env": {"PIO_THREADS": "2.5"}}, r"got '2.5'$"),
        (
            {"env": {"PIO_DTYPE": "bf16"}},
            r"^env PIO_DTYPE: dtype must be one of .*, got 'bf16' \(did you mean 'bfloat16'\?\)$",
        ),
        ({"env": {"PIO_TEMPERATURE": "-1"}}, r"temperature must be a finite number from 0 to 100 or none, got '-1'$"),
        ({"env": {"PIO_TEMPERATURE": "nan"}}, r"got 'nan'$"),
        ({"env": {"PIO_TOP_P": "0"}}, r"above 0 and at most 1 or none, got '0'$"),
        ({"env": {"PIO_SEED": "9" * 30}}, r"got '9{30}'$"),
        ({"env": {"PIO_IGNORE_UNKNOWN_KEYS": "maybe"}}, r"must be true or false, got 'maybe'$"),
        ({"env": {"PIO_DEVICE": "cuda:1\n"}}, r"device must be auto, cpu, cuda or cuda:N, got 'cuda:1\\n'$"),
        ({"env": {"PIO_HUB_ENDPOINT": "ftp://x"}}, r"hub_endpoint must be an http\(s\) URL or none, got 'ftp://x'$"),
        ({"flags": {"max_tokens": 0}}, r"^flag --max-tokens: max_tokens must be .*, got 0$"),
        ({"flags": {"model": ""}}, r"^flag --model: model must be a non-empty string, got ''$"),
        ({"flags": {"temperature": float("inf")}}, r"^flag --temperature: .*, got inf$"),
        ({"flags": {"top_p": True}}, r"^flag --top-p: .*, got True$"),
        ({"flags": {"dtyp": "x"}}, r"^flag --dtyp: unknown setting 'dtyp' \(did you mean 'dtype'\?\)$"),
        ({"flags": {"max-tokens": 1}}, r"unknown setting 'max-tokens' \(did you mean 'max_tokens'\?\)$"),
        ({"flags": {"zzz": 1}}, r"unknown setting 'zzz' \(settings are model, executor, device, dtype, "),
        ({"env": {"PIO_DTYP": "x"}}, r"^env PIO_DTYP: unknown setting \(did you mean PIO_DTYPE\?\)$"),
        ({"env": {"PIO_DEBUGG": "1"}}, r"^env PIO_DEBUGG: unknown setting \(did you mean PIO_DEBUG\?\)$"),
    ],
)
def test_refusal_names_origin_key_value_and_way_out(load, source, message):
    """One line with origin, key, value, what is allowed and the nearest known name; exit code 2."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(**source)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["PIO_DEBUG", "PIO_NO_PROGRESS", "PIO_HOME_OF_SOMETHING_ELSE", "PIONEER", "pio_dtype"])
def test_other_variables_are_left_alone(load, name):
    """Our own switches that are no settings, and other programs' variables, do not disturb."""
    assert load(env={name: "1"}).settings == Settings()


def test_a_bad_value_is_refused_even_where_it_is_overridden(load, project, write):
    """A mistake in a file is reported now, not on the day its override goes."""
    write(project / "pio.toml", "threads = -1")
    with pytest.raises(ConfigError, match=r"^\./pio\.toml: threads must be"):
        load(flags={"threads": 2})


def test_process_environment_and_folder_are_the_default(tmp_path, monkeypatch, write):
    """Without arguments the process's own environment and current folder are read."""
    write(tmp_path / "pio.toml", "top_k = 7")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("PIO_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIO_DTYPE", "float16")
    resolved = load_settings()
    assert (resolved.settings.top_k, resolved.settings.dtype) == (7, "float16")
