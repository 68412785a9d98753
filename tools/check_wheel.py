"""What is inside a built wheel: the portion of its own distribution, typed and licensed, and nothing else."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from workspace import Member


def check_wheel(wheel: Path, member: Member) -> list[str]:
    """Problems of ``wheel``, which was built from ``member``: one line each."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    [leaf] = member.leaves
    portion = leaf.replace(".", "/") + "/"
    information = f"{member.name.replace('-', '_')}-{member.version}.dist-info/"
    strays = sorted(name for name in names if not name.startswith((portion, information)))
    problems = [f"{wheel.name}: {name} is outside of {portion}" for name in strays]
    source = member.folder / "src"
    kept = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted = {path.relative_to(source).as_posix() for path in kept}
    wanted |= {f"{portion}__init__.py", f"{portion}py.typed", f"{information}licenses/LICENSE"}
    return problems + [f"{wheel.name}: lacks {name}" for name in sorted(wanted - names)]
