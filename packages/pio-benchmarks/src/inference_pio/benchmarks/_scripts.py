"""The benchmark scripts of a checkout: ``benchmarks/bench_*.py`` of every distribution in its workspace."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import InvalidRequestError, MalformedFileError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Script:
    """A benchmark script.

    Attributes:
        package: Distribution that brings it.
        version: Of that distribution, as in the checkout.
        path: Of the script.
    """

    package: str
    version: str
    path: Path

    @property
    def benchmark(self) -> str:
        """Its name: ``"scheduler"`` of ``bench_scheduler.py``."""
        return self.path.stem.removeprefix("bench_")

    @property
    def name(self) -> str:
        """``"pio-core/scheduler"``, unique in a checkout."""
        return f"{self.package}/{self.benchmark}"


def find_root(start: Path) -> Path:
    """The nearest folder at or above ``start`` whose ``pyproject.toml`` names the members of a workspace.

    Raises:
        ModelNotFoundError: There is none.
        MalformedFileError: A ``pyproject.toml`` on the way is no TOML.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() and _member_globs(folder):
            return folder
    raise ModelNotFoundError(
        f"no workspace of distributions at or above {start}", hint="run it in a checkout, or say --root DIR"
    )


def find_scripts(root: Path) -> list[Script]:
    """All benchmark scripts of the workspace at ``root``, by distribution and name.

    Raises:
        MalformedFileError: A distribution's ``pyproject.toml`` is no TOML, or lacks name or version.
    """
    folders = {folder for pattern in _member_globs(root) for folder in root.glob(pattern)}
    scripts: list[Script] = []
    for folder in sorted(folders):
        paths = sorted((folder / "benchmarks").glob("bench_*.py"))
        if paths:
            package, version = _identity(folder / "pyproject.toml")
            scripts += [Script(package, version, path) for path in paths]
    return sorted(scripts, key=lambda script: script.name)


def select_scripts(scripts: Sequence[Script], names: Sequence[str]) -> list[Script]:
    """Those that ``names`` name: a distribution, ``distribution/benchmark``, or a benchmark of any distribution.

    Raises:
        InvalidRequestError: A name matches none.
    """
    chosen: dict[str, Script] = {}
    for name in names:
        found = [script for script in scripts if name in {script.package, script.name, script.benchmark}]
        if not found:
            known = sorted({known for script in scripts for known in (script.package, script.name, script.benchmark)})
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "pio bench run --list names them"
            raise InvalidRequestError(f"no benchmark {name!r} in this checkout", hint=hint)
        chosen |= {script.name: script for script in found}
    return [chosen[name] for name in sorted(chosen)]


def _member_globs(folder: Path) -> list[str]:
    value: object = _read_toml(folder / "pyproject.toml")
    for key in ("tool", "uv", "workspace", "members"):
        value = value.get(key) if isinstance(value, dict) else None
    return [str(pattern) for pattern in value] if isinstance(value, list) else []


def _identity(path: Path) -> tuple[str, str]:
    project = _read_toml(path).get("project")
    for key in ("name", "version"):
        if not isinstance(project, dict) or not isinstance(project.get(key), str):
            raise MalformedFileError(path, f"project.{key}", "is missing")
    assert isinstance(project, dict)
    return project["name"], project["version"]


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MalformedFileError(path, "document", f"is no TOML: {error}") from error
