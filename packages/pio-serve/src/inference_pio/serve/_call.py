"""One request as a handler sees it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from inference_pio.serve._json import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._open_requests import OpenRequest
    from inference_pio.serve._server_state import ServerState
    from inference_pio.serve._tracing import RequestTrace

Wire = TypeVar("Wire", bound=msgspec.Struct)


@dataclass(slots=True, kw_only=True)
class Call:
    """A request that was let in.

    Attributes:
        server: What all requests share.
        request_id: Its id.
        key_id: Whose it is.
        body: Its body.
        path_params: What its path names.
        query: Its query string.
        trace: What is noted for its trace; None where nothing is traced.
        open: What whoever runs the server sees of it.
        streams: Whether its client asked for events.
        cleanup: Closed once the reply was sent or its reader has gone, whatever happened.
    """

    server: ServerState
    request_id: str
    key_id: str
    body: bytes
    path_params: Mapping[str, str]
    query: bytes
    open: OpenRequest
    trace: RequestTrace | None = None
    streams: bool = False
    cleanup: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def time_left_s(self) -> float:
        """Seconds until it has taken as long as a request may; at least a millisecond."""
        return max(self.open.started + self.server.settings.bounds.request_s - time.monotonic(), 0.001)

    def read(self, kind: type[Wire]) -> Wire:
        """The body as a request of type ``kind``.

        Raises:
            ApiError: 400, it is none.
        """
        request = decode(kind, self.body)
        self.streams = getattr(request, "stream", None) is True
        return request

    async def model(self, name: str | None) -> ServedModel:
        """The model called ``name``, or the only one: loaded first if need be, and kept until the reply was sent.

        Raises:
            ApiError: There is none of this name, or it cannot be had now.
        """
        lease = self.server.models.lease(name, timeout_s=self.time_left_s)
        self.open.model = lease.name
        return await self.cleanup.enter_async_context(lease)
