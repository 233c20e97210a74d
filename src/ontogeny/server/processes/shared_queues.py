"""How many requests of each key wait in the other processes of a shared database, without a request that waits for it.

Each process reports how many requests of each key wait in each of its queues, at most every `REPORT_INTERVAL` and only
while some wait: numbers that have changed, and all of them every `MAX_AGE`. The answer is the number that waits in the
other processes that have a lease, which the queues add to their own number when they compare it with the limit. A
request that has left its queue before the second look at it is not reported, so that requests that hardly wait cause
no reports.

The limit of the sum: a process admits requests only if its own number and its copy of the others' number permit it, so
the sum exceeds the limit by at most the requests that the other processes have admitted and that the copy does not
contain. No process has more than the limit by itself, so P processes exceed it by at most P - 1 times the limit. A
process that knows nothing of the others, because none of its requests have waited or the database does not answer,
admits what the limit permits to it alone.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from ontogeny.server.processes.membership import IS_ALIVE, Membership
from ontogeny.server.processes.reporting import MAX_AGE, MAX_BATCH, ReportingThread
from ontogeny.server.store import Store

MAX_COPY_AGE = 1.0  # seconds for which a number of the others is used if it is not renewed
UNKNOWN = -1  # the number in the database after a report that was not answered
SAME_QUEUE = "(stored.deployment, stored.queue, stored.key) = (reported.deployment, reported.queue, reported.key)"
REPORT = f"""
WITH reported AS (
    SELECT * FROM unnest(?::text[], ?::text[], ?::text[], ?::bigint[]) AS reported (deployment, queue, key, num_waiting)
), removed AS (
    DELETE FROM waiting_requests AS stored USING reported
    WHERE {SAME_QUEUE} AND stored.process = ? AND reported.num_waiting = 0
), written AS (
    INSERT INTO waiting_requests AS stored (deployment, queue, key, process, num_waiting)
    SELECT deployment, queue, key, ?, num_waiting FROM reported WHERE num_waiting > 0
    ON CONFLICT (deployment, queue, key, process) DO UPDATE SET num_waiting = excluded.num_waiting
    WHERE stored.num_waiting <> excluded.num_waiting
)
SELECT deployment, queue, key, (
    SELECT coalesce(sum(stored.num_waiting), 0)::bigint
    FROM waiting_requests AS stored JOIN processes ON processes.number = stored.process
    WHERE {SAME_QUEUE} AND stored.process <> ? AND {IS_ALIVE}
), (SELECT count(*) FROM processes WHERE number <> ? AND {IS_ALIVE}) FROM reported
"""  # a process writes records of its own alone, so that none waits for another
REMOVAL = "DELETE FROM waiting_requests WHERE process = ?"
CLEANING = """
DELETE FROM waiting_requests WHERE (deployment, queue, key, process) IN (
    SELECT deployment, queue, key, process FROM waiting_requests WHERE process NOT IN (SELECT number FROM processes)
    FOR UPDATE SKIP LOCKED
)
"""


class LimitedQueue(Protocol):
    """A queue in which a limited number of requests of one key wait.

    Attributes:
        count_elsewhere: Returns how many requests of a key wait in other processes, without blocking.
    """

    count_elsewhere: Callable[[str], int]

    def count_waiting(self) -> Mapping[str, int]:
        """Returns how many requests of each key wait in this process."""
        ...


class QueueName(NamedTuple):
    """The place in which requests of one key wait; all processes have one of each name."""

    deployment: str
    queue: str
    key: str


class SharedQueues:
    """The queues of this process, and the thread that reports to the database.

    Args:
        store: The database.
        membership: This process.
    """

    def __init__(self, store: Store, membership: Membership) -> None:
        self._store, self._membership = store, membership
        self._queues: dict[tuple[str, str], LimitedQueue] = {}
        self._number: int | None = None  # of this process, in the records that were written
        self._previous_names: set[QueueName] = set()  # where requests waited at the last look
        self._reported: dict[QueueName, int] = {}  # what the database contains
        self._elsewhere: dict[QueueName, tuple[int, float]] = {}  # the number in other processes, and when it came
        self._has_others, self._refreshed_at = True, -math.inf
        self._thread = ReportingThread("queues", self._report, self._forget, self._clean)

    def add(self, deployment: str, queues: Mapping[str, LimitedQueue]) -> None:
        """Lets the limits of the queues of a deployment hold over all processes.

        Args:
            deployment: Its name.
            queues: By a name that is the same in all processes.
        """
        for name, queue in queues.items():
            self._queues[deployment, name] = queue
            queue.count_elsewhere = partial(self._count_elsewhere, deployment, name)

    def start(self) -> None:
        """Begins to report."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and removes what it has reported."""
        self._thread.stop()

    def _count_elsewhere(self, deployment: str, queue: str, key: str) -> int:
        """Returns the last known number; the thread looks after the present call whether requests wait here."""
        self._thread.wake()
        number, received_at = self._elsewhere.get(QueueName(deployment, queue, key), (0, -math.inf))
        return number if time.monotonic() - received_at < MAX_COPY_AGE else 0

    def _report(self) -> float | None:
        """Reports the numbers that have changed; returns when to look again."""
        number = None if self._thread.is_stopping else self._membership.number
        if number != self._number:  # records of an earlier number of this process do not count
            if self._number is not None:
                with self._store.database.reserved_connection():
                    self._store.execute(REMOVAL, self._number)
            self._number, self._reported = number, {}
        counts = {
            QueueName(*place, key): count
            for place, queue in self._queues.items()
            for key, count in queue.count_waiting().items()
            if count > 0
        }
        if number is not None:
            lasting = counts.keys() & (self._previous_names | self._reported.keys())
            self._send(number, {name: counts[name] for name in lasting})
        self._previous_names = set(counts)
        return 0.0 if counts or self._reported else None

    def _send(self, number: int, counts: Mapping[QueueName, int]) -> None:
        """Writes the changed numbers of this process, if it is time, and takes over those of the others.

        Args:
            number: Of this process.
            counts: The requests that wait.
        """
        current_time = time.monotonic()
        is_due = current_time - self._refreshed_at >= MAX_AGE
        if not (is_due or self._has_others):
            return
        names = counts.keys() | self._reported.keys()
        pending = sorted(name for name in names if is_due or counts.get(name, 0) != self._reported.get(name, 0))
        for start in range(0, len(pending), MAX_BATCH):
            batch = pending[start : start + MAX_BATCH]
            amounts = [counts.get(name, 0) for name in batch]
            self._reported |= dict.fromkeys(batch, UNKNOWN)
            columns = [list(column) for column in zip(*batch, strict=True)]
            with self._store.database.reserved_connection():
                answer = self._store.execute(REPORT, *columns, amounts, number, number, number, number)
            received_at = time.monotonic()
            for deployment, queue, key, num_elsewhere, num_others in answer:
                self._elsewhere[QueueName(deployment, queue, key)] = num_elsewhere, received_at
                self._has_others = num_others > 0
            self._reported |= dict(zip(batch, amounts, strict=True))
        self._reported = {name: count for name, count in self._reported.items() if count}
        if is_due:
            self._refreshed_at = current_time
            oldest = current_time - MAX_COPY_AGE
            self._elsewhere = {name: copy for name, copy in self._elsewhere.items() if copy[1] > oldest}

    def _forget(self) -> None:
        """Lets the limits hold for this process alone while the database does not answer."""
        self._elsewhere = {}

    def _clean(self) -> None:
        """Removes the records of processes that have ended without removing them."""
        with self._store.database.reserved_connection():
            self._store.execute(CLEANING)
