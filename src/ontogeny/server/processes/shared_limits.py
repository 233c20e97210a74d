"""Rate limits per key that hold over all processes of a shared database, without a request that waits for it.

The database has one level per bucket. Each process takes from a copy in memory and reports what it has taken, for all
keys in one statement, at most every `REPORT_INTERVAL`. The answer to a report is the level after all reports, which
replaces the copy.

The limit of the sum: let P be the number of processes, and q the amount that a process may have taken since its last
answered report. A process that learns that the level is used up takes nothing more. When the reported level reaches 0,
each process has taken at most q that was not reported, and takes no more than the rest of its q before it learns that.
All processes together therefore take at most P q more than the limit permits. This excess is subtracted from the level,
and so from what is granted later. q is `MAX_EXCESS / P` of the allowance of a minute, but a process may always take
one request, and `MIN_REQUESTS` requests from a bucket of requests. A request beyond q is refused until the next report
is answered.

A process that cannot reach the database grants its part, 1 / P of the limit, by itself.
"""

import math
import time

from ontogeny.server.keys import ApiKey
from ontogeny.server.processes.membership import IS_ALIVE
from ontogeny.server.processes.reporting import MAX_AGE, MAX_BATCH, REPORT_INTERVAL, ReportingThread
from ontogeny.server.rate_limits import BucketName, RateLimits, TokenBucket, Unit
from ontogeny.server.store import Store

MAX_EXCESS = 0.1  # of the allowance of a minute, for all processes together
MIN_REQUESTS = 5  # that a process may grant between two reports, however low the limit is
MAX_IDLE_TIME = 120.0  # seconds until an unused bucket, which is full, leaves the memory
REPORT = f"""
INSERT INTO rate_limits AS stored (key, unit, per_minute, level, updated_at)
SELECT key, unit, per_minute, per_minute - amount, clock_timestamp()
FROM unnest(?::text[], ?::text[], ?::bigint[], ?::float8[]) AS taken (key, unit, per_minute, amount)
ORDER BY key, unit, per_minute
ON CONFLICT (key, unit, per_minute) DO UPDATE SET updated_at = clock_timestamp(), level = excluded.level
- stored.per_minute + LEAST(stored.per_minute, stored.level + stored.per_minute
* GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - stored.updated_at)::float8) / 60)
RETURNING key, unit, per_minute, level, (SELECT count(*) FROM processes WHERE {IS_ALIVE})
"""  # in the same order by all processes, so that none of them waits for one that waits for it
CLEANING = """
DELETE FROM rate_limits WHERE (key, unit, per_minute) IN (
    SELECT key, unit, per_minute FROM rate_limits WHERE updated_at < clock_timestamp() - INTERVAL '1 hour'
    FOR UPDATE SKIP LOCKED
)
"""  # full buckets


class SharedBucket(TokenBucket):
    """The copy of a bucket in this process.

    Args:
        name: The bucket.
        num_processes: That take from it.
        changed: The names of the buckets to report, to which this one adds itself.
        current_time: Of `time.monotonic`.

    Attributes:
        unreported: What was taken and is not in the level that the database has answered last.
    """

    def __init__(self, name: BucketName, num_processes: int, changed: set[BucketName], current_time: float) -> None:
        super().__init__(name.per_minute, current_time)
        self._name, self._changed = name, changed
        self.unreported, self.is_alone, self._received_at = 0.0, False, current_time
        self._max_unreported = self._find_max_unreported(num_processes)

    def refill(self, current_time: float) -> None:
        """Adds the allowance of the time since the last refill."""
        if self.is_alone and self.unreported > 0:  # the database refills its bucket, too
            self.unreported = max(0.0, self.unreported - (current_time - self.updated_at) * self.capacity / 60)
        super().refill(current_time)

    def seconds_until(self, amount: float) -> float:
        """Seconds until `amount` is available and may be taken before the next report."""
        seconds = super().seconds_until(amount)
        if seconds > 0 and self.updated_at - self._received_at > MAX_AGE:  # another process may have given some back
            self._changed.add(self._name)
        if seconds <= 0 < self.unreported and self.unreported + amount > self._max_unreported:
            return REPORT_INTERVAL
        return seconds

    def take(self, amount: float) -> None:
        """Takes an amount, whether or not it is available."""
        super().take(amount)
        self.unreported += amount
        self._changed.add(self._name)

    def give_back(self, amount: float) -> None:
        """Returns an amount that was taken."""
        super().give_back(amount)
        self.unreported -= amount
        self._changed.add(self._name)

    def receive(self, level: float, reported: float, num_processes: int) -> None:
        """Replaces the level by that of the database.

        Args:
            level: The answer of the database.
            reported: The part of `unreported` that it contains.
            num_processes: That take from the bucket.
        """
        self.unreported -= reported
        self._received_at = self.updated_at
        self.capacity, self.is_alone = float(self._name.per_minute), False
        self.level = min(self.capacity, level) - self.unreported
        self._max_unreported = self._find_max_unreported(num_processes)

    def separate(self, num_processes: int) -> None:
        """Grants the part of this process while the database cannot be reached."""
        if not self.is_alone:
            self.capacity, self.is_alone, self._max_unreported = self.capacity / num_processes, True, math.inf
            self.level = min(self.level, self.level / num_processes)

    def _find_max_unreported(self, num_processes: int) -> float:
        """How much may be taken between two reports, beside one request."""
        if num_processes == 1:
            return math.inf
        min_amount = MIN_REQUESTS if self._name.unit == "requests" else 0
        return max(min_amount, MAX_EXCESS / num_processes * self._name.per_minute)


class SharedRateLimits(RateLimits):
    """The buckets of all keys, and the thread that reports to the database.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._buckets: dict[BucketName, SharedBucket] = {}  # type: ignore[assignment]
        self._changed: set[BucketName] = set()
        self._num_processes = 2  # until the database has answered
        self._is_separated = False
        self._thread = ReportingThread("rate limits", self._report_all, self._separate, self._clean)

    def start(self) -> None:
        """Begins to report."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and reports what was taken since the last report."""
        self._thread.stop()

    def _bucket(self, key: ApiKey, unit: Unit, per_minute: int | None) -> TokenBucket | None:
        """Returns the copy of a bucket; the thread looks after the present call whether it has changed."""
        if per_minute is not None:
            self._thread.wake()
        return super()._bucket(key, unit, per_minute)

    def _create_bucket(self, name: BucketName, current_time: float) -> SharedBucket:
        """Creates the copy of a bucket; it is full until the first report of what is taken from it."""
        bucket = SharedBucket(name, self._num_processes, self._changed, current_time)
        if self._is_separated:
            bucket.separate(self._num_processes)
        return bucket

    def _report_all(self) -> None:
        """Reports what was taken since the last report."""
        while self._report():
            pass

    def _separate(self) -> None:
        """Grants the part of this process while the database does not answer."""
        with self._lock:
            self._is_separated = True
            for name, bucket in self._buckets.items():
                bucket.separate(self._num_processes)
                self._changed.add(name)

    def _report(self) -> bool:
        """Reports some changed buckets, and takes the levels of the database over; returns whether there are more."""
        with self._lock:
            names = sorted(self._changed)[:MAX_BATCH]
            amounts = {name: self._buckets[name].unreported for name in names}
        if not names:
            return False
        columns = [list(column) for column in zip(*((*name, amounts[name]) for name in names), strict=True)]
        with self._store.database.reserved_connection():
            answer = self._store.execute(REPORT, *columns)
        with self._lock:
            current_time = time.monotonic()
            self._changed.difference_update(names)
            for key, unit, per_minute, level, num_processes in answer:
                name = BucketName(key, unit, per_minute)
                self._num_processes = max(1, num_processes)
                bucket = self._buckets[name]
                bucket.refill(current_time)
                bucket.receive(level, amounts[name], self._num_processes)
                if bucket.unreported:  # taken in the meantime, and so reported after the interval
                    self._changed.add(name)
                    self._thread.wake()
            self._is_separated = False
            return len(names) == MAX_BATCH

    def _clean(self) -> None:
        """Removes full buckets from the memory and from the database."""
        with self._lock:
            oldest = time.monotonic() - MAX_IDLE_TIME
            idle = {name for name, bucket in self._buckets.items() if bucket.updated_at < oldest}
            for name in idle - self._changed:
                del self._buckets[name]
        with self._store.database.reserved_connection():
            self._store.execute(CLEANING)
