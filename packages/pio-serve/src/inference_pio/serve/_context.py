"""What the layers learn about one request, for those further in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

    from inference_pio.serve._tracing import RequestTrace

_KEY = "inference_pio"
CROWDED = "inference_pio.crowded"
"""Set in the state of a request's scope where as many connections are open as may."""
ANONYMOUS = "anonymous"
"""Who asks where no key is set."""


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request on its way in.

    Attributes:
        request_id: The client's, or one of ours; comes back as ``x-request-id``.
        key_id: Whose key it came with; never the key.
        body: The whole body.
        trace: What is noted for its trace; None where nothing is traced.
    """

    request_id: str
    key_id: str = ANONYMOUS
    body: bytes = b""
    trace: RequestTrace | None = None


def attach(scope: Scope, context: RequestContext) -> None:
    """Have ``context`` travel with the request."""
    scope[_KEY] = context


def context_of(scope: Scope) -> RequestContext:
    """What is known of the request so far."""
    context = scope[_KEY]
    assert isinstance(context, RequestContext)
    return context


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header, or None; ``name`` in lower case. Several of one name count as the first."""
    return next((value for key, value in scope["headers"] if key == name), None)
