"""The versions of branches in memory: read from their snapshots, or computed by learning examples again.

Each branch is computed by at most one thread, which holds the branch's lock; other branches are not held up. Requests,
the command line and the learner change branches in the meantime. Therefore a version counts only if it is still the
current one after it was computed. A version that was deleted is never put into memory again.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from ontogeny import trees
from ontogeny.errors import ContractViolation, StorageUnavailable
from ontogeny.lm.adapters import AdaptedWeights
from ontogeny.server.learning import journal, partial_steps, versions
from ontogeny.server.learning.journal import Branch
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.snapshots import LoadedVersion, VersionSnapshots
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.processes.identity import computes_equally
from ontogeny.server.snapshot_stores.base import UnusableSnapshot
from ontogeny.server.store import Store

MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL = 1.0, 60.0  # seconds between two attempts at what failed
log = logging.getLogger(__name__)


class BranchUnavailable(Exception):
    """The current version of a branch cannot be computed; the message says why."""


class RetryState(NamedTuple):
    """What is known of a repeated failure."""

    reason: str
    interval: float  # seconds between the last attempt and the next
    next_attempt: float  # a value of `time.monotonic`
    outage: float | None = None  # `Database.failed_at` at the failure, if the database could not be reached


def next_retry(previous: RetryState | None, reason: str) -> RetryState:
    """Returns when to try again after a failure: after an interval that doubles up to `MAX_RETRY_INTERVAL`."""
    interval = MIN_RETRY_INTERVAL if previous is None else min(2 * previous.interval, MAX_RETRY_INTERVAL)
    return RetryState(reason, interval, time.monotonic() + interval)


class VersionLoader:
    """The most recently used versions of the branches of a deployment.

    Args:
        store: The database with the journal.
        learner: How examples are learned.
        snapshots: The files of versions.
        max_loaded: Versions in memory.
        computed_by: What this process computes with; None if no version names it.

    Attributes:
        num_deletions: How often deleted versions were removed from memory.
    """

    def __init__(
        self,
        store: Store,
        learner: BranchLearner,
        snapshots: VersionSnapshots,
        max_loaded: int,
        computed_by: str | None = None,
    ) -> None:
        self._store, self._learner, self._computed_by = store, learner, computed_by
        self._snapshots, self._max_loaded = snapshots, max_loaded
        self._lock = threading.Lock()  # of the dictionaries, held for moments, because the event loop waits for it
        self._currency_lock = threading.Lock()  # from the query whether versions are current or deleted to its effect
        self._loaded: OrderedDict[tuple[str, int], LoadedVersion] = OrderedDict()
        self._branch_locks: dict[str, AbstractContextManager[bool]] = {}
        self._failures: dict[tuple[str, int], RetryState] = {}
        self._is_stopping = False
        self.num_deletions = 0

    def interrupt(self) -> None:
        """Ends all computations with `BranchUnavailable`, because the server stops."""
        self._is_stopping = True

    def save_current(self) -> None:
        """Writes snapshots of the current versions in memory."""
        with self._lock:
            branch_versions = list(self._loaded.values())
        for loaded in branch_versions:
            self._snapshots.save_if_current(loaded)

    def save(self, name: str) -> None:
        """Writes a snapshot of the current version of a branch if it is in memory."""
        if (loaded := self.find(journal.get_branch(self._store, name))) is not None:
            self._snapshots.save_if_current(loaded)

    def list_branches(self) -> list[str]:
        """Returns the names of the branches in memory; the most recently used one is the first."""
        with self._lock:
            return list(dict.fromkeys(name for name, _ in reversed(self._loaded)))

    def branch_lock(self, name: str) -> AbstractContextManager[bool]:
        """Returns the lock that is held while the current version of a branch is computed or replaced."""
        with self._lock:
            return self._branch_locks.setdefault(name, threading.Lock())

    def find(self, branch: Branch) -> LoadedVersion | None:
        """Returns the current version of a branch if it is in memory."""
        version_key = (branch.branch, branch.current_version)
        with self._lock:
            if version_key in self._loaded:
                self._loaded.move_to_end(version_key)
            return self._loaded.get(version_key)

    def load(self, name: str) -> LoadedVersion:
        """Returns the current version of a branch.

        Raises:
            BranchUnavailable: It cannot be computed. The next attempt is made after a while, or as soon as another
                version is current.
        """
        if (loaded := self.find(journal.get_branch(self._store, name))) is not None:
            return loaded
        with self.branch_lock(name):
            while (loaded := self.find(journal.get_branch(self._store, name))) is None:
                computed = self._compute_with_retries(name)
                if self._keep_if_current(computed):
                    return computed
            return loaded

    def replace(self, before: LoadedVersion, after: LoadedVersion, num_deletions: int) -> None:
        """Puts a version that has become current into memory instead of its predecessor.

        Args:
            before: The version from which it was learned.
            after: A version that was added to the database a moment ago.
            num_deletions: The attribute before the version was added to the database. If it is the same now, nothing
                has deleted the version: a deletion that follows waits for the lock and removes it from memory.
        """
        with self._lock:
            self._loaded.pop((before.version.branch, before.version.number), None)
        with self._currency_lock:
            evicted = self._keep(after) if num_deletions == self.num_deletions else None
        if evicted is None:
            self._keep_if_current(after)
        else:
            self._save(evicted)

    def drop_deleted(self) -> None:
        """Removes deleted versions from memory."""
        with self._currency_lock:
            self.num_deletions += 1
            with self._lock:
                names = list(self._loaded)
            for version_key in names:
                if versions.get_version(self._store, *version_key).deleted:
                    with self._lock:
                        self._loaded.pop(version_key, None)

    def _keep_if_current(self, loaded: LoadedVersion) -> bool:
        """Puts a version into memory if it is current, and returns whether it is."""
        with self._currency_lock:
            # An erasure is committed before it removes versions from memory, for which it waits for this lock.
            name, number = loaded.version.branch, loaded.version.number
            if journal.get_branch(self._store, name).current_version != number:
                return False
            evicted = self._keep(loaded)
        self._save(evicted)
        return True

    def _keep(self, loaded: LoadedVersion) -> list[LoadedVersion]:
        """Puts a version into memory; returns the least recently used ones, which are removed for it."""
        evicted, version_key = [], (loaded.version.branch, loaded.version.number)
        with self._lock:
            self._loaded[version_key] = loaded
            self._loaded.move_to_end(version_key)
            while len(self._loaded) > self._max_loaded:
                evicted.append(self._loaded.popitem(last=False)[1])
        return evicted

    def _save(self, evicted: Collection[LoadedVersion]) -> None:
        """Writes snapshots of the versions that are current among those removed from memory."""
        for loaded in evicted:
            self._snapshots.save_if_current(loaded)

    def _compute_with_retries(self, name: str) -> LoadedVersion:
        """Computes the current version of a branch unless that failed a moment ago."""
        version_key = (name, journal.get_branch(self._store, name).current_version)
        failure = self._failures.get(version_key)
        if failure is not None and time.monotonic() < failure.next_attempt:
            raise BranchUnavailable(failure.reason)
        try:
            loaded = self._compute(name)
        except (StorageUnavailable, OSError, BranchUnavailable):  # of the storage as a whole, or of the server
            raise
        except Exception as error:
            reason = f"the weights of '{name}' cannot be computed: {error}"
            self._failures[version_key] = next_retry(failure, reason)
            if failure is None:
                log.error("%s", reason)
            raise BranchUnavailable(reason) from None
        self._failures.pop(version_key, None)
        return loaded

    def _compute(self, name: str) -> LoadedVersion:
        """Computes the current version of a branch from the nearest usable snapshot, and compares its digest."""
        unusable: dict[str, str] = {}  # files and reasons
        lost = []
        while True:
            version, base, texts = journal.read_recipe(self._store, name, unusable)
            try:
                weights = self._learner.init() if not base.number else self._snapshots.read(base)
                break
            except UnusableSnapshot as error:
                # An erasure or the limit of snapshots may have deleted the file after the recipe was read.
                if versions.get_version(self._store, base.branch, base.number).snapshot == base.snapshot:
                    unusable[str(base.snapshot)] = str(error)
                    if error.is_lost and base.parent is not None:
                        lost.append(base)
        for text, steps in texts:
            recorded = partial_steps.steps_from_json(steps)
            weights = partial_steps.replay_text(self._learner, weights, text, recorded, self._check_running)
        if version.number and trees.digest(weights) != version.digest:
            raise self._difference(version, base)
        is_trained = not version.number  # no second copy of the weights in memory
        trained = AdaptedWeights(self._learner.trained_weights)
        loaded = LoadedVersion(version, weights, trained if is_trained else self._learner.serve(weights.content))
        for file, reason in unusable.items():
            log.warning(
                "the snapshot '%s' of '%s' cannot be used: %s; version %d was rebuilt by learning again (examples: %d)",
                file, name, reason, version.number, len(texts),
            )  # fmt: skip
        for base in lost:
            self._snapshots.forget(base)
        if lost:
            self._snapshots.save_if_current(loaded)
        return loaded

    def _difference(self, version: BranchVersion, base: BranchVersion) -> ContractViolation:
        """The error of a version that was computed to other bits than those of its digest.

        Args:
            version: As it is recorded.
            base: The version from which it was computed.
        """
        name, start = version.branch, base.number if base.branch == version.branch else 0
        recorded = versions.list_computations(self._store, name, start + 1, version.number)
        problem = f"version {version.number} was computed to other bits than {version.digest[:16]}"
        kinds = [kind for kind in recorded if self._computed_by and not computes_equally(self._computed_by, kind)]
        if not kinds:
            return ContractViolation(problem)
        deployment, _, owner = name.rpartition("/")
        formatted = "', '".join(kinds)
        return ContractViolation(
            f"{problem}, because it was learned with '{formatted}' and has no snapshot, and this process computes with "
            f"'{self._computed_by}'; return to version {start}, from which the later examples are learned again, with "
            f"`ontogeny deployments rollback {deployment} --to {start} --key {owner} --learn-again`, or start a server "
            "with the earlier packages once, use the branch, and stop the server with SIGTERM, which writes a snapshot"
        )

    def _check_running(self) -> None:
        """Raises `BranchUnavailable` once the server stops."""
        if self._is_stopping:
            raise BranchUnavailable("the server is stopping")
