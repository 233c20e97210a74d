"""The snapshots of a deployment: state files of weights, beside the database that refers to them.

A file is written before the database refers to it and is deleted after the last reference is gone. A version whose
content another version of the same branch, or of its origin, has shares its file. Nothing deletes a file that a version
refers to:

- In the folder of a SQLite database, which one process uses, a lock excludes deletions while a file is written and
  recorded. Unused files are deleted at once.
- A store that several processes share has no lock, which a suspended process could hold or lose. A new file is
  recorded within `MAX_RECORDING_TIME` or not at all, and is deleted only if it is older than `MIN_AGE` and unused,
  which that of an open upload is not. A version gets the file of another one only while that one has it. A file that
  has become unused is therefore never used again, because each write has a name of its own; a deletion may be late.

Exceptions are the files of versions that an erasure has deleted, and files whose record failed: they are deleted at
once, because they may hold what was learned from an erased example.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import jax

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.lm.adapters import AdaptedWeights
from ontogeny.server.learning import branch_changes, journal, versions
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.snapshot_stores.base import SnapshotExpired, UnusableSnapshot, content_key
from ontogeny.server.states import decode_state, encode_state, read_metadata
from ontogeny.server.store import Store
from ontogeny.types import Weights

MIN_AGE = 3600.0  # seconds since the last write of an unused file that is deleted from a shared store
MAX_RECORDING_TIME = MIN_AGE / 2  # seconds from the beginning of a write to the record; clocks may differ by as much
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps, where there is one
PAGE_SIZE = 1000  # files that are compared with the database at a time
MAX_ATTEMPTS = 3  # to write and record a file
Recorded = TypeVar("Recorded")
log = logging.getLogger(__name__)


class LoadedVersion(NamedTuple):
    """A version in memory. Repeated requests for a version return the same object while it stays in memory."""

    version: BranchVersion
    weights: Weights  # content (all weights, or an adapter) and scratch
    served: AdaptedWeights  # the weights that answer requests

    @property
    def full_weights(self) -> TransformerWeights:
        """The weights with their adapter added, which takes memory for a copy of all weights."""
        return self.served.merge()


class VersionSnapshots:
    """Reads and writes the snapshots of the branches of one deployment.

    Args:
        store: The database with the journal.
        learner: How examples are learned; a snapshot has the form of its weights.
        metadata: Entries of the metadata of every file.
        max_snapshots: Per branch.
    """

    def __init__(self, store: Store, learner: BranchLearner, metadata: dict[str, str], max_snapshots: int) -> None:
        self._store, self._learner = store, learner
        self._metadata, self._max_snapshots = metadata, max_snapshots

    def encode(self, weights: Weights, metadata: dict[str, str]) -> bytes:
        """Converts weights to a state file with further entries of the metadata."""
        return encode_state("branch", weights, self._metadata | metadata)

    def read(self, version: BranchVersion) -> Weights:
        """Reads the weights of a version; raises `UnusableSnapshot` if its file is absent or damaged."""
        name, store = str(version.snapshot), self._store.snapshots
        try:
            content = store.read(name)
            read_metadata(content, "branch", store.path_of(name))
            weights = trees.from_arrays(jax.eval_shape(self._learner.init), decode_state(content))
        except BadInput as error:
            raise UnusableSnapshot(str(error), True) from None
        if trees.digest(weights) != version.digest:
            raise UnusableSnapshot(f"it does not hold version {version.number}", True)
        return weights

    def record(
        self, content: bytes, branches: Collection[str], commit: Callable[[str, Callable[[], None]], Recorded]
    ) -> Recorded:
        """Records a state file, which is written unless a version has an equal one that is intact.

        Args:
            content: The bytes of the file.
            branches: Whose versions may have an equal file.
            commit: Records the name of the file in one transaction, in which it calls its second argument. That raises
                `SnapshotExpired` if the file may be deleted before the record can be seen.

        Returns:
            What `commit` returned. A file that was certainly not recorded is deleted.
        """
        with self._exclude_deletions():
            for _ in range(MAX_ATTEMPTS):
                start = time.clock_gettime(CLOCK)
                equal = versions.find_snapshot(self._store, branches, content_key(content))
                if equal is not None and not self._is_intact(str(equal.snapshot)):
                    equal = None
                file = self._store.write_snapshot(content) if equal is None else str(equal.snapshot)
                try:
                    return commit(file, partial(self._confirm, file, start, equal))
                except SnapshotExpired as error:
                    log.info("%s", error)
                except Exception as error:
                    # After a lost connection, a shared database may still commit the record.
                    if not (self._store.is_shared and isinstance(error, StorageUnavailable)):
                        with contextlib.suppress(StorageUnavailable):  # it is deleted later, as an unused file
                            delete_files(self._store, [file])
                    raise
        raise StorageUnavailable(f"no snapshot could be recorded in {self._store.snapshots.label}")

    def _is_intact(self, file: str) -> bool:
        """Whether a file has the content that its name says."""
        try:
            self._store.snapshots.read(file)
        except UnusableSnapshot:
            return False
        return True

    def _confirm(self, file: str, start: float, equal: BranchVersion | None) -> None:
        """Raises `SnapshotExpired` if a file may be deleted before the current transaction ends.

        Args:
            file: The name of the file.
            start: When its write began.
            equal: The version that has the file, if it was not written.
        """
        if equal is not None:
            if not versions.uses_snapshot(self._store, equal):
                raise SnapshotExpired(f"the snapshot '{file}' is no longer in use")
        elif self._store.is_shared and time.clock_gettime(CLOCK) - start > MAX_RECORDING_TIME:
            raise SnapshotExpired(f"the snapshot '{file}' was written too long ago to be recorded")

    def save_if_current(self, loaded: LoadedVersion) -> None:
        """Writes a snapshot of a version that is current and has none; see `save`."""
        try:
            is_current = journal.get_branch(self._store, loaded.version.branch).current_version == loaded.version.number
        except StorageUnavailable as error:
            return _log_failure(loaded.version, error)
        if is_current and loaded.version.parent is not None:
            self.save(loaded)

    def save(self, loaded: LoadedVersion) -> None:
        """Writes a snapshot of a version unless it has one or is deleted; then deletes the oldest surplus snapshots.

        A failure is only logged: without the snapshot, the version is computed from an earlier one.
        """
        version = loaded.version
        try:
            with self._exclude_deletions():
                recorded = versions.get_version(self._store, version.branch, version.number)
                if recorded.deleted or recorded.snapshot is not None:
                    return
                content = self.encode(loaded.weights, {})
                file, unused = self.record(
                    content,
                    {version.branch},
                    lambda file, confirm: (
                        file,
                        versions.add_snapshot(self._store, version, file, self._max_snapshots, confirm),
                    ),
                )
                if file in unused:  # an erasure may have deleted the version
                    delete_files(self._store, unused)
                else:
                    self._delete_now(unused)
        except StorageUnavailable as error:
            _log_failure(version, error)

    def delete_surplus(self, newest: BranchVersion) -> None:
        """Deletes the oldest surplus snapshots of a branch after `newest` was restored into it."""
        try:
            with self._exclude_deletions():
                with self._store.transaction():
                    files = versions.forget_surplus_snapshots(self._store, newest, self._max_snapshots)
                self._delete_now(files)
        except StorageUnavailable as error:
            log.warning("surplus snapshots of '%s' cannot be deleted at present: %s", newest.branch, error)

    def forget(self, version: BranchVersion) -> None:
        """Forgets the file of a version that can be computed without it; a failure is only logged."""
        try:
            with self._exclude_deletions():
                with self._store.transaction():
                    versions.forget_snapshot(self._store, version)
                self._delete_now([str(version.snapshot)])
        except StorageUnavailable as error:
            log.warning("the snapshot '%s' cannot be deleted at present: %s", version.snapshot, error)

    def delete_erased(self) -> list[BranchVersion]:
        """Deletes the files of versions that erasures have deleted, and what a crash left in a folder.

        Returns:
            The versions whose files are deleted, for `branch_changes.finish_erasures`.
        """
        branch_versions = branch_changes.list_erased_snapshots(self._store)
        delete_files(self._store, [str(version.snapshot) for version in branch_versions])
        if not self._store.is_shared:
            delete_unused(self._store)
        return branch_versions

    def _exclude_deletions(self) -> AbstractContextManager[object]:
        """Excludes deletions by other threads, unless transactions do so."""
        return contextlib.nullcontext() if self._store.is_shared else self._store.snapshot_lock

    def _delete_now(self, files: Collection[str]) -> None:
        """Deletes those of these files that no version refers to; a shared store keeps them until they are old."""
        if not self._store.is_shared:
            delete_files(self._store, files)


def delete_unused(store: Store, min_age: float | None = None) -> int:
    """Deletes all files that no version refers to, also what a crash has left; a page of them at a time.

    Args:
        store: The database and the files.
        min_age: Seconds since the last write. None for the default: an hour in a shared store, otherwise 0.

    Returns:
        The number of deleted files.
    """
    if min_age is None:
        min_age = MIN_AGE if store.is_shared else 0.0
    newest = time.time() - min_age if min_age else float("inf")
    files = (file.name for file in store.snapshots.list_files() if file.written_at <= newest)
    return sum(delete_files(store, page) for page in split_pages(files))


def delete_files(store: Store, files: Collection[str]) -> int:
    """Deletes those of these files that no version refers to, and returns their number."""
    count = 0
    for page in split_pages(files):
        with contextlib.nullcontext() if store.is_shared else store.snapshot_lock:
            unused = set(page) - versions.find_used_snapshots(store, page)
            store.snapshots.delete(unused)
        count += len(unused)
    return count


def split_pages(files: Iterable[str]) -> Iterator[list[str]]:
    """Divides files into pages of which one at a time is in memory, and compared with the database in one statement."""
    remaining = iter(files)
    while page := list(islice(remaining, PAGE_SIZE)):
        yield page


def _log_failure(version: BranchVersion, error: Exception) -> None:
    """Logs that a version has no snapshot."""
    log.warning("no snapshot of version %d of '%s' was written: %s", version.number, version.branch, error)
