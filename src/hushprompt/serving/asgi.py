"""The little of ASGI that the server of a prompt needs: a request, its answer, and an application's start and end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from hushprompt.serving.limits import RefusedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A request whose head is in."""

    scope: Scope
    receive: Receive

    def header(self, name: bytes, default: str) -> str:
        """Return a header's value, the first one's of several."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), default)

    def query(self) -> list[tuple[str, str]]:
        """Return names and values after the question mark."""
        query = self.scope["query_string"]
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes in.

        Raises:
            RefusedError: the sender went away.
        """
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "The sender went away.")
            yield message.get("body", b"")
            more = message.get("more_body", False)


@dataclass(frozen=True)
class Response:
    """An answer, to be sent as a whole."""

    body: bytes
    kind: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Send it."""
        told = {"content-type": self.kind, "content-length": str(len(self.body)), **self.headers}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": self.body})


Endpoint = Callable[[Request], Awaitable[Response]]


def in_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(msgspec.json.encode(value), status=status, headers=headers or {})


@dataclass(frozen=True)
class Application:
    """Endpoints by their paths, each with the method that asks it."""

    endpoints: dict[str, tuple[Endpoint, str]]
    running: Callable[[], AbstractAsyncContextManager[None]]
    """Entered before the first request, and left after the last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and end.

        Raises:
            RefusedError: 404 and 405, or what the endpoint refuses.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        endpoint, method = self.endpoints.get(scope["path"], (None, ""))
        if endpoint is None:
            raise RefusedError(404, "There is nothing at this address.")
        allowed = ("GET", "HEAD") if method == "GET" else (method,)
        if scope["method"] not in allowed:
            raise RefusedError(405, "This address is not asked like that.", headers={"allow": ", ".join(allowed)})
        response = await endpoint(Request(scope, receive))
        await response.send(send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start when told so, and end when told so."""
        await receive()
        async with self.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
