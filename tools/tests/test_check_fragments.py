"""What check_fragments says of ranges of commits, on a toy workspace under git."""

import subprocess
import sys
from pathlib import Path

import pytest

from check_fragments import check_range
from release_refusal import RefusedError

SCRIPT = Path(__file__).resolve().parent.parent / "check_fragments.py"
BASE = "packages/pio-base"
PORTION = f"{BASE}/src/inference_pio/base/__init__.py"
UNTOLD = f"{PORTION}: changed without a fragment: add {BASE}/changelog.d/<id>.<type>.md, one line for users"


def found(toy, base="start"):
    return [problem.render(toy.root) for problem in check_range(toy.root, base, "HEAD")]


@pytest.fixture
def topic(released):
    """A branch that begins at ``start``."""
    released.git("tag", "start")
    return released


def change(toy, text="x = 1\n"):
    toy.write(PORTION, text)
    toy.commit("change")


def test_a_change_without_a_fragment_is_refused(topic):
    """One line per distribution, with the way out."""
    change(topic)
    assert found(topic) == [UNTOLD]


@pytest.mark.parametrize("kind", ["added", "changed", "fixed", "removed"])
def test_a_change_with_a_fragment_passes(topic, kind):
    """In the same range, though not in the same commit."""
    change(topic)
    topic.write(f"{BASE}/changelog.d/it.{kind}.md", "Something.\n")
    topic.commit("say so")
    assert found(topic) == []


def test_another_distributions_fragment_does_not_count(topic):
    """Each tells its own users."""
    topic.write("packages/pio-top/changelog.d/it.fixed.md", "Something.\n")
    change(topic)
    assert found(topic) == [UNTOLD]


@pytest.mark.parametrize("name", ["it.new.md", "notes.md"])
def test_a_file_that_is_no_fragment_does_not_count(topic, name):
    """Towncrier would not read it."""
    topic.write(f"{BASE}/changelog.d/{name}", "Something.\n")
    change(topic)
    assert found(topic) == [UNTOLD]


def test_a_fragment_that_is_taken_away_does_not_count(released):
    """Only one that the head has tells anybody."""
    released.write(f"{BASE}/changelog.d/it.fixed.md", "Something.\n")
    released.tag("start")
    (released.root / f"{BASE}/changelog.d/it.fixed.md").unlink()
    change(released)
    assert found(released, "start-v0.1.0") == [UNTOLD]


def test_native_sources_ship_too(topic):
    """They are compiled into the wheel."""
    topic.write(f"{BASE}/native/op.cpp", "int x;\n")
    topic.commit("native")
    assert [line.partition(":")[0] for line in found(topic)] == [f"{BASE}/native/op.cpp"]


@pytest.mark.parametrize("path", ["README.md", "tests/test_it.py", "benchmarks/bench_it.py", "pyproject.toml"])
def test_what_does_not_ship_as_code_needs_none(topic, path):
    """Words and tests of a distribution change nothing for those who installed it."""
    text = (topic.root / f"{BASE}/{path}").read_text(encoding="utf-8")
    topic.write(f"{BASE}/{path}", f"{text}\n")
    topic.commit("words")
    assert found(topic) == []


def test_an_edited_changelog_is_refused(topic):
    """An entry by hand, and one that is old."""
    topic.replace(f"{BASE}/CHANGELOG.md", "- It.", "- It, and more.")
    topic.commit("edit")
    assert [line.partition(": ")[2].partition(":")[0] for line in found(topic)] == ["is edited outside of a release"]


def test_an_entry_for_another_version_is_refused(topic):
    """A changelog runs ahead of the version only when somebody wrote it by hand."""
    mark = "<!-- releases, newest first -->\n"
    topic.replace(f"{BASE}/CHANGELOG.md", mark, f"{mark}\n## 0.1.1 (2026-01-02)\n\n- It.\n")
    topic.commit("edit")
    assert len(found(topic)) == 1


def test_a_release_passes(topic):
    """It takes fragments away and puts an entry in; the change before it had its fragment."""
    topic.write(f"{BASE}/changelog.d/it.fixed.md", "Something.\n")
    change(topic)
    prepared = [sys.executable, SCRIPT.with_name("release.py"), "prepare", "pio-base", "--root", topic.root]
    subprocess.run(prepared, check=True, capture_output=True)
    topic.commit("release")
    assert found(topic) == []
    change(topic, "x = 2\n")
    assert found(topic) == [UNTOLD]


def test_a_new_distribution_passes_with_its_fragment(topic):
    """Its changelog is new, not edited."""
    topic.add("pio-new")
    topic.commit("new")
    assert found(topic) == []


def test_what_the_base_did_meanwhile_is_not_the_branchs(topic):
    """The range begins where the branch left."""
    topic.git("switch", "--create", "topic")
    topic.write("packages/pio-side/README.md", "more\n")
    topic.commit("words")
    topic.git("switch", "main")
    change(topic)
    topic.git("switch", "topic")
    assert found(topic, "main") == []


def test_an_unknown_revision_is_refused(topic):
    """Not taken for an empty range."""
    with pytest.raises(RefusedError, match="git knows no revision nowhere"):
        check_range(topic.root, "nowhere", "HEAD")


def test_the_exit_code_tells(topic):
    """For a job that knows nothing else; a branch's first push has no base."""
    change(topic)
    for base, code in [("start", 1), ("HEAD", 0), ("0" * 40, 0), ("nowhere", 1)]:
        command = [sys.executable, SCRIPT, "--base", base, "--root", topic.root]
        assert subprocess.run(command, check=False, capture_output=True).returncode == code
