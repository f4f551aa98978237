"""Where a server listens, over TLS or not, and how it ends: few connections, heads in time, SIGTERM drains."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hushprompt.deployment.operate import secrets
from hushprompt.errors import ConfigError
from hushprompt.serving.guard import GONE, HEADERS, Door, is_address, network
from hushprompt.serving.limits import ServingLimits

SHORTEST_TOKEN = 20
"""Characters; `openssl rand -hex 32` gives 64."""
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that are all addresses of the machine, and the address of none."""
LINGER = 0.5
"""Seconds for which what a refused connection sends is dropped: cut off at once, its sender might miss the answer."""


@dataclass(frozen=True, kw_only=True)
class ListenerConfig:
    """Where a server is reached, and by whom."""

    host: str = "127.0.0.1"
    """Name or address to listen at; "0.0.0.0" and "::" are all of the machine's."""
    port: int = 8000
    """0 takes a free one."""
    names: tuple[str, ...] = ()
    """Host names, beside the machine's own, that callers use for it."""
    token_file: Path | None = None
    """File of mode 600 with the token that callers must know."""
    tls_cert: Path | None = None
    """Certificate chain, PEM."""
    tls_key: Path | None = None
    """Its key, PEM, not encrypted, of mode 600."""
    insecure: bool = False
    """Listen to other machines without a token, or without TLS."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 0 to 65535, got {self.port}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key are given together, or neither.")
        wanted = {"--token-file": self.token_file, "--tls-cert and --tls-key": self.tls_cert}
        missing = [name for name, value in wanted.items() if value is None]
        if missing and not self.insecure and not self.is_local:
            raise ConfigError(
                f"{self.host} is reached by other machines, so {' and '.join(missing)} must be given, or --insecure "
                "where something before this server does that work."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host) or self.host.lower() == "localhost"

    def door(self) -> Door:
        """Return who may come in.

        Raises:
            ConfigError: the token's file is missing, can be read by others, or has no long enough token.
        """
        own = {"localhost"} if self.is_local else {"localhost", self.host, socket.gethostname()}
        names = frozenset(name.lower().removesuffix(".") for name in {*own, *self.names})
        return Door(names, None if self.token_file is None else read_token(self.token_file))

    def check_tls(self) -> None:
        """Raise ConfigError unless certificate and key, if there are any, are files that belong together."""
        if self.tls_cert is None or self.tls_key is None:
            return
        secrets.read(self.tls_key)
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.tls_cert, self.tls_key, password=lambda: b""
            )
        except OSError as error:  # an SSLError is one
            raise ConfigError(
                f"{self.tls_cert} and {self.tls_key} are no certificate and its key, in PEM, without a password "
                f"({error})."
            ) from error

    def bind(self) -> socket.socket:
        """Return a socket that is bound.

        Raises:
            ConfigError: there is no such address here, or the port is in use.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
            return _listening(family, address[:2])
        except OSError as error:
            raise ConfigError(
                f"Nothing can listen at {self.host}, port {self.port}: {error.strerror or error}. Choose another "
                "--host or --port; --port 0 takes a free one."
            ) from error

    def url(self, listening: socket.socket) -> str:
        """Return the address to open; of a server at all addresses of its machine, by a name that it answers to."""
        host = (*self.names, socket.gethostname())[0] if self.host in EVERYWHERE else self.host
        name = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.tls_cert else ''}://{name}:{listening.getsockname()[1]}"


def is_loopback(address: str) -> bool:
    """Tell whether an address is this machine's alone."""
    return is_address(address) and ipaddress.ip_address(address).is_loopback


def _listening(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket that listens.

    asyncio sends small parts at once only where the socket says that it is TCP, which those of `create_server` do not:
    an answer's body would wait 40 ms for the caller's system to confirm its head.
    """
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 callers would come under one network, as the rate limit counts
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def read_token(path: Path) -> str:
    """Return the token of a file that only its owner can read.

    Raises:
        ConfigError: it is missing, can be read by others, or holds no long enough word.
    """
    token = secrets.read(path, "token").decode("ascii", "replace").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{path} must hold one word of {SHORTEST_TOKEN} or more letters and digits. Make one with: "
            f"(umask 077; openssl rand -hex 32 > {path})"
        )
    return token


class _OneWrite:
    """A connection on which an answer's head is sent with its body: two packets cost its caller and us twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send at the next call, or as soon as nothing else is to be done."""
        if self._held:
            self._held += data
            self._send()
        elif data:
            self._held = data
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Send all, and close, in time also where nobody reads it."""
        self._send()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(self._seconds, self._transport.abort)

    def _send(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        """Be the connection in all else."""
        return getattr(self._transport, name)


class GuardedProtocol(H11Protocol):
    """Uvicorn's protocol, with an end to connections that are too many, or on which no request or reader arrives."""

    limits: ClassVar[ServingLimits] = ServingLimits()
    network = ""
    """Where it comes from; empty for this machine."""
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or say that there are too many."""
        held = _OneWrite(transport, self.loop, self.limits.request_seconds)
        super().connection_made(cast(asyncio.Transport, held))
        address = self.client[0] if self.client else ""
        self.network = "" if not address or is_loopback(address) else network(address)
        same = sum(each.network == self.network for each in self.connections if isinstance(each, GuardedProtocol))
        if len(self.connections) > self.limits.connections or (self.network and same > self.limits.connections_of_one):
            self.connections.discard(self)  # it takes nobody's place
            self._refuse("503 Service Unavailable", "Too many connections open.", ("retry-after", "1"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and what was asked on it."""
        self._stop_waiting()
        self._stop_watching()
        if self._is_busy():
            cast(dict[str, Any], self.cycle.scope).get(GONE, lambda: None)()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request whose head is in is timed by the application."""
        if self._is_refused or self.transport.is_closing():
            return
        if self._deadline is None and not self._is_busy():
            self._await_head()
        super().data_received(data)
        if self._is_busy() and not self._is_refused:
            self._stop_waiting()

    def pause_writing(self) -> None:
        """Wait for a caller to read its answers, as long as a request may take."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.request_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it reads."""
        self._stop_watching()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; whatever was being answered on this connection ends."""
        if self._is_busy():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._is_busy() and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse("400 Bad Request", "This is no HTTP request that can be read.")

    def _refuse(self, status: str, text: str, *more: tuple[str, str]) -> None:
        """Answer in JSON, as the application does, and close the connection soon."""
        body = json.dumps({"error": text})
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers += [*more, *((name.decode(), value.decode()) for name, value in HEADERS)]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", body]
        self._stop_waiting()
        self._is_refused = True
        self.transport.write("\r\n".join(lines).encode())
        self._deadline = self.loop.call_later(LINGER, self.transport.abort)

    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        """Close the connection unless a request's head is in by then."""
        self._deadline = self.loop.call_later(self.limits.read_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        """Leave the connection open."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_watching(self) -> None:
        """Ask no longer whether answers are read."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


@dataclass
class Listener:
    """A server that listens: `run` answers until it is told to stop."""

    app: Any
    config: ListenerConfig
    limits: ServingLimits
    url: str = field(init=False)
    """Where it is reached."""

    def __post_init__(self) -> None:
        """Bind the port, so that callers wait from now on."""
        self.config.check_tls()
        protocol = type("LimitedProtocol", (GuardedProtocol,), {"limits": self.limits})
        self._server = _QuietServer(uvicorn.Config(
            self.app, http=protocol, ws="none", loop="asyncio", lifespan="on", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, timeout_graceful_shutdown=round(self.limits.request_seconds) + 1,
            ssl_certfile=self.config.tls_cert, ssl_keyfile=self.config.tls_key,
        ))  # fmt: skip
        self._socket = self.config.bind()
        self.url = self.config.url(self._socket)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Answer until `stop`, Ctrl-C or SIGTERM; what has been asked by then is still answered."""
        with contextlib.closing(self._socket), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # they are of strangers' images
            self._server.on_ready = on_ready
            self._server.run([self._socket])

    def stop(self) -> None:
        """Have `run` return once all is answered; from any thread."""
        self._server.should_exit = True


class _QuietServer(uvicorn.Server):
    """Uvicorn's server; a signal that ended it in order is not raised again afterwards."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with as little patience for a TLS handshake as for a request's head, and say so."""
        if self.config.ssl_certfile:
            loop = asyncio.get_running_loop()
            hasty = functools.partial(loop.create_server, ssl_handshake_timeout=ServingLimits.read_seconds)
            vars(loop).update(create_server=hasty)  # uvicorn has no setting for it
        await super().startup(sockets)
        self.on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in order on SIGTERM and Ctrl-C; on a second Ctrl-C at once."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()
