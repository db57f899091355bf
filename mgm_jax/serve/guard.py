"""In front of all routes: which hosts may be named, the API key, and counts of requests."""

from __future__ import annotations

import hmac
import time

from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.metrics import Requests

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COUNTED = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/health", "/metrics")
OPEN = ("/health", "/")  # no key: probes have none, and / leads to the page
# What a browser may load for the page: nothing from elsewhere.
POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    b"form-action 'self'; base-uri 'self'"
)


class Guard:
    """ASGI middleware.

    hosts: names that a request's Host may have, None for any. A server on the loopback address
    takes the loopback's names only: a page of a stranger's site whose name turns to this address
    cannot talk to it (DNS rebinding). api_key: "" asks for none. page: the path of the web page,
    which has a door of its own; None for none.
    """

    def __init__(
        self,
        app,
        *,
        api_key: str,
        hosts: tuple[str, ...] | None,
        requests: Requests,
        page: str | None = None,
    ):
        self._app, self._hosts, self._requests = app, hosts, requests
        self._key, self._page = api_key.encode(), page

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        start, status = time.monotonic(), 500

        async def counted(message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start" and self._is_page(scope["path"]):
                policy = (b"content-security-policy", POLICY)
                message = message | {"headers": [*message["headers"], policy]}
            await send(message)

        try:
            error = self._refused(scope)
            answer = error.response() if error else self._app
            await answer(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in COUNTED else "other"
            self._requests.saw(route, status, time.monotonic() - start)

    def _refused(self, scope) -> ApiError | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            return ApiError(400, "unknown host", code="unknown_host")
        path = scope["path"]
        if not self._key or path in OPEN or self._is_page(path):
            return None
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self._key):
            return None
        message = "expected the header Authorization: Bearer with this server's API key"
        return ApiError(401, message, code="invalid_api_key")

    def _is_page(self, path: str) -> bool:
        page = self._page
        return page is not None and (path == page or path.startswith(f"{page}/"))
