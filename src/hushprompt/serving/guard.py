"""What stands before every endpoint: who may ask, how often, from where, and what every answer says to a browser."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import ipaddress
import logging
import re
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from hushprompt.serving.limits import RefusedError, ServingLimits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
FAILED = "Something failed here that is not your fault."
UNKNOWN = {404: "There is nothing at this address.", 405: "This address is not asked like that."}
OPEN = frozenset({"/", "/script.js", "/style.css", "/healthz", "/readyz"})
"""What needs no token, tells nothing of the prompt, and is not counted by the rate limit."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
"""Of every answer. The file field that takes a photograph needs no permission for the camera."""
DROP_SECONDS, DROP_BYTES = 1.0, 16 * 2**20
"""Longest, and most, that the rest of a body which is not wanted is read."""
CHARGE = "hushprompt.charge"
"""Key of a request's scope: the function that counts it, for the rate limit, as so many more."""
GONE = "hushprompt.gone"
"""Key of a request's scope, while it is answered: the function that ends it, as its sender went away."""
MOST_ADDRESSES = 10_000
"""Addresses that the rate limit remembers."""
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@]+)(?::\d{1,5})?")


@dataclass(frozen=True)
class Door:
    """Who may come in."""

    names: frozenset[str] = frozenset({"localhost"})
    """Host names that requests may be sent to, beside addresses: no page of another name can make a browser ask."""
    token: str | None = None
    """What every request but those of `OPEN` has to bring; None: nothing."""


class RateLimit:
    """A bucket for each address, from which each request takes one, and which fills at the rate."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Take requests per second; None: any number."""
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def charge(self, address: str, count: int) -> None:
        """Count more of a request that was let in: with its debt paid off, the next one is."""
        found = self._buckets.get(network(address))
        if found is not None:
            self._buckets[network(address)] = (found[0] - count, found[1])

    def check(self, address: str) -> None:
        """Count a request; raises RefusedError 429 where there were too many."""
        if self._rate is None:
            return
        now, most = self._clock(), max(1.0, self._rate)
        key = network(address)
        left, since = self._buckets.pop(key, (most, now))
        left = min(most, left + (now - since) * self._rate)
        self._buckets[key] = (max(0.0, left - 1) if left >= 1 else left, now)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = (1 - left) / self._rate
            raise RefusedError(429, f"More than {self._rate:g} requests a second came from you.", retry_after=wait)


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        limits: ServingLimits,
        count: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ) -> None:
        """Take what is guarded, and who is told of path, status and seconds of each answer."""
        self._app, self._door, self._limits, self._count = app, door, limits, count
        self._rates = RateLimit(limits.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        scope["app"] = self._app  # has its router raise 404 and 405 for us to say
        exchange = _Exchange(scope, receive, send, self._limits.read_seconds)
        try:
            async with asyncio.timeout(self._limits.request_seconds) as patience:
                scope[GONE] = functools.partial(exchange.give_up, patience)
                self._check(scope, exchange.headers)
                await self._app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            await exchange.refuse(RefusedError(503, f"No answer within {self._limits.request_seconds:g} seconds."))
        except RefusedError as refusal:
            await exchange.refuse(refusal)
        except HTTPException as error:
            text = UNKNOWN.get(error.status_code, error.detail)
            await exchange.refuse(RefusedError(error.status_code, text, headers=dict(error.headers or {})))
        except Exception as error:
            logger.error("A request failed, which is a fault of the server: %s.", _place(error))
            await exchange.refuse(RefusedError(500, FAILED))
        finally:
            scope.pop(GONE, None)
            self._count(scope["path"], exchange.status, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        """Raise RefusedError for a request that may not come in."""
        host = headers.get("host", [])
        if len(host) != 1 or not is_known(host[0], self._door.names):
            raise RefusedError(421, "This server does not answer to that name. Its owner allows one with --name.")
        if scope["path"] in OPEN:
            return
        address = (scope.get("client") or ("",))[0]
        self._rates.check(address)
        scope[CHARGE] = functools.partial(self._rates.charge, address)
        origin = headers.get("origin", [])
        is_own = not origin or [_site(each) for each in origin] == [host[0].lower()]
        if scope["method"] not in ("GET", "HEAD") and not is_own:
            raise RefusedError(403, "A page of another site may not ask.")
        if self._door.token is not None and not _is_token(headers.get("authorization", []), self._door.token):
            raise RefusedError(401, "This server needs its token, in the header Authorization: Bearer TOKEN.")


class _Exchange:
    """A request as it comes and its answer as it goes.

    Where an answer goes out before the request's body is in, the rest is read and dropped for a while before the
    connection closes: else the sender would be cut off, and never read the answer. One whose body came too slowly had
    its time already.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, seconds: float) -> None:
        self.headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        self.status, self._is_gone = 0, False
        self._scope, self._receive, self._send, self._seconds = scope, receive, send, seconds
        self._is_read = not ({"content-length", "transfer-encoding"} & self.headers.keys())
        self._is_begun = self._is_read

    async def receive(self) -> Message:
        """Return the next part of the body."""
        self._is_begun = True
        message = await self._receive()
        self._is_read = self._is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = () if self._is_read else ((b"connection", b"close"),)
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS, *closing]}
        elif not message.get("more_body") and not self._is_read and self.status != 408:
            await self._send({**message, "more_body": True})
            await self._drop_rest()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Answer with a refusal, if no answer has begun and somebody waits for it."""
        if not self.status and not self._is_gone:
            response = JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)
            await response(self._scope, self.receive, self.send)

    def give_up(self, patience: asyncio.Timeout) -> None:
        """End it, with what it waits for: its sender went away."""
        self._is_gone = True
        if not patience.expired():
            patience.reschedule(0.0)

    async def _drop_rest(self) -> None:
        """Read what is left of the body; not from one who waits to be asked for it (Expect: 100-continue)."""
        if not self._is_begun and "expect" in self.headers:
            return
        left = DROP_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(DROP_SECONDS, self._seconds)):
                while not self._is_read and left >= 0:
                    left -= len((await self.receive()).get("body", b""))


def is_known(host: str, names: Collection[str]) -> bool:
    """Tell whether a request was sent to an address, or to one of the names; of any port, which a tunnel may change.

    >>> [is_known(host, {"localhost"}) for host in ("localhost:8000", "[::1]:8000", "192.168.0.7", "example.org")]
    [True, True, True, False]
    """
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].lower().strip("[]").removesuffix(".")
    return name in names or is_address(name)


def is_address(name: str) -> bool:
    """Tell whether a host is given by its number."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _site(origin: str) -> str:
    """Return host and port of an origin; empty where it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _place(error: Exception) -> str:
    """Return an error's type and where it was raised; not its words, which may be those of a request."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}"


def network(address: str) -> str:
    """Return what counts as one address: of IPv6 the network of 64 bits, of which one customer has all."""
    if ":" not in address or not is_address(address):
        return address
    return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))


def _is_token(given: list[str], token: str) -> bool:
    """Compare what was given with the token, in a time that tells nothing of either."""
    scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    hashes = (hashlib.sha256(each.encode()).digest() for each in (value.strip(), token))
    return hmac.compare_digest(*hashes) and scheme.lower() == "bearer"
