"""A request on its way through a router: to a replica, to another one if that ends, and back without being read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_pio.serve._context import context_of
from inference_pio.serve._early_stream import last_words
from inference_pio.serve._endpoint import disconnected, end_task
from inference_pio.serve._errors import unavailable
from inference_pio.serve._router.prefixes import prompt_blocks
from inference_pio.serve._router.reports import KEY_HEADER, LABEL_HEADER
from inference_pio.serve._router.upstream import ReplicaGoneError, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from inference_pio.serve._call import Call
    from inference_pio.serve._router.state import RouterState
    from inference_pio.serve._router.upstream import Headers, Reply

ATTEMPTS = 2
_END = b"\n\n"
# Of one hop (RFC 9110, section 7.6.1), or said anew by this one.
_NOT_FORWARDED = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # What lets a client in is no business of a replica, and its id is told by our own words.
        b"authorization",
        b"cookie",
        b"x-api-key",
        b"x-request-id",
        KEY_HEADER,
        LABEL_HEADER,
    }
)
_NOT_RETURNED = frozenset(
    {b"connection", b"date", b"keep-alive", b"transfer-encoding", b"x-content-type-options", b"x-request-id"}
)


class Forwarded:
    """A reply that a replica makes.

    Args:
        router: The router.
        call: The request.
    """

    def __init__(self, router: RouterState, call: Call) -> None:
        self._router = router
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or until the reader has gone, which ends it at the replica too.

        Raises:
            ApiError: 503, no replica answers.
        """
        task = asyncio.ensure_future(self._answer(scope, send))
        self._call.open.on_cancel(task.cancel)
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled():
                self._call.open.check()
            elif task.done():
                task.result()
        finally:
            await end_task(task)
            await end_task(gone)

    async def _answer(self, scope: Scope, send: Send) -> None:
        blocks = prompt_blocks(self._call.body, self._call.key_id) if self._call.body else []
        tried: list[int] = []
        while True:
            place = self._place(blocks, tried)
            tried.append(place)
            self._router.balance.begin(place, blocks)
            try:
                await self._relay(place, scope, send)
                return
            except ReplicaGoneError:
                if len(tried) == ATTEMPTS:
                    raise unavailable("the replica that answered has ended; try again", "replica_failed") from None
            finally:
                self._router.balance.end(place)
            self._router.retries += 1

    def _place(self, blocks: Sequence[int], tried: Sequence[int]) -> int:
        ready = self._router.replicas.ready
        others = [place for place in ready if place not in tried]
        if not others and tried:
            raise unavailable("the replica that answered has ended; try again", "replica_failed")
        if not others:
            raise self._router.not_ready()
        return self._router.balance.choose(others, blocks)

    async def _relay(self, place: int, scope: Scope, send: Send) -> None:
        """Have a replica answer.

        Raises:
            ReplicaGoneError: It has ended, and nothing was sent.
        """
        replicas = self._router.replicas
        # A HEAD would leave the parser waiting for a body; whoever writes to the client leaves it out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        headers = [
            *((name, value) for name, value in scope["headers"] if name not in _NOT_FORWARDED),
            replicas.credentials,
            (KEY_HEADER, self._call.key_id.encode()),
            (LABEL_HEADER, self._router.server.settings.keys.label(self._call.key_id).encode()),
            (b"x-request-id", context_of(scope).request_id.encode()),
        ]
        async with ask(replicas.all[place].socket, method, target, headers, self._call.body) as reply:
            await reply.head()
            if any(name == b"content-type" and b"event-stream" in value for name, value in reply.headers):
                await self._stream(reply, scope["path"], send)
            else:
                # Whole before any of it is sent: until then another replica can answer instead.
                body = await reply.whole()
                await send(_start(reply.status, reply.headers))
                await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, reply: Reply, path: str, send: Send) -> None:
        """Send events as they come; if no more come, an error as the last.

        Raises:
            ReplicaGoneError: There was not one.
        """
        begun = False
        rest = b""  # of an event whose end has not come
        try:
            async for part in reply.parts():
                text = rest + part if rest else part
                end = len(text) if text.endswith(_END) else text.rfind(_END) + len(_END)
                if end < len(_END):
                    rest = text
                    continue
                text, rest = text[:end], text[end:]
                if not begun:
                    await send(_start(reply.status, reply.headers))
                    begun = True
                await send({"type": "http.response.body", "body": text, "more_body": True})
        except ReplicaGoneError:
            if not begun:
                raise
            self._router.cut_off += 1
            error = unavailable("the replica that answered has ended; try again", "replica_failed")
            rest = last_words(path, error, self._call.request_id)
        if not begun:
            await send(_start(reply.status, reply.headers))
        await send({"type": "http.response.body", "body": rest, "more_body": False})


def _start(status: int, headers: Headers) -> dict[str, object]:
    kept = [(name, value) for name, value in headers if name not in _NOT_RETURNED]
    return {"type": "http.response.start", "status": status, "headers": kept}
