"""Whether a database on another machine answers, so that requests fail at once while it does not.

A server waits for its database on few threads and connections. Without a bound, a database that is suspended, or whose
packets are dropped, would occupy all of them. A statement that takes long may also wait for a lock, so a second
connection decides: if it is not answered either, the database counts as unreachable. From then on, calls fail without
being sent and waiting ones are given up, until a thread that goes on asking is answered.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg

from ontogeny.errors import StorageUnavailable
from ontogeny.server.background import BackgroundThread
from ontogeny.server.databases.base import MAX_PROBE_TIME

SUSPICION_TIME = 0.5  # seconds after which a statement that is not answered raises the suspicion of a failure
PROBE_INTERVAL = 0.25  # seconds between two probes of a database that cannot be reached
log = logging.getLogger(__name__)


class NoAnswer(psycopg.OperationalError):
    """A statement was given up; whether the database has carried it out is not known."""


class Availability:
    """The state of the connection between this process and its database.

    Args:
        label: The words with which messages name the database.
        probe: Sends a statement and raises an exception if it is not answered in time.

    Attributes:
        is_watched: Whether this class does anything; a command that nobody waits for need not fail early.
        failed_at: The time (`time.monotonic`) since which the database cannot be reached, or None.
        is_silent: Whether statements that were sent are given up, because nothing is answered.
    """

    def __init__(self, label: str, probe: Callable[[], None]) -> None:
        self._label, self._probe = label, probe
        self.is_watched = self.is_silent = False
        self.failed_at: float | None = None
        self._reason = ""
        self._lock = threading.Lock()
        self._thread: BackgroundThread | None = None

    def check(self) -> None:
        """Raises `StorageUnavailable` while the database cannot be reached; the thread that probes it may go on."""
        thread = self._thread
        if self.failed_at is not None and (thread is None or not thread.is_current):
            raise StorageUnavailable(f"{self._label} cannot be reached: {self._reason}")

    def suspect(self) -> None:
        """Begins to probe the database on another thread, unless that is being done."""
        with self._lock:
            if not self.is_watched or self._thread is not None:
                return
            self._thread = BackgroundThread("database probe", self._attempt, pause=PROBE_INTERVAL)
            try:
                self._thread.start()
            except RuntimeError as error:  # there are too many threads; the next suspicion tries again
                log.error("%s cannot be probed: %s", self._label, error)
                self._thread = None

    def stop(self) -> None:
        """Ends the probes."""
        self.is_watched = False

    def note_failure(self, error: psycopg.OperationalError) -> None:
        """Notes that a connection could not be opened. If that was refused, others may still be usable."""
        if self.is_watched and isinstance(error, psycopg.errors.ConnectionTimeout):
            self._note(error)
        self.suspect()

    def _attempt(self) -> float | None:
        """Probes the database; the thread ends once it answers, or need not answer any more."""
        if self.is_watched:
            try:
                self._probe()
            except Exception as error:
                self._note(getattr(error, "orig", error))
                return PROBE_INTERVAL
        with self._lock:
            thread, failed_at = self._thread, self.failed_at
            self.failed_at, self.is_silent, self._thread = None, False, None
        if thread is not None:
            thread.interrupt()
        if failed_at is not None and self.is_watched:
            log.warning("%s can be reached again after %.1f s", self._label, time.monotonic() - failed_at)
        return None

    def _note(self, error: Exception) -> None:
        """Lets calls fail from now on."""
        reason = (str(error).splitlines() or ["no reason is known"])[0]
        with self._lock:
            if self.failed_at is None:
                log.warning("%s cannot be reached: %s", self._label, reason)
                self.failed_at = time.monotonic()
            self._reason = reason
            self.is_silent = isinstance(error, NoAnswer | psycopg.errors.ConnectionTimeout)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection on which no statement waits for longer than a time.

    Attributes:
        availability: See `Availability`.
        max_wait: Seconds until a statement is given up, and the connection is closed.
        opened_at: The time (`time.monotonic`) at which the connection was opened.
    """

    availability: Availability | None = None
    max_wait = float("inf")
    opened_at = 0.0

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Waits for the answer to a statement; raises `NoAnswer` if it does not come in time."""
        return super().wait(self._limit(gen), interval, timeout)

    def _limit(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Carries out the steps of an operation, between which its caller waits for the connection."""
        begun_at = time.monotonic()
        try:
            event = next(steps)
            while True:
                readiness = yield event
                if not readiness:
                    self._check(time.monotonic() - begun_at)
                event = steps.send(readiness)
        except StopIteration as end:
            return end.value

    def _check(self, seconds: float) -> None:
        """Gives a statement up that has waited for too long."""
        availability = self.availability
        if availability is None:
            return
        if seconds > SUSPICION_TIME:
            availability.suspect()
        max_wait = MAX_PROBE_TIME if availability.is_silent else self.max_wait
        if seconds > max_wait:
            self.close()
            raise NoAnswer(f"the database has not answered within {seconds:.1f} s")
