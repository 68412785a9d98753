# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Release distributions: see what waits, write it into the tree, build and check it, publish what an index lacks."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from release_plan import Step, make_plan
from release_prepare import Preparation, make_preparation, prepare
from release_refusal import RefusedError
from workspace import ROOT, read_members

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 1 and one line per reason if it is refused, 2 for words that mean nothing."""
    arguments = _parser().parse_args(words)
    arguments.root = arguments.root.resolve()
    try:
        arguments.run(arguments)
    except RefusedError as error:
        if arguments.json:
            print(json.dumps({"refused": error.reasons}, indent=2))
        sys.exit("\n".join(f"release: {reason}" for reason in error.reasons))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", type=Path, default=ROOT, help="root of the workspace (default: around this file)")
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    dry = argparse.ArgumentParser(add_help=False)
    dry.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    planned = commands.add_parser("plan", parents=[shared], help="what waits for a release, and whom it excludes")
    planned.set_defaults(run=_plan)

    prepared = commands.add_parser("prepare", parents=[shared, dry], help="versions, changelogs and bounds of releases")
    prepared.add_argument("names", nargs="*", metavar="NAME", help="distributions to release")
    prepared.add_argument("--all", action="store_true", help="everything that the plan has")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    prepared.add_argument(
        "--date", default=today, type=_date, help="date in the changelogs (default: today, %(default)s)"
    )
    prepared.set_defaults(run=_prepare)
    return parser


def _plan(arguments: argparse.Namespace) -> None:
    steps = make_plan(read_members(arguments.root))
    if arguments.json:
        print(json.dumps({"releases": [_step(step) for step in steps]}, indent=2))
        return
    for step in steps:
        print(_line(step))
        for bound in step.excluded_by:
            print(f"    excluded by {bound.dependent} ({bound.where}): {bound.text}")
    print(f"{len(steps)} to release" if steps else "nothing to release: no fragments wait")


def _prepare(arguments: argparse.Namespace) -> None:
    if bool(arguments.names) == arguments.all:
        raise RefusedError("name the distributions to prepare, or all of them with --all: `release.py plan` lists them")
    preparation = make_preparation(arguments.root, arguments.names)
    if not arguments.dry_run:
        prepare(arguments.root, preparation, arguments.date)
    if arguments.json:
        print(json.dumps(_preparation(preparation, dry_run=arguments.dry_run), indent=2))
        return
    for step in preparation.steps:
        print(_line(step))
    for raised in preparation.raises:
        print(f"{raised.bound.dependent} ({raised.bound.where}): {raised.bound.text} -> {raised.text}: {raised.why}")
    if preparation.left:
        print(f"raised and not released here, so that they wait with a fragment: {', '.join(preparation.left)}")
    print("nothing was changed" if arguments.dry_run else "staged: read `git diff --staged`, then commit")


def _line(step: Step) -> str:
    version = f"{step.next} (first release)" if step.bump == "first" else f"{step.version} -> {step.next} ({step.bump})"
    return f"{step.name} {version}: {step.why}"


def _step(step: Step) -> dict[str, object]:
    return {**asdict(step), "dependents": step.dependents}


def _preparation(preparation: Preparation, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "releases": [_step(step) for step in preparation.steps],
        "raised": [asdict(raised) for raised in preparation.raises],
        "waiting": preparation.left,
    }


def _date(text: str) -> str:
    return dt.date.fromisoformat(text).isoformat()


if __name__ == "__main__":
    main()
