"""The requests that are being answered, for whoever runs the server: never what is in them."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.serve._errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(slots=True, eq=False, kw_only=True)
class OpenRequest:
    """A request that is being answered.

    Attributes:
        request_id: The client's, or one of ours.
        key_id: Whose it is.
        path: What was asked.
        model: What it is about; empty before that is known.
        prompt_tokens: Of its prompts.
        tokens: Of its answers so far.
        started: When it came, in seconds of ``time.monotonic``.
        cancelled: Set once it is to end.
    """

    request_id: str
    key_id: str
    path: str
    model: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _ends: list[Callable[[], object]] = field(default_factory=list)

    def on_cancel(self, end: Callable[[], object]) -> None:
        """Have ``end`` called when the request is cancelled."""
        self._ends.append(end)

    def cancel(self) -> None:
        """End it: its client is told so. Harmless when called twice."""
        if not self.cancelled.is_set():
            self.cancelled.set()
            for end in self._ends:
                end()

    def close(self) -> None:
        """It was answered. What would have been called refers to it in turn: memory would wait for the collector."""
        self._ends.clear()

    def check(self) -> None:
        """Refuse to go on with a request that was cancelled.

        Raises:
            ApiError: 400, so that no client tries again.
        """
        if self.cancelled.is_set():
            raise ApiError(400, "whoever runs the server has cancelled the request", code="cancelled")


class OpenRequests:
    """All of them. For one event loop."""

    def __init__(self) -> None:
        self._requests: set[OpenRequest] = set()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[OpenRequest]:
        """The oldest first."""
        return iter(sorted(self._requests, key=lambda request: request.started))

    @contextmanager
    def opened(self, request: OpenRequest) -> Iterator[None]:
        """``request`` is being answered."""
        self._requests.add(request)
        try:
            yield
        finally:
            self._requests.remove(request)
            request.close()

    def cancel(self, request_id: str) -> int:
        """End all that are called ``request_id``, for clients may choose ids; how many there were."""
        found = [request for request in self._requests if request.request_id == request_id]
        for request in found:
            request.cancel()
        return len(found)
