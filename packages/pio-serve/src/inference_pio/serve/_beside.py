"""Slow work beside the loop, in threads that do not keep the process alive."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

THREADS = "pio-beside"
"""What the threads are called."""


async def in_thread(work: Callable[[], Result], discard: Callable[[Result], None] | None = None) -> Result:
    """The result of ``work``, called in a thread of its own: it may take minutes, and stopping must not wait for it.

    Args:
        work: Called without arguments.
        discard: Called with a result that the caller does not get, because it was cancelled.

    Raises:
        BaseException: What ``work`` raised.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def give(result: Result) -> None:
        if not done.cancelled():
            done.set_result(result)
        elif discard is not None:
            discard(result)

    def fail(error: BaseException) -> None:
        if not done.cancelled():
            done.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits the result
            _post(loop, fail, error)
        else:
            _post(loop, give, result)

    threading.Thread(target=run, name=THREADS, daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        # The result may have come, and the cancellation after it, before this went on.
        if discard is not None and done.done() and not done.cancelled() and done.exception() is None:
            discard(done.result())
        raise


def _post(loop: asyncio.AbstractEventLoop, function: Callable[[Result], None], argument: Result) -> None:
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        return  # the loop has ended, and whoever waited with it
