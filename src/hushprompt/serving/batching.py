"""Requests that come at the same time are encoded together; those for which there is no room are refused at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from hushprompt.serving.limits import RefusedError, ServingLimits

Item = TypeVar("Item")
Answer = TypeVar("Answer")
RETRY_AFTER = 1.0
"""Seconds after which one who found the queue full may come again."""


@dataclass(frozen=True)
class _Waiting(Generic[Item, Answer]):
    """An item, what it costs, and the answer to come."""

    item: Item
    cost: int
    coming: asyncio.Future[Answer]


class MicroBatcher(Generic[Item, Answer]):
    """Hands items to a function in batches, each in a thread, as many at the same time as there are workers.

    A batch is what has come while the last one was worked on. With one worker, a batch that is smaller than the last
    one waits for more, `batch_seconds` at most: who asks alone never waits, and those whose answers came together ask
    together again. A batch ends early with items that cost much, so that whoever gave up by then costs no more, and
    takes one item of each request in turn, so that a request with many does not go before all others.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        limits: ServingLimits,
        *,
        cost: Callable[[Item], int] = lambda item: 0,
        num_workers: int = 1,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the function, which returns an answer or an error for each item.

        Args:
            work: called in several threads at the same time.
            limits: what may wait, and for how long.
            cost: of an item.
            num_workers: batches at the same time.
            prepare: called in each thread first.
        """
        self._work, self._limits, self._cost = work, limits, cost
        self._num_workers, self._prepare = num_workers, prepare
        self._requests: deque[deque[_Waiting[Item, Answer]]] = deque()
        self._has_come = asyncio.Event()
        self.sizes: list[int] = [0, 0]
        """Batches, and items in all of them."""

    @property
    def num_waiting(self) -> int:
        """Items in the queue for which somebody waits; not those that are being worked on."""
        return sum(not each.coming.done() for request in self._requests for each in request)

    def submit(self, items: Sequence[Item]) -> list[asyncio.Future[Answer]]:
        """Queue items, all or none, and return their answers to come.

        Raises:
            RefusedError: 503, there is no room for them.
        """
        if sum(map(len, self._requests)) + len(items) > self._limits.queue:
            self._forget_gone()
        if sum(map(len, self._requests)) + len(items) > self._limits.queue:
            raise RefusedError(503, "Too many are asking. Try again in a second.", retry_after=RETRY_AFTER)
        coming = [asyncio.get_running_loop().create_future() for _ in items]
        if coming:
            self._requests.append(
                deque(_Waiting(item, self._cost(item), each) for item, each in zip(items, coming, strict=True))
            )
            self._has_come.set()
        return coming

    async def run(self) -> None:
        """Work on what comes, until this is cancelled."""
        free: asyncio.LifoQueue[ThreadPoolExecutor] = asyncio.LifoQueue()  # the last one has the model in its cache
        last = 1
        with contextlib.ExitStack() as threads:
            for number in range(self._num_workers):
                pool = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{number}", initializer=self._prepare)
                free.put_nowait(threads.enter_context(pool))
            async with asyncio.TaskGroup() as batches:
                while True:
                    await self._coming()
                    worker = await free.get()
                    batch = await self._batch(last)
                    last = len(batch)
                    task = batches.create_task(self._answer(batch, worker))
                    task.add_done_callback(functools.partial(_give_back, free, worker))

    async def _answer(self, waited: list[_Waiting[Item, Answer]], worker: ThreadPoolExecutor) -> None:
        """Have a batch worked on, and tell those who wait."""
        batch = [each for each in waited if not each.coming.done()]  # some gave up while it was filled
        if not batch:
            return
        self.sizes[0] += 1
        self.sizes[1] += len(batch)
        answers: Sequence[Answer | Exception]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                worker, self._work, [each.item for each in batch]
            )
        except Exception as error:
            answers = [error] * len(batch)
        for each, answer in zip(batch, answers, strict=True):
            _settle(each.coming, answer)

    async def _batch(self, last: int) -> list[_Waiting[Item, Answer]]:
        """Return what is encoded next, `last` items if they come soon."""
        batch: list[_Waiting[Item, Answer]] = []
        while not batch:
            await self._coming()
            self._fill(batch)
        if len(batch) < last and self._num_workers == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.batch_seconds):
                    while len(batch) < last and self._has_room(batch):
                        await self._coming()
                        self._fill(batch)
        return batch

    async def _coming(self) -> None:
        """Wait until there is something."""
        while not self._requests:
            self._has_come.clear()
            await self._has_come.wait()

    def _fill(self, batch: list[_Waiting[Item, Answer]]) -> None:
        """Add what is there, one item of each request in turn."""
        while self._requests and self._has_room(batch):
            request = self._requests.popleft()
            each = request.popleft()
            if request:
                self._requests.append(request)
            if not each.coming.done():
                batch.append(each)

    def _forget_gone(self) -> None:
        """Make room: nobody waits for these any more."""
        left = (deque(each for each in request if not each.coming.done()) for request in self._requests)
        self._requests = deque(request for request in left if request)

    def _has_room(self, batch: list[_Waiting[Item, Answer]]) -> bool:
        """Whether one more goes with them."""
        return len(batch) < self._limits.batch_size and sum(each.cost for each in batch) < self._limits.values


def _give_back(free: asyncio.LifoQueue[ThreadPoolExecutor], worker: ThreadPoolExecutor, _: asyncio.Task[None]) -> None:
    """Have the worker of a finished batch take the next one."""
    free.put_nowait(worker)


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    """Tell whoever still waits."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
