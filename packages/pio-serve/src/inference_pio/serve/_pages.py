"""The pages for people: ``/`` to chat, ``/dashboard`` to watch. Static files, without a build or scripts of others.

They stand behind the key like every route but ``/livez``: who may not ask a server need not learn what it is. A
browser asks for it as a password, which opens the pages alone. For what they ask of the API they have the key from its
user once more, and keep it in the tab's ``sessionStorage``: a password or a cookie would go along with requests that
other sites make. Their policy allows files of this server alone, nothing inline, no frame around them.
"""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.responses import Response

from inference_pio.serve._errors import not_found

if TYPE_CHECKING:
    from inference_pio.serve._call import Call

_TYPES = MappingProxyType({"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"})
_ASSETS = frozenset({"chat.js", "dashboard.js", "icon.svg", "prometheus.js", "server.js", "sse.js", "style.css"})
_HEADERS = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
            "trusted-types 'none'"
        ),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
    }
)


async def chat_page(_call: Call) -> Response:
    """``GET /``."""
    return _file("chat.html")


async def dashboard_page(_call: Call) -> Response:
    """``GET /dashboard``."""
    return _file("dashboard.html")


async def asset(call: Call) -> Response:
    """``GET /static/{name}``.

    Raises:
        ApiError: 404: no page needs a file of this name.
    """
    name = call.path_params["name"]
    if name not in _ASSETS:
        raise not_found("there is nothing at this path", "not_found")
    return _file(name)


def _file(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    content = files("inference_pio.serve").joinpath("static", name).read_bytes()
    return Response(content, headers={**_HEADERS, "content-type": f"{kind}; charset=utf-8"})
