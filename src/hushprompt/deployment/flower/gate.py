"""Flower's SuperLink, with a gate: other machines reach what clients need, and nothing else.

SuperLink serves three interfaces on one port: Fleet, for clients with a registered key; Control, which starts code on
the server and asks for no login; and Runtime, for the server's own processes. Control and Runtime are for the machine
itself: everybody else gets 403.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hushprompt.deployment.flower import supernode
from hushprompt.deployment.operate import process_lifetime

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FOR_CLIENTS = ("/v1/fleet/", "/health")
"""What paths begin with that other machines may ask for."""
REFUSAL = b"This is for processes on the server's own machine. Clients use the Fleet API."


class Gate:
    """ASGI middleware: the outermost one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or is_for_clients(scope.get("path", "")) or is_own_machine(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_for_clients(path: str) -> bool:
    """Whether every machine may ask for a path."""
    return path == FOR_CLIENTS[1] or path.startswith(FOR_CLIENTS[0])


def is_own_machine(scope: Scope) -> bool:
    """Whether a request comes from the machine itself: over loopback, or from the very address that it went to."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return False
    try:
        peer = _address(client[0])
        return peer.is_loopback or peer == _address(server[0])
    except ValueError:
        return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address; an IPv4 one that came over an IPv6 socket is the IPv4 one."""
    address = ipaddress.ip_address(text)
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether an entry of the access log is of a request that failed: clients ask every few seconds."""
    return not isinstance(record.args, tuple) or record.args[-1] != 200


def keep_contents_in_memory() -> None:
    """Have SuperLink keep what messages contain in memory: clients' sums must not lie on the server's disk.

    Its database then has nodes, runs, and of messages who sent when to whom. A run whose SuperLink ends is over anyhow.
    """
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink import config_loader

    factory = vars(config_loader)["ObjectStoreFactory"]  # Flower has no setting for it
    vars(config_loader).update(ObjectStoreFactory=lambda database: factory(FLWR_IN_MEMORY_DB_NAME))


def main() -> None:
    """Run SuperLink behind the gate; the arguments are those of `flower-superlink`."""
    process_lifetime.end_with_parent()
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from flwr.superlink.servicer.fleet import fleet_handlers
    from starlette.middleware import Middleware

    keep_contents_in_memory()
    vars(fleet_handlers).update(HEARTBEAT_MIN_INTERVAL=supernode.HEARTBEAT_S)
    logging.getLogger("uvicorn.access").addFilter(is_worth_a_line)
    others = extensions.get_middleware()
    extensions.get_middleware = lambda: (Middleware(Gate), *others)
    flower_superlink()


if __name__ == "__main__":
    main()
