"""What each command imports: help and version nothing heavy, and only what computes needs torch."""

from __future__ import annotations

import gc
import re
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "rich", "huggingface_hub", "tokenizers", "jinja2", "transformers")


def imported(*arguments: str) -> set[str]:
    """Top-level packages that ``pio`` with ``arguments`` imports."""
    command = [sys.executable, "-X", "importtime", "-m", "inference_pio.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return {name.split(".")[0] for name in re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE)}


def test_importing_the_command_line_imports_nothing_heavy():
    """Commands are imported when they are used; other distributions are not looked for before."""
    code = "import sys, inference_pio.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inference_pio" in done.stdout.split()
    assert set(done.stdout.split()).isdisjoint({*HEAVY, "click", "msgspec", "llguidance"})


def test_loading_spares_the_collector_and_gives_it_back(pio, tiny_model, monkeypatch):
    """No collection while libraries are imported; afterwards it works as before, also after an error."""
    seen = []
    from inference_pio import core

    class Watched(core.LLM):
        def __init__(self, *args: object, **options: object) -> None:
            seen.append(gc.isenabled())
            super().__init__(*args, **options)

    monkeypatch.setattr(core, "LLM", Watched)
    assert pio("run", "hi", "-m", tiny_model).code == 0
    assert pio("run", "hi", "-m", "no-such-model").code == 3
    assert seen == [False, False]
    assert gc.isenabled()


def test_exit_handlers_run_and_the_exit_code_is_kept(tmp_path):
    """The process ends without tearing modules down, but not without what was registered for its end."""
    written = tmp_path / "written"
    code = (
        f"import atexit, sys; atexit.register(lambda: open({str(written)!r}, 'w').close()); sys.argv = ['pio', 'rnu']; "
        "from inference_pio.cli import script; script()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("pio: error: no command 'rnu'")
    assert written.exists()


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), (), ("run", "--help"), ("chat", "--help")])
def test_help_and_version_import_nothing_heavy(arguments):
    """Neither torch nor numpy, nor any other library that takes time."""
    assert imported(*arguments).isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [("config", "show"), ("env",)])
def test_settings_and_environment_need_no_numpy(arguments):
    """Versions come from metadata, not from importing what they are of."""
    assert imported(*arguments).isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [("ls",), ("plugins",)])
def test_listing_needs_no_torch(arguments):
    """Names come from manifests and records."""
    assert imported(*arguments).isdisjoint({"torch", "rich", "huggingface_hub", "transformers"})


def test_describing_a_model_needs_no_torch(tiny_model):
    """Headers are enough."""
    assert imported("show", str(tiny_model)).isdisjoint({"torch", "rich", "huggingface_hub", "transformers"})


def test_running_imports_no_rich_without_a_terminal(tiny_model):
    """A bar that nobody sees costs nothing; the same for the hub's client where no hub is asked."""
    found = imported("run", "hi", "-m", str(tiny_model), "--max-tokens", "1", "--executor", "torch")
    assert "torch" in found
    assert found.isdisjoint({"rich", "huggingface_hub", "transformers"})


def test_running_natively_imports_no_torch(tiny_model):
    """That is what makes it start fast, and run where torch is not installed."""
    found = imported("run", "hi", "-m", str(tiny_model), "--max-tokens", "1", "--executor", "native")
    assert found.isdisjoint({"torch", "rich", "huggingface_hub", "transformers"})
