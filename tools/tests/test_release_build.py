"""What is found in archives made by hand, and which files a release has."""

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from pending_releases import pending
from release_build import build, check_files, platforms, release_files
from release_refusal import RefusedError
from workspace import ROOT, read_members

STEM = "pio_top-0.1.0"
METADATA = """\
Metadata-Version: 2.4
Name: pio-top
Version: 0.1.0
Requires-Python: >=3.11
License-Expression: Apache-2.0
Requires-Dist: pio-base<0.2,>=0.1
Requires-Dist: torch>=2.11; extra == 'gpu'
Requires-Dist: triton>=3.6; (sys_platform == 'linux') and extra == 'gpu'
Provides-Extra: gpu

# pio-top
"""
SOURCE = ("PKG-INFO", "pyproject.toml", "README.md", "LICENSE", "src/inference_pio/top/__init__.py")


@pytest.fixture
def member(toy):
    """pio-top, with an extra, one requirement of which has a marker."""
    toy.replace(
        "packages/pio-top/pyproject.toml",
        "[dependency-groups]",
        "[project.optional-dependencies]\n"
        'gpu = ["torch>=2.11", "triton>=3.6; sys_platform == \'linux\'"]\n[dependency-groups]',
    )
    return read_members(toy.root)["pio-top"]


def wheel(folder, metadata=METADATA):
    path = folder / f"{STEM}-py3-none-any.whl"
    portion = ["inference_pio/top/__init__.py", "inference_pio/top/py.typed"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*portion, f"{STEM}.dist-info/licenses/LICENSE"):
            archive.writestr(name, "")
        archive.writestr(f"{STEM}.dist-info/METADATA", metadata)
    return path


def source(folder, names=SOURCE, *, kind=tarfile.REGTYPE):
    path = folder / f"{STEM}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            content = METADATA.encode() if name == "PKG-INFO" else b""
            entry = tarfile.TarInfo(name if name.startswith(("/", "other")) else f"{STEM}/{name}")
            entry.size = len(content)
            if name == "README.md":
                entry.type, entry.linkname = kind, "LICENSE"
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_sound_archives_have_no_problems(member, tmp_path):
    """Metadata in the builder's spelling says what the tree says in ours."""
    assert check_files(member, [wheel(tmp_path), source(tmp_path)]) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Name: pio-top", "Name: pio-pot", ["Name is pio-pot, and the tree says pio-top"]),
        ("Version: 0.1.0", "Version: 0.1.1", ["Version is 0.1.1, and the tree says 0.1.0"]),
        (">=3.11", ">=3.9", ["Requires-Python is >=3.9, and the tree says >=3.11"]),
        ("Apache-2.0", "MIT", ["License-Expression is MIT, and the tree says Apache-2.0"]),
        (
            "pio-base<0.2,>=0.1",
            "pio-base<0.3,>=0.2",
            [
                "does not require pio-base<0.2,>=0.1, and the tree does",
                "requires pio-base<0.3,>=0.2, and the tree does not",
            ],
        ),
        ("Requires-Dist: torch>=2.11; extra == 'gpu'\n", "", ["does not require torch>=2.11 [gpu], and the tree does"]),
        (
            "Provides-Extra",
            "Requires-Dist: evil\nProvides-Extra",
            ["requires evil, and the tree does not"],
        ),
    ],
)
def test_metadata_that_differs_from_the_tree_is_found(member, tmp_path, old, new, expected):
    """A wheel of another tree, or of an edited one."""
    assert old in METADATA
    path = wheel(tmp_path, METADATA.replace(old, new))
    assert check_files(member, [path]) == [f"{path.name}: {line}" for line in expected]


def test_a_wheel_without_metadata_is_found(member, tmp_path):
    """Each thing that it does not say is a line."""
    path = wheel(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inference_pio/top/__init__.py", "")
    assert any("Name is None" in line for line in check_files(member, [path]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((*SOURCE, "/etc/passwd"), "/etc/passwd is not a plain file"),
        ((*SOURCE, "other/file"), "other/file is not a plain file"),
        ((*SOURCE, "../file"), f"{STEM}/../file is not a plain file"),
        (SOURCE[1:], "lacks PKG-INFO"),
        (tuple(name for name in SOURCE if name != "LICENSE"), "lacks LICENSE"),
    ],
)
def test_a_bad_source_distribution_is_found(member, tmp_path, names, expected):
    """It is unpacked by strangers."""
    assert any(expected in line for line in check_files(member, [source(tmp_path, names)]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_source_distribution_is_found(member, tmp_path, kind):
    """Installers refuse those that lead out, so that none is let in."""
    [line] = check_files(member, [source(tmp_path, kind=kind)])
    assert line.endswith(f"{STEM}/README.md is not a plain file below {STEM}/")


def test_wheels_come_before_the_source(toy):
    """One pure wheel, or one for each platform that is declared."""
    assert release_files(read_members(toy.root)["pio-top"]) == [f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"]
    path = "packages/pio-top/pyproject.toml"
    text = (toy.root / path).read_text(encoding="utf-8")
    toy.write(
        path, f"{text}[tool.pio-workspace.platform-wheels]\nvariable = 'T'\ntargets = {{ b = 'win_amd64', a = 'm' }}\n"
    )
    assert release_files(read_members(toy.root)["pio-top"]) == [
        f"{STEM}-py3-none-m.whl",
        f"{STEM}-py3-none-win_amd64.whl",
        f"{STEM}.tar.gz",
    ]


def test_the_kernels_are_released_for_every_platform_that_they_build(monkeypatch):
    """What the pyproject.toml declares is what the build script can do."""
    monkeypatch.syspath_prepend(str(ROOT / "packages" / "pio-kernels"))
    from build_native import TARGETS

    declared = platforms(read_members(ROOT)["pio-kernels"])
    assert declared == {name: target.tag for name, target in TARGETS.items()}


def test_a_build_that_makes_something_else_is_refused(released, monkeypatch, tmp_path):
    """The manifest names what a release has, and nothing may be missing from it."""

    def make_another(command, **_):
        folder = Path(command[command.index("--out-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pio_base-9.tar.gz").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    member = read_members(released.root)["pio-base"]
    monkeypatch.setattr("release_build.git", lambda *_: "0")
    monkeypatch.setattr(subprocess, "run", make_another)
    with pytest.raises(
        RefusedError, match=r"pio-base: the build made pio_base-9\.tar\.gz, and a release has pio_base-0\.1"
    ):
        build(released.root, member, tmp_path / "dist")


def test_what_developers_set_does_not_reach_a_build(released, monkeypatch, tmp_path):
    """Flags and compilers of theirs would end in everybody's wheel."""
    seen = []

    def look(command, *, env, **_):
        seen.append(env)
        return subprocess.CompletedProcess(command, 1, "", "seen")

    monkeypatch.setenv("PIO_KERNELS_FLAGS", "-O0")
    monkeypatch.setenv("PIO_KERNELS_BUILD", "objects")
    monkeypatch.setattr("release_build.git", lambda *_: "123\n")
    monkeypatch.setattr(subprocess, "run", look)
    with pytest.raises(RefusedError, match="seen"):
        build(released.root, read_members(released.root)["pio-base"], tmp_path / "dist")
    [environment] = seen
    assert {key: value for key, value in environment.items() if key.startswith(("PIO_", "SOURCE"))} == {
        "PIO_KERNELS_BUILD": "objects",
        "SOURCE_DATE_EPOCH": "123",
    }


def test_nothing_unprepared_is_pending(released):
    """What no changelog has is nobody's to publish; asking an index is not even needed."""
    released.add("pio-new")
    members = {"pio-new": read_members(released.root)["pio-new"]}
    assert pending(members, None) == []
