"""The snapshots of a deployment: state files of weights, beside the database that refers to them.

A file is written before the database refers to it and is deleted after the reference is gone. Every write takes a new
name, so that a file that no version refers to is never needed again.
"""

import logging
import secrets
from typing import NamedTuple

import jax

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.lm.adapters import AdaptedWeights
from ontogeny.server.learning import journal
from ontogeny.server.learning.journal import BranchVersion
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.states import decode_state, encode_state, read_metadata
from ontogeny.server.store import Store
from ontogeny.types import Weights

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


class UnusableSnapshot(Exception):
    """The file of a version cannot be read, or it does not hold the version.

    Args:
        reason: What is wrong with the file.
        is_lost: Whether the file will stay unusable, because it is absent or holds something else.
    """

    def __init__(self, reason: str, is_lost: bool) -> None:
        super().__init__(reason)
        self.is_lost = is_lost


class SnapshotFolder:
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
        path = self._store.snapshots / str(version.snapshot)
        try:
            data = path.read_bytes()
            read_metadata(data, "branch", str(path))
            weights = trees.from_arrays(jax.eval_shape(self._learner.init), decode_state(data))
        except OSError as error:
            raise UnusableSnapshot(
                f"it cannot be read: {error.strerror}", isinstance(error, FileNotFoundError)
            ) from None
        except BadInput as error:
            raise UnusableSnapshot(str(error), True) from None
        if trees.digest(weights) != version.digest:
            raise UnusableSnapshot(f"it does not hold version {version.number}", True)
        return weights

    def write(self, branch: str, data: bytes) -> str:
        """Writes a state file; returns its name.

        The caller holds the store's `snapshot_lock` until the file is recorded, because `delete_unused` deletes it
        otherwise.
        """
        file = f"{branch.replace('/', '-')}-{secrets.token_hex(8)}.safetensors"
        self._store.write_snapshot(file, data)
        return file

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
            with self._store.snapshot_lock:
                recorded = journal.get_version(self._store, version.branch, version.number)
                if recorded.deleted or recorded.snapshot is not None:
                    return
                file = self.write(version.branch, self.encode(loaded.weights, {}))
                unused = [file]
                try:
                    unused = journal.add_snapshot(self._store, version, file, self._max_snapshots)
                finally:
                    self._delete(unused)
        except (OSError, StorageUnavailable) as error:
            _log_failure(version, error)

    def delete_surplus(self, newest: BranchVersion) -> None:
        """Deletes the oldest surplus snapshots of a branch after `newest` was restored into it."""
        try:
            with self._store.snapshot_lock:
                with self._store.transaction():
                    files = journal.forget_surplus_snapshots(self._store, newest, self._max_snapshots)
                self._delete(files)
        except (OSError, StorageUnavailable) as error:
            log.warning("surplus snapshots of '%s' cannot be deleted at present: %s", newest.branch, error)

    def forget(self, version: BranchVersion) -> None:
        """Deletes the file of a version that can be computed without it; a failure is only logged."""
        try:
            with self._store.snapshot_lock:
                with self._store.transaction():
                    journal.forget_snapshot(self._store, version)
                self._delete([str(version.snapshot)])
        except (OSError, StorageUnavailable) as error:
            log.warning("the snapshot '%s' cannot be deleted at present: %s", version.snapshot, error)

    def delete_unused(self) -> None:
        """Deletes all files that no version refers to."""
        delete_unused(self._store)

    def _delete(self, files: list[str]) -> None:
        """Deletes those of these files that no version refers to."""
        used = journal.list_snapshots(self._store)  # versions of databases of format 3 may share a file
        for file in set(files) - used:
            (self._store.snapshots / file).unlink(missing_ok=True)


def delete_unused(store: Store) -> None:
    """Deletes all files in the snapshot folder that no version refers to, also what a crash has left."""
    with store.snapshot_lock:
        files = [path.name for path in store.snapshots.iterdir()]
        for file in set(files) - journal.list_snapshots(store):
            (store.snapshots / file).unlink(missing_ok=True)


def _log_failure(version: BranchVersion, error: Exception) -> None:
    """Logs that a version has no snapshot."""
    log.warning("no snapshot of version %d of '%s' was written: %s", version.number, version.branch, error)
