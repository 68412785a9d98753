"""Sphinx configuration: one site over all distributions, its reference generated from their docstrings."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tools"))

from workspace import Member, read_members, table  # noqa: E402 - tools/ is no package; the line above makes it importable

if TYPE_CHECKING:
    from types import ModuleType

    from sphinx.application import Sphinx

project = "Inference-PIO"
author = "The Inference-PIO authors"
copyright = author  # noqa: A001 - Sphinx's name for it
html_title = project
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["tests"]
myst_heading_anchors = 3
# Of several attributes with the name of an annotation, such as dtype, none is meant: it is another library's type.
suppress_warnings = ["ref.python"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def write_reference(_: Sphinx) -> None:
    """Write one page per distribution below ``reference/``, which git ignores."""
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.rst"):
        stale.unlink()
    for member in read_members().values():
        (folder / f"{member.name}.rst").write_text(reference_page(member), encoding="utf-8")


def reference_page(member: Member) -> str:
    """What the page of one distribution says: its public modules, those with an ``__all__``, name by name."""
    [leaf] = member.leaves
    package = importlib.import_module(leaf)
    public = [found.name for found in pkgutil.iter_modules(package.__path__, f"{leaf}.") if is_public(found.name)]
    modules = [package, *map(importlib.import_module, public)]
    description = str(table(member.document, "project")["description"])
    parts = [f"{member.name}\n{'=' * len(member.name)}", description]
    parts += [module_section(module, leaf) for module in modules if hasattr(module, "__all__")]
    return "\n\n".join(parts) + "\n"


def is_public(module: str) -> bool:
    """Whether it is a module that others import: a library for ctypes that lies beside them is none."""
    found = importlib.util.find_spec(module)
    return found is not None and (found.origin or "").endswith(".py") and not module.rpartition(".")[2].startswith("_")


def module_section(module: ModuleType, leaf: str) -> str:
    """The names of ``module`` that belong to the portion ``leaf``; those of other portions are only mentioned."""
    names = {name: getattr(module, name) for name in module.__all__}
    own = [name for name, item in names.items() if f"{getattr(item, '__module__', leaf)}.".startswith(f"{leaf}.")]
    passed_on = ", ".join(f"``{name}``" for name in names if name not in own)
    parts = [f"{module.__name__}\n{'-' * len(module.__name__)}", f".. automodule:: {module.__name__}\n   :no-members:"]
    if passed_on:
        parts.append(f"Also importable from here, and described where they belong: {passed_on}.")
    return "\n\n".join([*parts, *(directive(f"{module.__name__}.{name}", names[name]) for name in own)])


def directive(path: str, item: object) -> str:
    """The directive that documents ``item``: a class, a function, a model's plugin object, or a constant."""
    if inspect.isclass(item):
        return f".. autoclass:: {path}"
    if inspect.isroutine(item):
        return f".. autofunction:: {path}"
    if path.endswith(".PLUGIN"):
        return f".. autoclass:: {type(item).__module__}.{type(item).__qualname__}"
    return f".. autodata:: {path}\n   :no-value:"


def setup(app: Sphinx) -> None:
    """Register the pages that are written before the build."""
    app.connect("builder-inited", write_reference)
