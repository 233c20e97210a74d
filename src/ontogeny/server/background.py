"""Threads that repeat a step for as long as a server runs, and outlive every exception of the step.

Without the heartbeat of the lease, the learner or the probe of the database, a process would go on answering without
what others rely on. An exception that a step does not handle itself is therefore logged, and the step is repeated.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ontogeny.errors import StorageUnavailable

PAUSE = 1.0  # seconds after an exception
LOG_INTERVAL = 60.0  # seconds between two entries about the same exception
log = logging.getLogger(__name__)


class LoggedErrors:
    """A context that logs an exception instead of passing it on; a repeated one at most once a minute.

    Args:
        task: What is done in the context, for the log.
    """

    def __init__(self, task: str) -> None:
        self._task, self._text, self._logged_at = task, "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):  # no error, or the end of the process
            return False
        text = repr(error)
        if text != self._text or time.monotonic() - self._logged_at >= LOG_INTERVAL:
            self._text, self._logged_at = text, time.monotonic()
            details = None if isinstance(error, StorageUnavailable | OSError) else error
            log.error("%s failed and goes on: %s", self._task, text, exc_info=details)
        return True


class BackgroundThread:
    """A thread that calls a function again and again until it is stopped.

    Args:
        name: Of the thread; in the log after "the thread".
        step: Does one piece of work; returns the seconds until the next one, or None if `wake` alone causes it.
        pause: Seconds until the next call after an exception.
        delay: Seconds until the first call; None if `wake` causes it.
    """

    def __init__(
        self, name: str, step: Callable[[], float | None], *, pause: float = PAUSE, delay: float | None = 0.0
    ) -> None:
        self._step, self._pause, self._delay = step, pause, delay
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._errors = LoggedErrors(f"the thread '{name}'")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Causes the next call at once, or after the present one."""
        self._wake.set()

    def interrupt(self) -> None:
        """Lets the thread end after the present call, without waiting."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Ends the thread and waits for its end; does not wait if it was never started."""
        self.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def attempt(self) -> float | None:
        """Calls the function once, on the thread of the caller; returns the seconds until the next call.

        After an exception, it waits for the pause first, so that `wake` does not shorten it.
        """
        with self._errors:
            return self._step()
        self.sleep(self._pause)
        return 0.0

    def sleep(self, seconds: float) -> None:
        """Waits on behalf of a call, at most until the thread is to end."""
        self._stopping.wait(seconds)

    @property
    def is_stopping(self) -> bool:
        """Whether the thread has been told to end."""
        return self._stopping.is_set()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the thread."""
        return threading.current_thread() is self._thread

    @property
    def has_failed(self) -> bool:
        """Whether the thread has ended although nobody has told it to."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self.is_stopping

    def _run(self) -> None:
        """Calls the function until the thread is stopped."""
        seconds = self._delay
        while not self.is_stopping:
            self._wake.wait(seconds)
            self._wake.clear()
            if not self.is_stopping:
                seconds = self.attempt()
