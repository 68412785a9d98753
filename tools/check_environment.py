"""Check the environment that runs this file: which distributions of the workspace it holds, and that they import.

Runs inside the environment under test, so it needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
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
    parser.add_argument("--import", dest="leaf", metavar="NAME", help="import every module of this package")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="but for this module, which needs an extra"
    )
    parser.add_argument("expected", nargs="+", help="the distributions of the workspace that must be there")
    arguments = parser.parse_args()
    problems = list(check_installed(arguments.expected, arguments.wheels))
    if problems:
        sys.exit("\n".join(problems))
    modules = import_all(arguments.leaf, arguments.without) if arguments.leaf else []
    names = ", ".join(arguments.expected)
    print(f"environment: of the workspace only the wheels of {names}; {len(modules)} modules imported")


def check_installed(expected: list[str], wheels: Path) -> Iterator[str]:
    """Problems with the distributions that bring a part of the namespace: missing, undeclared, not from a wheel."""
    installed = {_canonical(found.name): found for found in distributions() if _is_of_workspace(found)}
    wanted = {_canonical(name) for name in expected}
    for name in sorted(wanted - installed.keys()):
        yield f"{name}: not installed"
    for name in sorted(installed.keys() - wanted):
        yield f"{name}: installed, and nothing declares it"
    for name in sorted(wanted & installed.keys()):
        origin = json.loads(installed[name].read_text("direct_url.json") or "{}")
        path = Path(unquote(urlsplit(origin.get("url", "")).path))
        if "archive_info" not in origin or path.parent != wheels.resolve():
            yield f"{name}: not installed from a wheel in {wheels}: {origin or 'from an index'}"


def import_all(leaf: str, without: Iterable[str] = ()) -> list[str]:
    """Import the package ``leaf`` and every module below it but those ``without``; returns their names.

    Raises:
        ImportError: A module that does not import with what is installed, or a file outside of the environment, or a
            module to leave out that is not there.
    """
    package = importlib.import_module(leaf)
    found = [leaf, *(module.name for module in pkgutil.walk_packages(package.__path__, f"{leaf}."))]
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


def _is_of_workspace(found: Distribution) -> bool:
    editable = json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    return editable or any(file.parts[0] == NAMESPACE for file in found.files or ())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
