"""Deployments: saved models under a name, frozen or learning online.

The server knows the digest of frozen weights and checks at intervals that the weights still have it. This module does
not depend on HTTP.
"""

import asyncio
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ontogeny import trees
from ontogeny.content.transformer import TransformerWeights
from ontogeny.engine.engine import Engine, default_cache_bytes
from ontogeny.errors import BadInput, ServerFailed, StorageDamaged, StorageUnavailable
from ontogeny.lm import online_learner, weight_types
from ontogeny.lm.adapters import AdapterTree
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.online_learner import OnlineConfig
from ontogeny.plugins import unknown_name_error
from ontogeny.server import quotas
from ontogeny.server.config import ServerConfig
from ontogeny.server.learning import default_config, journal, learner, snapshots
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.config import BranchConfig
from ontogeny.server.learning.journal import TrainingExample
from ontogeny.server.learning.snapshots import LoadedVersion
from ontogeny.server.processes.identity import describe_computation
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.ownership import BranchOwnership, SoleOwnership
from ontogeny.server.served_models import FINAL, ServedModel, load_served_model
from ontogeny.server.sessions.agents import AgentSessions
from ontogeny.server.sessions.texts import TextSessions
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentSession

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STATUS_INTERVAL = 0.2  # seconds
TABLE_CHECK_INTERVAL = 1.0  # seconds between two looks at the tables of the database
COLLECTION_INTERVAL = 3600.0  # seconds between deletions of unused snapshots from a shared store
FORGETTING_INTERVAL = 1.0  # seconds between two looks at what other processes have erased
ERASURE_INTERVAL = 5.0  # seconds between attempts to finish an erasure that the disk prevented
log = logging.getLogger(__name__)


class ServedWeights(NamedTuple):
    """The weights that answer a request."""

    weights: TransformerWeights
    version: int  # 0: the trained weights
    digest: str  # of the version
    cache_epoch: int = 0  # of the prefix cache, before the version was looked up
    adapter: AdapterTree | None = None  # of the weights


class LanguageDeployment:
    """A language model with its engine, its sessions and, if it learns, its branches.

    Args:
        name: The name that requests use.
        model: The model.
        store: The database.
        config: The settings of the server; `online` applies to this deployment.
        checkpoint_name: Which weights of its run the model has; see `ServedModel`.
        membership: This process among those that share the database, if several can.

    Raises:
        BadInput: The model cannot learn online, or its branches were learned from other weights.
    """

    kind = "language"

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        store: Store,
        config: ServerConfig,
        checkpoint_name: str = FINAL,
        membership: Membership | None = None,
    ) -> None:
        self.name, self.model, self.created_at = name, model, int(time.time())
        self.online, self.checkpoint_name = config.online, checkpoint_name
        self.engine = Engine(
            model.config,
            max_num_seqs=config.max_num_seqs,
            max_queue=config.max_queue,
            max_context=config.max_context,
            kv_cache_bytes=config.max_kv_cache_bytes,
        )
        self.digest = weight_types.digest(model.weights)
        self._checksum = weight_types.checksum(model.config, model.weights)
        self.learning: str | None = None  # what learns, in words
        self.branches: BranchManager | None = None
        if config.online:
            ownership = membership or SoleOwnership(store, describe_computation())
            self.branches, online_config = _build_branches(
                name, model, store, config, ownership, self.engine.applies_adapters
            )
            self.learning = default_config.describe_choice(online_config, trees.num_elements(model.weights))
        self.sessions = TextSessions(name, model, self.engine, store, max_waiting=config.max_queue)
        if self.branches is not None:
            self.branches.on_erased = self._forget
        self._failure: str | None = None

    def start(self) -> None:
        """Compiles and starts the engine and the learner."""
        self.engine.start(self.model.weights)
        if self.branches is not None:
            self.branches.start()

    def stop(self) -> None:
        """Stops all threads; an update that is not finished is evaluated again after the next start."""
        self.engine.stop()
        self.sessions.stop()
        if self.branches is not None:
            self.branches.stop()

    def served_weights(self, owner_key: str) -> ServedWeights:
        """Returns the weights that answer the requests of a key now.

        Raises:
            BranchUnavailable: The current version of the key's branch cannot be computed.
        """
        cache_epoch = self.engine.prefix_cache.epoch
        if self.branches is None:
            return self._trained(cache_epoch)
        try:
            loaded = self.branches.current(owner_key)
        except StorageUnavailable:
            if not self.branches.is_new(owner_key):
                raise
            return self._trained(cache_epoch)  # the branch cannot be created
        return self._served(loaded, cache_epoch)

    async def request_weights(self, owner_key: str) -> ServedWeights:
        """Returns what `served_weights` returns, without blocking the event loop."""
        cache_epoch = self.engine.prefix_cache.epoch
        if self.branches is None:
            return self._trained(cache_epoch)
        try:
            loaded = await self.branches.request_current(owner_key)
        except StorageUnavailable:
            if not await asyncio.to_thread(self.branches.is_new, owner_key):
                raise
            return self._trained(cache_epoch)  # the branch cannot be created
        return self._served(loaded, cache_epoch)

    def _trained(self, cache_epoch: int) -> ServedWeights:
        """The trained weights as a request uses them."""
        return ServedWeights(self.model.weights, 0, self.digest, cache_epoch)

    @staticmethod
    def _served(loaded: LoadedVersion, cache_epoch: int) -> ServedWeights:
        """The weights of a version as a request uses them."""
        weights, adapter = loaded.served
        return ServedWeights(weights, loaded.version.number, loaded.version.digest, cache_epoch, adapter)

    def erase_example(self, example: TrainingExample, actor: str) -> None:
        """Deletes an example and what was learned from it.

        This includes the cached prefixes of the key that sent it or that were computed by weights that learned it,
        and all session activations that were computed by such weights.
        """
        assert self.branches is not None
        self.branches.erase_example(example.number, actor)

    def _forget(self, examples: Collection[TrainingExample]) -> None:
        """Removes cached prefixes and activations of erased examples; see `BranchManager.on_erased`."""
        assert self.branches is not None
        store = self.branches.store
        remaining = journal.list_digests(store, self.name, deleted=False)
        deleted = journal.list_digests(store, self.name, deleted=True) - remaining
        self.engine.prefix_cache.evict({example.key for example in examples}, deleted)
        self.sessions.drop_activations(deleted)

    def check_weights(self) -> None:
        """Compares the trained weights with their digest; a difference makes the deployment unavailable."""
        if weight_types.checksum(self.model.config, self.model.weights) != self._checksum:
            self.fail(f"the weights of '{self.name}' changed after the start of the server")

    def fail(self, reason: str) -> None:
        """Makes the deployment unavailable."""
        self._failure = reason

    @property
    def failure(self) -> str | None:
        """The reason why the deployment is unavailable, or None."""
        if self._failure is None and self.engine.failure is not None:
            return f"the engine of '{self.name}' has failed"
        return self._failure

    @property
    def learning_failure(self) -> str | None:
        """The reason why nothing is learned at present although requests are answered, or None."""
        reason = None if self.branches is None else self.branches.loop.general_failure
        return None if reason is None else f"'{self.name}' does not learn at present: {reason}"


class AgentDeployment:
    """An agent with its sessions; online, the weights of each session learn.

    Args:
        name: The name that requests use.
        agent: The agent.
        store: The database.
        config: The settings of the server; `online` applies to this deployment.
    """

    kind = "agent"
    checkpoint_name, learning = FINAL, None

    def __init__(self, name: str, agent: AgentSession, store: Store, config: ServerConfig) -> None:
        self.name, self.created_at, self.online = name, int(time.time()), config.online
        session = AgentSession(agent.saved_agent, online=config.online)
        self.sessions = AgentSessions(name, session, store, max_waiting=config.max_queue)
        self.digest = self.sessions.digest
        self.failure: str | None = None
        self.learning_failure = None  # a session learns while it is called

    def start(self) -> None:
        """Compiles a step."""
        self.sessions.warm_up()

    def stop(self) -> None:
        """Finishes the current step."""
        self.sessions.stop()

    def check_weights(self) -> None:
        """Compares genome and initial weights with their digest; a difference makes the deployment unavailable."""
        if not self.sessions.is_unchanged():
            self.fail(f"the initial weights of '{self.name}' changed after the start of the server")

    def fail(self, reason: str) -> None:
        """Makes the deployment unavailable."""
        self.failure = reason


Deployment = LanguageDeployment | AgentDeployment


class Deployments:
    """All deployments of a server, and the thread that starts and checks them.

    Args:
        runs: Name and folder of each deployment.
        store: The database.
        config: The settings of the server.

    Attributes:
        ready: Set once the deployments have started.
        on_ready: Called once `ready` is set.
        on_failed: Called once `error` is set.
        error: Why nothing can be answered any more, or None: `StorageDamaged`, because every request needs the
            database; `BadInput` or `ServerFailed` if no deployment is available.

    Raises:
        BadInput: A name is invalid or used twice, or a folder holds no model that can be served.
    """

    def __init__(self, runs: Sequence[tuple[str, Path]], store: Store, config: ServerConfig) -> None:
        self.config, self.store = config, store
        self.membership: Membership | None = None  # of this process, in a database that several can share
        if store.database.is_shared:
            self.membership = Membership(
                store, describe_computation(), allow_mixed=config.allow_mixed, find_load=self._find_load
            )
        quotas.set_default_limits(store, config)
        self.by_name: dict[str, Deployment] = {}
        self.ready = threading.Event()
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None
        self.error: Exception | None = None
        self._reported: dict[str, str] = {}  # failures of deployments that are in the log
        self._start_errors: dict[str, Exception] = {}
        self._collection: threading.Thread | None = None  # which deletes unused snapshots
        self._stopping, self._is_handed_over = threading.Event(), False
        self._start_ended, self._url = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, name="deployments", daemon=True)
        names = [name for name, _ in runs]
        check_names(runs)
        for name in (*config.frozen, *config.best):
            if name not in names:
                raise unknown_name_error("deployment", name, names)
        loaded: dict[tuple[Path, bool], ServedModel] = {}  # deployments of the same weights share them
        choices = {name: (folder.resolve(), name in config.best) for name, folder in runs}
        learning = {choices[name] for name in names if config.online and name not in config.frozen}
        if config.weights not in (weight_types.AS_IN_FILE, "float32") and learning.issuperset(choices.values()):
            raise BadInput(
                f"weights that learn are kept in float32, and no others are served, so --weights {config.weights} "
                "would have no effect"
            )
        for name, folder in runs:
            learns, choice = config.online and name not in config.frozen, choices[name]
            if choice not in loaded:
                loaded[choice] = load_served_model(folder, choice[1], config.weights, learns=choice in learning)
            model, checkpoint_name = loaded[choice]
            own_config = config.model_copy(update={"online": learns})
            if own_config.max_kv_cache_bytes is None:
                own_config = own_config.model_copy(update={"max_kv_cache_bytes": default_cache_bytes(len(runs))})
            if isinstance(model, AgentSession):
                self.by_name[name] = AgentDeployment(name, model, store, own_config)
            else:
                self.by_name[name] = LanguageDeployment(
                    name, model, store, own_config, checkpoint_name, self.membership
                )

    def start(self, url: str = "") -> None:
        """Starts the deployments in the background; `ready` is set when all of them can answer.

        Args:
            url: Where the server receives requests.
        """
        self._url = self.config.process_url or url
        self._thread.start()

    def wait_for_start(self) -> None:
        """Returns when the deployments have started, or the server is to stop before."""
        self._start_ended.wait()

    def hand_over(self) -> None:
        """Gives all branches to the other processes that share the database, if there are any, before the end."""
        self._start_ended.set()
        if self.membership is None or self._is_handed_over:
            return
        try:
            if self.membership.find_successor() is None:
                return
        except StorageUnavailable:
            return
        self._is_handed_over = True
        for branches in self._branch_managers():
            branches.loop.stop()
            branches.loader.save_current()
        self.membership.is_leaving = True  # not earlier, because nobody else answers for its branches before
        self.membership.leave()

    def stop(self) -> None:
        """Stops all deployments and waits until they have stopped."""
        self._stopping.set()
        for branches in self._branch_managers():
            branches.interrupt()
        self._thread.join()

    def _run(self) -> None:
        """Starts all deployments, checks them at intervals, and stops them; notes why nothing can be answered."""
        try:
            self._clean_up()
            for deployment in self.by_name.values():
                self._start(deployment)
            self._check_available()
            if self.membership is not None:
                self.membership.start(self.config.process_name or self._url.partition("://")[2] or "unnamed", self._url)
            self.ready.set()
            self._start_ended.set()
            self.on_ready()
            self._watch()
        except (StorageDamaged, BadInput, ServerFailed) as error:
            self.error = error
        except BaseException as error:
            log.exception("the thread that checks the deployments has failed")
            self.error = ServerFailed(f"the server failed: {error}")
        finally:
            if self.error is not None:
                log.error("the server stops: %s", self.error)
                self.on_failed()
            self._start_ended.set()
            for deployment in self.by_name.values():
                try:
                    deployment.stop()
                except Exception:  # the others must be stopped too
                    log.exception("'%s' was not stopped in order", deployment.name)
            if self.membership is not None:
                self.membership.leave()

    def _start(self, deployment: Deployment) -> None:
        """Starts a deployment; a failure makes it unavailable and does not hold up the others."""
        try:
            deployment.start()
        except Exception as error:
            if not isinstance(error, BadInput | StorageUnavailable):
                log.exception("'%s' cannot be started", deployment.name)
            self._start_errors[deployment.name] = error
            deployment.fail(f"'{deployment.name}' cannot be started: {error}")

    def _watch(self) -> None:
        """Checks the deployments and the database at intervals until the server stops."""
        tasks: list[tuple[float, Callable[[], None]]] = [
            (TABLE_CHECK_INTERVAL, self._check_tables),
            (self.config.weight_check_interval, self._check_weights),
            (ERASURE_INTERVAL, self._finish_erasures),
            (FORGETTING_INTERVAL, self._forget_erased),
            (COLLECTION_INTERVAL * random.uniform(0.5, 1.0), self._collect_snapshots),  # not all processes at once
        ]
        times = [time.monotonic() + interval for interval, _ in tasks]
        while not self._stopping.wait(STATUS_INTERVAL):
            self._report_load()
            for i, (interval, task) in enumerate(tasks):
                if time.monotonic() >= times[i]:
                    task()
                    times[i] = time.monotonic() + interval
            self._check_available()

    def _report_load(self) -> None:
        """Tells the learners whether requests are being answered."""
        languages = [d for d in self.by_name.values() if isinstance(d, LanguageDeployment)]
        is_busy = any(d.engine.num_requests_running + d.engine.num_requests_waiting for d in languages)
        for deployment in languages:
            if deployment.branches is not None:
                deployment.branches.loop.is_server_busy = is_busy  # all deployments share one processor

    def _check_tables(self) -> None:
        """Notices that the database was damaged, removed or replaced."""
        try:
            self.store.check_tables()
        except StorageUnavailable as error:  # `_check_available` stops the server if the database is damaged
            log.debug("the database cannot be checked at present: %s", error)

    def _check_weights(self) -> None:
        """Notices changed weights."""
        for deployment in self.by_name.values():
            deployment.check_weights()

    def _check_available(self) -> None:
        """Logs new failures of deployments; raises the reason if no request can be answered any more."""
        if self.store.damage is not None:
            raise StorageDamaged(self.store.damage)
        failures = {name: d.failure for name, d in self.by_name.items() if d.failure is not None}
        for name, reason in failures.items():
            if self._reported.get(name) != reason:
                self._reported[name] = reason
                log.error("%s", reason)
        if len(failures) == len(self.by_name):
            is_input = all(isinstance(self._start_errors.get(name), BadInput) for name in failures)
            raise (BadInput if is_input else ServerFailed)("; ".join(failures.values()))

    def _clean_up(self) -> None:
        """Removes what a crash left of erased examples and of snapshots, as far as the disk permits it."""
        self._collect_snapshots()
        try:
            self.store.truncate_log()
        except (OSError, StorageUnavailable) as error:
            log.warning("the state folder cannot be cleaned up at present: %s", error)

    def _collect_snapshots(self) -> None:
        """Deletes unused snapshots; those of a shared store, which takes long to list, on a thread of its own."""
        if not self.store.is_shared:
            _delete_unused(self.store)
        elif self._collection is None or not self._collection.is_alive():
            self._collection = threading.Thread(
                target=_delete_unused, args=[self.store], name="unused snapshots", daemon=True
            )
            self._collection.start()

    def _finish_erasures(self) -> None:
        """Finishes erasures that the disk or a crash prevented."""
        for branches in self._branch_managers():
            try:
                branches.finish_erasures()
            except Exception:  # of one deployment; it is tried again
                log.exception("an erasure in '%s' cannot be finished", branches.deployment)

    def _forget_erased(self) -> None:
        """Removes from memory what other processes have erased."""
        if self.membership is None:
            return
        for branches in self._branch_managers():
            try:
                branches.forget_erased()
            except StorageUnavailable as error:  # it is tried again
                log.debug("erasures cannot be read at present: %s", error)
            except Exception:
                log.exception("what was erased in '%s' cannot be forgotten", branches.deployment)

    def _find_load(self) -> Load:
        """The requests that are generated or wait."""
        engines = [d.engine for d in self.by_name.values() if isinstance(d, LanguageDeployment)]
        running = sum(engine.num_requests_running for engine in engines)
        return Load(running, sum(engine.num_requests_waiting for engine in engines))

    def _branch_managers(self) -> list[BranchManager]:
        """The branches of all deployments that learn."""
        languages = [d for d in self.by_name.values() if isinstance(d, LanguageDeployment)]
        return [deployment.branches for deployment in languages if deployment.branches is not None]


def _delete_unused(store: Store) -> None:
    """Deletes unused snapshots; a failure is only logged."""
    try:
        snapshots.delete_unused(store)
    except (OSError, StorageUnavailable) as error:
        log.warning("unused snapshots cannot be deleted at present: %s", error)


def check_names(runs: Sequence[tuple[str, Path]]) -> None:
    """Checks the names of deployments before anything is read.

    Args:
        runs: Name and folder of each deployment.

    Raises:
        BadInput: For an invalid or a repeated name.
    """
    names: set[str] = set()
    for name, folder in runs:
        if not NAME.fullmatch(name):
            raise BadInput(
                f"'{name}' cannot be the name of a deployment: use up to 64 letters, digits, '.', '_' and '-'; "
                f"set a name with --alias NAME={folder}"
            )
        if name in names:
            raise BadInput(f"two deployments are named '{name}'; rename one of them with --alias NAME=RUN")
        names.add(name)


def _build_branches(
    name: str,
    model: LanguageModel,
    store: Store,
    config: ServerConfig,
    ownership: BranchOwnership,
    applies_adapters: bool,
) -> tuple[BranchManager, OnlineConfig]:
    """Builds the branches of a model that learns online; returns them with the settings of the learner."""
    build = partial(learner.build, model, applies_adapters=applies_adapters)
    choice = default_config.choose_config(config.learning, trees.num_elements(model.weights))
    online_config, reference = choice.config, [Path(file) for file in config.reference_text]
    try:
        branch_learner = build(online_config, reference)
        if choice.is_adapter_by_size and journal.find_learner_digest(store, name) not in (None, branch_learner.digest):
            # Branches of an earlier version, in which all weights of every model learned, go on as they began.
            online_config = online_learner.parse_config(config.learning)
            branch_learner = build(online_config, reference)
    except BadInput as error:
        raise BadInput(f"'{name}' cannot learn online: {error}") from None
    limits = BranchConfig(
        max_forgetting=config.max_forgetting,
        learning_fraction=config.learning_fraction,
        max_loaded=config.max_loaded_branches,
    )
    if config.allow_mixed:  # another machine may not be able to compute a version again
        limits = limits.model_copy(update={"snapshot_interval": 1})
    branches = BranchManager(
        store, name, branch_learner, shared=config.shared_branch, config=limits, ownership=ownership
    )
    return branches, online_config
