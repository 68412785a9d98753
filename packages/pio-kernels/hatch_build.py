"""The build hook of hatchling: compiles the native library and puts it into the wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_native import PACKAGE, build_in_place, build_library, chosen_target


class NativeLibraryHook(BuildHookInterface):  # type: ignore[type-arg] - hatchling sets the parameter by itself
    """Wheels hold the library and are tagged by its platform; editable installs use the one in the source tree."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Build before the wheel's files are collected; ``version`` is ``standard`` or ``editable``.

        Raises:
            BuildError: The library could not be built.
        """
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{chosen_target(os.environ).tag}"
        if version == "editable":
            build_in_place(os.environ)
            return
        library = build_library(os.environ)
        inside = PACKAGE.relative_to(PACKAGE.parents[1]) / library.name
        build_data["force_include"] = {str(library): inside.as_posix()}
