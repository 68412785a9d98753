"""Running benchmark scripts, each in a process of its own, into records."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from inference_pio.benchmarks._fields import read_object
from inference_pio.benchmarks._script import record_of_script
from inference_pio.interfaces import PioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from inference_pio.benchmarks._limits import Limits
    from inference_pio.benchmarks._machine import Machine
    from inference_pio.benchmarks._record import Record
    from inference_pio.benchmarks._scripts import Script

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all records of a run have in common.

    Attributes:
        machine: Where it runs.
        limits: Of that machine, measured in this run.
        warnings: What makes the figures doubtful.
    """

    machine: Machine
    limits: tuple[Limits, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended.

    Attributes:
        script: Which.
        seconds: How long it took.
        record: What it measured, or None if it failed.
        problem: Why it failed, or None.
        log: Where its output is.
    """

    script: Script
    seconds: float
    record: Record | None
    problem: str | None
    log: Path


def run_script(
    script: Script,
    folder: Path,
    surroundings: Surroundings,
    *,
    quick: bool = False,
    timeout: float | None = None,
    tick: Callable[[float], None] = lambda _seconds: None,
) -> Outcome:
    """Run ``script`` once, adding its output to ``<package>.<benchmark>.log`` in ``folder``.

    The script's process group is ended if it takes too long, or if this call is interrupted.

    Args:
        script: What to run, in the folder of its distribution.
        folder: For the output; must exist.
        surroundings: What goes into the record besides what the script says.
        quick: Pass ``--quick``.
        timeout: Seconds after which it counts as failed; None waits for ever.
        tick: Called several times a second with the seconds that have passed.

    Raises:
        OSError: The folder cannot be written to.
    """
    log = folder / f"{script.package}.{script.benchmark}.log"
    began, begin = datetime.now(UTC), time.perf_counter()
    record, problem = None, None
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, str(script.path.resolve()), "--json", str(result), *(["--quick"] if quick else [])]
        with log.open("ab") as output:
            code = _run(command, script.path.parents[1], output.fileno(), timeout, tick)
        seconds = time.perf_counter() - begin
        try:
            if code == 0:
                said = record_of_script(result, read_object(result))
                record = _complete(said, script, surroundings, began, quick=quick)
            else:
                problem = _problem_of_exit(code, timeout, log)
        except FileNotFoundError:
            problem = "it wrote no result"
        except PioError as error:
            problem = str(error).replace(str(result), "its result")
    return Outcome(script, seconds, record, problem, log)


@contextlib.contextmanager
def termination_as_exit() -> Iterator[None]:
    """Within, SIGTERM raises ``SystemExit(143)``, so that what is running is ended as well; main thread only."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complete(record: Record, script: Script, surroundings: Surroundings, began: datetime, *, quick: bool) -> Record:
    return dataclasses.replace(
        record,
        version=script.version,
        settings={**record.settings, "quick": quick},
        machine=surroundings.machine,
        limits=surroundings.limits,
        date=began.replace(microsecond=0),
        warnings=surroundings.warnings,
    )


def _run(
    command: Sequence[str], folder: Path, output: int, timeout: float | None, tick: Callable[[float], None]
) -> int | None:
    """Exit code of ``command``, or None if it took longer than ``timeout`` and was ended."""
    begin = time.perf_counter()
    own_group = os.name == "posix"
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=own_group,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PIO_NO_PROGRESS": "1"},
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
            passed = time.perf_counter() - begin
            if timeout is not None and passed > timeout:
                return None
            tick(passed)
    finally:
        _end(process, whole_group=own_group)


def _end(process: subprocess.Popen[bytes], *, whole_group: bool) -> None:
    """End what is left of ``process`` and, in a group of its own, of its children: asked first, then killed."""
    running = process.poll() is None
    if running:
        _signal(process, signal.SIGTERM, whole_group=whole_group)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    # A script that is done may have left children behind, which would disturb the next one.
    _signal(process, signal.SIGKILL if os.name == "posix" else signal.SIGTERM, whole_group=whole_group)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals, *, whole_group: bool) -> None:
    if whole_group:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or, on macOS, only zombies are left
            os.killpg(process.pid, number)
    elif process.poll() is None:
        process.terminate()


def _problem_of_exit(code: int | None, timeout: float | None, log: Path) -> str:
    if code is None:
        return f"it took longer than {timeout:g} seconds"
    said = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return f"{how}: {said[:200]}" if said else how
