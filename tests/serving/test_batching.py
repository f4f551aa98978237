"""Requests of the same moment are encoded together."""

import asyncio
import threading
import weakref

import pytest

from hushprompt.serving.batching import MicroBatcher
from hushprompt.serving.limits import RefusedError, ServingLimits


class Image:
    """What somebody sent."""


def batched(work, use, cost=lambda item: 0, num_workers=1, prepare=lambda: None, **limits):
    """Run `use` on a batcher of `work`."""

    async def run():
        batcher = MicroBatcher(work, ServingLimits(**limits), cost=cost, num_workers=num_workers, prepare=prepare)
        task = asyncio.create_task(batcher.run())
        try:
            return await use(batcher)
        finally:
            task.cancel()

    return asyncio.run(run())


def test_what_waits_goes_together_at_most_so_many():
    sizes = []

    def work(items):
        sizes.append(len(items))
        return [item * 10 for item in items]

    async def use(batcher):
        return await asyncio.gather(*batcher.submit(range(20)))

    assert batched(work, use, batch_size=16) == [item * 10 for item in range(20)]
    assert sizes == [16, 4]


def test_who_asks_alone_does_not_wait_and_after_many_one_waits_a_moment():
    async def use(batcher):
        clock, times = asyncio.get_running_loop().time, []
        for count in (1, 1, 4, 1, 1):
            start = clock()
            await asyncio.gather(*batcher.submit(range(count)))
            times.append(clock() - start)
        return times

    alone, _, together, after, again = batched(list, use, batch_seconds=0.3)
    assert max(alone, together, again) < 0.25
    assert after >= 0.3, "three more were there the last time"


def test_more_than_the_queue_holds_is_refused_as_a_whole():
    go = threading.Event()

    def work(items):
        assert go.wait(5)
        return items

    async def use(batcher):
        first = batcher.submit([0])
        await asyncio.sleep(0.02)  # it is being worked on, and waits no more
        waiting = batcher.submit([1, 2, 3])
        with pytest.raises(RefusedError, match="Too many") as refused:
            batcher.submit([4, 5])
        assert batcher.num_waiting == 3
        last = batcher.submit([6])
        go.set()
        return refused.value.status, await asyncio.gather(*first, *waiting, *last)

    assert batched(work, use, queue=4) == (503, [0, 1, 2, 3, 6])


def test_one_bad_item_is_its_own_and_a_failure_is_that_of_its_batch_alone():
    def work(items):
        if 7 in items:
            raise RuntimeError("seven")
        return [ValueError("odd") if item % 2 else item for item in items]

    async def use(batcher):
        mixed = await asyncio.gather(*batcher.submit([2, 3]), return_exceptions=True)
        failed = await asyncio.gather(*batcher.submit([7, 8]), return_exceptions=True)
        return mixed, failed, await batcher.submit([4])[0]

    mixed, failed, after = batched(work, use)
    assert (mixed[0], str(mixed[1]), after) == (2, "odd", 4)
    assert [str(each) for each in failed] == ["seven", "seven"]


def test_what_nobody_waits_for_any_more_is_not_worked_on():
    go, seen = threading.Event(), []

    def work(items):
        seen.extend(items)
        assert go.wait(5)
        return items

    async def use(batcher):
        (first,) = batcher.submit([1])
        await asyncio.sleep(0.02)
        (gone,) = batcher.submit([2])
        gone.cancel()
        (last,) = batcher.submit([3])
        go.set()
        return await first, await last

    assert batched(work, use) == (1, 3)
    assert seen == [1, 3]


def test_a_request_with_many_items_takes_turns_with_others():
    seen = []

    async def use(batcher):
        many, one = batcher.submit(list("abcd")), batcher.submit(["z"])
        assert batcher.submit([]) == []
        await asyncio.gather(*many, *one)

    batched(lambda items: seen.append("".join(items)) or items, use, batch_size=2)
    assert seen == ["az", "bc", "d"]


def test_costly_items_go_one_by_one_and_no_more_once_nobody_waits():
    seen, go = [], threading.Event()

    def work(items):
        seen.append(list(items))
        assert go.wait(5)
        return items

    async def use(batcher):
        slow = batcher.submit([9, 10, 11, 12])
        await asyncio.sleep(0.02)
        for each in slow:
            each.cancel()
        others = batcher.submit([1, 2, 3])
        go.set()
        return await asyncio.gather(*others)

    assert batched(work, use, cost=lambda item: item, values=9) == [1, 2, 3]
    assert seen[0] == [9]
    assert sorted(item for batch in seen for item in batch) == [1, 2, 3, 9]


def test_several_workers_have_a_batch_each_at_the_same_time():
    both, prepared = threading.Barrier(2), []

    def work(items):
        both.wait(5)
        return items

    async def use(batcher):
        first = batcher.submit([1])
        await asyncio.sleep(0.02)
        return await asyncio.gather(*first, *batcher.submit([2, 3]))

    found = batched(work, use, num_workers=2, prepare=lambda: prepared.append(threading.get_ident()))
    assert found == [1, 2, 3]
    assert len(set(prepared)) == 2


def test_workers_share_what_waits_and_those_who_were_answered_together_are_waited_for():
    sizes = []

    async def use(batcher):
        clock, times = asyncio.get_running_loop().time, []
        await asyncio.gather(*batcher.submit(range(6)))
        for parts in ((1, 1, 1, 1, 1, 1), (1,), (1,)):
            start, coming = clock(), []
            for count in parts:
                coming += batcher.submit(range(count))
                await asyncio.sleep(0.002)
            await asyncio.gather(*coming)
            times.append(clock() - start)
        return times

    six, one, again = batched(lambda items: sizes.append(len(items)) or items, use, num_workers=2, batch_seconds=0.3)
    assert sizes == [3, 3, 3, 3, 1, 1]
    assert six < 0.25, "all are there"
    assert one >= 0.2, "five more were there the last time"
    assert again < 0.25, "who asks alone does not wait"


def test_those_who_gave_up_hold_no_place_in_the_queue():
    go, seen = threading.Event(), []

    def work(items):
        seen.append(list(items))
        assert go.wait(5)
        return items

    async def use(batcher):
        first = batcher.submit([0])
        await asyncio.sleep(0.02)
        gone = [each for item in (1, 2) for each in batcher.submit([item, item])]
        for each in gone:
            each.cancel()
        assert batcher.num_waiting == 0
        last = batcher.submit([3, 4, 5])
        go.set()
        return await asyncio.gather(*first, *last)

    assert batched(work, use, queue=4) == [0, 3, 4, 5]
    assert seen == [[0], [3, 4, 5]]


def test_a_thread_that_the_machine_does_not_give_is_an_error_of_that_batch_alone(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    async def use(batcher):
        await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            (first,) = await asyncio.wait_for(asyncio.gather(*batcher.submit([1]), return_exceptions=True), 2)
        return first, await asyncio.wait_for(asyncio.gather(*batcher.submit([2])), 2)

    first, second = batched(list, use)
    assert isinstance(first, RuntimeError)
    assert second == [2]


def test_what_nobody_waits_for_any_more_is_not_kept():
    go = threading.Event()

    def work(items):
        assert go.wait(5)
        return items

    async def use(batcher):
        (first,) = batcher.submit([1])
        await asyncio.sleep(0.02)
        image = Image()
        kept = weakref.ref(image)
        (gone,) = batcher.submit([image])
        del image
        gone.cancel()
        go.set()
        await first
        return kept()

    assert batched(work, use) is None
