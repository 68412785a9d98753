"""``pio config``, ``pio env`` and ``pio plugins``: what holds, and what is here."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import platform


def test_config_show_tells_the_origin_of_each_value(pio, monkeypatch, tmp_path):
    """Flag over environment over project over user over default."""
    user = tmp_path / "xdg-config" / "pio"
    user.mkdir()
    (user / "config.toml").write_text("threads = 2\nseed = 1\ntop_k = 5\n")
    (tmp_path / "work" / "pio.toml").write_text("seed = 2\ntop_k = 6\n")
    monkeypatch.setenv("PIO_TOP_K", "7")
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in pio("config", "show", "--origin").out.splitlines()}
    assert rows["threads"] == ["2", str(user / "config.toml")]
    assert rows["seed"] == ["2", "./pio.toml"]
    assert rows["top_k"] == ["7", "env PIO_TOP_K"]
    assert rows["max_tokens"] == ["512", "default"]
    assert rows["ignore_unknown_keys"] == ["false", "default"]
    assert rows["temperature"] == ["-", "default"]


def test_config_show_without_origin_and_as_json(pio):
    """The same values in three forms."""
    plain = dict(line.split(None, 1) for line in pio("config", "show").out.splitlines())
    values = pio("config", "show", "--json", "--set", "temperature=0.5").json
    origins = pio("config", "show", "--json", "--origin", "--set", "temperature=0.5").json
    assert list(plain) == list(values) == list(origins)
    assert values["temperature"] == 0.5
    assert origins["temperature"] == {"value": 0.5, "origin": "flag --temperature"}
    assert plain["temperature"] == "-"


def test_the_engine_gets_its_settings(monkeypatch):
    """From ``--set`` and from the environment, typed; what nobody said is the default, and one seat."""
    from inference_pio.cli._settings import engine_arguments, resolve
    from inference_pio.core import LLM

    silent = engine_arguments(resolve({}))
    assert silent.keys() <= inspect.signature(LLM).parameters.keys()
    assert silent["max_num_seqs"] == 1
    assert silent["max_num_batched_tokens"] is None
    assert (silent["speculative"], silent["deterministic"], silent["enable_prefix_caching"]) == (None, False, None)
    monkeypatch.setenv("PIO_KV_CACHE_DTYPE", "int8")
    monkeypatch.setenv("PIO_DETERMINISTIC", "on")
    said = engine_arguments(
        resolve({}, ["max_num_batched_tokens=99", "speculative=ngram", "num_speculative_tokens=3", "max_num_seqs=4"])
    )
    assert said["max_num_seqs"] == 4
    assert said["max_num_batched_tokens"] == 99
    assert said["kv_cache_dtype"] == "int8"
    assert engine_arguments(resolve({}, ["speculative=none"]))["speculative"] is None
    assert (said["speculative"], said["num_speculative_tokens"], said["deterministic"]) == ("ngram", 3, True)


def test_the_engine_runs_with_its_settings(pio, tiny_model):
    """Drafts, an int8 cache and small steps change nothing of an answer that is sure of itself."""
    plain = pio("run", "hello", "-m", tiny_model)
    settings = ("speculative=ngram", "kv_cache_dtype=int8", "max_num_batched_tokens=5", "dtype=float32")
    found = pio("run", "hello", "-m", tiny_model, *(part for one in settings for part in ("--set", one)))
    assert (found.code, found.out, found.err) == (0, plain.out, "")


def test_settings_of_the_engine_out_of_bounds(pio, tiny_model):
    """One line each, exit code 2 or 3."""
    for assignment, code, part in (
        ("num_speculative_tokens=0", 2, "num_speculative_tokens"),
        ("num_speculative_tokens=65", 2, "num_speculative_tokens"),
        ("kv_cache_dtype=int4", 2, "int8"),
        ("max_num_batched_tokens=0", 2, "max_num_batched_tokens"),
        ("deterministic=perhaps", 2, "deterministic"),
        ("speculative=ngrm", 3, "'ngram' needs no model"),
    ):
        done = pio("run", "hello", "-m", tiny_model, "--set", assignment)
        assert (done.code, done.err.count("\n")) == (code, 1), assignment
        assert part in done.err


def test_broken_settings_file_is_named(pio, tmp_path):
    """Every command that needs settings says which file is at fault."""
    (tmp_path / "work" / "pio.toml").write_text("modle = 'x'\n")
    done = pio("config", "show")
    assert done.code == 2
    assert "./pio.toml" in done.err
    assert "did you mean 'model'?" in done.err


def test_env_tells_versions_and_the_machine(pio, monkeypatch):
    """What a bug report needs; versions are those of the metadata."""
    monkeypatch.setenv("PIO_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = pio("env", "--json")
    found = done.json
    assert found["pio"] == importlib.metadata.version("inference-pio")
    assert found["python"].endswith(platform.python_version())
    assert found["libraries"]["torch"] == importlib.metadata.version("torch")
    assert {"inference-pio", "pio-core", "pio-interfaces"} <= found["distributions"].keys()
    assert "LlamaForCausalLM" in found["models"]["pio-model-llama"]
    assert found["cpu_count"] >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 2**28
    assert found["variables"] == {"PIO_THREADS": "3"}
    text = pio("env").out
    assert "libraries: torch" in text
    assert "hf_secret" not in text + done.out


def test_plugins_lists_model_families(pio):
    """By manifest: name, architectures, distribution, models."""
    [llama] = [family for family in pio("plugins", "--json").json["models"] if family["name"] == "llama"]
    assert llama["architectures"] == ["LlamaForCausalLM"]
    assert llama["source"].startswith("pio-model-llama ")
    assert "smollm2-135m-instruct" in llama["models"]
    assert "llama" in pio("plugins").out


def test_a_broken_plugin_is_told_and_does_not_hide_the_others(pio, monkeypatch):
    """A problem is a line on standard error, not an end."""
    from inference_pio.core import Registry
    from inference_pio.interfaces import BrokenDependencyError

    whole = Registry.discover()
    problem = BrokenDependencyError("pio-model-odd 9 has no manifest")
    monkeypatch.setattr(Registry, "discover", lambda: Registry(whole.plugins, {"OddForCausalLM": problem}))
    done = pio("plugins")
    assert done.code == 0
    assert "llama" in done.out
    assert done.err == "problem: pio-model-odd 9 has no manifest\n"
    assert json.loads(pio("plugins", "--json").out)["problems"] == ["pio-model-odd 9 has no manifest"]
