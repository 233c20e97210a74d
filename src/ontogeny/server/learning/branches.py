"""Online learning that survives crashes: one thread applies the examples of the journal, in order.

An example is on disk before it is acknowledged. An update is a function of the weights of a version and one example.
Its result becomes current in one commit together with the position in the journal, so that no example is lost or
learned twice. Snapshots are written to disk first and recorded in the database afterwards. Versions between snapshots
are recomputed bit for bit, which their digests prove. New weights become current only if they pass the
acceptance test; a rejection is recorded with its reason, and its weights and moments are dropped.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

import jax
import numpy as np
from pydantic import Field

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, ContractViolation, StorageUnavailable
from ontogeny.server.config import ServerConfig
from ontogeny.server.learning import journal
from ontogeny.server.learning.acceptance import do_not_pause, rejection_reason
from ontogeny.server.learning.journal import Branch, BranchVersion
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.states import check_digest, decode_state, encode_state, read_metadata
from ontogeny.server.store import Store
from ontogeny.types import Weights
from ontogeny.validation import FrozenModel

POLL_INTERVAL = 0.5  # seconds between two looks at the journal
log = logging.getLogger(__name__)


class LoadedVersion(NamedTuple):
    """A version in memory. Repeated requests for a version return the same object while it stays in memory."""

    version: BranchVersion
    weights: Weights  # content (all weights, or an adapter) and scratch
    full_weights: TransformerWeights  # the weights that answer requests


class BranchConfig(FrozenModel):
    """Limits of the branches of a deployment.

    Attributes:
        max_forgetting: Nats per token of held-out text.
        snapshot_interval: Accepted examples between two snapshots of a branch.
        max_snapshots: Per branch.
        max_loaded: Versions in memory.
        learning_fraction: Part of the learner's time while other requests wait.
    """

    max_forgetting: float = Field(default=ServerConfig().max_forgetting, ge=0)
    snapshot_interval: int = Field(default=16, ge=1)
    max_snapshots: int = Field(default=4, ge=1)
    max_loaded: int = Field(default=8, ge=1)
    learning_fraction: float = Field(default=1.0, gt=0, le=1)


class BranchManager:
    """All branches of one deployment, and the thread that learns.

    Args:
        store: The database with the journal.
        deployment: The name of the deployment.
        learner: How examples are learned.
        shared: Whether all keys share one branch; otherwise each key has its own.
        config: Limits.

    Raises:
        BadInput: The database holds branches that were learned from other weights or with another learner.
    """

    def __init__(
        self,
        store: Store,
        deployment: str,
        learner: BranchLearner,
        *,
        shared: bool = False,
        config: BranchConfig | None = None,
    ) -> None:
        self.store, self.deployment, self.learner = store, deployment, learner
        self.shared, self.config = shared, config or BranchConfig()
        self.trained_digest = trees.digest(learner.trained_weights)
        self.is_server_busy = False  # while requests wait, the learner keeps to its fraction of the time
        self.error: BaseException | None = None
        # The norm of the trained weights, to which the distances of versions are relative.
        self._norm = _distance(learner.trained_weights, jax.tree.map(np.zeros_like, learner.trained_weights))
        self._loaded: OrderedDict[tuple[str, int], LoadedVersion] = OrderedDict()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._work_started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"learner of {deployment}", daemon=True)
        self.open(journal.SHARED)

    def open(self, owner_key: str) -> Branch:
        """Returns the branch that answers the requests of a key and takes its examples; creates it if necessary."""
        learner, owner_key = self.learner, journal.SHARED if self.shared else owner_key
        return journal.open_branch(
            self.store, self.deployment, owner_key, self.trained_digest, learner.digest, learner.trained_loss
        )

    def start(self) -> None:
        """Compiles the learner, recomputes versions that a crash lost, and starts the learning thread."""
        self.learner.learn(self.learner.init(), "warm", do_not_pause)
        for branch in journal.list_branches(self.store, self.deployment)[-self.config.max_loaded :]:
            self.load(branch)
        self._thread.start()

    def stop(self) -> None:
        """Finishes the current update and saves snapshots of the current versions."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        for loaded in list(self._loaded.values()):
            self._save_if_current(loaded)

    def current(self, owner_key: str) -> LoadedVersion:
        """Returns the version that answers the requests of a key now."""
        return self.load(self.open(owner_key))

    def add_example(self, owner_key: str, key: str, text: str) -> int | None:
        """Writes an example to the journal; see `journal.add_example`.

        Args:
            owner_key: The key whose branch learns the example.
            key: The key that sent the example.
            text: The text to learn.
        """
        number = journal.add_example(self.store, self.open(owner_key).branch, key, text)
        self._wake.set()
        return number

    def erase_example(self, number: int, actor: str) -> None:
        """Deletes an example and everything that was learned from it; see `journal.erase_example`."""
        journal.erase_example(self.store, number, actor)
        with self._lock:
            for version_key, loaded in list(self._loaded.items()):
                if loaded.version.number and journal.get_version(self.store, *version_key).deleted:
                    del self._loaded[version_key]
        self._wake.set()

    def load(self, branch: Branch) -> LoadedVersion:
        """Returns the current version of a branch: kept in memory, read from its snapshot, or recomputed."""
        with self._lock:
            version_key = (branch.branch, branch.current_version)
            if version_key not in self._loaded:
                self._keep(self._recompute(branch))
            self._loaded.move_to_end(version_key)
            return self._loaded[version_key]

    def export(self, owner_key: str) -> bytes:
        """Returns the current version of a key's branch as a state file, with scratch and digest."""
        return self._encode(self.current(owner_key))

    def restore(self, owner_key: str, data: bytes, actor: str) -> BranchVersion:
        """Makes an exported state the current version of a key's branch.

        Raises:
            BadInput: The state belongs to other trained weights or another learner, is damaged, does not pass the
                acceptance test, or was learned from an erased example.
        """
        metadata = read_metadata(data, "branch")
        if metadata.get("trained_digest") != self.trained_digest:
            raise BadInput(
                f"this state belongs to weights {str(metadata.get('trained_digest'))[:16]}, but this model has "
                f"weights {self.trained_digest[:16]}"
            )
        if metadata.get("learner_digest") != self.learner.digest:
            raise BadInput("this state was learned with other settings, texts or versions")
        weights = trees.from_arrays(self.learner.init(), decode_state(data))
        check_digest(weights, metadata)
        full_weights = self.learner.full_weights(weights.content)
        loss = self.learner.held_out_loss(full_weights, do_not_pause)
        if (reason := self._rejection_reason(loss)) is not None:
            raise BadInput(f"this state does not pass the acceptance test: {reason}")
        branch, digest = self.open(owner_key), metadata["digest"]
        file = _snapshot_name(branch.branch, digest)
        self.store.write_snapshot(file, data)
        try:
            distance = self._weight_distance(full_weights)
            version = journal.restore_version(self.store, branch, digest, loss, distance, file, actor)
            if version is None:
                raise BadInput("the branch was changed in the meantime; try again")
        finally:
            journal.delete_unused_snapshots(self.store, [file])  # a rejected state leaves no file behind
        return version

    def fork(self, owner_key: str, target_key: str, actor: str) -> BranchVersion:
        """Makes the current version of one key's branch the current version of another key's branch."""
        return self.restore(target_key, self.export(owner_key), actor)

    def learn_next(self) -> bool:
        """Learns one example of every branch that has one; returns whether there was any."""
        worked = False
        for branch in journal.list_branches(self.store, self.deployment):
            if self._stopping.is_set():
                return True
            if not branch.frozen and (example := journal.next_example(self.store, branch)) is not None:
                self._work_started = time.monotonic()
                self._learn(branch, example.number, example.text or "")
                self._pause()
                worked = True
        return worked

    def _run(self) -> None:
        """Learns until the manager stops."""
        try:
            while not self._stopping.is_set():
                if not self.learn_next():
                    self._wake.wait(POLL_INTERVAL)
                    self._wake.clear()
        except BaseException as error:
            self.error = error
            raise

    def _pause(self) -> None:
        """Sleeps after a piece of work while requests wait, so that learning keeps to its fraction of the time."""
        if self.is_server_busy and self.config.learning_fraction < 1:
            work = time.monotonic() - self._work_started
            self._stopping.wait(work * (1 / self.config.learning_fraction - 1))
        self._work_started = time.monotonic()

    def _learn(self, branch: Branch, number: int, text: str) -> None:
        """Learns one example and makes the new weights current, or records why they are rejected."""
        before = self.load(branch)
        try:
            weights = self.learner.learn(before.weights, text, self._pause)
        except BadInput as error:  # the tokenizer cannot encode the text
            journal.reject_example(self.store, branch, number, None, str(error))
            return
        if weights is before.weights:
            reason = "the text is too short to learn from"
            journal.reject_example(self.store, branch, number, before.version.held_out_loss, reason)
            return
        full_weights = self.learner.full_weights(weights.content)
        loss = self.learner.held_out_loss(full_weights, self._pause)
        if (reason := self._rejection_reason(loss)) is not None:
            journal.reject_example(self.store, branch, number, loss if math.isfinite(loss) else None, reason)
            return
        digest = trees.digest(weights)
        self._pause()
        distance = self._weight_distance(full_weights)
        increase = loss - self.learner.trained_loss
        reason = f"{increase:+.4f} nats per token on held-out text; the limit is {self.config.max_forgetting}"
        version = journal.commit_version(self.store, branch, number, digest, loss, distance, reason)
        if version is None:
            return  # the branch was changed in the meantime; the example is undecided or erased
        with self._lock:
            self._loaded.pop((branch.branch, branch.current_version), None)
            loaded = LoadedVersion(version, weights, full_weights)
            self._keep(loaded)
            if version.number % self.config.snapshot_interval == 0:
                self._save_snapshot(loaded)

    def _rejection_reason(self, loss: float) -> str | None:
        """The reason why weights of this held-out loss fail the acceptance test, or None."""
        return rejection_reason(loss, self.learner.trained_loss, self.config.max_forgetting)

    def _recompute(self, branch: Branch) -> LoadedVersion:
        """Computes the current version of a branch from the nearest snapshot, and compares its digest."""
        first, *later = journal.version_path(self.store, branch.branch, branch.current_version)
        weights = self.learner.init() if first.snapshot is None else self._read_snapshot(first)
        for version in later:
            assert version.example is not None
            example = journal.find_example(self.store, version.example)
            assert example is not None and example.text is not None
            weights = self.learner.learn(weights, example.text, do_not_pause)
        last = later[-1] if later else first
        if last.parent is not None and trees.digest(weights) != last.digest:
            raise ContractViolation(
                f"version {last.number} of '{branch.branch}' was recomputed to other bits than {last.digest[:16]}"
            )
        is_trained = last.parent is None and last.snapshot is None  # no second copy of the weights in memory
        full_weights = self.learner.trained_weights if is_trained else self.learner.full_weights(weights.content)
        return LoadedVersion(last, weights, full_weights)

    def _keep(self, loaded: LoadedVersion) -> None:
        """Keeps a version in memory; the least recently used one is dropped, with a snapshot if it is current."""
        self._loaded[loaded.version.branch, loaded.version.number] = loaded
        while len(self._loaded) > self.config.max_loaded:
            self._save_if_current(self._loaded.popitem(last=False)[1])

    def _save_if_current(self, loaded: LoadedVersion) -> None:
        """Writes a snapshot of a version that is current and has none."""
        version = loaded.version
        if version.parent is None or version.snapshot is not None:
            return
        if journal.get_branch(self.store, version.branch).current_version == version.number:
            self._save_snapshot(loaded)

    def _save_snapshot(self, loaded: LoadedVersion) -> None:
        """Writes a snapshot. Without it, on a full disk, the version is recomputed from an earlier one."""
        try:
            self._write_snapshot(loaded)
        except StorageUnavailable as error:
            log.warning("a version of '%s' has no snapshot: %s", loaded.version.branch, error)

    def _write_snapshot(self, loaded: LoadedVersion) -> None:
        """Writes the file before the database refers to it; then drops the oldest surplus snapshots."""
        version = loaded.version
        file, version_key = _snapshot_name(version.branch, version.digest), (version.branch, version.number)
        self.store.write_snapshot(file, self._encode(loaded))
        journal.set_snapshot(self.store, version.branch, version.number, file)
        if version_key in self._loaded:
            self._loaded[version_key] = loaded._replace(version=version._replace(snapshot=file))
        snapshots = [v for v in journal.list_versions(self.store, version.branch) if v.snapshot is not None]
        current = journal.get_branch(self.store, version.branch).current_version
        for surplus in snapshots[: -self.config.max_snapshots]:
            if surplus.number != current and surplus.parent is not None:
                journal.set_snapshot(self.store, surplus.branch, surplus.number, None)
                journal.delete_unused_snapshots(self.store, [str(surplus.snapshot)])

    def _read_snapshot(self, version: BranchVersion) -> Weights:
        """Reads the weights of a version; raises `BadInput` if the file is absent or damaged."""
        path = self.store.snapshots / str(version.snapshot)
        try:
            data = path.read_bytes()
            read_metadata(data, "branch", str(path))
            weights = trees.from_arrays(self.learner.init(), decode_state(data))
        except (OSError, BadInput) as error:
            raise BadInput(f"the snapshot '{path}' cannot be used: {error}") from None
        if trees.digest(weights) != version.digest:
            raise BadInput(f"the snapshot '{path}' is damaged: it does not hold version {version.number}")
        return weights

    def _encode(self, loaded: LoadedVersion) -> bytes:
        """Converts a version to a state file."""
        return encode_state(
            "branch",
            loaded.weights,
            {
                "deployment": self.deployment,
                "trained_digest": self.trained_digest,
                "learner_digest": self.learner.digest,
                "version": str(loaded.version.number),
            },
        )

    def _weight_distance(self, weights: TransformerWeights) -> float:
        """The distance of weights from the trained weights, relative to their norm."""
        return _distance(weights, self.learner.trained_weights) / self._norm


def _snapshot_name(branch: str, digest: str) -> str:
    """The file name of the snapshot of a version."""
    return f"{branch.replace('/', '-')}-{digest[:16]}.safetensors"


def _distance(weights: TransformerWeights, reference: TransformerWeights) -> float:
    """The Euclidean distance in float64."""
    pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(reference), strict=True)
    return math.sqrt(
        sum(float(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum()) for a, b in pairs)
    )
