"""What distribution_table writes of a toy workspace, and that the page of this one is current."""

import json
import subprocess
import sys

import pytest

from distribution_table import MEASURED, PAGE, page, read_measured, refresh
from workspace import ROOT, read_members

SCRIPT = ROOT / "tools" / "distribution_table.py"
FIGURES = {
    "date": "2026-01-02",
    "machine": {"system": "Linux x86_64", "python": "Python 3.12.1"},
    "distributions": {
        "pio-top": {
            "own_bytes": 43_210,
            "bytes_without_torch": 12_345_678,
            "bytes_with_torch": 4_321_000_000,
            "modules": 321,
            "seconds": 0.1234,
        }
    },
}


def run(toy, *arguments):
    command = [sys.executable, SCRIPT, "--root", toy.root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def documented(toy):
    """A distribution with all there is to say of it, measured."""
    extras = '[project.optional-dependencies]\ntorch = ["torch>=2"]\n'
    extras += "[tool.pio-workspace.light]\nmax-mb = 20\nmax-modules = 400\n"
    toy.add("pio-top", dependencies=["numpy>=1", "pio-base>=0.1,<0.2"], extras=extras)
    toy.replace("packages/pio-top/pyproject.toml", 'version = "0.1.0"', 'version = "0.1.0"\ndescription = "A | B."')
    toy.write(MEASURED, json.dumps(FIGURES))
    toy.write("docs/index.md")
    return toy


def test_a_row_says_what_it_is_and_what_it_costs(documented):
    """Siblings apart from others, lowest first; figures with their limits, the day and the machine."""
    lines = page(read_members(documented.root), read_measured(documented.root)).splitlines()
    rows = [line for line in lines if line.startswith("| `pio-top`")]
    assert rows == [
        "| `pio-top` | 0.1.0 | A \\| B. | `base` | `numpy` | `torch` |",
        "| `pio-top` | 0.04 | 12 (20) | 4,321 | 321 (400) | 0.12 |",
    ]
    names = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert names.index("pio-base") < names.index("pio-top")
    assert "| `pio-base` |  |  |  |  |  |" in lines
    [measured] = [line for line in lines if line.startswith("Measured")]
    assert measured.startswith("Measured on 2026-01-02 (Linux x86_64, Python 3.12.1) ")


def test_a_page_that_is_not_current_is_found(documented):
    """And how to write it; written once, it is."""
    assert run(documented, "--check").stderr.startswith("docs/distributions.md: is not what the tree says: run ")
    assert run(documented).returncode == 0
    assert run(documented, "--check").returncode == 0
    documented.replace("packages/pio-top/pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"')
    assert run(documented, "--check").returncode == 1


def test_a_release_keeps_the_page_current(released):
    """What prepares one writes the page along, where there is one, and stages it."""
    released.write("packages/pio-top/changelog.d/speed.fixed.md", "Faster.\n")
    assert refresh(released.root) == []
    released.write(PAGE, "")
    assert refresh(released.root) == [released.root / PAGE]
    released.commit("page")
    command = [sys.executable, ROOT / "tools" / "release.py", "prepare", "pio-top", "--root", released.root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "docs/distributions.md" in released.git("diff", "--staged", "--name-only")
    assert "| `pio-top` | 0.1.1 |" in (released.root / PAGE).read_text(encoding="utf-8")


def test_the_page_of_this_workspace_is_current():
    """Every distribution is on it, measured, and held to limits."""
    members = read_members()
    text = page(members, read_measured(ROOT))
    assert (ROOT / PAGE).read_text(encoding="utf-8") == text
    assert read_measured(ROOT)["distributions"].keys() == members.keys()
    for name, member in members.items():
        assert member.light.max_mb is not None, name
        assert member.light.max_modules is not None, name
