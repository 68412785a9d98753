"""Check the environment that runs this file: what of the workspace it holds, how large it is, and that it imports.

Runs inside the environment under test, so it needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from collections import Counter
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from environment_size import brought_only_by, canonical, sizes

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
        "--max-mb", type=int, metavar="N", help="all but what torch alone brings takes at most N megabytes (10^6 bytes)"
    )
    parser.add_argument(
        "--max-modules", type=int, metavar="N", help="importing the package loads at most N modules, Python's included"
    )
    parser.add_argument(
        "--lazy", action="append", default=[], metavar="NAME", help="importing the package does not import this module"
    )
    parser.add_argument(
        "--forbid", action="append", default=[], metavar="NAME", help="this distribution must not be there"
    )
    parser.add_argument("expected", nargs="+", help="the distributions of the workspace that must be there")
    arguments = parser.parse_args()
    problems = [
        *check_installed(arguments.expected, arguments.wheels, arguments.indexed),
        *check_forbidden(arguments.forbid),
        *check_size(arguments.max_mb, arguments.expected),
    ]
    if arguments.leaf and not problems:
        problems += check_import(arguments.leaf, arguments.max_modules, arguments.lazy)
    if problems:
        sys.exit("\n".join(problems))
    modules = import_all(arguments.leaf, arguments.without) if arguments.leaf else []
    names = ", ".join(arguments.expected)
    size = sum(sizes().values()) / 10**6
    print(f"environment: of the workspace only the wheels of {names}; {len(modules)} modules imported; {size:.1f} MB")


def check_installed(expected: list[str], wheels: Path, indexed: Iterable[str] = ()) -> Iterator[str]:
    """Problems with the distributions that bring a part of the namespace: missing, undeclared, not from a wheel.

    Those that are ``indexed`` must come from an index, by their name alone.
    """
    installed = {canonical(found.name): found for found in distributions() if _is_of_workspace(found)}
    wanted = {canonical(name) for name in expected}
    for name in sorted(wanted - installed.keys()):
        yield f"{name}: not installed"
    for name in sorted(installed.keys() - wanted):
        yield f"{name}: installed, and nothing declares it"
    by_name = {canonical(name) for name in indexed}
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
    installed = {canonical(found.name) for found in distributions()}
    for name in sorted({canonical(name) for name in forbidden} & installed):
        yield f"{name}: installed, and must not be needed here"


def check_size(max_mb: int | None, expected: Iterable[str]) -> Iterator[str]:
    """The size of all distributions together, as their records list their files, if above ``max_mb`` megabytes.

    What is there only because of torch is left out: how large that is, its build for the machine decides.
    """
    if max_mb is None:
        return
    found = sizes()
    for name in brought_only_by("torch", expected):
        del found[name]
    total = sum(found.values())
    if total > max_mb * 10**6:
        largest = sorted(found, key=lambda name: found[name], reverse=True)[:5]
        told = ", ".join(f"{name} {found[name] / 10**6:.1f}" for name in largest)
        yield f"{total / 10**6:.1f} MB are installed, and {max_mb} are allowed; the largest: {told}"


def check_import(leaf: str, max_modules: int | None, lazy: Iterable[str]) -> Iterator[str]:
    """What importing ``leaf`` in a fresh process loads, if it is more than ``max_modules`` or any of ``lazy``."""
    modules = loaded_by(leaf)
    if max_modules is not None and len(modules) > max_modules:
        tops = Counter(name.partition(".")[0] for name in modules).most_common(5)
        told = ", ".join(f"{name} {count}" for name, count in tops)
        yield f"importing {leaf} loads {len(modules)} modules, and {max_modules} are allowed; the most: {told}"
    for name in sorted(set(lazy) & set(modules)):
        yield f"importing {leaf} imports {name}, which is to be imported when it is used"


def loaded_by(leaf: str) -> list[str]:
    """All modules that are loaded after ``import leaf`` in a fresh process, Python's own included.

    Raises:
        ImportError: It does not import, with what the process said.
    """
    code = f"import {leaf}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImportError(done.stderr)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


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


def _is_of_workspace(found: Distribution) -> bool:
    editable = json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    return editable or any(file.parts[0] == NAMESPACE for file in found.files or ())


if __name__ == "__main__":
    main()
