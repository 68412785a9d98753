"""``pio config``, ``pio env`` and ``pio plugins``: what holds, and what is here."""

from __future__ import annotations

import importlib.metadata
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
