"""Bounds between distributions of the workspace: which exclude a new version, and how they are raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from release_refusal import RefusedError
from rules_dependencies import next_minor
from workspace import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from workspace import Member


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Bound:
    """One requirement on a distribution of the workspace, as a ``pyproject.toml`` writes it.

    Attributes:
        dependent: Canonical name of the distribution that declares it.
        where: ``dependencies``, ``extra 'torch'``, ``group 'test'``.
        text: The requirement, word for word.
        published: Whether it is part of the wheel's metadata; a group's is not.
    """

    dependent: str
    where: str
    text: str
    published: bool

    @property
    def requirement(self) -> Requirement:
        """The requirement that ``text`` writes."""
        return Requirement(self.text)

    @property
    def target(self) -> str:
        """Canonical name of the distribution that it bounds."""
        return str(canonicalize_name(self.requirement.name))

    def admits(self, version: Version | str) -> bool:
        """Whether ``version`` is inside."""
        return self.requirement.specifier.contains(str(version), prereleases=True)

    def raised_to(self, version: str) -> str:
        """The requirement with the one-minor bound whose floor is ``version``."""
        requirement = self.requirement
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        marker = f"; {requirement.marker}" if requirement.marker else ""
        floor = Version(version)
        lowest = f"{floor.major}.{floor.minor}" + (f".{floor.micro}" if floor.micro else "")
        return f"{requirement.name}{extras}>={lowest},<{next_minor(floor)}{marker}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Raise:
    """A bound and what it becomes.

    Attributes:
        bound: As it is.
        text: As it will be.
        why: In a few words.
    """

    bound: Bound
    text: str
    why: str


def read_bounds(members: Mapping[str, Member]) -> Iterator[Bound]:
    """All bounds between ``members``, those of a distribution on its own extras included."""
    for name, member in members.items():
        project = table(member.document, "project")
        places = [("dependencies", project.get("dependencies"), True)]
        for extra, entries in table(member.document, "project", "optional-dependencies").items():
            places.append((f"extra {extra!r}", entries, True))
        for group, entries in table(member.document, "dependency-groups").items():
            places.append((f"group {group!r}", entries, False))
        for where, entries, published in places:
            for text in entries if isinstance(entries, list) else ():
                if isinstance(text, str) and canonicalize_name(Requirement(text).name) in members:
                    yield Bound(dependent=name, where=where, text=text, published=published)


def excluded(members: Mapping[str, Member], versions: Mapping[str, str]) -> list[Bound]:
    """Bounds that the new ``versions`` (by canonical name) are outside of, sorted."""
    return sorted(
        bound for bound in read_bounds(members) if bound.target in versions and not bound.admits(versions[bound.target])
    )


def write_raise(member: Member, raised: Raise) -> None:
    """Change the bound in the ``pyproject.toml`` of ``member``, wherever it is written so.

    Raises:
        RefusedError: It is not written as a string in double quotes.
    """
    path = member.folder / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    for quote in ('"', "'"):
        if quote not in raised.text and f"{quote}{raised.bound.text}{quote}" in text:
            replaced = text.replace(f"{quote}{raised.bound.text}{quote}", f"{quote}{raised.text}{quote}")
            path.write_text(replaced, encoding="utf-8")
            return
    raise RefusedError(
        f"{path}: {raised.bound.text} is not written as a plain string: raise it to {raised.text} by hand"
    )
