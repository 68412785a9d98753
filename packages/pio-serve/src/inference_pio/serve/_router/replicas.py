"""The processes behind a router: started, watched, started again, ended. None of them outlives it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.interfaces import ConfigError, PioError
from inference_pio.serve._command import KEY_VARIABLE
from inference_pio.serve._endpoint import end_task
from inference_pio.serve._router.reports import STOP, Failed, Leaving, Loaded, Spent, report_from, to_line
from inference_pio.serve._router.upstream import ReplicaGoneError, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference_pio.serve._router.reports import Order

LOG = logging.getLogger("inference_pio.serve")

WATCH_S = 5.0
"""Between two questions to a replica that serves whether it does."""
STARTING_S = 0.1
"""The same to one that loads."""
ANSWER_S = 15.0
"""For an answer to that: longer than a replica waits for its engine."""
HUNG_S = 60.0
"""After so long without a good one, it is ended and started anew."""
BACK_OFF_S = (0.5, 30.0)
"""Before a replica that ended is started again: at first, and at most. Doubles while it does not stay."""
STAYED_S = 60.0
"""A replica that has served for so long begins again with the shortest wait."""
END_S = 10.0
"""For a replica that was told to stop: longer than it takes for its last words and traces."""
REPORT_BYTES = 1024 * 1024
_FOLDER_BYTES = 90  # the path of a socket has 103 at most on some systems, 107 on others


class ReplicaError(PioError):
    """A replica could not begin to serve.

    Args:
        message: Why.
        hint: What the user can do about it.
        exit_code: As the replica itself would have ended.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code  # type: ignore[misc]  # of the class elsewhere; here it is the replica's


class ReplicaState(StrEnum):
    """Where a replica stands."""

    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    """Its engine does not answer; it is given nothing new."""
    LEAVING = "leaving"
    """It finishes what it has."""
    DOWN = "down"


@dataclass(slots=True, eq=False)
class Replica:
    """One of them, through all its lives.

    Attributes:
        place: Its number, from 0.
        cpus: Processors it runs on; None for all.
        state: Where it stands.
        socket: Where it listens in this life.
        process: It, in this life.
        listening: What takes in what it tells.
        lives: How often it was started.
        loaded: What it has loaded in this life.
        failed: Why it could not, if it said so.
        since: When it came to its state, in seconds of ``time.monotonic``.
    """

    place: int
    cpus: list[int] | None
    state: ReplicaState = ReplicaState.DOWN
    socket: Path = Path()
    process: asyncio.subprocess.Process | None = None
    listening: asyncio.Task[None] | None = None
    lives: int = 0
    loaded: list[Loaded] = field(default_factory=list)
    failed: Failed | None = None
    since: float = 0.0

    def come_to(self, state: ReplicaState) -> None:
        """Take a state."""
        if state is not self.state:
            self.state = state
            self.since = time.monotonic()

    @property
    def takes_requests(self) -> bool:
        """Whether it may be given any."""
        return self.state is ReplicaState.READY


class Replicas:
    """All of them. For one event loop.

    Args:
        cpus: Processors for each replica; their number is that of the replicas.
        order: Makes the order of a replica from its number, its socket and its key.
        on_spent: Called when a request has used tokens, with its key's id and their number.
        on_gone: Called when a replica has ended, with its number.
        open_of: How many requests a replica has open.
        drain_s: Seconds for a replica that is asked to leave.

    Attributes:
        all: In their order.
        key: What they let this router in by.
    """

    def __init__(
        self,
        cpus: Sequence[list[int] | None],
        order: Callable[[Replica, str], Order],
        *,
        on_spent: Callable[[str, int], None],
        on_gone: Callable[[int], None],
        open_of: Callable[[int], int],
        drain_s: float,
    ) -> None:
        self.all = [Replica(place, cpus_of_one) for place, cpus_of_one in enumerate(cpus)]
        self.key = secrets.token_urlsafe(32)
        self._order = order
        self._on_spent = on_spent
        self._on_gone = on_gone
        self._open_of = open_of
        self._drain_s = drain_s
        self._folder: Path | None = None
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def credentials(self) -> tuple[bytes, bytes]:
        """The header that lets this router in."""
        return b"authorization", b"Bearer " + self.key.encode()

    @property
    def ready(self) -> list[int]:
        """Numbers of those that take requests."""
        return [replica.place for replica in self.all if replica.takes_requests]

    @property
    def restarts(self) -> list[int]:
        """How often each was started again."""
        return [max(0, replica.lives - 1) for replica in self.all]

    async def start(self) -> None:
        """Start all, and wait until they serve: the first alone, so that others find what it has prepared on disk.

        From then on whatever ends is started again.

        Raises:
            ReplicaError: One of them cannot begin to serve.
            ConfigError: The folder for temporary files is too deep for sockets.
        """
        folder = self._folder = Path(tempfile.mkdtemp(prefix="pio-serve-"))  # for this user alone
        if len(os.fsencode(folder)) > _FOLDER_BYTES:
            raise ConfigError(
                f"the path of the temporary folder {str(folder.parent)!r} is too long for sockets in it",
                hint="set TMPDIR to a shorter one",
            )
        for together in (self.all[:1], self.all[1:]):
            tasks = [asyncio.ensure_future(self._begin_and_keep(replica)) for replica in together]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    await end_task(task)

    async def stop(self, *, at_once: bool = False) -> None:
        """End all. Harmless when called twice.

        Args:
            at_once: Whether they may not even tell their open requests that they are cut off.
        """
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            await end_task(keeper)
        await asyncio.gather(*(self._end(replica, at_once=at_once) for replica in self.all))
        if self._folder is not None:  # it was started
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        for keeper in keepers:
            if not keeper.cancelled():
                keeper.result()  # a mistake of ours ended it

    async def answers(self, replica: Replica) -> bool | None:
        """Whether a replica's engines answer; None while it loads."""
        try:
            async with asyncio.timeout(ANSWER_S), ask(replica.socket, "GET", b"/health", [self.credentials]) as reply:
                await reply.head()
                return True if reply.status == 200 else None if b'"model_loading"' in await reply.whole() else False
        except (ReplicaGoneError, TimeoutError):
            return False

    async def _begin_and_keep(self, replica: Replica) -> None:
        await self._begin(replica)
        self._keepers.append(asyncio.ensure_future(self._keep(replica)))

    async def _begin(self, replica: Replica) -> None:
        """Start a replica, and wait until it serves.

        Raises:
            ReplicaError: It does not.
        """
        process = await self._spawn(replica)
        while process.returncode is None:
            if await self.answers(replica) and replica.state is ReplicaState.STARTING:
                replica.come_to(ReplicaState.READY)
                return
            await asyncio.sleep(STARTING_S)
        await self._heard(replica)
        replica.come_to(ReplicaState.DOWN)
        if replica.failed is not None:
            raise ReplicaError(replica.failed.message, hint=replica.failed.hint, exit_code=replica.failed.exit_code)
        raise ReplicaError(
            f"replica {replica.place} ended {_how(process.returncode)} before it served",
            hint="there may be too little memory for so many replicas" if process.returncode < 0 else None,
        )

    async def _keep(self, replica: Replica) -> None:
        """Watch a replica that serves, and start it again whenever it has ended."""
        shortest, longest = BACK_OFF_S
        wait = shortest
        while True:
            began = time.monotonic()
            await self._watch(replica)
            if time.monotonic() - began >= STAYED_S:
                wait = shortest
            assert replica.process is not None
            how = _how(replica.process.returncode)
            LOG.error("replica %d ended %s; it is started again in %g s", replica.place, how, wait)
            while True:
                await asyncio.sleep(wait)
                wait = min(2 * wait, longest)
                try:
                    await self._begin(replica)
                    break
                except ReplicaError as error:
                    LOG.warning("%s; it is started again in %g s", error, wait)
            LOG.info("replica %d serves again", replica.place)

    async def _watch(self, replica: Replica) -> None:
        """Return once the process has ended, by itself or because it has hung for too long."""
        process = replica.process
        assert process is not None
        while process.returncode is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), WATCH_S)
                break
            answer = await self.answers(replica)
            if replica.state in {ReplicaState.READY, ReplicaState.FAILING}:
                replica.come_to(ReplicaState.READY if answer else ReplicaState.FAILING)
            if replica.state is ReplicaState.FAILING and time.monotonic() - replica.since > HUNG_S:
                LOG.error("replica %d has not answered for %g s", replica.place, HUNG_S)
                _kill(process)
        replica.come_to(ReplicaState.DOWN)
        replica.socket.unlink(missing_ok=True)
        await self._heard(replica)
        self._on_gone(replica.place)

    async def _heard(self, replica: Replica) -> None:
        """Return once all is taken in that a process has told which has ended."""
        assert replica.listening is not None
        await replica.listening

    async def _spawn(self, replica: Replica) -> asyncio.subprocess.Process:
        """A new life: the process, listened to until it falls silent."""
        assert self._folder is not None
        replica.come_to(ReplicaState.STARTING)
        replica.socket = self._folder / f"{replica.place}.{replica.lives}"
        replica.lives += 1
        replica.loaded, replica.failed = [], None
        # Without the working directory among the places that modules come from, and away from the terminal's Ctrl-C,
        # which is for the router to tell them.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "inference_pio.serve._router.replica"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=REPORT_BYTES,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != KEY_VARIABLE},
        )
        replica.process = process
        assert process.stdin is not None
        process.stdin.write(to_line(self._order(replica, self.key)))
        replica.listening = asyncio.ensure_future(self._listen(replica, process))
        return process

    async def _listen(self, replica: Replica, process: asyncio.subprocess.Process) -> None:
        """Take what a replica tells, until it has ended."""
        assert process.stdout is not None
        leaving: asyncio.Task[None] | None = None
        async for line in process.stdout:
            match report_from(line):
                case Spent(key_id=key_id, tokens=tokens):
                    self._on_spent(key_id, tokens)
                case Loaded() as loaded:
                    replica.loaded.append(loaded)
                case Failed() as failed:
                    replica.failed = failed
                case Leaving() if leaving is None:
                    leaving = asyncio.ensure_future(self._let_go(replica, process))
        if leaving is not None:
            await leaving

    async def _let_go(self, replica: Replica, process: asyncio.subprocess.Process) -> None:
        """End a replica that was asked to leave, once it has finished what it has, or its time is over."""
        replica.come_to(ReplicaState.LEAVING)
        until = time.monotonic() + self._drain_s
        while process.returncode is None and self._open_of(replica.place) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await _stop(process)

    async def _end(self, replica: Replica, *, at_once: bool) -> None:
        if replica.process is not None:
            if at_once:
                _kill(replica.process)
            await _stop(replica.process)
            replica.come_to(ReplicaState.DOWN)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Have a replica tell its open requests that they are cut off, and end; by force where it does not."""
    assert process.stdin is not None
    if process.returncode is None:
        process.stdin.write(STOP)
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            _kill(process)
            await process.wait()
    process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        process.kill()


def _how(code: int | None) -> str:
    assert code is not None
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
