"""Check the environment that runs this file: what of the workspace it holds, how large it is, and that it imports.

Runs inside the environment under test, so it needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pkgutil
import re
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMESPACE = "inference_pio"


def main() -> None:
    """Exit with 1 and one line per problem, or print what was found."""
    parser = argparse.ArgumentParser(description="Check which distributions of the workspace are installed, and how.")
    parser.add_argument("--wheels", type=Path, required=True, help="folder of the wheels they must come from")
    parser.add_argument(
        "--indexed", action="append", default=[], metavar="NAME", help="but for this one, which comes from an index"
    )
    parser.add_argument("--import", dest="leaf", metavar="NAME", help="import every module of this package")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="but for this module, which needs an extra"
    )
    parser.add_argument(
        "--max-mb", type=int, metavar="N", help="all distributions take at most N megabytes (10^6 bytes)"
    )
    parser.add_argument(
        "--forbid", action="append", default=[], metavar="NAME", help="this distribution must not be there"
    )
    parser.add_argument("expected", nargs="+", help="the distributions of the workspace that must be there")
    arguments = parser.parse_args()
    problems = [
        *check_installed(arguments.expected, arguments.wheels, arguments.indexed),
        *check_forbidden(arguments.forbid),
        *check_size(arguments.max_mb),
    ]
    if problems:
        sys.exit("\n".join(problems))
    modules = import_all(arguments.leaf, arguments.without) if arguments.leaf else []
    names = ", ".join(arguments.expected)
    size = sum(_installed_bytes(found) for found in distributions()) / 10**6
    print(f"environment: of the workspace only the wheels of {names}; {len(modules)} modules imported; {size:.1f} MB")


def check_installed(expected: list[str], wheels: Path, indexed: Iterable[str] = ()) -> Iterator[str]:
    """Problems with the distributions that bring a part of the namespace: missing, undeclared, not from a wheel.

    Those that are ``indexed`` must come from an index, by their name alone.
    """
    installed = {_canonical(found.name): found for found in distributions() if _is_of_workspace(found)}
    wanted = {_canonical(name) for name in expected}
    for name in sorted(wanted - installed.keys()):
        yield f"{name}: not installed"
    for name in sorted(installed.keys() - wanted):
        yield f"{name}: installed, and nothing declares it"
    by_name = {_canonical(name) for name in indexed}
    for name in sorted(wanted & installed.keys()):
        origin = json.loads(installed[name].read_text("direct_url.json") or "{}")
        if name in by_name:
            if origin:
                yield f"{name}: not installed from an index: {origin}"
            continue
        path = Path(unquote(urlsplit(origin.get("url", "")).path))
        if "archive_info" not in origin or path.parent != wheels.resolve():
            yield f"{name}: not installed from a wheel in {wheels}: {origin or 'from an index'}"


def check_forbidden(forbidden: Iterable[str]) -> Iterator[str]:
    """Those of ``forbidden`` that are installed."""
    installed = {_canonical(found.name) for found in distributions()}
    for name in sorted({_canonical(name) for name in forbidden} & installed):
        yield f"{name}: installed, and must not be needed here"


def check_size(max_mb: int | None) -> Iterator[str]:
    """The size of all distributions together, as their records list their files, if above ``max_mb`` megabytes."""
    if max_mb is None:
        return
    sizes = {found.name: _installed_bytes(found) for found in distributions()}
    total = sum(sizes.values())
    if total > max_mb * 10**6:
        largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:5]
        told = ", ".join(f"{name} {sizes[name] / 10**6:.1f}" for name in largest)
        yield f"{total / 10**6:.1f} MB are installed, and {max_mb} are allowed; the largest: {told}"


def import_all(leaf: str, without: Iterable[str] = ()) -> list[str]:
    """Import the package ``leaf`` and every module below it but those ``without``; returns their names.

    Raises:
        ImportError: A module that does not import with what is installed, or a file outside of the environment, or a
            module to leave out that is not there.
    """
    package = importlib.import_module(leaf)
    found = [
        leaf,
        *(module.name for module in pkgutil.walk_packages(package.__path__, f"{leaf}.") if _is_python(module)),
    ]
    if strays := sorted(set(without) - set(found)):
        message = f"to be left out, but not there: {', '.join(strays)}"
        raise ImportError(message)
    found = [name for name in found if name not in set(without)]
    for name in found:
        module = importlib.import_module(name)
        if not Path(module.__file__ or "").is_relative_to(sys.prefix):
            message = f"{name} comes from {module.__file__}, not from the environment {sys.prefix}"
            raise ImportError(message)
    return found


def _is_python(module: pkgutil.ModuleInfo) -> bool:
    """Whether it can be imported: a library for ctypes looks like an extension module, but for what it exports."""
    found = importlib.util.find_spec(module.name)
    if found is None or not isinstance(found.loader, ExtensionFileLoader):
        return True
    return f"PyInit_{module.name.rpartition('.')[2]}".encode() in Path(found.loader.path).read_bytes()


def _installed_bytes(found: Distribution) -> int:
    """Bytes of its files; what Python compiled of them since does not count."""
    paths = (Path(str(file.locate())) for file in found.files or () if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


def _is_of_workspace(found: Distribution) -> bool:
    editable = json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    return editable or any(file.parts[0] == NAMESPACE for file in found.files or ())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
