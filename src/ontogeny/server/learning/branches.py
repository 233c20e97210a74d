"""Online learning that survives crashes: the branches of one deployment, as requests use them.

An example is on disk before it is acknowledged. An update is a function of the weights of a version and one example.
Its result becomes current in one commit together with the position in the journal, so that no example is lost or
learned twice. Snapshots are written to disk first and recorded in the database afterwards. Versions between snapshots
are recomputed bit for bit, which their digests prove. New weights become current only if they pass the
acceptance test. A text is judged in pieces, and of each piece the largest share of its step that passes is learned
(`partial_steps`); a rejection is recorded with its reason, and its weights and moments are dropped.
"""

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.learning import branch_changes, earlier_digests, journal, partial_steps, repeats
from ontogeny.server.learning.acceptance import do_not_pause, rejection_reason
from ontogeny.server.learning.branch_changes import ChangeRepeated, ErasedSource
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.journal import Branch, BranchLost, TrainingExample
from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.learning.learning_loop import LearningLoop
from ontogeny.server.learning.loading import BranchUnavailable, VersionLoader
from ontogeny.server.learning.snapshots import LoadedVersion, VersionSnapshots
from ontogeny.server.learning.versions import BranchVersion
from ontogeny.server.processes.ownership import BranchOwnership, SoleOwnership
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.states import check_digest, decode_state, read_metadata
from ontogeny.server.store import Store

NUM_LOADING_THREADS = 8
NUM_COMPUTED_AT_START = 8  # branches
WARM_UP_TEXT = "The learner compiles its programs with this text."
Changed = TypeVar("Changed")
log = logging.getLogger(__name__)


class BranchManager:
    """All branches of one deployment, and the thread that learns.

    Args:
        store: The database with the journal.
        deployment: The name of the deployment.
        learner: How examples are learned.
        shared: Whether all keys share one branch; otherwise each key has its own.
        config: Limits.
        ownership: Which branches this process answers and learns; all of them if it is None.

    Attributes:
        on_erased: Called with the erased examples after the commit of an erasure, and again after a failure; removes
            what else was computed by the deleted versions.

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
        ownership: BranchOwnership | None = None,
    ) -> None:
        self.store, self.deployment, self.learner = store, deployment, learner
        self.shared, self.config = shared, config or BranchConfig()
        self.ownership = ownership or SoleOwnership(store)
        self.trained_digest = trees.digest(learner.trained_weights)
        self.on_erased: Callable[[Collection[TrainingExample]], None] = lambda examples: None
        # The norm of the trained weights, to which the distances of versions are relative.
        self._norm = _distance(learner.trained_weights, jax.tree.map(np.zeros_like, learner.trained_weights))
        metadata = {
            "deployment": deployment,
            "trained_digest": self.trained_digest,
            "learner_digest": learner.digest,
        }
        earlier_digests.convert_branches(store, deployment, learner, self.ownership.check_conversion)
        self.snapshots = VersionSnapshots(store, learner, metadata, self.config.max_snapshots)
        self.loader = VersionLoader(store, learner, self.snapshots, self.config.max_loaded, self.ownership.computed_by)
        self.loop = LearningLoop(
            store, deployment, learner, self.loader, self.snapshots, self.config, self.ownership,
            weight_distance=self._weight_distance,
        )  # fmt: skip
        self._erasure_lock = threading.Lock()
        self._last_erasure = journal.find_last_erasure(store)  # of which the memory of this process holds nothing
        self._loading_threads = ThreadPoolExecutor(NUM_LOADING_THREADS, f"loading of {deployment}")
        self._loading: dict[str, Future[LoadedVersion]] = {}  # of the event loop
        self.open(journal.SHARED)

    def open(self, owner_key: str) -> Branch:
        """Returns the branch that answers the requests of a key and takes its examples; creates it if necessary."""
        learner, owner_key = self.learner, journal.SHARED if self.shared else owner_key
        return journal.open_branch(
            self.store, self.deployment, owner_key, self.trained_digest, learner.digest, learner.trained_loss
        )

    def claim(self, owner_key: str) -> Branch:
        """Returns the branch of a key like `open`, after this process has become its owner; see `BranchOwnership`."""
        return self.ownership.claim(self.open(owner_key))

    def is_new(self, owner_key: str) -> bool:
        """Whether a key has no branch yet, so that the trained weights answer it."""
        return self.store.select_value("SELECT 1 FROM branches WHERE branch = ?", self.name_branch(owner_key)) is None

    def name_branch(self, owner_key: str) -> str:
        """Returns the name of the branch of a key, whether it exists or not."""
        return f"{self.deployment}/{journal.SHARED if self.shared else owner_key}"

    def start(self) -> None:
        """Compiles the learner, finishes erasures, recomputes lost versions, and starts the learning thread."""
        with contextlib.suppress(StorageUnavailable):
            self.ownership.report_computations(self.deployment)
        self._compile()
        self.finish_erasures()
        with contextlib.suppress(StorageUnavailable):  # versions are computed when they are requested, at the latest
            for name in self.ownership.list_branches_to_load(
                self.deployment, min(self.config.max_loaded, NUM_COMPUTED_AT_START)
            ):
                with contextlib.suppress(BranchUnavailable):  # it is logged, and the other branches can be used
                    self.loader.load(name)
        self.loop.start()

    def _compile(self) -> None:
        """Compiles what learning a text needs."""
        initial = self.learner.init()
        tokens = self.learner.encode(WARM_UP_TEXT)
        self.learner.score(self.learner.trained_weights, tokens, do_not_pause)
        learned = partial_steps.replay_text(self.learner, initial, WARM_UP_TEXT, None, do_not_pause)
        for share in partial_steps.SHARES:
            partial_steps.take_share(initial, learned, share)

    def interrupt(self) -> None:
        """Ends the computation of versions and of the current update, without waiting."""
        self.loop.interrupt()
        self.loader.interrupt()

    def stop(self) -> None:
        """Ends the current update, finishes erasures, and saves snapshots of the current versions."""
        self.interrupt()
        self._loading_threads.shutdown(wait=False, cancel_futures=True)
        self.loop.stop()
        self.loader.save_current()
        self.finish_erasures()

    def learn_next(self) -> bool:
        """Learns one example of every branch that has one; returns whether anything was done."""
        return self.loop.learn_next()

    def current(self, owner_key: str) -> LoadedVersion:
        """Returns the version that answers the requests of a key now; raises `BranchUnavailable` if there is none."""
        return self.loader.load(self.claim(owner_key).branch)

    async def request_current(self, owner_key: str) -> LoadedVersion:
        """Returns what `current` returns. Waiting requests of one branch occupy one thread, however many they are."""
        while True:
            branch = await asyncio.to_thread(self.claim, owner_key)
            if (loaded := self.loader.find(branch)) is not None:
                return loaded
            future = self._loading.get(branch.branch)
            if future is None:
                future = self._loading_threads.submit(self.loader.load, branch.branch)
                self._loading[branch.branch] = future
                future.add_done_callback(lambda _, name=branch.branch: self._loading.pop(name, None))
            loaded = await asyncio.shield(asyncio.wrap_future(future))
            branch = await asyncio.to_thread(self.claim, owner_key)
            if branch.current_version == loaded.version.number:
                return loaded

    def add_example(self, owner_key: str, key: str, text: str, request: RequestIdentity | None = None) -> int | None:
        """Writes an example to the journal; see `journal.add_example`.

        Args:
            owner_key: The key whose branch learns the example.
            key: The key that sent the example.
            text: The text to learn.
            request: The request that sent it.
        """

        def add(branch: Branch) -> int | None:
            if branch.frozen:  # the request may be a repetition of one that came before
                record = None if request is None else repeats.find_record(self.store, key, request)
                return None if record is None else record.example
            return journal.add_example(self.store, branch.branch, key, text, request, branch.fence)

        number = self._change_own(owner_key, add)
        self.loop.wake(self.name_branch(owner_key))
        return number

    def rollback(
        self, owner_key: str, number: int, actor: str, request: RequestIdentity | None = None
    ) -> BranchVersion:
        """Makes an earlier version of the branch of a key current; see `branch_changes.rollback`."""
        return self._change_own(
            owner_key,
            lambda branch: branch_changes.rollback(self.store, branch.branch, number, actor, branch.fence, request),
        )

    def erase_example(self, number: int, actor: str) -> None:
        """Deletes an example and everything that was learned from it; see `branch_changes.erase_example`."""
        branch_changes.erase_example(self.store, number, actor)
        self.loop.wake()
        self.finish_erasures()

    def finish_erasures(self) -> None:
        """Removes what is left of erased examples: from memory, caches, snapshots and the log of the database.

        What fails on a full disk, or was interrupted by a crash, stays for a later call.
        """
        examples: list[TrainingExample] = []
        try:
            with self._erasure_lock:  # so that what an earlier erasure left valid does not override a later one
                examples = branch_changes.list_unfinished_erasures(self.store, self.deployment)
                if not examples:
                    return
                self.loader.drop_deleted()
                self.on_erased(examples)
                versions = self.snapshots.delete_erased()
                if self.store.truncate_log():
                    branch_changes.finish_erasures(self.store, examples, versions)
        except (OSError, StorageUnavailable) as error:
            level = logging.WARNING if examples else logging.DEBUG  # whether there is one could not be read
            log.log(level, "an erasure in '%s' cannot be finished at present: %s", self.deployment, error)

    def forget_erased(self, last: int) -> None:
        """Removes from memory and caches what other processes have erased since the last call.

        Args:
            last: The number of the last decision to erase an example; see `journal.find_last_erasure`.
        """
        if last == self._last_erasure:
            return
        examples = journal.list_erased_examples(self.store, self.deployment, self._last_erasure)
        if examples:
            self.loader.drop_deleted()
            self.on_erased(examples)
        self._last_erasure = last

    def export(self, owner_key: str) -> bytes:
        """Returns the current version of a key's branch as a state file, with scratch and digest."""
        return self._export(self.current(owner_key))

    def restore(
        self,
        owner_key: str,
        data: bytes,
        actor: str,
        request: RequestIdentity | None = None,
        *,
        is_fork: bool = False,
    ) -> BranchVersion:
        """Makes an exported state the current version of a key's branch.

        Args:
            owner_key: The key that owns the branch.
            data: The state file.
            actor: Who restores it.
            request: See `branch_changes.rollback`.
            is_fork: Whether the state comes from another branch instead of from an upload.

        Raises:
            BadInput: The state belongs to other trained weights or another learner, is damaged, does not pass the
                acceptance test, or was learned from an erased example.
        """
        self.claim(owner_key)  # so that another process that owns the branch does the work that follows
        metadata = read_metadata(data, "branch")
        if metadata.get("trained_digest") != self.trained_digest:
            raise BadInput(
                f"this state belongs to weights {str(metadata.get('trained_digest'))[:16]}, but this model has "
                f"weights {self.trained_digest[:16]}"
            )
        if metadata.get("learner_digest") not in {self.learner.digest, self.learner.earlier_digest or ""}:
            raise BadInput("this state was learned with other settings or texts, or by an earlier version of ontogeny")
        weights = trees.from_arrays(jax.eval_shape(self.learner.init), decode_state(data))
        check_digest(weights, metadata)
        full_weights = self.learner.full_weights(weights.content)
        loss = self.learner.held_out_loss(full_weights, do_not_pause)
        reason = rejection_reason(loss, self.learner.trained_loss, self.config.max_forgetting)
        if reason is not None:
            raise BadInput(f"this state does not pass the acceptance test: {reason}")
        distance, digest = self._weight_distance(full_weights), metadata["digest"]
        # The digest of version 0 is that of the trained weights, without a scratch.
        source_digest = self.trained_digest if digest == trees.digest(self.learner.init()) else digest
        origin, content = _read_origin(metadata), self.snapshots.encode(weights, {})

        def record(branch: Branch) -> BranchVersion:
            return self.snapshots.record(
                content,
                {branch.branch} if origin is None else {branch.branch, origin[0]},
                lambda file, confirm: branch_changes.restore_version(
                    self.store, branch.branch, digest, loss, distance, file, actor, source_digest=source_digest,
                    exported_from=origin, is_fork=is_fork, fence=branch.fence, confirm=confirm, request=request,
                ),
            )  # fmt: skip

        try:
            branch_changes.refuse_repetition(self.store, self.open(owner_key).branch, actor, request)
            version = self._change_own(owner_key, record)
        except ChangeRepeated as repetition:
            return repetition.version
        self.snapshots.delete_surplus(version)
        return version

    def fork(
        self, owner_key: str, target_key: str, actor: str, request: RequestIdentity | None = None
    ) -> BranchVersion:
        """Makes the current version of one key's branch the current version of another key's branch; see `restore`."""
        while True:
            source = self.loader.load(self.open(owner_key).branch)  # of any process: only the target is written
            try:
                return self.restore(target_key, self._export(source), actor, request, is_fork=True)
            except ErasedSource:  # an example of this version was erased in the meantime
                if self.open(owner_key).current_version == source.version.number:
                    raise

    def failure(self, owner_key: str) -> str | None:
        """Returns why the branch of a key does not learn at present, or None; the learner tries again by itself."""
        return self.loop.failure(self.open(owner_key).branch)

    def _change_own(self, owner_key: str, change: Callable[[Branch], Changed]) -> Changed:
        """Changes the branch of a key after this process has become its owner; again if another one did meanwhile."""
        while True:
            with contextlib.suppress(BranchLost):
                return change(self.claim(owner_key))

    def _export(self, loaded: LoadedVersion) -> bytes:
        """Converts a version to a state file that names its origin."""
        origin = {"branch": loaded.version.branch, "version": str(loaded.version.number)}
        return self.snapshots.encode(loaded.weights, origin)

    def _weight_distance(self, weights: TransformerWeights) -> float:
        """The distance of weights from the trained weights, relative to their norm."""
        return _distance(weights, self.learner.trained_weights) / self._norm


def _read_origin(metadata: dict[str, str]) -> tuple[str, int] | None:
    """Returns the branch and the version that a state file names as its origin, if it names any."""
    name, version = metadata.get("branch"), metadata.get("version", "")
    return (name, int(version)) if isinstance(name, str) and version.isdecimal() and len(version) < 19 else None


def _distance(weights: TransformerWeights, reference: TransformerWeights) -> float:
    """The Euclidean distance in float64."""
    pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(reference), strict=True)
    return math.sqrt(
        sum(float(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum()) for a, b in pairs)
    )
