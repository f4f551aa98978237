"""Requests that come at the same time are encoded together; those for which there is no room are refused at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
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

    A batch is what has come while all workers were busy; those that are free share it. It waits for whoever was
    answered just now and may ask again, `batch_seconds` after the answer at most: who asks alone never waits, and those
    whose answers came together ask together again. A batch ends early with items that cost much, so that whoever gave
    up by then costs no more, and takes one item of each request in turn, so that a request with many does not go
    before all others.
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
        self._free: list[ThreadPoolExecutor] = []
        self._look: asyncio.Handle | None = None
        self._num_answered, self._patience = 0, 0.0
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
            self._num_answered = max(0, self._num_answered - len(items))
            self._look_soon()
        return coming

    async def run(self) -> None:
        """Work on what comes, until this is cancelled."""
        with contextlib.ExitStack() as threads:
            for number in range(self._num_workers):
                pool = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{number}", initializer=self._prepare)
                self._free.append(threads.enter_context(pool))
            threads.callback(lambda: self._requests.clear())  # what waits then is not begun
            self._look_soon()
            await asyncio.get_running_loop().create_future()  # which nobody sets

    def _look_soon(self, when: float = 0.0) -> None:
        """See what there is to do once all that has come by then is in the queue."""
        if self._look is not None:
            self._look.cancel()
        loop = asyncio.get_running_loop()
        self._look = loop.call_at(when, self._start) if when else loop.call_soon(self._start)

    def _start(self) -> None:
        """Have free workers begin, unless more is likely to come soon."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._patience:
            self._num_answered = 0
        self._forget_gone()
        while self._free and (num_waiting := self.num_waiting):
            if self._num_answered and num_waiting < self._limits.batch_size:
                self._look_soon(self._patience)
                return
            batch = self._batch(-(-num_waiting // len(self._free)))
            worker = self._free.pop()  # the last one has the model in its cache
            self.sizes[0] += 1
            self.sizes[1] += len(batch)
            end = functools.partial(self._end, worker, batch)
            done = _begun(worker, self._work, [each.item for each in batch])
            done.add_done_callback(functools.partial(loop.call_soon_threadsafe, end))

    def _end(
        self, worker: ThreadPoolExecutor, batch: list[_Waiting[Item, Answer]],
        done: concurrent.futures.Future[Sequence[Answer | Exception]],
    ) -> None:  # fmt: skip
        """Have the worker take the next batch, and tell those who wait for this one."""
        self._free.append(worker)
        self._num_answered += sum(not each.coming.done() for each in batch)
        self._patience = asyncio.get_running_loop().time() + self._limits.batch_seconds
        self._start()
        error = done.exception()
        answers: Sequence[Answer | BaseException] = done.result() if error is None else [error] * len(batch)
        for each, answer in zip(batch, answers, strict=True):
            _settle(each.coming, answer)

    def _batch(self, size: int) -> list[_Waiting[Item, Answer]]:
        """Take so many, or as many as go together, one item of each request in turn."""
        batch: list[_Waiting[Item, Answer]] = []
        while self._requests and len(batch) < size and self._has_room(batch):
            request = self._requests.popleft()
            each = request.popleft()
            if request:
                self._requests.append(request)
            if not each.coming.done():
                batch.append(each)
        return batch

    def _forget_gone(self) -> None:
        """Make room: nobody waits for these any more."""
        left = (deque(each for each in request if not each.coming.done()) for request in self._requests)
        self._requests = deque(request for request in left if request)

    def _has_room(self, batch: list[_Waiting[Item, Answer]]) -> bool:
        return len(batch) < self._limits.batch_size and sum(each.cost for each in batch) < self._limits.values


def _begun(
    worker: ThreadPoolExecutor, work: Callable[[Sequence[Item]], Sequence[Answer | Exception]], items: Sequence[Item]
) -> concurrent.futures.Future[Sequence[Answer | Exception]]:
    """Have a worker begin; an end at once, with the error, where the machine gives it no thread."""
    try:
        return worker.submit(work, items)
    except RuntimeError as error:
        failed: concurrent.futures.Future[Sequence[Answer | Exception]] = concurrent.futures.Future()
        failed.set_exception(error)
        return failed


def _settle(future: asyncio.Future[Answer], answer: Answer | BaseException) -> None:
    """Tell whoever still waits."""
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
