"""The members of the workspace, as their ``pyproject.toml`` files declare them.

Read by the noxfile and by the tools beside this file. Knows nothing of git, environments or what the code imports.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAMESPACE = "inference_pio"
MEMBER_FOLDERS = ("packages", "models")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """What the environment of a distribution without its extras is held to.

    Attributes:
        max_mb: Megabytes (10^6 bytes) that everything in it may take, but for torch and what torch alone brings; None
            for any number.
        max_modules: Modules that may be loaded once it is imported, Python's own included; None for any number.
        without: Distributions that must not be in it.
        lazy: Modules that importing it must not import.
    """

    max_mb: int | None
    max_modules: int | None
    without: tuple[str, ...]
    lazy: tuple[str, ...]

    def options(self) -> list[str]:
        """What ``check_environment.py`` is told."""
        limits = {"--max-mb": self.max_mb, "--max-modules": self.max_modules}
        words = [word for name, limit in limits.items() if limit is not None for word in (name, str(limit))]
        words += [word for name in self.without for word in ("--forbid", name)]
        return [*words, *(word for name in self.lazy for word in ("--lazy", name))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One distribution of the workspace.

    Attributes:
        name: Name of the distribution, as declared.
        folder: Its folder, absolute.
        document: Its whole ``pyproject.toml``.
    """

    name: str
    folder: Path
    document: Mapping[str, object]

    @property
    def version(self) -> str:
        """The declared version; empty if it is not static."""
        return str(table(self.document, "project").get("version", ""))

    @property
    def dependencies(self) -> tuple[Requirement, ...]:
        """What it needs at run time."""
        return _requirements(table(self.document, "project").get("dependencies", []))

    @property
    def extras(self) -> dict[str, tuple[Requirement, ...]]:
        """What each extra adds."""
        extras = table(self.document, "project", "optional-dependencies")
        return {name: _requirements(entries) for name, entries in extras.items()}

    @property
    def groups(self) -> dict[str, tuple[Requirement, ...]]:
        """What each dependency group adds. Groups that include others are not used in this workspace."""
        return {name: _requirements(entries) for name, entries in table(self.document, "dependency-groups").items()}

    @property
    def extra_modules(self) -> dict[str, str]:
        """Modules that import only with an extra, and which: ``[tool.pio-workspace.extra-modules]``."""
        listed = table(self.document, "tool", "pio-workspace", "extra-modules")
        return {module: str(extra) for module, extra in listed.items()}

    @property
    def light(self) -> Light:
        """What it holds an installation without extras to: ``[tool.pio-workspace.light]``.

        Raises:
            ValueError: A key that means nothing, or a value of another type: a limit that is not read holds nobody.
        """
        declared = table(self.document, "tool", "pio-workspace", "light")
        numbers = {key: declared.get(key) for key in ("max-mb", "max-modules")}
        names = {key: declared.get(key, []) for key in ("without", "lazy")}
        sound = all(isinstance(value, int | None) for value in numbers.values()) and all(
            isinstance(value, list) for value in names.values()
        )
        if declared.keys() - numbers.keys() - names.keys() or not sound:
            must = "[tool.pio-workspace.light] has numbers max-mb and max-modules, and lists without and lazy"
            raise ValueError(f"{self.name}: {must}, not {dict(declared)}")
        lists = {key: tuple(map(str, value)) for key, value in names.items() if isinstance(value, list)}
        return Light(max_mb=_number(numbers["max-mb"]), max_modules=_number(numbers["max-modules"]), **lists)

    @property
    def programs(self) -> frozenset[str]:
        """Canonical names of distributions that it runs as programs: ``programs`` of ``[tool.pio-workspace]``."""
        names = table(self.document, "tool", "pio-workspace").get("programs", [])
        return frozenset(canonicalize_name(str(name)) for name in names) if isinstance(names, list) else frozenset()

    @property
    def leaves(self) -> tuple[str, ...]:
        """Import names of the portions it brings, such as ``inference_pio.attention``; exactly one when all is well."""
        namespace = self.folder / "src" / NAMESPACE
        names: list[str] = []
        for folder in _folders(namespace):
            if folder.name == "models":
                names.extend(f"{NAMESPACE}.models.{leaf.name}" for leaf in _folders(folder))
            else:
                names.append(f"{NAMESPACE}.{folder.name}")
        return tuple(names)

    def leaf_folder(self, leaf: str) -> Path:
        """Folder of the portion ``leaf``."""
        return self.folder.joinpath("src", *leaf.split("."))


def read_members(root: Path = ROOT) -> dict[str, Member]:
    """All members below ``root``, by canonical name, in alphabetical order of their folders.

    Raises:
        tomllib.TOMLDecodeError: A ``pyproject.toml`` that is not TOML.
        KeyError: One that names no project.
    """
    members: dict[str, Member] = {}
    for parent in MEMBER_FOLDERS:
        for folder in _folders(root / parent):
            path = folder / "pyproject.toml"
            if not path.is_file():
                continue
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            name = str(table(document, "project")["name"])
            members[canonicalize_name(name)] = Member(name=name, folder=folder, document=document)
    return members


def siblings(member: Member, members: Mapping[str, Member], *, groups: bool) -> set[str]:
    """Canonical names of the members that ``member`` itself names: in its dependencies, its extras and its groups."""
    named = [*member.dependencies, *(entry for extra in member.extras.values() for entry in extra)]
    if groups:
        named += [entry for group in member.groups.values() for entry in group]
    return {str(canonicalize_name(entry.name)) for entry in named} & members.keys()


def closure(name: str, members: Mapping[str, Member], *, groups: bool) -> set[str]:
    """Canonical names of all members that an environment for ``name`` may hold, itself and all extras included.

    With ``groups``, an environment that has its dependency groups too; its own alone, since groups do not chain.
    """
    reached = {name}
    waiting = siblings(members[name], members, groups=groups)
    while waiting:
        reached |= waiting
        waiting = {below for above in waiting for below in siblings(members[above], members, groups=False)} - reached
    return reached


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))


def table(document: Mapping[str, object], *keys: str) -> Mapping[str, object]:
    """The table at ``keys`` of a TOML ``document``; empty if there is none."""
    value: object = document
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _requirements(entries: object) -> tuple[Requirement, ...]:
    if not isinstance(entries, list):
        return ()
    return tuple(Requirement(entry) for entry in entries if isinstance(entry, str))
