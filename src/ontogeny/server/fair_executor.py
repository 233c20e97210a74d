"""A fair executor: a few threads that call functions for many owners in turn.

The queue of each owner is bounded, one owner never occupies all threads, and a call that has not begun can be dropped.
"""

import asyncio
import contextlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ontogeny.engine.engine import QueueFull

RETRY_AFTER = 1.0  # seconds
current_owner: ContextVar[str] = ContextVar("current_owner", default="")  # on whose behalf a task runs
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class QueuedCall(NamedTuple):
    """A function to call and the future that receives its result."""

    future: Future[Any]
    function: Callable[[], Any]


class FairExecutor:
    """Threads that call functions for owners in turn; of one owner, calls begin in the order of their submission.

    Args:
        name: The name of the threads.
        num_threads: How many calls run at the same time; one owner has at most one less, and at least one.
        max_waiting: Calls of one owner that may wait, here and elsewhere (`count_elsewhere`).

    Attributes:
        num_started: Calls begun so far.
        count_elsewhere: Returns how many calls of an owner wait in other processes, without blocking.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: float = float("inf")) -> None:
        self._max_waiting, self._max_running = max_waiting, max(1, num_threads - 1)
        self._waiting: OrderedDict[str, deque[QueuedCall]] = OrderedDict()  # owners in the order of their turns
        self._running: Counter[str] = Counter()
        self._condition = threading.Condition()
        self._is_stopping = False
        self.num_started = 0
        self.count_elsewhere: Callable[[str], int] = lambda owner: 0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Calls that wait for a thread."""
        with self._condition:
            return sum(map(len, self._waiting.values()))

    def count_waiting(self) -> dict[str, int]:
        """Returns how many calls of each owner wait."""
        with self._condition:
            return {owner: sum(not call.future.cancelled() for call in queue) for owner, queue in self._waiting.items()}

    def submit(
        self, owner: str, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Queues a call; until it begins, `cancel` of its future drops it.

        Args:
            owner: On whose behalf the function is called.
            function: Runs on one of the threads.
            *args: Passed to the function.
            **kwargs: Passed to the function by name.

        Raises:
            QueueFull: `max_waiting` calls of this owner wait, or the executor has stopped.
        """
        future = Future[Result]()
        with self._condition:
            queue = self._waiting.setdefault(owner, deque())
            for call in [call for call in queue if call.future.cancelled()]:
                queue.remove(call)
            if self._is_stopping or len(queue) + self.count_elsewhere(owner) >= self._max_waiting:
                if not queue:
                    del self._waiting[owner]
                raise QueueFull(RETRY_AFTER)
            queue.append(QueuedCall(future, lambda: function(*args, **kwargs)))
            self._condition.notify()
        return future

    async def call(
        self, owner: str, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Calls a function like `submit` and awaits its result.

        If the task that awaits it is cancelled, a call that has not begun is dropped, and the end of a call that has
        begun is awaited before the task ends.
        """
        result = await wait_for_call(self.submit(owner, function, *args, **kwargs))
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        return result

    def stop(self) -> None:
        """Finishes the current calls and cancels the waiting ones."""
        with self._condition:
            self._is_stopping = True
            waiting = [call for queue in self._waiting.values() for call in queue]
            self._waiting.clear()
            self._condition.notify_all()
        for call in waiting:
            call.future.cancel()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Makes calls until the executor stops; the main function of a thread."""
        while (begun := self._wait_for_call()) is not None:
            owner, call = begun
            try:
                call.future.set_result(call.function())
            except BaseException as error:  # the caller receives it
                call.future.set_exception(error)
            finally:
                del begun, call  # a waiting thread retains neither arguments nor results
                with self._condition:
                    self._running[owner] -= 1
                    if not self._running[owner]:
                        del self._running[owner]
                    self._condition.notify()

    def _wait_for_call(self) -> tuple[str, QueuedCall] | None:
        """Waits for the next call and marks it as begun; None when the executor stops."""
        with self._condition:
            while not self._is_stopping:
                owner = next((name for name in self._waiting if self._running[name] < self._max_running), None)
                if owner is None:
                    self._condition.wait()
                    continue
                queue = self._waiting[owner]
                call = queue.popleft()
                self._waiting.move_to_end(owner)  # the turn of the others
                if not queue:
                    del self._waiting[owner]
                if call.future.set_running_or_notify_cancel():
                    self._running[owner] += 1
                    self.num_started += 1
                    return owner, call
        return None


class FairThreadPool(ThreadPoolExecutor):
    """A `FairExecutor` as the default executor of an event loop; the owner of a call is `current_owner`.

    Args:
        name: The name of the threads.
        num_threads: As for `FairExecutor`.
        max_waiting: As for `FairExecutor`.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: float = float("inf")) -> None:
        super().__init__(num_threads)  # which starts no threads by itself
        self._executor = FairExecutor(name, num_threads, max_waiting)

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Queues a call on behalf of the owner of the current task; see `FairExecutor.submit`."""
        return self._executor.submit(current_owner.get(), fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finishes the current calls and cancels the waiting ones."""
        self._executor.stop()


async def wait_for_call(future: Future[Result]) -> Result:
    """Awaits a call of a `FairExecutor` that changes something.

    If the task that awaits it is cancelled, a call that has not begun is dropped; but a call that has begun cannot be
    undone, so its result is returned in spite of the cancellation.
    """
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if future.cancel() or future.cancelled():
            raise
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):  # a second cancellation
            await asyncio.wait([waiting])
    return waiting.result()
