"""The group ``pio bench``: one table, help that imports nothing, and text for people."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import pytest

from inference_pio.benchmarks._command import COMMANDS, bench
from inference_pio.benchmarks._options import parse_counts
from inference_pio.benchmarks._text import number, printable, table
from inference_pio.interfaces import InvalidRequestError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists(name):
    """Under the name that the table gives it, with help of its own."""
    module, _, attribute = COMMANDS[name][1].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_the_group_is_registered():
    """``pio`` finds it by entry point."""
    from importlib.metadata import entry_points

    [found] = entry_points(group="pio.commands", name="bench")
    assert found.load() is bench


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_all_commands(pio_bench, arguments):
    """With and without ``--help``."""
    done = pio_bench(*arguments)
    assert done.code == 0
    for name, (text, _) in COMMANDS.items():
        assert f"  {name} " in done.out
        assert text in done.out


@pytest.mark.parametrize("command", [["bench", "--help"], ["bench", "run", "--help"], ["bench", "compare", "--help"]])
def test_help_imports_nothing_heavy(command):
    """Neither NumPy nor psutil, and no other command."""
    code = f"import sys; from inference_pio.cli import main; main({command!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint({"numpy", "psutil", "torch", "rich", "inference_pio.benchmarks._report"})


def test_pio_help_does_not_import_the_group():
    """The CLI knows it by name alone."""
    code = "import sys; from inference_pio.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "inference_pio.benchmarks" not in done.stderr
    assert "bench" in done.stdout


def test_no_such_command(pio_bench):
    """Exit code 2."""
    done = pio_bench("rnu")
    assert done.code == 2
    assert "rnu" in done.err


def test_limits_for_people_and_for_programs(pio_bench):
    """A row per number of threads."""
    told = pio_bench("limits", "--quick", "--threads", "1,2", "--json")
    assert [each["threads"] for each in told.json["limits"]] == [1, 2]
    assert told.json["machine"]["logical_cores"] >= 1
    shown = pio_bench("limits", "--quick", "--threads", "1")
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["THREADS", "1"]
    assert pio_bench("limits", "--threads", "0").code == 2


def test_counts_are_positive_integers_between_commas():
    """In their order; anything else is named."""
    assert parse_counts("--threads", "8, 1,2") == [8, 1, 2]
    for text in ("", "0", "1,", "a", "-1", "1.5", "\u0663", "9" * 9):
        with pytest.raises(InvalidRequestError, match="is no list of positive integers"):
            parse_counts("--threads", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.00001234, "1.23e-05"), (0.012345, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"),
        (123.4, "123"), (12345.6, "12,346"), (-12.34, "-12.3"), (1.5e12, "1.5e+12"),
    ],
)  # fmt: skip
def test_numbers_have_three_or_four_digits(value, text):
    """Whatever their size."""
    assert number(value) == text


def test_tables_align_and_spell_out_controls():
    """Numbers flush right; nothing that moves a cursor."""
    assert table([("a\x1b", "1"), ("b", "20")], heads=("NAME", "N"), numeric=("N",)) == (
        "NAME    N\na\\x1b   1\nb      20"
    )
    assert printable("a\nb\x9b") == "a\\x0ab\\x9b"
