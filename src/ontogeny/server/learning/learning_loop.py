"""The learning thread of a deployment: it applies the pending examples of every branch, in order.

An update takes long, and branches change in the meantime. It begins with the state that one transaction reads, and
its result counts only if the branch is still in that state when the decision is committed; otherwise the decision is
discarded and the example is evaluated again. A failure in one branch is retried after a while and does not hold up
the others.
"""

import logging
import math
import time
from collections.abc import Callable

import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.background import BackgroundThread
from ontogeny.server.learning import journal, partial_steps, text_scores
from ontogeny.server.learning.acceptance import Pause
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.journal import Branch, BranchLost, LearningTask, TrainingExample
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.loading import BranchUnavailable, RetryState, VersionLoader, next_retry
from ontogeny.server.learning.partial_steps import LearnedText
from ontogeny.server.learning.snapshots import LoadedVersion, VersionSnapshots
from ontogeny.server.learning.text_scores import TextScore
from ontogeny.server.processes.ownership import BranchOwnership, OwnedElsewhere
from ontogeny.server.store import Store

# Seconds between two looks at the journal for examples of other processes, or of commands; a request wakes the thread.
POLL_INTERVAL, SHARED_POLL_INTERVAL = 0.5, 1.0  # the second is that of a database which many processes read
CHECK_INTERVAL = 0.1  # seconds of learning between two looks at whether the branch has changed
ALL_BRANCHES = "all branches"  # failures that do not belong to one branch
STORAGE_FAILURE = "the disk is full or fails"  # for clients; the log has the details
EXPECTED_ERRORS = (StorageUnavailable, OSError, BranchUnavailable)  # logged in one line
log = logging.getLogger(__name__)


class UpdateOutdated(Exception):
    """The branch has changed while an update was computed, so that its result would not count."""


class LearningLoop:
    """The thread that learns, and its failures.

    Args:
        store: The database with the journal.
        deployment: The name of the deployment.
        learner: How examples are learned.
        loader: The versions in memory.
        snapshots: The files of versions.
        config: Limits.
        ownership: Which branches this process learns.
        weight_distance: The distance of weights from the trained weights, relative to their norm.
    """

    def __init__(
        self,
        store: Store,
        deployment: str,
        learner: BranchLearner,
        loader: VersionLoader,
        snapshots: VersionSnapshots,
        config: BranchConfig,
        ownership: BranchOwnership,
        *,
        weight_distance: Callable[[TransformerWeights], float],
    ) -> None:
        self._store, self._deployment, self._learner = store, deployment, learner
        self._loader, self._snapshots, self._config = loader, snapshots, config
        self._ownership, self._weight_distance = ownership, weight_distance
        self.is_server_busy = False  # while requests wait, the learner keeps to its fraction of the time
        self._failures: dict[str, RetryState] = {}  # by branch
        self._names: list[str] = []  # of the branches with undecided examples, as they were read from the database
        self._are_names_outdated, self._names_read_at = True, 0.0
        self._work_started = time.monotonic()
        self._thread = BackgroundThread(f"learner of {deployment}", self._learn_all)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def interrupt(self) -> None:
        """Lets the thread end; an update that is not finished is evaluated again after the next start."""
        self._thread.interrupt()

    def stop(self) -> None:
        """Ends the thread; see `interrupt`."""
        self._thread.stop()

    def wake(self, name: str | None = None) -> None:
        """Makes the thread look at the journal at once.

        Args:
            name: The branch that has a new example; None if every branch may have one.
        """
        if name not in self._names:
            self._are_names_outdated = True
        self._thread.wake()

    def failure(self, name: str) -> str | None:
        """Returns why a branch does not learn at present, or None."""
        failures = self._present_failures()
        state = failures.get(name) or failures.get(ALL_BRANCHES)
        return None if state is None else state.reason

    @property
    def general_failure(self) -> str | None:
        """The reason why no branch can learn at present, or None."""
        if self._thread.has_failed:
            return "the learning thread has ended"
        failures = self._present_failures()
        is_general = ALL_BRANCHES in failures or any(state.reason == STORAGE_FAILURE for state in failures.values())
        return "an attempt failed and will be repeated; see the log of the server" if is_general else None

    def _present_failures(self) -> dict[str, RetryState]:
        """The failures by branch, without those of an outage of the database that is over."""
        has_recovered = self._store.database.has_recovered
        return {name: state for name, state in dict(self._failures).items() if not has_recovered(state.outage)}

    def learn_next(self) -> bool:
        """Learns one example of every branch that has one; returns whether anything was done."""
        interval = SHARED_POLL_INTERVAL if self._store.database.is_shared else POLL_INTERVAL
        if not self._are_names_outdated and time.monotonic() < self._names_read_at + interval and self._learn_listed():
            return True
        self._names, self._names_read_at = [], time.monotonic()
        self._are_names_outdated = False  # before the database is read, because `wake` may be called meanwhile
        self._names = self._ownership.list_branches_to_learn(self._deployment)
        for name in self._failures.keys() - {ALL_BRANCHES, *self._names}:  # nothing is left, or another process learns
            self._failures.pop(name, None)
        return self._learn_listed()

    def _learn_listed(self) -> bool:
        """Learns one example of each listed branch; the list is read again if one of them has none."""
        worked = False
        for name in self._names:
            if self._thread.is_stopping:
                return True
            if self._attempt(name, lambda name=name: self._learn_one(name)):
                worked = True
            else:
                self._are_names_outdated = True
        return worked

    def _learn_all(self) -> float:
        """Learns one example of every branch that has one; returns the seconds until the next look at the journal."""
        if self._attempt(ALL_BRANCHES, self.learn_next):
            return 0.0
        return SHARED_POLL_INTERVAL if self._store.database.is_shared else POLL_INTERVAL

    def _attempt(self, name: str, work: Callable[[], bool | None]) -> bool | None:
        """Calls a function, unless `name` failed a moment ago; a failure is recorded and retried later."""
        failure, database = self._failures.get(name), self._store.database
        is_due = failure is None or time.monotonic() >= failure.next_attempt
        if failure is not None and not is_due and not database.has_recovered(failure.outage):
            return False
        try:
            worked = work()
        except Exception as error:
            if self._thread.is_stopping and isinstance(error, BranchUnavailable):
                return False  # the update, or the computation of the branch, was interrupted
            reason = STORAGE_FAILURE if isinstance(error, StorageUnavailable) else str(error)
            self._failures[name] = next_retry(failure, reason)._replace(outage=database.failed_at)
            if failure is None or failure.reason != reason:
                scope = f"all branches of '{self._deployment}'" if name == ALL_BRANCHES else f"the branch '{name}'"
                details = None if isinstance(error, EXPECTED_ERRORS) else error
                log.error("learning in %s failed and will be tried again: %s", scope, error, exc_info=details)
            return False
        if failure is not None:
            self._failures.pop(name, None)
        return worked

    def _pause(self) -> None:
        """Sleeps after a piece of work while requests wait, so that learning keeps to its fraction of the time.

        Raises:
            BranchUnavailable: The server stops; a long text may take an hour.
        """
        if self.is_server_busy and self._config.learning_fraction < 1:
            work = time.monotonic() - self._work_started
            self._thread.sleep(work * (1 / self._config.learning_fraction - 1))
        if self._thread.is_stopping:
            raise BranchUnavailable("the server is stopping")
        self._work_started = time.monotonic()

    def _learn_one(self, name: str) -> bool:
        """Evaluates the next example of a branch; returns whether there was any."""
        try:
            task = journal.read_task(self._store, name)
            while (branch := self._ownership.claim(task.branch)) != task.branch:  # it was taken over
                task = journal.read_task(self._store, name)
            if task.example is None:
                if not branch.frozen:
                    journal.skip_decided(self._store, branch)
                return False
            before = self._loader.find(branch) or self._loader.load(name)
            if before.version.number == branch.current_version:  # otherwise it is evaluated from the new version
                self._work_started = time.monotonic()
                self._learn(task, before, task.example)
                self._pause()
        except (OwnedElsewhere, BranchLost):
            return False
        return True

    def _learn(self, task: LearningTask, before: LoadedVersion, example: TrainingExample) -> None:
        """Learns one example and makes the new weights current, or records why they are rejected.

        Nothing is recorded if the branch has changed since `task` was read.
        """
        branch, number, checked_at = task.branch, example.number, time.monotonic()

        def pause() -> None:
            nonlocal checked_at
            self._pause()
            if time.monotonic() - checked_at >= CHECK_INTERVAL:
                checked_at = time.monotonic()
                if journal.has_changed(self._store, branch):
                    raise UpdateOutdated

        try:
            tokens = self._learner.encode(example.text or "")
            if not partial_steps.count_chunks(self._learner, tokens):
                raise BadInput("the text is too short to learn from")
            score = None if task.has_score else self._score(before, tokens, pause)
            learned = partial_steps.learn_text(
                self._learner, before.weights, tokens, self._config.max_forgetting, learning=pause, testing=self._pause
            )
        except UpdateOutdated:  # a long text that was erased holds up no other branch
            return
        except BadInput as error:  # the tokenizer cannot encode the text, for example
            journal.reject_example(self._store, branch, number, None, str(error))
            return
        loss = learned.held_out_loss
        if learned.full_weights is None:
            recorded_loss = loss if math.isfinite(loss) else None
            journal.reject_example(self._store, branch, number, recorded_loss, str(learned.reason), score=score)
            return
        self._commit(branch, before, number, learned, score)

    def _commit(
        self, branch: Branch, before: LoadedVersion, number: int, learned: LearnedText, score: TextScore | None
    ) -> None:
        """Makes the weights after an example current, unless the branch has changed since `branch` was read."""
        assert learned.full_weights is not None
        digest = trees.digest(learned.weights)
        self._pause()
        loss, distance = learned.held_out_loss, self._weight_distance(learned.full_weights)
        increase = loss - self._learner.trained_loss
        reason = f"{increase:+.4f} nats per token on held-out text; the limit is {self._config.max_forgetting}"
        if (description := partial_steps.describe_steps(learned.steps)) is not None:
            reason = f"{reason}; {description}"
        with self._loader.branch_lock(branch.branch):  # so that no request computes the new version meanwhile
            num_deletions = self._loader.num_deletions
            version = journal.commit_version(
                self._store, branch, number, digest, loss, distance, reason,
                share=partial_steps.mean_share(learned.steps), steps=partial_steps.steps_as_json(learned.steps),
                score=score, computed_by=self._ownership.computed_by,
            )  # fmt: skip
            if version is None:
                return
            after = LoadedVersion(version, learned.weights, self._learner.serve(learned.weights.content))
            self._loader.replace(before, after, num_deletions)
        if version.number % self._config.snapshot_interval == 0:
            self._snapshots.save(after)

    def _score(self, before: LoadedVersion, tokens: np.ndarray, pause: Pause) -> TextScore | None:
        """Scores a text under the frozen and the live weights."""
        frozen = self._learner.score(self._learner.trained_weights, tokens, pause)
        is_trained = not before.version.number
        live = frozen if is_trained else self._learner.score(before.full_weights, tokens, pause)
        return text_scores.make_score(self._learner.count_bytes(tokens), frozen, live)
