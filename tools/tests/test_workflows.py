"""What must hold of the workflows beyond what zizmor checks: who may do what, and that all of it is pinned."""

import re
import shutil
import subprocess

import pytest
from packaging.requirements import Requirement

from workspace import ROOT

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which `nox -s tools` installs")

FOLDER = ROOT / ".github" / "workflows"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}
WORKFLOWS = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
REQUIREMENTS = sorted((ROOT / ".github" / "requirements").glob("*.in"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def jobs():
    return [
        pytest.param(workflow, name, job, id=f"{workflow}-{name}")
        for workflow, document in WORKFLOWS.items()
        for name, job in document["jobs"].items()
    ]


@pytest.mark.parametrize("name", FILES)
def test_every_action_is_pinned_and_named(name):
    """By the full hash of a commit, with its release beside it; one action has one pin everywhere."""
    lines = [line for line in FILES[name].read_text(encoding="utf-8").splitlines() if "uses:" in line]
    for line in lines:
        used, _, comment = line.partition("uses:")[2].partition("#")
        assert PINNED.fullmatch(used.strip()), line
        assert re.fullmatch(r" v\d+\.\d+\.\d+", comment), line


def test_one_action_has_one_pin():
    """Two pins of one action would be raised apart."""
    texts = "".join(path.read_text(encoding="utf-8") for path in FILES.values())
    pins = {}
    for action, commit in re.findall(r"uses: ([\w./-]+)@(\w+)", texts):
        pins.setdefault(action, set()).add(commit)
    assert pins
    assert {action: commits for action, commits in pins.items() if len(commits) > 1} == {}


@pytest.mark.parametrize("workflow, name, job", jobs())
def test_a_job_may_do_no_more_than_it_must(workflow, name, job):
    """It says what it may do; only publishing proves who it is, only tagging writes, and neither builds anything."""
    assert WORKFLOWS[workflow]["permissions"] == {}
    granted = {scope for scope, kind in job["permissions"].items() if kind == "write"}
    allowed = {
        ("publish", "upload"): {"id-token", "attestations"},
        ("publish", "tag"): {"contents"},
        ("release", "hand-over"): {"actions"},
    }
    assert granted == allowed.get((workflow, name), set())
    script = "\n".join(step.get("run", "") for step in job["steps"])
    if granted:
        assert "uv build" not in script
        assert "release.py check" not in script
    assert "secrets." not in FILES[workflow].read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow, name, job", jobs())
def test_scripts_are_bash(workflow, name, job):
    """They parse, hold no expression (its value would be read as code), and installs of releases have hashes."""
    for step in job["steps"]:
        script = step.get("run", "")
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0, script
        assert "${{" not in script
        if workflow in {"release", "publish"} and "pip install" in script:
            assert "--require-hashes" in script


def test_each_distribution_is_published_from_its_own_environment():
    """One after the other, in the order that was asked for; the first that fails stops the rest."""
    upload = WORKFLOWS["publish"]["jobs"]["upload"]
    assert upload["environment"] == "pypi-${{ matrix.distribution }}"
    assert upload["strategy"]["max-parallel"] == 1
    assert upload["strategy"]["fail-fast"] is True
    others = [job for name, job in WORKFLOWS["publish"]["jobs"].items() if name != "upload"]
    assert not any("environment" in job for job in others)


def test_publishing_trusts_only_what_passed():
    """The names of the jobs that a run must have passed are those of release.yml."""
    [step] = WORKFLOWS["publish"]["jobs"]["source"]["steps"]
    [named] = re.findall(r"for job in (.*); do", step["run"])
    names = [WORKFLOWS["release"]["jobs"][job]["name"] for job in ("build", "reproduce")]
    assert re.findall(r'"([^"]+)"', named) == names


def answers(tmp_path, run, jobs):
    """The script of the job ``source`` with a ``gh`` that answers ``run`` and ``jobs``."""
    [step] = WORKFLOWS["publish"]["jobs"]["source"]["steps"]
    (tmp_path / "run").write_text(run, encoding="utf-8")
    (tmp_path / "jobs").write_text(jobs, encoding="utf-8")
    gh = tmp_path / "gh"
    gh.write_text(
        f"#!/bin/sh\ncase $2 in */jobs) cat {tmp_path}/jobs;; *) cat {tmp_path}/run;; esac\n", encoding="utf-8"
    )
    gh.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/local/bin:/usr/bin:/bin",
        "RUN": "17",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    command = ["bash", "-e", "-c", step["run"]]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


RUN = '{"path": "PATH", "head_branch": "BRANCH", "head_repository": {"full_name": "REPOSITORY"}, "head_sha": "abc"}'
JOBS = '{"jobs": [{"name": "build and check", "conclusion": "FIRST"}, '
JOBS += '{"name": "the same bytes on another machine", "conclusion": "success"}]}'


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, 0),
        ({"PATH": ".github/workflows/ci.yml"}, 1),
        ({"BRANCH": "topic"}, 1),
        ({"REPOSITORY": "fork/b"}, 1),
        ({"FIRST": "failure"}, 1),
        ({"JOBS": '{"jobs": []}'}, 1),
    ],
)
def test_a_run_of_another_kind_is_refused(tmp_path, changed, code):
    """Another workflow, branch or repository, or one that did not pass: nothing of it is published."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    usual = {"PATH": ".github/workflows/release.yml", "BRANCH": "main", "REPOSITORY": "a/b", "FIRST": "success"}
    values = usual | changed
    run, jobs = RUN, changed.get("JOBS", JOBS)
    for word in ("PATH", "BRANCH", "REPOSITORY"):
        run = run.replace(word, values[word])
    done = answers(tmp_path, run, jobs.replace("FIRST", values["FIRST"]))
    assert done.returncode == code, done.stderr
    if code == 0:
        assert (tmp_path / "output").read_text(encoding="utf-8") == "commit=abc\n"


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_what_releases_are_made_with_is_pinned_by_hash(path):
    """Each requirement has a version that its floor allows and hashes; no address of an index is written down."""
    text = path.with_suffix(".txt").read_text(encoding="utf-8")
    blocks = re.findall(r"^([\w.\[\]-]+)==([\w.]+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    pins = {name.partition("[")[0]: version for name, version, _ in blocks}
    assert all("--hash=sha256:" in rest for _, _, rest in blocks)
    assert "://" not in text
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(pins[requirement.name])


def test_every_build_backend_is_pinned():
    """What any distribution asks for in ``[build-system]``: no build reaches for anything else."""
    from workspace import read_members

    asked = {
        Requirement(entry).name
        for member in read_members().values()
        for entry in member.document["build-system"]["requires"]
    }
    listed = (ROOT / ".github" / "requirements" / "backends.in").read_text(encoding="utf-8").splitlines()
    assert asked == {Requirement(line).name for line in listed if not line.startswith("#")}
