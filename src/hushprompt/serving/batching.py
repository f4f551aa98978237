"""Requests that come at the same time are encoded together; those for which there is no room are refused at once."""

from __future__ import annotations

import asyncio
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
    who asks alone never waits.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Answer | Exception]], limits: ServingLimits) -> None:
        """Take the function, which returns an answer or an error for each item, and what may wait."""
        self._work, self._limits = work, limits
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()
        self._last = 1
        self.sizes: list[int] = [0, 0]
        """Batches, and items in all of them."""

    @property
    def num_waiting(self) -> int:
        """Items in the queue; not those that are being worked on."""
        return self._waiting.qsize()

    def submit(self, items: Sequence[Item]) -> list[asyncio.Future[Answer]]:
        """Queue items, all or none, and return their answers to come.

        Raises:
            RefusedError: 503, there is no room for them.
        """
        if self.num_waiting + len(items) > self._limits.queue:
            raise RefusedError(503, "Too many are asking. Try again in a second.", retry_after=RETRY_AFTER)
        coming = [asyncio.get_running_loop().create_future() for _ in items]
        for pair in zip(items, coming, strict=True):
            self._waiting.put_nowait(pair)
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
        batch, deadline = [await self._waiting.get()], asyncio.get_running_loop().time() + self._limits.batch_seconds
        try:
            async with asyncio.timeout_at(deadline):
                while len(batch) < self._limits.batch_size and (self.num_waiting or len(batch) < self._last):
                    batch.append(await self._waiting.get())
        except TimeoutError:
            pass
        self._last = len(batch)
        return batch


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    """Tell whoever still waits."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
