"""The driver `processes`: a pool of worker processes on this machine.

A worker that ends or does not respond loses only its own task, which another worker computes again.
"""

import os
import pickle
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from ontogeny.errors import require_at_least, require_between
from ontogeny.parallel.deadlines import Deadlines
from ontogeny.parallel.drivers import MAX_ATTEMPTS, MAX_WORKERS, Driver, SharedSetup
from ontogeny.parallel.tasks import Setup, Task, TaskAnswer, TaskFailure
from ontogeny.parallel.worker import num_processors, worker_environment

SECONDS_TO_END = 5.0  # that a worker has to end before it is killed


class WorkerProcess:
    """A process that computes one task at a time; see `worker.main`."""

    def __init__(self) -> None:
        """Start the process; it imports JAX with its first task."""
        self.connection, other_end = Pipe()
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ontogeny.parallel.worker", str(other_end.fileno()), str(os.getpid())],
            pass_fds=[other_end.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | worker_environment(os.environ) | {"PYTHONPATH": search_path},
        )
        other_end.close()
        self._setup_number = 0
        self.answered_functions: set[str] = set()  # which this process has compiled

    def start(self, task: Task, setup: SharedSetup) -> None:
        """Send a task, and the setup if it is not the last one that this worker received."""
        pickled_setup = None if setup.number == self._setup_number else setup.reference
        self.connection.send_bytes(pickle.dumps((tuple(task), pickled_setup)))
        self._setup_number = setup.number

    def receive(self) -> TaskAnswer | None:
        """The answer that has arrived; None where the process has ended."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return None

    def kill(self) -> int:
        """End the process at once; returns its exit code."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class ProcessPool(Driver):
    """Computes tasks in worker processes, each with one XLA thread."""

    def __init__(self, *, num_workers: int = 0, deadline: float = 0.0, mixed_workers: bool = False) -> None:
        """Start the workers.

        Args:
            num_workers: At most 1,024; 0 for one per processor that this process may use.
            deadline: Seconds after which a repeatable task is given to another worker; 0 derives them from the time
                that earlier tasks took.
            mixed_workers: Accepted for all drivers; workers of one machine are of one kind.
        """
        super().__init__(mixed_workers=mixed_workers)
        require_between(0, MAX_WORKERS, num_workers=num_workers)
        require_at_least(0, deadline=deadline)
        self._deadlines = Deadlines(deadline)
        self._idle = [WorkerProcess() for _ in range(num_workers or num_processors())]
        self._busy: dict[Connection, tuple[WorkerProcess, int, float]] = {}  # with the index and start of their task

    def close(self) -> None:
        """End the workers."""
        for worker in self._idle:
            worker.connection.close()  # an idle worker ends by itself
        for worker, _, _ in self._busy.values():
            worker.kill()
        for worker in self._idle:
            try:
                worker.process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                worker.kill()
        self._idle, self._busy = [], {}

    def _share(self, setup: Setup) -> tuple[Any, int]:
        pickled = pickle.dumps(setup)
        return pickled, len(pickled)

    def _count_workers(self) -> int:
        return len(self._idle) + len(self._busy)

    def _compute(self, tasks: Sequence[Task], setup: SharedSetup) -> Iterator[tuple[int, TaskAnswer]]:
        self._replace_busy_workers()
        waiting, num_attempts = deque(range(len(tasks))), Counter[int]()
        while waiting or self._busy:
            while waiting and self._idle:
                self._start(tasks, waiting.popleft(), setup)
            ready = wait(list(self._busy), self._seconds_to_deadline(tasks))
            for connection in ready or self._overdue(tasks):
                worker, index, start = self._busy.pop(connection)  # pyright: ignore[reportArgumentType]
                received = worker.receive() if ready else None
                if received is not None:
                    self._idle.append(worker)
                    function = tasks[index].function
                    is_first = function not in worker.answered_functions
                    self._deadlines.record(function, time.monotonic() - start, is_first=is_first)
                    worker.answered_functions.add(function)
                    yield index, received
                    continue
                exit_code = worker.kill()
                self._idle.append(WorkerProcess())
                self._num_retries += bool(ready)
                self._num_stragglers += not ready
                num_attempts[index] += 1
                if num_attempts[index] < MAX_ATTEMPTS:
                    waiting.appendleft(index)
                else:
                    yield index, _failure(tasks[index], exit_code)

    def _start(self, tasks: Sequence[Task], index: int, setup: SharedSetup) -> None:
        """Give a task to an idle worker; one that has ended in the meantime is replaced."""
        worker = self._idle.pop()
        try:
            worker.start(tasks[index], setup)
        except (BrokenPipeError, ConnectionResetError):
            worker.kill()
            worker = WorkerProcess()
            worker.start(tasks[index], setup)
        self._busy[worker.connection] = (worker, index, time.monotonic())

    def _seconds_to_deadline(self, tasks: Sequence[Task]) -> float | None:
        """The time until the next deadline; None where no running task has one."""
        end = min((self._end(tasks, connection) for connection in self._busy), default=float("inf"))
        return None if end == float("inf") else max(0.0, end - time.monotonic())

    def _overdue(self, tasks: Sequence[Task]) -> list[Connection]:
        """The connections of workers that are past the deadline of their task."""
        present = time.monotonic()
        return [connection for connection in self._busy if present >= self._end(tasks, connection)]

    def _end(self, tasks: Sequence[Task], connection: Connection) -> float:
        """The deadline of the task that a worker computes."""
        worker, index, start = self._busy[connection]
        is_first = tasks[index].function not in worker.answered_functions
        return start + self._deadlines.seconds_for(tasks[index], is_first=is_first)

    def _replace_busy_workers(self) -> None:
        """End the workers that still compute tasks of a call that an error or an interrupt ended."""
        for worker, _, _ in self._busy.values():
            worker.kill()
            self._idle.append(WorkerProcess())
        self._busy = {}


def _failure(task: Task, exit_code: int) -> TaskAnswer:
    """The answer to a task during which several workers ended."""
    message = f"{MAX_ATTEMPTS} processes that computed it ended, the last one with exit code {exit_code}"
    return TaskAnswer(TaskFailure(str(task), message), "", {}, 0.0)
