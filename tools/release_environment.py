"""Environments that hold one built distribution: what its metadata asks for, each sibling from a wheel or an index."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from release_refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from workspace import Member

_TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """Where built distributions are tried.

    Attributes:
        root: Root of the workspace; its sources are never installed.
        members: Its distributions.
        wheels: Folder of all wheels that were built, flat.
        index: Index that has what was released before; None if there is none.
        scratch: Folder for environments.
    """

    root: Path
    members: Mapping[str, Member]
    wheels: Path
    index: str | None
    scratch: Path

    def try_bare(self, member: Member) -> None:
        """Install the wheel of ``member`` without extras or groups, and import every module of it.

        Raises:
            RefusedError: What is declared cannot be installed, is not enough to import it, or is too much.
        """
        pins = self._resolve(member, ["-"], f"{member.name}=={member.version}\n")
        python, indexed, expected = self._install(member, "bare", pins)
        [leaf] = member.leaves
        imports = ["--import", leaf, *(word for module in member.extra_modules for word in ("--without", module))]
        from_index = [word for name in indexed for word in ("--indexed", name)]
        checked = [str(_TOOLS / "check_environment.py"), "--wheels", str(self.wheels)]
        self._run([str(python), *checked, *imports, *member.light.options(), *from_index, *expected])

    def run_tests(self, member: Member, resolution: str) -> None:
        """Install the wheel and the test group at ``resolution`` (``highest``, ``lowest-direct``), and run its tests.

        Siblings resolve like anything else: at the lowest, to the oldest release that a bound admits.

        Raises:
            RefusedError: What is declared cannot be installed, or a test fails.
        """
        project = member.folder / "pyproject.toml"
        pins = self._resolve(
            member, [str(project), "--group", f"{project}:test", "--resolution", resolution], f"{member.name}\n"
        )
        python, _, _ = self._install(member, resolution, pins)
        tests = ["-m", "pytest", "-q", "-c", str(self.root / "pyproject.toml"), str(member.folder / "tests")]
        done = subprocess.run([str(python), *tests], cwd=self.root, check=False, stdout=sys.stderr)
        if done.returncode:
            way_out = "raise a floor that is too low" if resolution != "highest" else "mend it"
            raise RefusedError(f"{member.name} {member.version}: its tests fail at {resolution} versions: {way_out}")

    def _resolve(self, member: Member, what: list[str], text: str) -> list[str]:
        """Pins of everything that is needed; ``text`` is the standard input, and constrains the distribution itself."""
        itself = self.scratch / f"{member.name}.txt"
        itself.write_text(f"{member.name}=={member.version}\n", encoding="utf-8")
        quiet = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
        command = ["uv", "pip", "compile", *what, *quiet, "--constraints", str(itself), "--python", sys.executable]
        return self._run([*command, *self._origins()], text).splitlines()

    def _install(self, member: Member, kind: str, pins: Iterable[str]) -> tuple[Path, list[str], list[str]]:
        """An environment of exactly ``pins``: its Python, which siblings came from the index, and all of ours in it."""
        wheels = self._wheels()
        lines, ours, indexed = [], {str(canonicalize_name(member.name))}, []
        for pin in pins:
            requirement = Requirement(pin)
            name = str(canonicalize_name(requirement.name))
            if name not in self.members:
                lines.append(pin)
                continue
            ours.add(name)
            if name == canonicalize_name(member.name):
                continue
            wheel = wheels.get((name, str(requirement.specifier).removeprefix("==")))
            lines.append(str(wheel) if wheel else pin)
            indexed += [] if wheel else [name]
        lines.append(str(wheels[canonicalize_name(member.name), member.version]))
        listed = self.scratch / f"{member.name}-{kind}.txt"
        listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        environment = self.scratch / f"{member.name}-{kind}"
        self._run(["uv", "--quiet", "venv", "--clear", "--python", sys.executable, str(environment)])
        python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        install = ["uv", "--quiet", "pip", "install", "--python", str(python), "--requirements", str(listed)]
        self._run([*install, *self._origins()])
        return python, indexed, sorted(ours)

    def _origins(self) -> list[str]:
        """Where distributions come from. An index of ours may not say when it got them, so the date is not for them."""
        index = ["--index", self.index] if self.index else []
        ours = [word for name in self.members for word in ("--exclude-newer-package", f"{name}=false")]
        fresh = [word for name in self.members for word in ("--refresh-package", name)]
        return ["--no-sources", "--find-links", str(self.wheels), *index, *ours, *fresh]

    def _wheels(self) -> dict[tuple[str, str], Path]:
        """Wheels for this machine by name and version."""
        here = set(sys_tags())
        found: dict[tuple[str, str], Path] = {}
        for path in self.wheels.glob("*.whl"):
            name, version, _, tags = parse_wheel_filename(path.name)
            if tags & here:
                found[str(name), str(version)] = path
        return found

    def _run(self, command: list[str], text: str = "") -> str:
        done = subprocess.run(command, cwd=self.root, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            shown = " ".join(command[:4]) if command[0] == "uv" else Path(command[1]).name
            raise RefusedError(f"{shown}: {(done.stderr or done.stdout).strip()}")
        return done.stdout
