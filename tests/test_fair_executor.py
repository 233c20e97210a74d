"""The fair executor: owners take turns, queues are bounded, and calls that have not begun can be dropped."""

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.engine.engine import QueueFull
from ontogeny.server.fair_executor import FairExecutor, FairThreadPool, current_owner, wait_for_call


class Barrier:
    """A call that occupies a thread until it is released."""

    def __init__(self):
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.released.wait(60)
        return "done"


@pytest.fixture
def executor():
    executor = FairExecutor("test", 1, max_waiting=5)
    yield executor
    executor.stop()


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_owners_take_turns_and_each_is_served_in_order(owners):
    executor, barrier, order = FairExecutor("test", 1), Barrier(), []
    executor.submit("first", barrier)
    assert barrier.begun.wait(60)
    futures = [executor.submit(owner, order.append, (owner, number)) for number, owner in enumerate(owners)]
    barrier.released.set()
    for future in futures:
        future.result(60)
    executor.stop()
    for owner in "abc":
        places = [place for place, (name, _) in enumerate(order) if name == owner]
        numbers = [number for name, number in order if name == owner]
        assert numbers == sorted(numbers)
        for before, after in zip([-1, *places], places, strict=False):
            between = [name for name, _ in order[before + 1 : after]]
            assert all(between.count(name) <= 1 for name in set(between))  # at most one call of each other owner


def test_one_owner_never_occupies_all_threads():
    executor, barriers = FairExecutor("test", 3), [Barrier() for _ in range(9)]
    for barrier in barriers:
        executor.submit("anna", barrier)
    assert executor.submit("berta", lambda: "served").result(60) == "served"
    assert sum(barrier.begun.is_set() for barrier in barriers) <= 2
    for barrier in barriers:
        barrier.released.set()
    executor.stop()


def test_the_queue_of_each_owner_is_bounded_and_cancelled_calls_give_up_their_places(executor):
    barrier = Barrier()
    executor.submit("anna", barrier)
    assert barrier.begun.wait(60)
    futures = [executor.submit("anna", int) for _ in range(5)]
    with pytest.raises(QueueFull):
        executor.submit("anna", int)
    executor.submit("berta", int)
    assert all(future.cancel() for future in futures)
    last = executor.submit("anna", int)
    barrier.released.set()
    assert last.result(60) == 0 and executor.num_waiting == 0 and executor.num_started == 3


def test_a_cancelled_task_drops_its_waiting_call_and_awaits_a_call_that_has_begun(executor):
    changes = []

    async def main():
        barrier = Barrier()
        begun = asyncio.ensure_future(wait_for_call(executor.submit("anna", barrier)))
        reading = asyncio.ensure_future(executor.call("anna", changes.append, 1))
        await asyncio.to_thread(barrier.begun.wait, 60)
        for task in (begun, reading):
            task.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled() and not begun.done()
        begun.cancel()  # a second time
        await asyncio.sleep(0)
        assert not begun.done()
        barrier.released.set()
        assert await begun == "done"  # it cannot be undone

        barrier = Barrier()
        reading = asyncio.ensure_future(executor.call("anna", barrier))
        await asyncio.to_thread(barrier.begun.wait, 60)
        reading.cancel()
        barrier.released.set()
        await asyncio.wait([reading])
        assert reading.cancelled()

    asyncio.run(main())
    assert executor.submit("anna", int).result(60) == 0 and not changes


def test_a_stopped_executor_cancels_what_waits_and_accepts_nothing():
    executor, barrier = FairExecutor("test", 1), Barrier()
    running = executor.submit("anna", barrier)
    assert barrier.begun.wait(60)
    waiting = executor.submit("anna", int)
    stopping = threading.Thread(target=executor.stop)
    stopping.start()
    with pytest.raises(CancelledError):
        waiting.result(60)
    barrier.released.set()
    stopping.join(60)
    assert running.result(60) == "done"
    with pytest.raises(QueueFull):
        executor.submit("anna", int)


def test_an_error_of_a_call_reaches_its_caller_alone(executor):
    def fail():
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        executor.submit("anna", fail).result(60)
    assert executor.submit("anna", int).result(60) == 0


def test_the_default_executor_of_an_event_loop_serves_the_owners_of_tasks_in_turn():
    order = []

    async def work(owner, barrier):
        current_owner.set(owner)
        order.append(await asyncio.to_thread(barrier))

    async def main():
        asyncio.get_running_loop().set_default_executor(FairThreadPool("test", 2))
        first = Barrier()
        tasks = [asyncio.ensure_future(work("anna", first))]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(work("anna", lambda: "anna")) for _ in range(20)]
        tasks += [asyncio.ensure_future(work("berta", lambda: "berta"))]
        await asyncio.wait([tasks[-1]], timeout=60)
        assert order == ["berta"]  # a thread is left, and Anna's calls before it wait
        first.released.set()
        await asyncio.wait(tasks, timeout=60)

    asyncio.run(main())
    assert order.count("anna") == 20
