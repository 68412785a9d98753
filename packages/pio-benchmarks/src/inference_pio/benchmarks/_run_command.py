"""``pio bench run``: the benchmarks of the distributions in a checkout."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.benchmarks._record import Record
    from inference_pio.benchmarks._run import Outcome, Surroundings
    from inference_pio.benchmarks._scripts import Script


@click.command("run")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All benchmarks of all distributions.")
@click.option("--list", "only_list", is_flag=True, help="Show their names, and run none.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the records.")
@click.option("--root", type=click.Path(path_type=Path), default=Path(), metavar="DIR", help="The checkout.")
@click.option("--quick", is_flag=True, help="Few repeats: to see that they run, not how fast.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, metavar="N", help="Run all N times, taking turns.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For each benchmark.")
@click.option("--strict", is_flag=True, help="Refuse if other programs are running.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
def run(
    names: tuple[str, ...],
    everything: bool,
    only_list: bool,
    output: Path | None,
    root: Path,
    quick: bool,
    rounds: int,
    timeout: float | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Run benchmarks of a checkout, each in a process of its own, and keep their records.

    NAME is a distribution (pio-core), one benchmark of it (pio-core/scheduler), or a benchmark (scheduler). Exit code 1
    if one fails; the others run all the same.
    """
    from inference_pio.benchmarks._run import termination_as_exit
    from inference_pio.benchmarks._scripts import find_root, find_scripts, select_scripts
    from inference_pio.benchmarks._text import note, table, write, write_json
    from inference_pio.interfaces import InvalidRequestError

    root = find_root(root)
    scripts = find_scripts(root)
    chosen = select_scripts(scripts, names) if names else scripts
    if only_list:
        if as_json:
            write_json([{"name": each.name, "package": each.package, "version": each.version} for each in chosen])
        else:
            write(table([(each.name, each.version) for each in chosen], heads=("BENCHMARK", "VERSION")))
        return
    if bool(names) == everything:
        problem = "names and --all at once" if names else "neither names nor --all"
        raise InvalidRequestError(f"what to run: {problem}", hint="pio bench run --list shows the names")
    began = datetime.now(UTC)
    folder = output if output is not None else root / "bench-results" / began.strftime("%Y-%m-%dT%H%M%SZ")
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = _look_around(quick=quick, strict=strict)
    with termination_as_exit():
        outcomes = _run_all(chosen * rounds, folder, surroundings, quick=quick, timeout=timeout)
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    if as_json:
        write_json({"folder": str(folder), "benchmarks": [_to_json(outcome) for outcome in outcomes]})
    else:
        rows = [(each.script.name, f"{each.seconds:.1f}", "failed" if each.problem else "ok") for each in outcomes]
        write(table(rows, heads=("BENCHMARK", "SECONDS", "RESULT"), numeric=("SECONDS",)))
        note(f"{len({each.script.name for each in outcomes if each.problem is None})} records in {folder}")
    if failed:
        raise click.exceptions.Exit(1)


def _look_around(*, quick: bool, strict: bool) -> Surroundings:
    from inference_pio.benchmarks._limits import measure_limits
    from inference_pio.benchmarks._machine import default_threads, describe_machine
    from inference_pio.benchmarks._quiet import check_quiet
    from inference_pio.benchmarks._run import Surroundings
    from inference_pio.benchmarks._text import note, transient

    activity = check_quiet(strict=strict)
    if not activity.quiet:
        note(f"warning: {activity.describe(names=True)}")
    machine = describe_machine()
    transient("measuring the machine's limits")
    limits = measure_limits([1, default_threads(machine)], quick=quick)
    transient("")
    return Surroundings(machine, limits, () if activity.quiet else (activity.describe(names=False),))


def _run_all(
    scripts: Sequence[Script], folder: Path, surroundings: Surroundings, *, quick: bool, timeout: float | None
) -> list[Outcome]:
    from inference_pio.benchmarks._record import write_record
    from inference_pio.benchmarks._run import run_script
    from inference_pio.benchmarks._script import add_round
    from inference_pio.benchmarks._text import note, transient

    outcomes: list[Outcome] = []
    records: dict[Path, Record] = {}
    for index, script in enumerate(scripts):
        label = f"[{index + 1}/{len(scripts)}] {script.name}"
        transient(label)
        try:
            outcome = run_script(
                script,
                folder,
                surroundings,
                quick=quick,
                timeout=timeout,
                tick=functools.partial(_tick, label),
            )
        finally:
            transient("")
        if outcome.record is not None:
            path = folder / record_name(script)
            records[path] = add_round(records[path], outcome.record) if path in records else outcome.record
            write_record(records[path], path)
            note(f"{label} {outcome.seconds:.1f} s")
        else:
            note(f"{label} failed after {outcome.seconds:.1f} s: {outcome.problem} (output: {outcome.log})")
        outcomes.append(outcome)
    return outcomes


def record_name(script: Script) -> str:
    """Name of the file that keeps the record of ``script``."""
    return f"{script.package}.{script.benchmark}.json"


def _tick(label: str, seconds: float) -> None:
    from inference_pio.benchmarks._text import transient

    transient(f"{label} {seconds:.0f} s")


def _to_json(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.script.name,
        "seconds": outcome.seconds,
        "record": None if outcome.record is None else record_name(outcome.script),
        "problem": outcome.problem,
        "log": str(outcome.log),
    }
