"""What start-up may cost: which modules are imported, and when."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "tokenizers", "jinja2", "huggingface_hub")


def loaded_after(code):
    """Which of the heavy modules a fresh interpreter has imported after running ``code``."""
    program = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_costs_nothing():
    """The libraries that do the work come with their first use."""
    assert loaded_after("import inference_pio.processing") == set()


def test_a_tokenizer_needs_only_tokenizers():
    """Building, encoding and decoding import no template engine, no NumPy and no hub client."""
    code = """
from inference_pio.processing import IncrementalDetokenizer, tokenizer_from_gguf
tokens = ["a", "b", "ab"]
metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["a b"]}
tokenizer = tokenizer_from_gguf(metadata)
assert tokenizer.encode("abb") == [2, 1]
detokenizer = IncrementalDetokenizer(tokenizer)
assert detokenizer.push(2) + detokenizer.finish() == "ab"
"""
    assert loaded_after(code) == {"tokenizers"}


def test_a_template_needs_only_jinja():
    """Rendering imports the template engine and nothing else."""
    code = """
from inference_pio.processing import ChatTemplate
template = ChatTemplate("{{ messages[0].content }}", special_tokens={})
assert "jinja2" not in sys.modules
assert template.render([{"role": "user", "content": "x"}]) == "x"
"""
    assert loaded_after(code) == {"jinja2"}


@pytest.mark.parametrize("name", ["ChatTemplate", "IncrementalDetokenizer", "Tokenizer", "tokenizer_from_gguf"])
def test_public_names_are_there(name):
    """The package's front says what it offers."""
    from inference_pio import processing

    assert name in processing.__all__
    assert getattr(processing, name).__doc__
