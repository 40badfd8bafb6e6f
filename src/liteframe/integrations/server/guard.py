"""Who may ask: before anything of a request's body is read, its key, its host and its origin are looked at.

Without a key, only this machine can reach the server; but a page of any site that is open in a browser here can, too.
It is kept out by the Host header, which a rebound name shows in, and by the Origin header.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.settings import LOCAL_NAMES, ServeSettings

# A page has to be there before somebody can type a key into it, and a load balancer has none.
_OPEN_PATHS = ("/", "/health")
_OPEN_FOLDER = "/static/"
# uvicorn refuses what is longer only where it comes in more than one piece.
_MOST_HEAD_BYTES = 1 << 16
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)

Scope = dict[str, Any]
App = Callable[..., Any]


class Guard:
    """ASGI middleware that lets through who may ask, adds headers for browsers and counts what was answered.

    Args:
        on_answer: called with a path and the status of its answer, once a request.
    """

    def __init__(self, app: App, settings: ServeSettings, on_answer: Callable[[str, int], None]) -> None:
        self._app = app
        self._key = settings.api_key.encode() if settings.api_key is not None else None
        self._hosts = {*LOCAL_NAMES, f"[{settings.host}]" if ":" in settings.host else settings.host}
        self._on_answer = on_answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or the server's lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def send_on(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, send_on)
            else:
                await _send_error(refusal, send_on)
        finally:
            self._on_answer(scope["path"], status)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if (
            sum(map(len, (scope.get("raw_path") or b"", scope["query_string"], *chain(*scope["headers"]))))
            > _MOST_HEAD_BYTES
        ):
            return ApiError(431, "head_too_large", f"address and headers have more than {_MOST_HEAD_BYTES} bytes")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if self._key is None and _without_port(host) not in self._hosts:
            return ApiError(403, "wrong_host", "this server answers to its local address only")
        if origin is not None and _host_of(origin.decode("latin-1")) != host:
            return ApiError(403, "wrong_origin", "pages of other sites may not ask this server")
        if self._key is None or scope["path"] in _OPEN_PATHS or scope["path"].startswith(_OPEN_FOLDER):
            return None
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if hmac.compare_digest(given, self._key):
            return None
        text = "a key is needed: send it as 'Authorization: Bearer KEY'"
        return ApiError(401, "invalid_api_key", text, headers={"WWW-Authenticate": "Bearer"})


async def _send_error(error: ApiError, send: Any) -> None:
    body = json.dumps(error.as_dict()).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    """The name in a Host header."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.rsplit(":", 1)[0]


def _host_of(origin: str) -> str | None:
    """Host and port of an origin as a Host header has them; None for one that is opaque."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
