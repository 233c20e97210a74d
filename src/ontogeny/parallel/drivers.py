"""One interface to compute tasks in this process, in a pool of processes, or on a Ray cluster.

    with open_driver("processes:num_workers=4") as driver:
        setup = driver.put({"parameters": parameters})
        answers = driver.run([Task("package.module:function", {"shard": i}) for i in range(8)], setup)

Answers come in the order of the tasks, never in the order of their arrival, so that whatever is computed from them is
bit for bit the same with every driver, with any number of workers, and with or without failures.
"""

import importlib
import inspect
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.parallel.tasks import (
    OnAnswer,
    Setup,
    Task,
    TaskAnswer,
    TaskFailure,
    UnequalAnswers,
    digest,
    raise_first_failure,
    to_plain,
)

IN_PROCESS = "in_process"
CLASSES = {  # by the name of a driver
    IN_PROCESS: "ontogeny.parallel.in_process:InProcess",
    "processes": "ontogeny.parallel.process_pool:ProcessPool",
    "ray": "ontogeny.parallel.on_ray:RayCluster",
}
MAX_ATTEMPTS = 4  # of a task whose worker ends, before the task fails
MAX_WORKERS = 1024  # that a driver starts on this machine


class SharedSetup(NamedTuple):
    """A setup that a driver has received."""

    reference: Any  # the setup itself, its pickle, or its reference in an object store
    number: int  # of the calls of `put`


class DriverStatus(NamedTuple):
    """What a driver has done so far."""

    num_workers: int  # that are alive
    num_answers: int
    num_retries: int  # tasks that were computed again because their worker had ended
    num_stragglers: int  # tasks that were submitted again because their worker did not respond in time
    num_duplicates: int  # second answers, all of which were equal to the first
    request_bytes: int
    answer_bytes: int
    setup_bytes: int  # that `put` received, not counting copies for several workers
    fingerprints: tuple[dict[str, str], ...]  # of the workers, each once; see `worker.fingerprint`

    def counts(self) -> dict[str, int]:
        """All numbers by name."""
        return {name: number for name, number in self._asdict().items() if name != "fingerprints"}

    def describe(self) -> str:
        """The numbers that a line of progress shows."""
        text = f"{self.num_workers} {'worker' if self.num_workers == 1 else 'workers'}"
        if self.num_retries:
            text += f", {self.num_retries} {'retry' if self.num_retries == 1 else 'retries'}"
        if self.num_stragglers:
            text += f", {self.num_stragglers} {'straggler' if self.num_stragglers == 1 else 'stragglers'}"
        return text + (", workers of different kinds" if len(self.fingerprints) > 1 else "")


class Driver(ABC):
    """Computes tasks; a context manager that ends its workers.

    Attributes:
        is_in_process: Whether this process computes the tasks.
        uses_several_machines: Whether workers may be on other machines, one for each of their processors.
    """

    is_in_process = uses_several_machines = False

    def __init__(self, *, mixed_workers: bool) -> None:
        """Start with all counts at 0.

        Args:
            mixed_workers: Whether workers with different fingerprints may answer tasks of one run.
        """
        self.mixed_workers = mixed_workers
        self._num_answers = self._num_retries = self._num_stragglers = self._num_duplicates = 0
        self._request_bytes = self._answer_bytes = self._setup_bytes = self._num_setups = 0
        self._fingerprints: dict[str, dict[str, str]] = {}

    def put(self, setup: Setup) -> SharedSetup:
        """Share JSON values and arrays with all workers; they receive them once, not with each task."""
        reference, num_bytes = self._share(to_plain(setup))
        self._num_setups += 1
        self._setup_bytes += num_bytes
        return SharedSetup(reference, self._num_setups)

    def run(
        self,
        tasks: Sequence[Task],
        setup: SharedSetup | None = None,
        *,
        on_answer: OnAnswer | None = None,
        keep_failures: bool = False,
    ) -> list[Any]:
        """Compute tasks.

        Args:
            tasks: Started in this order.
            setup: Of `put`; by default empty.
            on_answer: Receives the index of a task and its answer when it arrives, in any order.
            keep_failures: Whether a task that fails has a `TaskFailure` as its answer; by default its error is raised
                after all tasks have ended.

        Returns:
            The answers in the order of the tasks.

        Raises:
            BadInput: A task raised it, or the workers are of different kinds.
            TaskFailed: A task raised another error, or its process ended several times.
        """
        answers: dict[int, Any] = {}
        self._request_bytes += sum(len(pickle.dumps(tuple(task))) for task in tasks)
        for index, received in self._compute(tasks, self.put({}) if setup is None else setup):
            self._record_worker(received)
            if index in answers:
                self._compare(tasks[index], digest(answers[index]), received)
                continue
            answers[index] = received.answer
            self._num_answers += 1
            self._answer_bytes += len(pickle.dumps(tuple(received)))
            if on_answer is not None:
                on_answer(index, received.answer)
        ordered = [answers[index] for index in range(len(tasks))]
        if not keep_failures:
            raise_first_failure(ordered)
        return ordered

    def status(self) -> DriverStatus:
        """Counts since the driver was opened."""
        return DriverStatus(
            self._count_workers(),
            self._num_answers,
            self._num_retries,
            self._num_stragglers,
            self._num_duplicates,
            self._request_bytes,
            self._answer_bytes,
            self._setup_bytes,
            tuple(self._fingerprints.values()),
        )

    def _record_worker(self, received: TaskAnswer) -> None:
        """Keep the fingerprint of a worker; refuse one that differs, unless the workers may be mixed."""
        if not received.fingerprint:  # no worker answered
            return
        self._fingerprints.setdefault(digest(received.fingerprint), received.fingerprint)
        if len(self._fingerprints) > 1 and not self.mixed_workers:
            first, second, *_ = self._fingerprints.values()
            differences = [
                f"{name} '{first[name]}' and '{second[name]}'" for name in first if first[name] != second[name]
            ]
            raise BadInput(
                f"the workers are of different kinds ({', '.join(differences)}), so results would depend on which "
                "worker computes which task; the setting mixed_workers=true accepts that"
            )

    def _compare(self, task: Task, first_digest: str, second: TaskAnswer) -> None:
        """Check that the second answer to a task has the bits of the first."""
        if isinstance(second.answer, TaskFailure):
            return
        self._num_duplicates += 1
        if digest(second.answer) != first_digest and not self.mixed_workers:
            raise UnequalAnswers(
                f"the task {task} gave two different answers, the second in process {second.worker}; a result must "
                "depend on the task alone"
            )

    @abstractmethod
    def _share(self, setup: Setup) -> tuple[Any, int]:
        """A reference to a setup, and its size in bytes."""

    @abstractmethod
    def _compute(self, tasks: Sequence[Task], setup: SharedSetup) -> Iterator[tuple[int, TaskAnswer]]:
        """The index and the answer of each task as they arrive, at least once for each task."""

    @abstractmethod
    def _count_workers(self) -> int:
        """The workers that are alive."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def is_in_process(text: str) -> bool:
    """Whether the driver that `open_driver` would open computes in this process."""
    return plugins.parse(text)[0] == IN_PROCESS


def open_driver(text: str = "in_process") -> Driver:
    """Opens a driver.

    Args:
        text: `in_process`, `processes` or `ray`, settings after a colon, as "processes:num_workers=4"; the settings
            are the keyword-only parameters of `InProcess`, `ProcessPool` and `RayCluster`.

    Raises:
        BadInput: There is no such driver or setting, or a package or the cluster is not available.
    """
    name, settings = plugins.parse(text)
    if name not in CLASSES:
        raise plugins.unknown_name_error("driver", name, list(CLASSES))
    module, _, class_name = CLASSES[name].partition(":")
    driver = getattr(importlib.import_module(module), class_name)
    accepted = inspect.signature(driver).parameters
    for setting, chosen in settings.items():
        if setting not in accepted:
            names = f"; its settings are {', '.join(accepted)}" if accepted else ""
            raise BadInput(f"the driver '{name}' has no setting '{setting}'{names}")
        subject = f"the setting '{setting}' of the driver '{name}'"
        settings[setting] = plugins.convert_setting(chosen, accepted[setting].default, subject)
    return driver(**settings)
