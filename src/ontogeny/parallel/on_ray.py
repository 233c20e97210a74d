"""The driver `ray`: stateless tasks on a Ray cluster (Moritz et al. 2018, OSDI).

Ray computes a task again where its worker or machine has ended. A worker that does not respond ends itself after some
time; before that, its task is submitted a second time with the same request. The first answer counts, and the second
must be equal to it bit for bit.
"""

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ontogeny.errors import BadInput, require_at_least, require_between
from ontogeny.parallel import ray_clusters
from ontogeny.parallel.deadlines import Deadlines
from ontogeny.parallel.drivers import MAX_ATTEMPTS, MAX_WORKERS, Driver, SharedSetup
from ontogeny.parallel.tasks import Setup, Task, TaskAnswer, TaskFailure, digest
from ontogeny.parallel.worker import answer_on_ray, num_processors, worker_environment

SECONDS_BETWEEN_CHECKS = 1.0  # of deadlines, while no answer arrives
SECONDS_BETWEEN_COUNTS = 5.0  # of the workers of the cluster
MAX_CONNECTIONS = 5  # attempts to connect again to a cluster, and connections of one call that may be lost
DEADLINES_BEFORE_EXIT = 3.0  # after so many deadlines a worker that hangs ends itself


class _Attempt(NamedTuple):
    """One submission of a task."""

    number: int  # of the task, from 0
    start: float | None  # None while all processors of the cluster are busy with tasks that were submitted earlier


class RayCluster(Driver):
    """Computes tasks on a Ray cluster; each has one processor and one XLA thread."""

    uses_several_machines = True

    def __init__(
        self, *, address: str = "", num_workers: int = 0, deadline: float = 0.0, mixed_workers: bool = False
    ) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: "host:port", or "ray://host:port" from a machine outside the cluster; by default the variable
                RAY_ADDRESS, which `ray job submit` sets, and without it a new cluster on this machine.
            num_workers: Processors of a cluster that is started, at most 1,024; 0 for all that this process may use.
            deadline: Seconds after which a repeatable task is submitted a second time; 0 derives them from the time
                that earlier tasks took.
            mixed_workers: Whether machines with different processors or versions may answer tasks of one run.
        """
        super().__init__(mixed_workers=mixed_workers)
        require_between(0, MAX_WORKERS, num_workers=num_workers)
        require_at_least(0, deadline=deadline)
        self._address = ray_clusters.find_address(address)
        self._ray = ray_clusters.import_ray(self._address, "ray", "the driver 'ray' and --on ray")
        self._connection_errors = (ConnectionError, self._ray.exceptions.RaySystemError, *_grpc_errors())
        self._num_local_workers = num_workers
        self._deadlines = Deadlines(deadline)
        self._owns_connection = not self._ray.is_initialized()
        self._late: dict[Any, tuple[Task, str]] = {}  # submissions of answered tasks, with the digest of the answer
        self._num_workers, self._last_count = 0, float("-inf")
        ray_clusters.require_listener(self._address)
        self._connect(num_attempts=1)

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends."""
        if self._ray.is_initialized():
            with contextlib.suppress(*self._connection_errors):
                self._check_late_answers()
                for reference in self._late:
                    self._ray.cancel(reference, force=True)
            if self._owns_connection:
                self._ray.shutdown()

    def _connect(self, num_attempts: int) -> None:
        """Connect to the cluster; further attempts where it does not respond."""
        ray_clusters.connect(self._ray, self._address, self._num_local_workers or num_processors(), num_attempts)
        remote = self._ray.remote(num_cpus=1, max_retries=MAX_ATTEMPTS - 1, scheduling_strategy="SPREAD")
        self._answer = remote(answer_on_ray)
        self._count_workers()

    def _share(self, setup: Setup) -> tuple[Any, int]:
        # `_compute` puts it into the object store, and once more after a connection was lost.
        shared = (worker_environment(os.environ), list(sys.path), setup)
        return [shared, None], len(pickle.dumps(shared))

    def _count_workers(self) -> int:
        if time.monotonic() >= self._last_count + SECONDS_BETWEEN_COUNTS:
            self._last_count = time.monotonic()
            with contextlib.suppress(*self._connection_errors):  # `_compute` connects again
                self._num_workers = int(self._ray.cluster_resources().get("CPU", 0))
        return self._num_workers

    def _compute(self, tasks: Sequence[Task], setup: SharedSetup) -> Iterator[tuple[int, TaskAnswer]]:
        unanswered = set(range(len(tasks)))
        num_connections = 0
        while unanswered:
            running: dict[Any, _Attempt] = {}
            try:
                if setup.reference[1] is None:
                    setup.reference[1] = self._ray.put(setup.reference[0])
                for index in sorted(unanswered):
                    running[self._submit(tasks[index], setup)] = _Attempt(index, None)
                for index, received in self._collect(tasks, setup, running, unanswered):
                    unanswered.discard(index)
                    yield index, received
            except self._connection_errors as error:
                # The connection to the cluster is lost, and with it all that was submitted.
                num_connections += 1
                if num_connections == MAX_CONNECTIONS:
                    raise BadInput(
                        f"the connection to the Ray cluster '{self._address}' was lost {num_connections} times: {error}"
                    ) from None
                self._reconnect(setup)
                self._num_retries += len(unanswered)
            finally:
                self._cancel(running)

    def _reconnect(self, setup: SharedSetup) -> None:
        """Connect to the cluster in place of a connection that was lost, and with it the setup."""
        self._late.clear()
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        self._connect(num_attempts=MAX_CONNECTIONS)
        setup.reference[1] = None

    def _submit(self, task: Task, setup: SharedSetup) -> Any:
        """Submit a task; returns the reference of its answer."""
        seconds = self._deadlines.seconds_for(task)
        limit = DEADLINES_BEFORE_EXIT * seconds if seconds < float("inf") else None
        return self._answer.remote(tuple(task), setup.reference[1], limit)

    def _collect(
        self, tasks: Sequence[Task], setup: SharedSetup, running: dict[Any, _Attempt], unanswered: set[int]
    ) -> Iterator[tuple[int, TaskAnswer]]:
        """The first answers to all tasks as they arrive; tasks without an answer are submitted again."""
        submitted_twice: set[int] = set()
        while unanswered:
            self._start_clocks(running)
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=SECONDS_BETWEEN_CHECKS)
            for reference in ready:
                index, start = running.pop(reference)
                received = self._receive(reference, tasks[index])
                if start is not None:
                    self._deadlines.record(tasks[index].function, time.monotonic() - start)
                for later in [reference for reference, attempt in running.items() if attempt.number == index]:
                    del running[later]
                    self._late[later] = (tasks[index], digest(received.answer))
                yield index, received
            for index in self._overdue(tasks, running) - submitted_twice:
                submitted_twice.add(index)
                self._num_stragglers += 1
                running[self._submit(tasks[index], setup)] = _Attempt(index, time.monotonic())
            self._check_late_answers()

    def _receive(self, reference: Any, task: Task) -> TaskAnswer:
        """An answer that has arrived, or the failure of a task whose workers ended several times."""
        try:
            received = self._ray.get(reference)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError) as error:
            message = f"{MAX_ATTEMPTS} workers that computed it ended ({type(error).__name__})"
            return TaskAnswer(TaskFailure(str(task), message), "", {}, 0.0)
        except self._ray.exceptions.RayTaskError as error:
            message = f"no worker could compute it: {type(error.cause).__name__}: {error.cause}"
            return TaskAnswer(TaskFailure(str(task), message, details=str(error)), "", {}, 0.0)
        self._num_retries += received.attempt
        return received

    def _start_clocks(self, running: dict[Any, _Attempt]) -> None:
        """Note the time for those tasks that have a processor: the earliest submissions, as many as there are."""
        present = time.monotonic()
        for position, (reference, attempt) in enumerate(running.items()):
            if position >= max(1, self._count_workers()):
                return
            if attempt.start is None:
                running[reference] = attempt._replace(start=present)

    def _overdue(self, tasks: Sequence[Task], running: dict[Any, _Attempt]) -> set[int]:
        """The tasks that are past their deadline."""
        present = time.monotonic()
        return {
            index
            for index, start in running.values()
            if start is not None and present > start + self._deadlines.seconds_for(tasks[index])
        }

    def _check_late_answers(self) -> None:
        """Compare second answers that have arrived with the first ones."""
        if not self._late:
            return
        ready, _ = self._ray.wait(list(self._late), num_returns=len(self._late), timeout=0)
        for reference in ready:
            task, first_digest = self._late.pop(reference)
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._compare(task, first_digest, self._ray.get(reference))

    def _cancel(self, running: dict[Any, _Attempt]) -> None:
        """End the tasks that an error or an interrupt has left without a receiver."""
        for reference in running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)


def _grpc_errors() -> tuple[type[Exception], ...]:
    """The error by which calls through `ray://` fail after the connection was lost, where grpc is installed."""
    try:
        import grpc  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError:
        return ()
    return (grpc.RpcError,)
