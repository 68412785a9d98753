"""One request as a handler sees it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from inference_pio.serve._json import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference_pio.serve._server_state import ServerState

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
        cleanup: Closed once the reply was sent or its reader has gone, whatever happened.
    """

    server: ServerState
    request_id: str
    key_id: str
    body: bytes
    path_params: Mapping[str, str]
    query: bytes
    cleanup: AsyncExitStack = field(default_factory=AsyncExitStack)

    def read(self, kind: type[Wire]) -> Wire:
        """The body as a request of type ``kind``.

        Raises:
            ApiError: 400, it is none.
        """
        return decode(kind, self.body)
