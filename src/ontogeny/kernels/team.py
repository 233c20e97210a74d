"""The threads that share the work of a step.

A thread that waits for a piece of work of tens of microseconds has to spin: waking a sleeping one takes longer than the
piece. A thread that spins while the core is needed for something else delays all, so helpers spin for a fraction of a
millisecond after a step, which is enough while a text is generated, and then sleep until the next step.
"""

import threading

import numpy as np

from ontogeny.kernels import layout, step

MAX_IDLE_SPINS = 20_000  # some hundred microseconds
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
        self._number = 0
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []

    def run(self, table: np.ndarray) -> None:
        """Compute a step.

        Args:
            table: See `layout`; the arrays that it names belong to the caller.
        """
        if self.num_threads == 1 or not self._lock.acquire(blocking=False):
            step.run_step(layout.address(table), 0)
            return
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
