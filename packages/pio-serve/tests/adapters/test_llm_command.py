"""The chat endpoint as the command ``llm`` sees it, with nothing but its own settings file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("llm", reason="the command llm, in the group 'test'")

MODEL = "smollm2-135m-instruct"
FRANCE = "Name the capital of France."
MODELS = """\
- model_id: local
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: local
  supports_schema: true
"""


@pytest.fixture
def llm(served, tmp_path):
    """Runs the command with a settings folder of its own, and without whatever plugins are installed."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(model=MODEL, url=served.url))
    (tmp_path / "keys.json").write_text(json.dumps({"local": served.key}))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.mark.parametrize("how", [(), ("--no-stream",)], ids=["stream", "whole"])
def test_llm_answers(served, llm, how):
    """A prompt with a system message and options: what the chat endpoint answers to the same."""
    options = ("-o", "temperature", "0", "-o", "max_tokens", "24")
    done = llm("prompt", FRANCE, "-m", "local", "-s", "You know capitals.", *options, *how)
    assert done.returncode == 0, done.stderr
    messages = [{"role": "system", "content": "You know capitals."}, {"role": "user", "content": FRANCE}]
    chat = served.chat(messages=messages, max_tokens=24)
    assert done.stdout.strip() == chat["choices"][0]["message"]["content"].strip()


def test_llm_goes_on(llm):
    """What was said before is part of the next prompt, and usage is logged."""
    first = llm("prompt", "My name is Ada.", "-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "16")
    assert first.returncode == 0, first.stderr
    again = llm("prompt", "What is my name?", "-c", "-o", "temperature", "0", "-o", "max_tokens", "16", "-u")
    assert again.returncode == 0, again.stderr
    assert "Token usage" in again.stderr
    logged = json.loads(llm("logs", "--json", "-n", "2").stdout)
    assert [entry["prompt"] for entry in logged] == ["My name is Ada.", "What is my name?"]
    assert logged[1]["input_tokens"] > logged[0]["input_tokens"]
    assert logged[0]["conversation_id"] == logged[1]["conversation_id"]


def test_llm_fills_a_form(llm):
    """Its short spelling of schemas."""
    words = ("prompt", "Invent a dog.", "-m", "local", "--schema", "name, good bool", "-o", "temperature", "0")
    done = llm(*words)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert set(made) >= {"name", "good"}
    assert isinstance(made["good"], bool)


def test_llm_tells_what_was_wrong(llm):
    """A server's refusal reaches the person."""
    done = llm("prompt", FRANCE, "-m", "local", "-o", "max_tokens", "999999")
    assert done.returncode == 1
    assert "max_tokens 999999 is above the model's context" in done.stderr
