"""When a worker that has not answered counts as hanging."""

from collections import deque

from ontogeny.parallel.tasks import Task

FACTOR = 10.0  # times the longest time that a recent task of the same function has taken
NUM_RECENT_TASKS = 256  # the first tasks of each worker, which also compile, are forgotten after some time
MIN_SECONDS = 30.0
SECONDS_BEFORE_FIRST_ANSWER = 1800.0  # the first tasks also compile


class Deadlines:
    """The time that tasks may take, by what earlier tasks of the same function took."""

    def __init__(self, seconds: float) -> None:
        """Begin without any record of earlier tasks.

        Args:
            seconds: The time that every repeatable task may take; 0 derives it.
        """
        self._seconds = seconds
        self._recent: dict[str, deque[float]] = {}

    def record(self, function: str, seconds: float) -> None:
        """Take account of a task that was answered."""
        self._recent.setdefault(function, deque(maxlen=NUM_RECENT_TASKS)).append(seconds)

    def seconds_for(self, task: Task) -> float:
        """The time after which a task is submitted again; infinite for one that is not repeatable."""
        if not task.repeatable:
            return float("inf")
        if self._seconds:
            return self._seconds
        if task.function not in self._recent:
            return SECONDS_BEFORE_FIRST_ANSWER
        return max(MIN_SECONDS, FACTOR * max(self._recent[task.function]))
