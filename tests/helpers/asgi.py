"""One HTTP request to an ASGI application, in this process: without a socket, without a client library."""

import asyncio
import contextlib
import json
from dataclasses import dataclass


@dataclass
class Answered:
    """What came back."""

    status: int
    headers: dict
    body: bytes
    parts: list
    """All messages of the answer."""

    @property
    def json(self):
        return json.loads(self.body)


async def ask(app, method, path, body=b"", headers=(), client="127.0.0.1", host="localhost:8000", pause=0.0):
    """Send one request; a body that is a list comes in chunks, with a pause before each, and no Content-Length."""
    path, _, query = path.partition("?")
    sent = [] if host is None else [(b"host", host.encode())]
    chunks = list(body) if isinstance(body, list) else [body]
    if isinstance(body, list):
        sent.append((b"transfer-encoding", b"chunked"))
    elif body:
        sent.append((b"content-length", str(len(body)).encode()))
    sent += [(name.encode(), value.encode()) for name, value in headers]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "headers": sent, "client": (client, 1),
        "server": ("127.0.0.1", 8000), "scheme": "http", "root_path": "",
    }  # fmt: skip
    parts = []

    async def receive():
        await asyncio.sleep(pause)
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        parts.append(message)

    await app(scope, receive, send)
    if not parts:
        return None
    found = {name.decode().lower(): value.decode() for name, value in parts[0]["headers"]}
    return Answered(parts[0]["status"], found, b"".join(part.get("body", b"") for part in parts[1:]), parts)


@contextlib.asynccontextmanager
async def started(app):
    """Run an application's lifespan around a block."""
    inbox, outbox = asyncio.Queue(), asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        yield app
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await task


def once(app, *args, **kwargs):
    """Start an application, ask it one thing, and stop it."""

    async def run():
        async with started(app):
            return await ask(app, *args, **kwargs)

    return asyncio.run(run())
