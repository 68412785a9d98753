# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Which releases are prepared in the tree and missing on an index: what a push to the main branch has to publish.

Prepared is a version that the changelog has and no fragment waits beside. So a commit that prepares nothing publishes
nothing, one that prepares a distribution publishes exactly that, and one after a release that failed tries it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from release_build import release_files
from release_fragments import read_fragments
from release_index import Index
from release_order import dependency_order
from release_refusal import RefusedError
from rules_layout import is_released
from workspace import ROOT, Member, read_members

if TYPE_CHECKING:
    from collections.abc import Mapping


def main() -> None:
    """Print their names in dependency order, one a line, or as a JSON list for a job matrix."""
    parser = argparse.ArgumentParser(description="Which releases are prepared and not on the index.")
    parser.add_argument("--index", metavar="URL", required=True, help="root of the index's simple API")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args()
    try:
        names = pending(read_members(arguments.root.resolve()), Index(arguments.index))
    except RefusedError as error:
        sys.exit(f"pending_releases: {error}")
    print(json.dumps(names) if arguments.json else "\n".join(names))


def pending(members: Mapping[str, Member], index: Index) -> list[str]:
    """Names of the distributions whose version is prepared and not on ``index`` in full, in dependency order.

    Raises:
        RefusedError: A dependency cycle, or an index that does not answer.
    """
    prepared = (name for name in dependency_order(members) if is_prepared(members[name]))
    return [name for name in prepared if set(release_files(members[name])) - index.files(name).keys()]


def is_prepared(member: Member) -> bool:
    """Whether all that the tree has of ``member`` belongs to the version that it declares."""
    return is_released(member) and not read_fragments(member)


if __name__ == "__main__":
    main()
