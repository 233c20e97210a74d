"""A thread that reports to the database of several processes what this one does, so that no request waits for it."""

import time
from collections.abc import Callable

from ontogeny.errors import StorageUnavailable
from ontogeny.server.background import BackgroundThread

REPORT_INTERVAL = 0.02  # seconds between two reports
MAX_AGE = 0.25  # seconds since the last report after which the next one may have no other purpose than its answer
RETRY_INTERVAL = 0.5  # seconds between two reports while the database does not answer
MAX_BATCH = 1000  # records of one report
CLEANING_INTERVAL = 600.0  # seconds


class ReportingThread(BackgroundThread):
    """Reports once it is woken, at most every `REPORT_INTERVAL`.

    Args:
        name: Of the thread.
        report: Reports what has changed; returns the seconds until the next report, or None if `wake` alone causes it.
        on_failure: Called when the database has not answered; the report is repeated.
        clean: Removes what nobody needs any more.
    """

    def __init__(
        self,
        name: str,
        report: Callable[[], float | None],
        on_failure: Callable[[], None],
        clean: Callable[[], None],
    ) -> None:
        super().__init__(name, self._report_and_clean, pause=RETRY_INTERVAL, delay=None)
        self._report, self._on_failure, self._clean = report, on_failure, clean
        self._cleaned_at = time.monotonic()

    def stop(self) -> None:
        """Ends the thread, and reports what has changed since the last report."""
        super().stop()
        self.attempt()

    def _report_and_clean(self) -> float | None:
        """Makes one report; returns the seconds until the next one."""
        try:
            seconds = self._report()
            if time.monotonic() - self._cleaned_at > CLEANING_INTERVAL:
                self._cleaned_at = time.monotonic()
                self._clean()
        except Exception as error:
            self._on_failure()
            if not isinstance(error, StorageUnavailable):
                raise
            return RETRY_INTERVAL
        finally:
            self.sleep(REPORT_INTERVAL)  # although a request may wake the thread
        return seconds
