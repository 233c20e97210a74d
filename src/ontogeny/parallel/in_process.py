"""The driver `in_process`: one task after another in this process."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from ontogeny.parallel.drivers import Driver, SharedSetup
from ontogeny.parallel.tasks import Setup, Task, TaskAnswer
from ontogeny.parallel.worker import execute


class InProcess(Driver):
    """Computes tasks one after another in this process.

    The bits are those of the other drivers where JAX computes on one device with one thread, as `worker.prepare` sets
    it before JAX is imported.
    """

    is_in_process = True

    def __init__(self) -> None:
        """No worker is started."""
        super().__init__(mixed_workers=False)

    def close(self) -> None:
        """There is no worker to end."""

    def _share(self, setup: Setup) -> tuple[Any, int]:
        return setup, len(pickle.dumps(setup))

    def _compute(self, tasks: Sequence[Task], setup: SharedSetup) -> Iterator[tuple[int, TaskAnswer]]:
        for index, task in enumerate(tasks):
            yield index, execute(task, setup.reference)

    def _count_workers(self) -> int:
        return 1
