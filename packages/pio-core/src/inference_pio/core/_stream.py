"""A running request as an iterator of its tokens."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from inference_pio.core._engine import Engine
    from inference_pio.interfaces import RequestOutput, TokenEvent


class TokenStream:
    """Tokens of one request, as they come.

    Closing it, leaving its ``with`` block or dropping it cancels what is unfinished.

    Args:
        engine: Runs the request.
        request_id: The request, added already.
        step: Runs one step of the engine and delivers events to :meth:`deliver`.
    """

    def __init__(self, engine: Engine, request_id: str, step: Callable[[], object]) -> None:
        self.request_id = request_id
        self._engine = engine
        self._step = step
        self._events: deque[TokenEvent] = deque()
        self._output: RequestOutput | None = None

    @property
    def output(self) -> RequestOutput:
        """The output so far; whole once the stream has ended or is closed. Read only while it runs."""
        return self._engine.output(self.request_id) if self._output is None else self._output

    @property
    def closed(self) -> bool:
        """Whether the stream has ended or was closed."""
        return self._output is not None

    def deliver(self, event: TokenEvent) -> None:
        """Queue an event of this request."""
        self._events.append(event)

    def close(self) -> None:
        """Cancel what is unfinished. Harmless when called twice."""
        if self._output is None:
            self._engine.abort(self.request_id)
            self._output = self._engine.forget(self.request_id)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        while not self._events and not self.output.finished:
            try:
                self._step()
            except BaseException:  # Ctrl-C too: whatever ends the step ends the request, and goes on up
                self.close()
                raise
        if self._events:
            event = self._events.popleft()
            if event.error is not None:
                self.close()
                raise event.error
            return event
        self.close()
        raise StopIteration

    def __del__(self) -> None:
        self.close()  # a stream dropped halfway must not hold pages for ever

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
