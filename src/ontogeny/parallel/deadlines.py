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
        self._longest_first: dict[str, float] = {}

    def record(self, function: str, seconds: float, *, is_first: bool = False) -> None:
        """Take account of a task that was answered.

        Args:
            function: Of the task.
            seconds: What it took.
            is_first: Whether it was the first task of this function in its worker, which compiles.
        """
        self._recent.setdefault(function, deque(maxlen=NUM_RECENT_TASKS)).append(seconds)
        if is_first:
            self._longest_first[function] = max(seconds, self._longest_first.get(function, 0.0))

    def seconds_for(self, task: Task, *, is_first: bool = False) -> float:
        """The time after which a task is submitted again; infinite for one that is not repeatable.

        Args:
            task: Running, or about to be submitted.
            is_first: Whether its worker is known to have no answer of its function yet, so that it compiles.
        """
        if not task.repeatable:
            return float("inf")
        if self._seconds:
            return self._seconds
        if task.function not in self._recent:
            return SECONDS_BEFORE_FIRST_ANSWER
        longest_first = self._longest_first.get(task.function, 0.0) if is_first else 0.0
        return max(MIN_SECONDS, FACTOR * max(longest_first, *self._recent[task.function]))
