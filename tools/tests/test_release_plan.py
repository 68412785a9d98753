"""What the release tools plan and prepare, on toy workspaces under git."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from release_order import dependency_order
from release_plan import make_plan
from release_prepare import make_preparation
from release_refusal import RefusedError
from workspace import read_members

SCRIPT = Path(__file__).resolve().parent.parent / "release.py"
BASE, TOP, SIDE = "packages/pio-base", "packages/pio-top", "packages/pio-side"
PORTION = f"{BASE}/src/inference_pio/base/__init__.py"
USE = f"{TOP}/src/inference_pio/top/__init__.py"


def run(toy, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--root", toy.root], capture_output=True, text=True, check=False
    )


def releases(toy):
    return [(step.name, step.bump, step.next) for step in make_plan(read_members(toy.root))]


def fragment(toy, folder, kind):
    toy.write(f"{folder}/changelog.d/it.{kind}.md", "Something.\n")


def test_first_releases_keep_their_versions(released):
    """A version that the changelog does not have is released as it is declared."""
    released.add("pio-roof", dependencies=["pio-top>=0.1,<0.2"])
    assert releases(released) == [("pio-roof", "first", "0.1.0")]


def test_nothing_waits_without_fragments(released):
    """After a release there is nothing to do, and that is said."""
    assert releases(released) == []
    assert run(released, "plan").stdout == "nothing to release: no fragments wait\n"
    assert json.loads(run(released, "plan", "--json").stdout) == {"releases": []}


@pytest.mark.parametrize(
    ("version", "kinds", "expected"),
    [
        ("0.1.0", ["fixed"], "0.1.1"),
        ("0.1.0", ["added"], "0.1.1"),
        ("0.1.0", ["dependencies"], "0.1.1"),
        ("0.1.0", ["changed"], "0.2.0"),
        ("0.1.7", ["removed", "fixed"], "0.2.0"),
        ("1.2.3", ["fixed"], "1.2.4"),
        ("1.2.3", ["added", "fixed"], "1.3.0"),
        ("1.2.3", ["changed"], "2.0.0"),
    ],
)
def test_fragments_decide_the_bump(released, version, kinds, expected):
    """At 0.x a break raises the minor and all else the patch; from 1.0 on it is major, minor, patch."""
    released.replace(f"{SIDE}/pyproject.toml", 'version = "0.1.0"', f'version = "{version}"')
    released.write(f"{SIDE}/CHANGELOG.md", f"# Changelog\n\n## {version} (2026-01-01)\n")
    for index, kind in enumerate(kinds):
        released.write(f"{SIDE}/changelog.d/{index}.{kind}.md", "Something.\n")
    assert [version for _, _, version in releases(released)] == [expected]


def test_a_fix_concerns_its_own_distribution_alone(released):
    """Bounds of one minor admit a patch, so nobody else is named."""
    fragment(released, BASE, "fixed")
    [step] = make_plan(read_members(released.root))
    assert (step.name, step.next, step.excluded_by, step.dependents) == ("pio-base", "0.1.1", (), [])


def test_a_break_names_its_dependents(released):
    """A published bound that excludes the new version makes a release of its own, after it; a group's does not."""
    fragment(released, BASE, "removed")
    assert releases(released) == [("pio-base", "minor", "0.2.0"), ("pio-top", "patch", "0.1.1")]
    step, _ = make_plan(read_members(released.root))
    assert step.dependents == ["pio-top"]
    assert [(bound.dependent, bound.where) for bound in step.excluded_by] == [
        ("pio-side", "group 'test'"),
        ("pio-top", "dependencies"),
    ]
    printed = run(released, "plan").stdout
    assert "pio-base 0.1.0 -> 0.2.0 (minor): 1 removed\n" in printed
    assert "    excluded by pio-top (dependencies): pio-base>=0.1,<0.2\n" in printed
    assert "pio-top 0.1.0 -> 0.1.1 (patch): needs the new pio-base\n" in printed


def test_the_order_is_that_of_dependencies(toy):
    """Each after what it needs, extras included; names decide where nothing else does."""
    toy.add("pio-all", extras="[project.optional-dependencies]\nall = ['pio-top>=0.1,<0.2', 'pio-all[x]>=0.1,<0.2']")
    assert dependency_order(read_members(toy.root)) == ["pio-base", "pio-side", "pio-top", "pio-all"]


def test_a_cycle_is_refused(toy):
    """None of those in it could be the first on an index."""
    toy.replace(f"{BASE}/pyproject.toml", "dependencies = []", "dependencies = ['pio-top>=0.1,<0.2']")
    with pytest.raises(
        RefusedError, match=r"dependency cycle: pio-(base -> pio-top -> pio-base|top -> pio-base -> pio-top)"
    ):
        make_plan(read_members(toy.root))
    done = run(toy, "plan", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["refused"][0].startswith("dependency cycle: ")


def test_a_group_may_close_a_circle(toy):
    """Groups are never published, so two distributions may test with each other."""
    toy.replace(f"{BASE}/pyproject.toml", "'pytest>=8.4'", "'pytest>=8.4', 'pio-side>=0.1,<0.2'")
    assert dependency_order(read_members(toy.root)) == ["pio-base", "pio-side", "pio-top"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prepare", "pio-bse"], "release: pio-bse is no distribution of this workspace: did you mean pio-base?\n"),
        (["prepare", "pio-base"], "release: pio-base has nothing to release: no fragment waits in its changelog.d/\n"),
        (["prepare"], "release: name the distributions to prepare, or all of them with --all"),
        (["prepare", "pio-base", "--all"], "release: name the distributions to prepare, or all of them with --all"),
    ],
)
def test_wrong_words_are_refused(released, words, expected):
    """Before anything is touched."""
    done = run(released, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(expected)
    assert released.git("status", "--porcelain") == ""


def test_a_folder_without_distributions_is_refused(toy, tmp_path_factory):
    """It is not a workspace with nothing to release."""
    toy.root = tmp_path_factory.mktemp("none")
    done = run(toy, "plan")
    assert done.returncode == 1
    assert "has no distributions: name the root of the workspace with --root" in done.stderr


def test_a_date_that_is_none_is_refused(released):
    """With the form that is one."""
    done = run(released, "prepare", "pio-base", "--date", "tomorrow")
    assert done.returncode == 2
    assert "'tomorrow' is not a date: write YYYY-MM-DD" in done.stderr


def test_a_fix_is_prepared_in_one_place(released):
    """Its version, its changelog, its fragment; the file of no other distribution."""
    fragment(released, BASE, "fixed")
    released.commit("fix")
    done = run(released, "prepare", "pio-base", "--date", "2026-12-24")
    assert (done.returncode, done.stderr) == (0, "")
    assert released.git("status", "--porcelain").splitlines() == [
        f"M  {BASE}/CHANGELOG.md",
        f"D  {BASE}/changelog.d/it.fixed.md",
        f"M  {BASE}/pyproject.toml",
    ]
    changelog = (released.root / f"{BASE}/CHANGELOG.md").read_text(encoding="utf-8")
    assert "## 0.1.1 (2026-12-24)\n\n### Fixed\n\n- Something." in changelog
    assert changelog.index("## 0.1.1") < changelog.index("## 0.1.0")
    assert read_members(released.root)["pio-base"].version == "0.1.1"


def test_a_break_raises_bounds_and_leaves_fragments(released):
    """Whoever is not released along waits for its own release with a fragment; a group's bound is raised silently."""
    fragment(released, BASE, "removed")
    released.commit("break")
    done = run(released, "prepare", "pio-base", "--json")
    assert json.loads(done.stdout)["waiting"] == ["pio-top"]
    members = read_members(released.root)
    assert str(members["pio-top"].dependencies[0]) == "pio-base<0.3,>=0.2"
    assert "pio-base>=0.2,<0.3" in (released.root / f"{SIDE}/pyproject.toml").read_text(encoding="utf-8")
    note = released.root / f"{TOP}/changelog.d/needs-pio-base-0-2-0-3.dependencies.md"
    assert note.read_text(encoding="utf-8") == "Needs `pio-base>=0.2,<0.3`.\n"
    assert members["pio-top"].version == "0.1.0"
    released.commit("release pio-base")
    assert releases(released) == [("pio-top", "patch", "0.1.1")]


def test_a_break_is_prepared_whole(released):
    """With --all the dependents are released along, and their changelogs say what they need."""
    fragment(released, BASE, "changed")
    released.commit("break")
    assert run(released, "prepare", "--all").returncode == 0
    assert "### Dependencies\n\n- Needs `pio-base>=0.2,<0.3`." in (released.root / f"{TOP}/CHANGELOG.md").read_text(
        "utf-8"
    )
    assert {name: member.version for name, member in read_members(released.root).items()} == {
        "pio-base": "0.2.0",
        "pio-side": "0.1.0",
        "pio-top": "0.1.1",
    }
    assert releases(released) == []


def test_a_dry_run_changes_nothing(released):
    """It says the same as the run."""
    fragment(released, BASE, "removed")
    released.commit("break")
    dry = run(released, "prepare", "--all", "--dry-run").stdout
    assert released.git("status", "--porcelain") == ""
    wet = run(released, "prepare", "--all").stdout
    assert dry.splitlines()[:-1] == wet.splitlines()[:-1]
    assert dry.splitlines()[-1] == "nothing was changed"


def test_what_is_not_committed_is_refused(released):
    """A release is made of commits."""
    fragment(released, BASE, "fixed")
    done = run(released, "prepare", "pio-base")
    assert done.returncode == 1
    assert done.stderr == f"release: not committed: {BASE}/changelog.d/it.fixed.md: commit or restore it first\n"


def test_a_version_that_has_a_tag_is_refused(released):
    """Two commits cannot be one release."""
    fragment(released, BASE, "fixed")
    released.commit("fix")
    released.git("tag", "pio-base-v0.1.1")
    with pytest.raises(RefusedError, match=r"tag pio-base-v0\.1\.1 exists already"):
        make_preparation(released.root, ["pio-base"])


def raised(preparation):
    return [(each.bound.dependent, each.text, each.why) for each in preparation.raises]


def test_a_floor_is_raised_where_a_new_name_is_used(released):
    """An addition is a patch, which every bound admits; only who uses the new name needs that patch."""
    released.add("pio-other", dependencies=["pio-base>=0.1,<0.2"])
    released.write("packages/pio-other/CHANGELOG.md", "# Changelog\n\n## 0.1.0 (2026-01-01)\n")
    (released.root / "packages/pio-other/changelog.d/initial.added.md").unlink()
    released.write(PORTION, "def gather(rows, *, stride=1):\n    return rows[::stride]\n")
    released.write(USE, "import inference_pio.base\n\nrows = inference_pio.base.gather([1], stride=1)\n")
    fragment(released, BASE, "added")
    fragment(released, TOP, "fixed")
    released.commit("add")
    assert raised(make_preparation(released.root, [])) == [
        ("pio-top", "pio-base>=0.1.1,<0.2", "uses what 0.1.1 brought")
    ]


def test_a_name_that_was_used_before_raises_nothing(released):
    """A method of something else that has the name of what is new was there in the dependent's last release."""
    released.write(USE, "import inference_pio.base\n\nhandle = open(__file__)\nhandle.close()\n")
    released.tag("pio-top")
    released.write(PORTION, "def close():\n    return None\n")
    fragment(released, BASE, "added")
    fragment(released, TOP, "fixed")
    released.commit("add")
    assert raised(make_preparation(released.root, [])) == []


def test_a_name_that_no_release_has_is_refused(released):
    """Published alone, the dependent would not import."""
    released.write(PORTION, "def gather():\n    return 1\n")
    released.write(USE, "from inference_pio.base import gather\n\nx = gather()\n")
    fragment(released, BASE, "added")
    fragment(released, TOP, "fixed")
    released.commit("add")
    with pytest.raises(RefusedError, match=r"pio-top uses gather of pio-base, and 0\.1\.0.*prepare pio-base too"):
        make_preparation(released.root, ["pio-top"])


def test_the_lowest_release_that_has_the_name_is_the_floor(released):
    """Not the newest one."""
    released.write(PORTION, "def gather():\n    return 1\n")
    for version in ("0.1.1", "0.1.2"):
        released.release("pio-base", version)
    released.write(USE, "from inference_pio import base\n\nx = base.gather()\n")
    fragment(released, TOP, "fixed")
    released.commit("use")
    assert raised(make_preparation(released.root, ["pio-top"])) == [
        ("pio-top", "pio-base>=0.1.1,<0.2", "uses what 0.1.1 brought")
    ]
