"""Requests that come at the same time are encoded together; those for which there is no room are refused at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from hushprompt.serving.limits import RefusedError, ServingLimits

Item = TypeVar("Item")
Answer = TypeVar("Answer")
RETRY_AFTER = 1.0
"""Seconds after which one who found the queue full may come again."""


class MicroBatcher(Generic[Item, Answer]):
    """Hands items to a function in batches, one batch at a time, in a thread of its own.

    A batch is what waits. As long as it is smaller than the last one was, it waits for more, `batch_seconds` at most:
    who asks alone never waits. It ends early with items that cost much, so that whoever gave up by then costs no more,
    and takes one item of each request in turn, so that a request with many does not go before all others.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        limits: ServingLimits,
        cost: Callable[[Item], int] = lambda item: 0,
    ) -> None:
        """Take the function, which returns an answer or an error for each item, what may wait, and an item's cost."""
        self._work, self._limits, self._cost = work, limits, cost
        self._requests: deque[deque[tuple[Item, asyncio.Future[Answer]]]] = deque()
        self._has_come = asyncio.Event()
        self._last = 1
        self.sizes: list[int] = [0, 0]
        """Batches, and items in all of them."""

    @property
    def num_waiting(self) -> int:
        """Items in the queue; not those that are being worked on."""
        return sum(len(each) for each in self._requests)

    def submit(self, items: Sequence[Item]) -> list[asyncio.Future[Answer]]:
        """Queue items, all or none, and return their answers to come.

        Raises:
            RefusedError: 503, there is no room for them.
        """
        if self.num_waiting + len(items) > self._limits.queue:
            raise RefusedError(503, "Too many are asking. Try again in a second.", retry_after=RETRY_AFTER)
        coming = [asyncio.get_running_loop().create_future() for _ in items]
        if coming:
            self._requests.append(deque(zip(items, coming, strict=True)))
            self._has_come.set()
        return coming

    async def run(self) -> None:
        """Work on what comes, until this is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            while True:
                batch = [pair for pair in await self._batch() if not pair[1].done()]  # done: nobody waits for it
                if batch:
                    self.sizes[0] += 1
                    self.sizes[1] += len(batch)
                    try:
                        answers = await loop.run_in_executor(pool, self._work, [item for item, _ in batch])
                    except Exception as error:
                        answers = [error] * len(batch)
                    for (_, future), answer in zip(batch, answers, strict=True):
                        _settle(future, answer)

    async def _batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Return what is encoded next."""
        batch, limits = [await self._next()], self._limits
        cost = self._cost(batch[0][0])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.batch_seconds):
                while len(batch) < limits.batch_size and cost < limits.values and self._is_expected(len(batch)):
                    batch.append(await self._next())
                    cost += self._cost(batch[-1][0])
        self._last = len(batch)
        return batch

    def _is_expected(self, number: int) -> bool:
        """Whether more than this number of items are there, or were the last time."""
        return bool(self._requests) or number < self._last

    async def _next(self) -> tuple[Item, asyncio.Future[Answer]]:
        """Return one item of the request whose turn it is, and the answer to come."""
        while not self._requests:
            self._has_come.clear()
            await self._has_come.wait()
        request = self._requests.popleft()
        pair = request.popleft()
        if request:
            self._requests.append(request)
        return pair


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    """Tell whoever still waits."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
