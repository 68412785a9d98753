"""Without the extra, the torch executor says what to install; what comes before it works."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from inference_pio.core._torch_extra import check_torch_extra
from inference_pio.interfaces import MissingDependencyError

ALL = ["torch", "inference_pio.layers", "inference_pio.attention"]


def test_nothing_is_missing_where_the_extra_is_installed():
    """The test environment has it."""
    check_torch_extra()


@pytest.mark.parametrize(
    ("hidden", "named"),
    [
        (ALL[:1], "torch"),
        (ALL[1:2], "pio-layers"),
        (ALL, "torch, pio-layers, pio-attention"),
    ],
)
def test_what_the_torch_executor_lacks_is_named(monkeypatch, hidden, named):
    """The message names the distributions that are not there, the hint how to get them."""
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)  # as Python marks a module that cannot be found
    message = re.escape(f"the torch executor needs {named}, not installed here")
    with pytest.raises(MissingDependencyError, match=message) as caught:
        check_torch_extra()
    assert caught.value.hint == 'pip install "inference-pio[torch]"'
    assert caught.value.exit_code == 5


def test_a_model_is_understood_without_torch_and_refused_by_the_torch_executor(tmp_path):
    """Config, shape, weight map and tokenizer need no torch; loading says what does, before any weight is read."""
    from inference_pio.testing import tiny_checkpoint

    folder = tiny_checkpoint("llama", tmp_path / "tiny")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ALL!r}))
from pathlib import Path
from inference_pio.core import LLM, Registry, locate_model, open_checkpoint
from inference_pio.interfaces import MissingDependencyError
registry = Registry.discover()
opened = open_checkpoint(locate_model({str(folder)!r}, registry, cache_dir=Path({str(tmp_path)!r})), registry)
print(opened.shape.architecture, len(opened.weight_map.rules) > 0)
try:
    LLM({str(folder)!r}, device="cuda")
except MissingDependencyError as error:
    print(error.hint)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["LlamaForCausalLM True", 'pip install "inference-pio[torch]"']
