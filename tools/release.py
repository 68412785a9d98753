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

from release_build import release_files
from release_check import RESOLUTIONS, check, names_to_check
from release_git import tag_name
from release_index import Index
from release_manifest import MANIFEST
from release_plan import Step, make_plan
from release_prepare import Preparation, make_preparation, prepare
from release_publish import Target, make_uploads, tag, upload
from release_refusal import RefusedError
from workspace import ROOT, read_members

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 1 and one line per reason if it is refused, 2 for words that mean nothing."""
    arguments = _parser().parse_args(words)
    arguments.root = arguments.root.resolve()
    try:
        _refuse_nothing(arguments.root)
        arguments.run(arguments)
    except RefusedError as error:
        if arguments.json:
            print(json.dumps({"refused": error.reasons}, indent=2))
        sys.exit("\n".join(f"release: {reason}" for reason in error.reasons))


def _refuse_nothing(root: Path) -> None:
    if not read_members(root):
        raise RefusedError(f"{root} has no distributions: name the root of the workspace with --root")


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

    placed = argparse.ArgumentParser(add_help=False)
    placed.add_argument(
        "--dist", type=Path, metavar="DIR", help="folder of what is built, and of its manifest (default: dist/release)"
    )
    checked = commands.add_parser(
        "check", parents=[shared, dry, placed], help="build releases, and check what is built"
    )
    checked.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="distributions (default: what is prepared and not on the index, or all)",
    )
    checked.add_argument("--index", metavar="URL", help="index of earlier releases; siblings come from there")
    checked.add_argument("--without-tests", action="store_true", help="leave the tests to others; the manifest says so")
    checked.set_defaults(run=_check)

    reached = argparse.ArgumentParser(add_help=False)
    reached.add_argument("--index", metavar="URL", required=True, help="root of the index's simple API")
    published = commands.add_parser(
        "publish", parents=[shared, dry, placed, reached], help="upload what the index lacks, in dependency order"
    )
    published.add_argument(
        "--publish-url", metavar="URL", help="address that takes uploads (default: --index without /simple/)"
    )
    published.add_argument("--only", action="append", default=[], metavar="NAME", help="this one now; repeatable")
    published.add_argument("--manifest-sha256", metavar="HEX", help="what `check` said that its manifest has")
    published.add_argument("--allow-untested", action="store_true", help="take what was checked without its tests, too")
    published.set_defaults(run=_publish)

    tagged = commands.add_parser(
        "tag", parents=[shared, dry, placed, reached], help="tag releases that are complete on the index"
    )
    tagged.add_argument("--push", metavar="REMOTE", help="push the tags there")
    tagged.set_defaults(run=_tag)
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


def _check(arguments: argparse.Namespace) -> None:
    members = read_members(arguments.root)
    names = names_to_check(members, arguments.names, arguments.index)
    if arguments.dry_run or not names:
        listed = {name: release_files(members[name]) for name in names}
        if arguments.json:
            print(json.dumps({"dry_run": arguments.dry_run, "files": listed}, indent=2))
        else:
            print(
                "\n".join(f"{name}: {', '.join(files)}" for name, files in listed.items())
                or "nothing is prepared that the index lacks"
            )
        return
    resolutions = () if arguments.without_tests else RESOLUTIONS
    manifest, sha256 = check(arguments.root, names, _dist(arguments), arguments.index, resolutions)
    if arguments.json:
        print(json.dumps({**asdict(manifest), "manifest_sha256": sha256}, indent=2))
        return
    for built in manifest.distributions:
        tested = f"tested at {', '.join(built.tested)} versions" if built.tested else "not tested"
        print(f"{built.name} {built.version}: {len(built.files)} files, {tested}")
    print(f"manifest: {_dist(arguments) / MANIFEST}, sha256 {sha256}")


def _publish(arguments: argparse.Namespace) -> None:
    folder, index = _dist(arguments), Index(arguments.index)
    uploads = make_uploads(arguments.root, folder, index, only=arguments.only, sha256=arguments.manifest_sha256)
    untested = [each.built for each in uploads if each.missing and set(each.built.tested) != set(RESOLUTIONS)]
    if untested and not arguments.allow_untested:
        way_out = "check it with its tests, or pass --allow-untested"
        raise RefusedError(
            *(f"{built.name} {built.version} was checked without its tests: {way_out}" for built in untested)
        )
    if not arguments.dry_run:
        address = arguments.publish_url or arguments.index.rstrip("/").removesuffix("/simple") + "/"
        upload(folder, uploads, Target(index=index, upload=address))
    if arguments.json:
        listed = [
            {
                "name": each.built.name,
                "version": each.built.version,
                "tag": tag_name(each.built.name, each.built.version),
                "uploaded": [file.name for file in each.missing],
            }
            for each in uploads
        ]
        print(json.dumps({"dry_run": arguments.dry_run, "distributions": listed}, indent=2))
        return
    verb = "would be uploaded" if arguments.dry_run else "uploaded"
    for each in uploads:
        done = f"{', '.join(file.name for file in each.missing)} {verb}" if each.missing else "complete already"
        print(f"{each.built.name} {each.built.version}: {done}")


def _tag(arguments: argparse.Namespace) -> None:
    new = tag(arguments.root, _dist(arguments), Index(arguments.index), arguments.push, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps({"dry_run": arguments.dry_run, "tags": new}, indent=2))
    else:
        print("\n".join(new) if new else "every release has its tag")


def _dist(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.dist or arguments.root / "dist" / "release"
    return folder.resolve()


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
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date: write YYYY-MM-DD") from error


if __name__ == "__main__":
    main()
