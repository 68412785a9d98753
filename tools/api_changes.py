"""What users of a portion would notice of the changes between two versions of its source: read, never imported.

Public is what ``__all__`` names, or what no underscore hides where there is no ``__all__``. griffe finds what was
removed, has another kind, other bases, or takes other parameters. What it does not see: other types in annotations, a
method that a protocol gained, and fields of ``msgspec`` structures, which are no parameters to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def breaking_changes(leaf: str, old: Path, new: Path) -> list[str]:
    """One line for all of ``leaf`` that may break somebody, sorted: where it stood, what happened, old and new.

    Args:
        leaf: Import name of the portion.
        old: Folder that holds the namespace as it was released.
        new: The same, now.

    Raises:
        griffe.LoadingError: A folder without that portion.
        ImportError: The same.
    """
    before, after = _load(leaf, old), _load(leaf, new)
    names = dict(_public_names(before))
    found = {_described(change, names) for change in griffe.find_breaking_changes(before, after)}
    return sorted(found | {f"{name}: public object was removed" for name in _no_longer_offered(before, after, leaf)})


def _load(leaf: str, folder: Path) -> griffe.Module:
    loaded = griffe.load(leaf, search_paths=[folder], allow_inspection=False, resolve_aliases=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def _public_names(module: griffe.Module) -> Iterator[tuple[str, str]]:
    """Where things are defined, and the name under which users know them: the first that offers them."""
    for member in module.members.values():
        if isinstance(member, griffe.Alias):
            if member.is_public:
                yield member.target_path, member.path
        elif isinstance(member, griffe.Module):
            yield from _public_names(member)


def _no_longer_offered(before: griffe.Module, after: griffe.Module, leaf: str) -> Iterator[str]:
    """Names that ``__all__`` lost though something of that name is still there, or imports from where it is not."""
    for name in before.exports or ():
        member = after.members.get(str(name))
        lost = member is None or (after.exports is not None and name not in after.exports)
        if lost or (isinstance(member, griffe.Alias) and _is_dangling(member, leaf)):
            yield f"{before.path}.{name}"
    for name, module in before.modules.items():
        if module.is_public and name in after.modules:
            yield from _no_longer_offered(module, after.modules[name], leaf)


def _is_dangling(alias: griffe.Alias, leaf: str) -> bool:
    """Whether it names what its own portion does not have; what other portions have is not loaded."""
    try:
        return alias.final_target is None
    except griffe.AliasResolutionError as error:
        return error.alias.target_path.startswith(f"{leaf}.")
    except griffe.CyclicAliasError:
        return True


def _described(found: griffe.Breakage, names: dict[str, str]) -> str:
    place = found.obj.canonical_path
    owner = max((path for path in names if f"{place}.".startswith(f"{path}.")), key=len, default=None)
    if owner is not None:
        place = names[owner] + place.removeprefix(owner)
    old, new = found.old_value, found.new_value
    parameter = next((value.name for value in (old, new) if isinstance(value, griffe.Parameter)), None)
    if parameter is not None:
        place = f"{place}({parameter})"
    told = found.kind.value[0].lower() + found.kind.value[1:]
    match found.kind:
        case griffe.BreakageKind.PARAMETER_CHANGED_KIND:
            told += f": {old.kind.value} -> {new.kind.value}"
        case griffe.BreakageKind.PARAMETER_CHANGED_DEFAULT:
            told += f": {old.default} -> {new.default}"
        case griffe.BreakageKind.OBJECT_CHANGED_KIND | griffe.BreakageKind.RETURN_CHANGED_TYPE:
            told += f": {_plain(old)} -> {_plain(new)}"
        case griffe.BreakageKind.CLASS_REMOVED_BASE:
            kept = {str(base) for base in new}
            told += f": {', '.join(str(base) for base in old if str(base) not in kept)}"
    return f"{place}: {told}"


def _plain(value: object) -> str:
    return str(value.value if isinstance(value, griffe.Kind) else value)
