"""What a change affects: on toy workspaces, and in a git repository of its own."""

import json
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from affected import affected, changed_paths
from workspace import closure, read_members

SCRIPT = Path(__file__).resolve().parent.parent / "affected.py"
EVERYTHING = ["pio-base", "pio-side", "pio-top"]


def paths(*names):
    return [PurePosixPath(name) for name in names]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ((), []),
        (("packages/pio-top/src/inference_pio/top/__init__.py",), ["pio-top"]),
        (("packages/pio-side/README.md",), ["pio-side"]),
        (("packages/pio-base/pyproject.toml",), EVERYTHING),
        (("packages/pio-top/README.md", "packages/pio-side/README.md"), ["pio-side", "pio-top"]),
        (("pyproject.toml",), EVERYTHING),
        (("tools/affected.py",), EVERYTHING),
        ((".github/workflows/ci.yml", "packages/pio-top/README.md"), EVERYTHING),
        (("packages/pio-gone/pyproject.toml",), EVERYTHING),
        (("packages/README.md",), EVERYTHING),
    ],
)
def test_paths_select_distributions(toy, changed, expected):
    """A member selects itself and all whose environments hold it; any other path selects everything."""
    assert affected(paths(*changed), read_members(toy.root), toy.root) == expected


def test_groups_do_not_chain(toy):
    """What a sibling needs for its own tests is not in the environment of those that need the sibling."""
    toy.add("pio-roof", dependencies=["pio-side>=0.1,<0.2"])
    members = read_members(toy.root)
    assert closure("pio-roof", members, groups=True) == {"pio-roof", "pio-side"}
    assert closure("pio-side", members, groups=True) == {"pio-side", "pio-base"}
    assert closure("pio-side", members, groups=False) == {"pio-side"}
    assert "pio-roof" not in affected(paths("packages/pio-base/x.py"), members, toy.root)


def test_chains_and_extras_count(toy):
    """A change reaches those above through any number of steps, and through extras."""
    toy.add("pio-roof", dependencies=["pio-top>=0.1,<0.2"])
    toy.add("pio-all", extras="[project.optional-dependencies]\nall = ['pio-roof>=0.1,<0.2']")
    members = read_members(toy.root)
    assert affected(paths("packages/pio-top/x.py"), members, toy.root) == ["pio-all", "pio-roof", "pio-top"]


def test_groups_in_a_circle_end(toy):
    """Two members that test with each other are both affected by either."""
    toy.replace("packages/pio-base/pyproject.toml", "'pytest>=8.4'", "'pytest>=8.4', 'pio-side>=0.1,<0.2'")
    members = read_members(toy.root)
    assert affected(paths("packages/pio-side/x.py"), members, toy.root) == ["pio-base", "pio-side"]
    assert affected(paths("packages/pio-base/x.py"), members, toy.root) == EVERYTHING


@pytest.fixture
def repository(toy):
    """The toy workspace under git, with a branch ``main`` of one commit."""

    def git(*arguments):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=toy.root, check=True, capture_output=True)

    toy.git = git
    git("init", "--initial-branch=main")
    git("add", ".")
    git("commit", "--message=first")
    return toy


def run(root, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--root", root, *arguments], capture_output=True, text=True, check=False
    )


def test_a_branch_is_compared_with_where_it_left(repository):
    """What went on in the base after the branch left it is not a change of the branch."""
    repository.git("switch", "--create", "topic")
    repository.write("packages/pio-top/src/inference_pio/top/ä file.py", "")
    repository.git("add", ".")
    repository.git("commit", "--message=topic")
    repository.git("switch", "main")
    repository.write("packages/pio-side/README.md", "more\n")
    repository.git("commit", "--all", "--message=meanwhile")
    expected = paths("packages/pio-top/src/inference_pio/top/ä file.py")
    assert changed_paths(repository.root, "main", "topic") == expected
    done = run(repository.root, "--base", "main", "--head", "topic", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, ["pio-top"])


def test_a_moved_file_touches_both_places(repository):
    """A file moved from one distribution into another affects both."""
    repository.git("mv", "packages/pio-top/README.md", "packages/pio-side/MOVED.md")
    repository.git("commit", "--message=move")
    done = run(repository.root, "--base", "HEAD~1")
    assert done.stdout.split() == ["pio-side", "pio-top"]


def test_no_change_affects_nothing(repository):
    """An empty matrix is an empty list."""
    assert json.loads(run(repository.root, "--base", "HEAD", "--json").stdout) == []


@pytest.mark.parametrize("arguments", [("--all",), ("--base", "0" * 40)])
def test_everything_is_named_on_request(toy, arguments):
    """At night, and for a branch that has no commit to compare with; git is not asked."""
    assert json.loads(run(toy.root, *arguments, "--json").stdout) == EVERYTHING


def test_an_unknown_revision_is_an_error(repository):
    """Not the empty list: a job that sees nothing to do would pass."""
    done = run(repository.root, "--base", "nowhere", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("affected: git: fatal: ")
