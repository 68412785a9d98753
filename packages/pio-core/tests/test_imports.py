"""What importing costs: everything above the executor stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inference_pio.core

FOLDER = Path(inference_pio.core.__file__).parent
LATER = {"torch", "transformers", "huggingface_hub", "llguidance", "jinja2", "tqdm", "psutil", "yaml", "asyncio"}
"""What a short run does without, or waits for only when it comes to that."""


def imported_by(code: str, *arguments: str) -> set[str]:
    """Top-level modules that ``code`` imports in a fresh process, beyond those that Python starts with."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    """Names come when they are used; before, not even NumPy does."""
    assert imported_by("import inference_pio.core").isdisjoint(LATER | {"numpy", "tokenizers", "msgspec"})


def test_importing_the_api_imports_no_torch():
    """``LLM`` brings NumPy, and none of what only some runs need."""
    found = imported_by("from inference_pio.core import LLM, SamplingParams")
    assert "numpy" in found
    assert found.isdisjoint(LATER | {"tokenizers"})


def test_opening_a_model_and_its_tokenizer_imports_no_torch(default_model_path):
    """The real file, its config, plugin and tokenizer; not even the template engine, as no template is rendered."""
    code = """
from pathlib import Path
from inference_pio.core import Registry, locate_model, open_checkpoint
registry = Registry.discover()
checkpoint = open_checkpoint(locate_model(sys.argv[1], registry, cache_dir=Path("nowhere")), registry)
tokenizer = checkpoint.tokenizer()
assert tokenizer.decode(tokenizer.encode("Paris")) == "Paris"
"""
    found = imported_by(code, str(default_model_path))
    assert "tokenizers" in found
    assert found.isdisjoint(LATER)


def test_public_names_are_there():
    """Each resolves to an object of its name, and ``dir`` shows names that were not used yet."""
    names = inference_pio.core.__all__
    assert [getattr(inference_pio.core, name).__name__ for name in names] == names
    assert dir(inference_pio.core) == sorted(names)


def test_an_unknown_name_is_an_attribute_error():
    """A wrong name fails as in any module."""
    with pytest.raises(AttributeError, match=r"module 'inference_pio.core' has no attribute 'LLm'"):
        inference_pio.core.LLm  # noqa: B018 - the lookup is what is tested


def test_only_the_modules_of_torch_name_it():
    """No other module imports torch, or a package built on it, not even inside a function."""
    heavy = {"torch", "inference_pio.layers", "inference_pio.attention"}
    for path in FOLDER.glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module)
        assert path.name.startswith("torch_") == bool(imported & heavy), path.name
