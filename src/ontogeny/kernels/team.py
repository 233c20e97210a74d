"""The threads that share the work of a step.

A thread that waits for a piece of work of tens of microseconds has to spin: waking a sleeping one takes longer than the
piece. A thread that spins while the core is needed for something else delays all, so helpers spin for half a
millisecond after a step and then sleep until the next one. Nobody waits for a helper that wakes up.
"""

import threading

import numpy as np

from ontogeny.kernels import layout, step

MAX_IDLE_SPINS = 25_000  # half a millisecond, more than Python needs between two steps
MAX_THREADS = 8


class _Helper:
    """A thread that joins the steps of a team."""

    def __init__(self, team: "Team", number: int) -> None:
        self.is_asleep = False
        self.wake = threading.Semaphore()
        threading.Thread(target=self._run, args=(team, number), name=f"helper {number}", daemon=True).start()

    def _run(self, team: "Team", number: int) -> None:
        while True:
            self.wake.acquire()
            step.help_steps(layout.address(team.table), layout.address(team.control), number, MAX_IDLE_SPINS)
            self.is_asleep = True


class Team:
    """Threads for one step at a time; a step that comes while they work on another is computed by its own thread alone.

    Args:
        num_threads: Threads of a step, the calling one included.

    Attributes:
        table: The table of the present step.
        control: What the threads tell each other; see `step`.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.table = np.zeros(layout.NUM_FIELDS, np.int64)
        self.control = np.zeros(step.NUM_CONTROLS, np.int64)
        self._number = self._num_running = 0
        self._counting = threading.Lock()
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []

    def run(self, table: np.ndarray) -> None:
        """Compute a step.

        Args:
            table: See `layout`; the arrays that it names belong to the caller.
        """
        with self._counting:
            self._num_running += 1
        try:
            # Helpers would only take a core away from another step that runs.
            if self.num_threads > 1 and self._num_running == 1 and self._lock.acquire(blocking=False):
                self._lead(table)
            else:
                step.run_step(layout.address(table), 0)
        finally:
            with self._counting:
                self._num_running -= 1

    def _lead(self, table: np.ndarray) -> None:
        """Compute a step together with the helpers, while the lock is held."""
        try:
            if not self._helpers:
                self._helpers = [_Helper(self, number) for number in range(1, self.num_threads)]
            self.table[:] = table
            self._number += 1
            for helper in self._helpers:
                if helper.is_asleep:
                    helper.is_asleep = False
                    helper.wake.release()
            step.lead_step(layout.address(self.table), layout.address(self.control), self._number)
        finally:
            self._lock.release()
