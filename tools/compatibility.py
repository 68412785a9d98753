# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""The core of the tree against published model plugins, and the published core against the plugins of the tree.

Two sides meet in a fresh environment. The *plugin's side* is the plugin with ``pio-testing``, its conformance kit; the
*core's side* is every other distribution of this workspace that the two need. One side is built from the tree, of the
other it is the last release on an index. Then the registry of the core must accept the plugin, and the plugin's own
tests, of the same version as the plugin, must pass.

Bounds may keep the two apart: a breaking release of a contract does that, and an old plugin then gets the old core.
Where ``API_VERSION`` promises that they work together all the same (the current minor and the one before), they are
installed against their bounds and held to the promise; apart without a promise is fine, and said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from published import latest_published
from release_index import Index
from release_refusal import RefusedError
from workspace import ROOT, Member, closure, read_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KIT = "pio-testing"
CORE = "pio-core"
CONTRACTS = "pio-interfaces"
WORKS, FAILS, APART, SKIPPED = "works", "FAILS", "apart", "skipped"
_UNSOLVED = "No solution found"
"""How uv begins when requirements contradict each other."""

_PROBE = """
import json
from inference_pio.core import Registry
from inference_pio.interfaces import API_VERSION
registry = Registry.discover()
found = {each.manifest.distribution: each.manifest.api for each in registry.plugins}
error = "; ".join(sorted({str(problem) for problem in registry.problems.values()}))
print(json.dumps({"core": API_VERSION, "plugins": found, "error": error}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One meeting.

    Attributes:
        plugin: Its distribution, version and side, such as ``pio-model-llama 0.1.0 (published)``.
        core: The same of the core.
        api: ``API_VERSION`` of the core and of the plugin, as far as they are known.
        result: ``works``, ``FAILS``, ``apart`` or ``skipped``.
        why: What failed, which bounds keep them apart, or why there was nothing to do.
        forced: Whether they were installed against their bounds.
    """

    plugin: str
    core: str
    api: tuple[str, str] | None
    result: str
    why: str
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the two meet.

    Attributes:
        root: Root of the workspace.
        members: Its distributions.
        index: Address of the index with the releases.
        scratch: Folder for environments and wheels.
        select: What pytest is given beside the folder of the tests.
    """

    root: Path
    members: Mapping[str, Member]
    index: str
    scratch: Path
    select: tuple[str, ...]


def main() -> None:
    """Print a line a meeting; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description="Hold core and plugins of the tree to those of an index.")
    parser.add_argument("plugins", nargs="*", metavar="NAME", help="model plugins (default: all of the tree)")
    parser.add_argument("--index", required=True, metavar="URL", help="root of the simple API of the index")
    parser.add_argument("--select", metavar="WORDS", help="run only these tests (as pytest's -k)")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    members = read_members(root)
    models = [name for name in members if name.startswith("pio-model-")]
    if unknown := sorted(set(arguments.plugins) - set(models)):
        parser.error(f"no model plugin is called {', '.join(unknown)}; there are {', '.join(models)}")
    select = ("-k", arguments.select) if arguments.select else ()
    with tempfile.TemporaryDirectory(prefix="pio-compatibility-") as scratch:
        bench = Bench(root=root, members=members, index=arguments.index, scratch=Path(scratch), select=select)
        try:
            cells = [cell for name in arguments.plugins or models for cell in meetings(bench, name)]
        except RefusedError as error:
            sys.exit(f"compatibility: {error}")
    print(json.dumps([asdict(cell) for cell in cells]) if arguments.json else "\n".join(map(render, cells)))
    if any(cell.result == FAILS for cell in cells):
        sys.exit(1)


def meetings(bench: Bench, plugin: str) -> list[Cell]:
    """Both meetings of ``plugin``.

    Raises:
        RefusedError: The index does not answer, or the tree does not build.
    """
    sides = closure(plugin, bench.members, groups=True) | closure(CORE, bench.members, groups=False)
    ours = [plugin, KIT]
    theirs = sorted(name for name in sides - set(ours) if not name.startswith("pio-model-"))
    missing = [name for name in (plugin, KIT, CORE) if latest_published(bench.index, name) is None]
    if missing:
        why = f"{bench.index} has no {', '.join(missing)}"
        return [Cell(plugin=plugin, core=CORE, api=None, result=SKIPPED, why=why)]
    return [_meet(bench, plugin, published=ours, built=theirs), _meet(bench, plugin, published=theirs, built=ours)]


def _meet(bench: Bench, plugin: str, *, published: list[str], built: list[str]) -> Cell:
    """Bring the sides together as their bounds allow, or against them where the API promises that it works."""
    folder = bench.scratch / f"{plugin}-{'tree' if plugin in built else 'index'}"
    folder.mkdir()
    wheels = {name: _wheel(bench, name) for name in built}
    latest = {name: latest_published(bench.index, name) for name in published}
    pinned = [f"{name}=={version}" for name, version in latest.items() if version]
    placed = [f"{name} @ {wheel.as_uri()}" for name, wheel in wheels.items()]
    asked = next(line for line in (*pinned, *placed) if line.startswith(plugin)).replace(plugin, f"{plugin}[torch]", 1)
    tests = _tests(bench, plugin, latest.get(plugin), folder)
    versions = {name: latest.get(name) or bench.members[name].version for name in (plugin, CORE)}
    side = {True: "tree", False: "published"}
    told = {name: f"{name} {versions[name]} ({side[name in built]})" for name in (plugin, CORE)}
    lines = [asked, CORE, KIT, *_test_requirements(bench.members[plugin])]
    python = _environment(folder / "bounds")
    apart = _install(bench, python, lines, [*pinned, *placed], overrides=False)
    forced = apart is not None
    if forced:
        python = _environment(folder / "forced")
        if (why := _install(bench, python, lines, [*pinned, *placed], overrides=True)) is not None:
            return Cell(plugin=told[plugin], core=told[CORE], api=None, result=APART, why=f"{apart}; forced: {why}")
    api, problem = _probe(python, plugin)
    promised = api is not None and is_promised(*api)
    if forced and not promised:
        why = problem or "the API promises nothing"
        return Cell(plugin=told[plugin], core=told[CORE], api=api, result=APART, why=f"{apart}; {why}", forced=True)
    problem = problem or _run_tests(bench, python, tests)
    result = FAILS if problem else APART if forced else WORKS
    why = problem or (apart or "")
    return Cell(plugin=told[plugin], core=told[CORE], api=api, result=result, why=why, forced=forced)


def is_promised(core: str, plugin: str) -> bool:
    """Whether a core with the API version ``core`` says that it takes a plugin written for ``plugin``."""
    (major, minor), (other, older) = (map(int, version.split(".")) for version in (core, plugin))
    return major == other and minor - older in {0, 1}


def render(cell: Cell) -> str:
    """The meeting for people."""
    api = f" (API {cell.api[0]} and {cell.api[1]})" if cell.api else ""
    how = ", installed against the bounds" if cell.forced else ""
    why = f": {cell.why}" if cell.why else ""
    return f"{cell.core} with {cell.plugin}{api}{how}: {cell.result}{why}"


def _wheel(bench: Bench, name: str) -> Path:
    """The wheel of ``name`` from the tree, built once."""
    folder = bench.scratch / "wheels" / name
    if not folder.is_dir():
        _run(bench, ["uv", "--quiet", "build", "--wheel", str(bench.members[name].folder), "--out-dir", str(folder)])
    [wheel] = folder.glob("*.whl")
    return wheel


def _tests(bench: Bench, plugin: str, version: str | None, folder: Path) -> Path:
    """The tests of ``plugin``: those of the tree, or those in the source distribution of the published ``version``."""
    if version is None:
        return bench.members[plugin].folder / "tests"
    name = f"{plugin.replace('-', '_')}-{version}"
    file = Index(bench.index).files(plugin).get(f"{name}.tar.gz")
    if file is None:
        raise RefusedError(
            f"{bench.index} has {plugin} {version} without its source distribution, and so without tests"
        )
    packed = folder / file.name
    with urllib.request.urlopen(file.url, timeout=60) as answer, packed.open("wb") as out:  # noqa: S310 - the index's own
        shutil.copyfileobj(answer, out)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / name / "tests"


def _test_requirements(member: Member) -> list[str]:
    """What its tests need of others; what they need of this workspace is on one of the sides."""
    return [str(entry) for entry in member.groups.get("test", ()) if not _is_ours(entry.name)]


def _is_ours(name: str) -> bool:
    return canonicalize_name(name).startswith(("pio-", "inference-pio"))


def _environment(folder: Path) -> Path:
    subprocess.run(["uv", "--quiet", "venv", "--python", sys.executable, str(folder)], check=True)
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _install(bench: Bench, python: Path, lines: Iterable[str], sides: Iterable[str], *, overrides: bool) -> str | None:
    """Install ``lines`` with exactly ``sides``; returns in one line why that cannot be, or None.

    ``overrides`` makes the sides hold whatever the bounds of others say.

    Raises:
        RefusedError: It fails for another reason than that the requirements contradict each other.
    """
    listed, given = python.parent / "asked.txt", python.parent / "sides.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    given.write_text("\n".join(sides) + "\n", encoding="utf-8")
    if not overrides:
        listed.write_text(listed.read_text("utf-8") + given.read_text("utf-8"), encoding="utf-8")
    held = ["--overrides", str(given)] if overrides else []
    # An index may not say when it got a file; the date of the root is for what others publish.
    ours = [
        word
        for name in bench.members
        for word in ("--exclude-newer-package", f"{name}=false", "--refresh-package", name)
    ]
    command = ["uv", "--quiet", "pip", "install", "--python", str(python), "--no-sources", "--index", bench.index]
    whole = [*command, *ours, *held, "--requirements", str(listed)]
    done = subprocess.run(whole, cwd=bench.root, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    if done.returncode != 0 and _UNSOLVED not in said:
        raise RefusedError(f"uv pip install: {said}")
    return said if done.returncode != 0 else None


def _probe(python: Path, plugin: str) -> tuple[tuple[str, str] | None, str]:
    """The API versions of core and plugin, and why the core does not take it, if so."""
    done = subprocess.run([str(python), "-c", _PROBE], capture_output=True, text=True, check=False)
    found = _api_of_files(python, plugin)
    if done.returncode != 0:
        return found, f"the registry fails: {done.stderr.strip().splitlines()[-1]}"
    answer = json.loads(done.stdout)
    if plugin in answer["plugins"]:
        return (answer["core"], answer["plugins"][plugin]), ""
    return found, answer["error"] or f"the registry does not find {plugin}"


def _api_of_files(python: Path, plugin: str) -> tuple[str, str] | None:
    """The API versions as the installed files say them, for a core that does not read the plugin."""
    [site] = {path.parent for path in python.parent.parent.glob("**/site-packages/inference_pio")}
    leaf = plugin.removeprefix("pio-model-").replace("-", "_")
    manifest = site / "inference_pio" / "models" / leaf / "pio-plugin.toml"
    code = "from inference_pio.interfaces import API_VERSION; print(API_VERSION)"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not manifest.is_file():
        return None
    return done.stdout.strip(), str(tomllib.loads(manifest.read_text(encoding="utf-8"))["api"])


def _run_tests(bench: Bench, python: Path, tests: Path) -> str:
    """Why the tests do not pass; empty if they do."""
    configured = ["-m", "pytest", "-q", "-c", str(bench.root / "pyproject.toml"), "--rootdir", str(tests.parent)]
    command = [str(python), *configured, "-p", "no:cacheprovider", str(tests), *bench.select]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return f"its tests: {'; '.join([*failed[:3], lines[-1] if lines else f'exit code {done.returncode}'])}"


def _run(bench: Bench, command: list[str]) -> None:
    done = subprocess.run(command, cwd=bench.root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"{' '.join(command[:4])}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
