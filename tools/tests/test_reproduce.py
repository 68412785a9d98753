"""What reproduce says of archives made by hand, and of toy distributions that are really built."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from archive_difference import differences
from workspace import ROOT

SCRIPT = ROOT / "tools" / "reproduce.py"


def wheel(path, members, *, time=(2026, 1, 1, 0, 0, 0), mode=0o644, compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in members.items():
            item = zipfile.ZipInfo(name, time)
            item.external_attr, item.compress_type = mode << 16, compression
            archive.writestr(item, contents)
    return path


def source(path, members, *, time=0, owner=0):
    path.parent.mkdir(exist_ok=True)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, contents in members.items():
            item = tarfile.TarInfo(name)
            item.size, item.uid = len(contents), owner
            archive.addfile(item, io.BytesIO(contents))
    path.write_bytes(gzip.compress(plain.getvalue(), mtime=time))
    return path


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"members": {"b": "two\n", "a": "one\n"}}, ["another order: a stands where the second has b"]),
        ({"members": {"a": "one\n"}}, ["b: only in the first"]),
        ({"members": {"a": "one\n", "b": "two\n", "c": ""}}, ["c: only in the second"]),
        ({"members": {"a": "one\n", "b": "2\n"}}, ["b: -two", "b: +2"]),
        ({"members": {"a": "one\n", "b": "two\r\n"}}, ["b: line endings differ"]),
        ({"members": {"a": "one\n", "b": b"\0"}}, [r"b: 4 and 1 bytes, which differ from byte 0: b'two\n' and b'\x00'"]),  # noqa: E501 - one case a line
        ({"mode": 0o600}, [f"{name}: mode is 0o644 in the first, 0o600 in the second" for name in "ab"]),
        ({"compression": 0}, [f"{name}: compression is 8 in the first, 0 in the second" for name in "ab"]),
    ],
)  # fmt: skip
def test_wheels(tmp_path, changed, told):
    """All that differs, in words, and nothing of what does not."""
    usual = {"members": {"a": "one\n", "b": "two\n"}}
    first = wheel(tmp_path / "1" / "x.whl", **usual)
    assert differences(first, wheel(tmp_path / "2" / "x.whl", **{**usual, **changed})) == told


def test_the_time_of_a_member(tmp_path):
    """As a person reads it."""
    first = wheel(tmp_path / "1" / "x.whl", {"a": ""})
    second = wheel(tmp_path / "2" / "x.whl", {"a": ""}, time=(2026, 1, 1, 0, 0, 2))
    assert differences(first, second) == [
        "a: time is 2026-01-01 00:00:00 in the first, 2026-01-01 00:00:02 in the second"
    ]


def test_many_lines_are_cut_short(tmp_path):
    """The first few, and how many more there are."""
    first = wheel(tmp_path / "1" / "x.whl", {"a": "\n".join(map(str, range(30)))})
    second = wheel(tmp_path / "2" / "x.whl", {"a": ""})
    found = differences(first, second)
    assert (len(found), found[-1]) == (9, "a: and 22 more lines")


def test_source_distributions(tmp_path):
    """Owners, contents, and the time in the packed file's own header."""
    first = source(tmp_path / "1" / "x.tar.gz", {"x/a": b"1\n"})
    assert differences(first, source(tmp_path / "2" / "x.tar.gz", {"x/a": b"1\n"})) == []
    second = source(tmp_path / "3" / "x.tar.gz", {"x/a": b"2\n"}, time=7, owner=1000)
    assert differences(first, second) == [
        "(gzip): time is 1970-01-01 00:00:00 in the first, 1970-01-01 00:00:07 in the second",
        "x/a: owner is 0:0 : in the first, 1000:0 : in the second",
        "x/a: -1",
        "x/a: +2",
    ]


def test_what_only_packs_otherwise(tmp_path):
    """The same members in other bytes are no mystery, and no match either."""
    first = source(tmp_path / "1" / "x.tar.gz", {"x/a": b"1\n" * 999})
    second = tmp_path / "2.tar.gz"
    second.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), compresslevel=1, mtime=0))
    assert differences(first, second) == ["the same members, in archives that are packed in different ways"]


def test_another_kind_of_file(tmp_path):
    """Only what is published."""
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    with pytest.raises(ValueError, match=r"1\.zip is neither a wheel nor a \.tar\.gz file"):
        differences(first, second)


def git(root, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def committed(toy):
    """The toy workspace, which can be built, in a repository."""
    backend = '[build-system]\nrequires = ["hatchling>=1.27"]\nbuild-backend = "hatchling.build"\n'
    backends = {"pio-base": backend, "pio-top": backend, "pio-side": backend.replace("1.27", "999")}
    for name, backend in backends.items():
        text = (toy.root / f"packages/{name}/pyproject.toml").read_text(encoding="utf-8")
        toy.write(f"packages/{name}/pyproject.toml", f"{backend}{text}")
    toy.replace("pyproject.toml", '"toys"\n', '"toys"\nversion = "0"\n')
    toy.replace(
        "pyproject.toml", "[tool.uv.sources]", '[tool.uv.workspace]\nmembers = ["packages/*"]\n[tool.uv.sources]'
    )
    toy.write(".gitignore", "*.so\n")
    git(toy.root, "init", "--quiet")
    git(toy.root, "add", ".")
    git(toy.root, "commit", "--quiet", "--message", "All")
    return toy


def run(toy, *arguments):
    command = [sys.executable, SCRIPT, "--root", toy.root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


@pytest.mark.slow
def test_two_builds_have_the_same_bytes(committed, tmp_path):
    """However much else lies about; what was built can be kept, and be held against a later build."""
    committed.write("packages/pio-base/src/inference_pio/base/stray.so", "not committed")
    done = run(committed, "pio-base", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == ["pio_base-0.1.0-py3-none-any.whl", "pio_base-0.1.0.tar.gz"]
    assert all(result["differences"] == [] for result in found.values())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(found)
    # A commit elsewhere changes nothing; one in the distribution's folder does.
    committed.write("README.md", "More.\n")
    git(committed.root, "add", ".")
    git(committed.root, "commit", "--quiet", "--message", "Elsewhere", "--date", "2030-01-01T00:00:00Z")
    again = run(committed, "pio-base", "--against", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("same bytes") == 2
    wheel(tmp_path / "out" / "pio_base-0.1.0-py3-none-any.whl", {"x.pth": "import os\n"})
    tampered = run(committed, "pio-base", "--against", tmp_path / "out")
    assert tampered.returncode == 1
    assert "pio_base-0.1.0-py3-none-any.whl: x.pth: only in the second" in tampered.stdout


def test_a_build_that_depends_on_where_it_happens(committed):
    """The difference is shown: here a hook that writes the folder down."""
    committed.write(
        "packages/pio-top/hatch_build.py",
        "from pathlib import Path\n"
        "from hatchling.builders.hooks.plugin.interface import BuildHookInterface\n"
        "class Hook(BuildHookInterface):\n"
        "    def initialize(self, version, build_data):\n"
        "        path = Path(self.root, 'src/inference_pio/top/built.txt')\n"
        "        path.write_text(f'{self.root}\\n')\n"
        "        build_data['artifacts'] = ['built.txt']\n",
    )
    project = (committed.root / "packages/pio-top/pyproject.toml").read_text(encoding="utf-8")
    committed.write("packages/pio-top/pyproject.toml", f"{project}[tool.hatch.build.hooks.custom]\n")
    git(committed.root, "add", ".")
    git(committed.root, "commit", "--quiet", "--message", "Hook")
    done = run(committed, "pio-top")
    assert done.returncode == 1
    assert "pio_top-0.1.0.tar.gz: DIFFERS" in done.stdout
    assert "built.txt: -/" in done.stdout


def test_what_cannot_be_built(committed):
    """The reason in a line, not a traceback."""
    done = run(committed, "pio-base", "--revision", "nowhere")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "reproduce")
    assert "nowhere" in done.stderr
    committed.add("pio-new")
    done = run(committed, "pio-new")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=committed.root, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (done.returncode, done.stderr) == (1, f"reproduce: packages/pio-new is not in {head}: commit it first\n")
    assert run(committed, "pio-nobody").returncode == 2
    done = run(committed, "pio-side")
    assert done.returncode == 1
    assert done.stderr.startswith("reproduce: pio-side: uv --quiet build")
