"""What check_api says of a toy workspace after its first release, and of a portion of this one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="needs griffe, which `nox -s tools` installs")

from api_changes import breaking_changes
from check_api import check, render
from release_refusal import RefusedError
from workspace import ROOT, read_members

SCRIPT = ROOT / "tools" / "check_api.py"
PORTION = "packages/pio-top/src/inference_pio/top"
RELEASED = '''\
from dataclasses import dataclass

LIMIT = 3

def rotate(angle, *, steps=1):
    """Turn."""

def _hidden(x):
    """Nobody's business."""

class Base:
    """Under it."""

@dataclass(frozen=True)
class Point(Base):
    """A place."""

    x: int
    y: int = 0

    def move(self, by):
        """Go."""

    def _own(self):
        """Inside."""
'''


def git(root, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def released(toy):
    """The toy workspace after ``pio-top`` 0.1.0, whose changelog has it and whose fragments are gone."""
    toy.write(f"{PORTION}/_shapes.py", RELEASED)
    exports = "from inference_pio.top._shapes import LIMIT, Base, Point, rotate\nimport inference_pio.base\n"
    toy.write(f"{PORTION}/__init__.py", f'{exports}__all__ = ["LIMIT", "Base", "Point", "rotate"]\n')
    toy.write("packages/pio-top/CHANGELOG.md", "# Changelog\n\n## 0.1.0 (2026-01-01)\n")
    (toy.root / "packages/pio-top/changelog.d/initial.added.md").unlink()
    git(toy.root, "init", "--quiet")
    git(toy.root, "add", ".")
    git(toy.root, "commit", "--quiet", "--message", "Release")
    git(toy.root, "tag", "pio-top-v0.1.0")
    return toy


def run(toy, *arguments):
    command = [sys.executable, SCRIPT, "--root", toy.root, *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def report(toy, name="pio-top"):
    """Without a process of its own, which takes most of the time."""
    return check(toy.root, read_members(toy.root)[name], None)


def problems(toy):
    return report(toy).problems


def test_before_a_first_release_there_is_nothing_to_compare(released):
    """It says so, and is content."""
    done = run(released, "pio-base")
    assert (done.returncode, done.stdout, done.stderr) == (0, "pio-base: no release yet, so nothing to compare\n", "")


def test_the_command_fails_with_what_breaks(released):
    """Exit code 1; the same as JSON."""
    released.replace(f"{PORTION}/_shapes.py", "steps=1", "steps=2")
    done = run(released, "pio-top")
    assert done.returncode == 1
    assert (
        "    problem: inference_pio.top.rotate(steps): parameter default was changed: 1 -> 2: 0.1.1 would"
        in done.stdout
    )
    [found] = json.loads(run(released, "pio-top", "--json").stdout)
    assert (found["released"], found["next"], found["breaking"]) == ("0.1.0", "0.1.1", False)


def test_what_breaks_nobody_is_fine(released):
    """More of everything, and other things inside."""
    released.replace(f"{PORTION}/_shapes.py", "def rotate(angle, *, steps=1)", "def rotate(angle, *, steps=1, more=0)")
    released.replace(f"{PORTION}/_shapes.py", "def _hidden(x)", "def _hidden(y, z)")
    released.replace(f"{PORTION}/_shapes.py", "    def _own(self)", "    def stay(self)")
    told = "pio-top: 0.1.0 -> 0.1.1, not announced as breaking: 0 changes may break somebody"
    assert render(report(released)) == told


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("def rotate(", "def turn(", "rotate: public object was removed"),
        ("rotate(angle,", "rotate(way,", "rotate(angle): parameter was removed"),
        ("rotate(angle,", "rotate(angle, speed,", "rotate(speed): parameter was added as required"),
        ("steps=1", "steps", "rotate(steps): parameter is now required"),
        ("steps=1", "steps=2", "rotate(steps): parameter default was changed: 1 -> 2"),
        ("(angle, *, steps=1)", "(*, angle, steps=1)", "rotate(angle): parameter kind was changed"),
        ("class Base:", "def Base():", "Base: public object points to a different kind of object: class -> function"),
        ("LIMIT = 3", "def LIMIT():\n    '''No more.'''", "LIMIT: public object points to a different kind of object"),
        ("Point(Base)", "Point", "Point: base class was removed: Base"),
        ("def move(", "def walk(", "Point.move: public object was removed"),
        ("    y: int = 0\n", "", "Point.y: public object was removed"),
        ("y: int = 0", "y: int = 1", "Point.__init__(y): parameter default was changed: 0 -> 1"),
    ],
)  # fmt: skip
def test_what_breaks_somebody_is_found(released, old, new, change):
    """Under the name that users know, whatever module it stands in; and how to announce it."""
    released.replace(f"{PORTION}/_shapes.py", old, new)
    found = problems(released)
    assert any(problem.startswith(f"inference_pio.top.{change}") for problem in found)
    assert all("add a `changed` or `removed` fragment" in problem for problem in found)
    assert render(report(released)).count("    problem: ") == len(found)


def test_a_name_that_is_no_longer_offered_is_found(released):
    """It is still there, inside."""
    released.replace(f"{PORTION}/__init__.py", "Base, Point, rotate\n", "Base, Point\n")
    released.replace(f"{PORTION}/__init__.py", ', "rotate"]', "]")
    assert len(problems(released)) == 1
    assert problems(released)[0].startswith("inference_pio.top.rotate: public object was removed: 0.1.1 would come")


@pytest.mark.parametrize("kind", ["changed", "removed"])
def test_an_announced_break_is_fine(released, kind):
    """The fragment makes the next version say it."""
    released.replace(f"{PORTION}/_shapes.py", "steps=1", "steps=2")
    released.write(f"packages/pio-top/changelog.d/steps.{kind}.md", "Two steps.\n")
    assert problems(released) == []
    told = render(report(released))
    assert "pio-top: 0.1.0 -> 0.2.0, announced as breaking: 1 changes may break somebody\n" in told
    assert "    breaks: inference_pio.top.rotate(steps): parameter default was changed: 1 -> 2" in told


def test_a_prepared_break_is_fine(released):
    """The version was raised already, and its fragments are in the changelog."""
    released.replace(f"{PORTION}/_shapes.py", "steps=1", "steps=2")
    released.replace("packages/pio-top/pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    released.replace("packages/pio-top/CHANGELOG.md", "## 0.1.0", "## 0.2.0 (2026-02-02)\n\n## 0.1.0")
    assert problems(released) == []
    released.replace("packages/pio-top/pyproject.toml", 'version = "0.2.0"', 'version = "0.1.1"')
    released.replace("packages/pio-top/CHANGELOG.md", "## 0.2.0", "## 0.1.1")
    [problem] = problems(released)
    assert "1 -> 2: 0.1.1 would come after 0.1.0" in problem


def waive(toy, change, reason="Looked at."):
    toy.write("packages/pio-top/api-waivers.toml", f'[[waiver]]\nchange = "{change}"\nreason = "{reason}"\n')


def test_a_waiver_is_for_one_change(released):
    """With its reason; another change needs another."""
    released.replace(f"{PORTION}/_shapes.py", "steps=1", "steps=2")
    waive(released, "inference_pio.top.rotate(steps): parameter default was changed: 1 -> 2")
    assert problems(released) == []
    told = "    waived: inference_pio.top.rotate(steps): parameter default was changed: 1 -> 2 (Looked at.)"
    assert told in render(report(released))
    released.replace(f"{PORTION}/_shapes.py", "def move(", "def walk(")
    [problem] = problems(released)
    assert problem.startswith("inference_pio.top.Point.move: public object was removed")


def test_a_waiver_that_nothing_needs_is_found(released):
    """It would hide the same change the next time."""
    waive(released, "inference_pio.top.rotate: public object was removed")
    [problem] = problems(released)
    waiver = "'inference_pio.top.rotate: public object was removed'"
    assert problem == f"packages/pio-top/api-waivers.toml: nothing needs the waiver of {waiver}; remove it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[waiver]\n", "Expected"),
        ("[[waivers]]\nchange = 'x'\n", "has waivers; it may hold tables [[waiver]] alone"),
        ("[[waiver]]\nchange = 'x'\n", "a waiver is a change and a reason, not {'change': 'x'}"),
        ("[[waiver]]\nchange = 'x'\nreason = ' '\n", "a waiver is a change and a reason"),
        ("[[waiver]]\nchange = 'x'\nreason = 'y'\n" * 2, "two waivers of 'x'"),
    ],
)
def test_waivers_that_cannot_be_read(released, text, told):
    """A line that says where and what, and no traceback."""
    released.write("packages/pio-top/api-waivers.toml", text)
    with pytest.raises(RefusedError, match=r"api-waivers\.toml: ") as refused:
        report(released)
    assert told in str(refused.value)


def test_a_tag_without_the_distribution(released):
    """A tag that was put on another commit."""
    git(released.root, "tag", "pio-side-v0.9.0", "HEAD")
    shutil.rmtree(released.root / "packages/pio-side")
    released.add("pio-side")
    git(released.root, "rm", "-r", "--quiet", "--cached", "packages/pio-side")
    git(released.root, "commit", "--quiet", "--message", "Lose it")
    git(released.root, "tag", "--force", "pio-side-v0.9.0", "HEAD")
    done = run(released, "pio-side")
    assert done.returncode == 1
    assert done.stderr.startswith("check_api: pio-side-v0.9.0: ")


def test_an_unknown_name(released):
    """The names that there are, in the message."""
    done = run(released, "pio-topp")
    assert done.returncode == 2
    assert "no distribution is called pio-topp; there are pio-base" in done.stderr


@pytest.mark.parametrize("name", ["pio-interfaces", "pio-cache"])
def test_a_portion_of_this_workspace(tmp_path, name):
    """Against itself nothing breaks; each public name that is taken away is missed, by its public name."""
    member = read_members()[name]
    [leaf] = member.leaves
    shutil.copytree(member.folder / "src", tmp_path / "old")
    shutil.copytree(member.folder / "src", tmp_path / "new")
    assert breaking_changes(leaf, tmp_path / "old", tmp_path / "new") == []
    first = Path(tmp_path, "new", *leaf.split("."), "__init__.py")
    text = first.read_text(encoding="utf-8")
    names = [line.strip().strip('",') for line in text.partition("__all__ = [")[2].partition("]")[0].splitlines()]
    for lost in list(filter(None, names))[:3]:
        first.write_text(text.replace(f'"{lost}"', '""'), encoding="utf-8")
        assert f"{leaf}.{lost}: public object was removed" in "\n".join(
            breaking_changes(leaf, tmp_path / "old", tmp_path / "new")
        )
