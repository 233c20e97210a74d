"""The deployments of a server, each a saved model under a name, and the thread that starts, checks and stops them.

This module does not depend on HTTP.
"""

import contextlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ontogeny.engine.engine import default_cache_bytes
from ontogeny.errors import BadInput, ServerFailed, StorageDamaged, StorageUnavailable
from ontogeny.lm import weight_types
from ontogeny.plugins import unknown_name_error
from ontogeny.server import quotas
from ontogeny.server.background import BackgroundThread, LoggedErrors
from ontogeny.server.config import ServerConfig
from ontogeny.server.deployment_kinds import AgentDeployment, Deployment, LanguageDeployment
from ontogeny.server.learning import journal, snapshots
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes import options
from ontogeny.server.processes.identity import describe_computation
from ontogeny.server.processes.membership import Load, Membership
from ontogeny.server.processes.transfers import BranchTransfers
from ontogeny.server.served_models import ServedModel, load_served_model
from ontogeny.server.store import Store
from ontogeny.stages.session import AgentSession

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STATUS_INTERVAL = 0.2  # seconds
TABLE_CHECK_INTERVAL = 1.0  # seconds between two looks at the tables of a database in the state folder
SHARED_CHECK_INTERVAL = 5.0  # seconds between two looks at the tables of PostgreSQL, which checks its own files
COLLECTION_INTERVAL = 3600.0  # seconds between deletions of unused snapshots from a shared store
FORGETTING_INTERVAL = 1.0  # seconds between two looks at what other processes have erased
MAX_TRANSFER_TIME = 5.0  # seconds in which other processes load the branches of a process that ends
ERASURE_INTERVAL = 5.0  # seconds between attempts to finish an erasure that the disk prevented
log = logging.getLogger(__name__)


class Deployments:
    """All deployments of a server, and the thread that starts and checks them.

    Args:
        runs: Name and folder of each deployment.
        store: The database.
        config: The settings of the server.

    Attributes:
        ready: Set once the deployments have started.
        on_started: Called when all deployments have started, before `ready` is set.
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
        self.transfers: BranchTransfers | None = None
        if store.database.is_shared:
            self.membership = Membership(
                store, describe_computation(), allow_mixed=config.allow_mixed, find_load=self._find_load
            )
            self.transfers = BranchTransfers(
                store,
                self.membership,
                save=lambda name: self._find_branches(name).loader.save(name),
                load=lambda name: self._find_branches(name).loader.load(name),
            )
        self.by_name: dict[str, Deployment] = {}
        self.ready = threading.Event()
        self.on_started: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None
        self.error: Exception | None = None
        self._reported: dict[str, str] = {}  # failures of deployments that are in the log
        self._start_errors: dict[str, Exception] = {}
        self._errors = {name: LoggedErrors(f"an erasure in '{name}'") for name, _ in runs}
        # A shared store takes long to list, so that the start does not wait for it.
        first = 0.0 if store.is_shared else COLLECTION_INTERVAL
        self._collection = BackgroundThread("unused snapshots", self._delete_unused, delay=first)
        self._stopping, self._is_handed_over = threading.Event(), False
        self._compared: int | None = None  # the newest process with whose options those of this one were compared
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
        self._compare_options()
        quotas.set_default_limits(store, config)

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
        """Gives all branches to the other processes that share the database, if there are any, before the end.

        Branches in memory change their owner once another process has loaded them; this process answers until then.
        """
        self._start_ended.set()
        if self.membership is None or self.transfers is None or self._is_handed_over:
            return
        try:
            self.membership.announce_end()
            if self.membership.find_successor() is None:
                return
        except StorageUnavailable:
            return
        self._is_handed_over = True
        for branches in self._branch_managers():
            branches.loop.stop()
            branches.loader.save_current()
        names = [name for branches in self._branch_managers() for name in branches.loader.list_branches()]
        with contextlib.suppress(StorageUnavailable):
            self.transfers.hand_over(names, MAX_TRANSFER_TIME)
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
            self.on_started()
            if self.membership is not None and self.transfers is not None:
                self.transfers.start()
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
            self._collection.interrupt()
            if self.transfers is not None:
                self.transfers.stop()
            for deployment in self.by_name.values():
                with LoggedErrors(f"the end of '{deployment.name}'"):  # the others must be stopped too
                    deployment.stop()
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
        check_interval = TABLE_CHECK_INTERVAL if self.store.database.has_file else SHARED_CHECK_INTERVAL
        tasks: list[tuple[float, Callable[[], None], LoggedErrors]] = [
            (check_interval, self._check_tables, LoggedErrors("the check of the tables")),
            (self.config.weight_check_interval, self._check_weights, LoggedErrors("the check of the weights")),
            (ERASURE_INTERVAL, self._finish_erasures, LoggedErrors("the end of erasures")),
            (FORGETTING_INTERVAL, self._forget_erased, LoggedErrors("the search for erasures of other processes")),
        ]
        times = [time.monotonic() + interval for interval, *_ in tasks]
        while not self._stopping.wait(STATUS_INTERVAL):
            self._report_load()
            for i, (interval, task, errors) in enumerate(tasks):
                if time.monotonic() >= times[i]:
                    with errors:
                        task()
                    times[i] = time.monotonic() + interval
            self._check_options()
            self._check_available()

    def _compare_options(self) -> None:
        """Compares the options of this process with those of the ones that share the database, before it starts.

        Raises:
            BadInput: Another process has options with which this one would break a promise.
        """
        if self.membership is None:
            return
        deployments = {name: deployment.options for name, deployment in self.by_name.items()}
        self.membership.options = options.describe_options(self.config, deployments)
        processes = self.membership.list_earlier()
        if (conflict := options.find_conflict(self.membership.options, processes)) is not None:
            raise conflict
        if (warning := options.describe_differences(self.membership.options, processes)) is not None:
            log.warning("%s", warning)

    def _check_options(self) -> None:
        """Raises `BadInput` if an earlier process, which was not there at the start, has such options; see above."""
        if self.membership is None or self.membership.newest_differing == self._compared:
            return
        newest = self.membership.newest_differing
        with contextlib.suppress(StorageUnavailable):  # it is tried again
            conflict = options.find_conflict(self.membership.options, self.membership.list_earlier())
            self._compared = newest
            if conflict is not None:
                raise conflict

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
        if not self.store.is_shared:
            self._collection.attempt()
        self._collection.start()
        try:
            self.store.truncate_log()
        except (OSError, StorageUnavailable) as error:
            log.warning("the state folder cannot be cleaned up at present: %s", error)

    def _delete_unused(self) -> float:
        """Deletes unused snapshots; returns the seconds until the next time, which differ between processes."""
        try:
            snapshots.delete_unused(self.store)
        except (OSError, StorageUnavailable) as error:
            log.warning("unused snapshots cannot be deleted at present: %s", error)
        return COLLECTION_INTERVAL * random.uniform(0.5, 1.0)

    def _finish_erasures(self) -> None:
        """Finishes erasures that the disk or a crash prevented."""
        for branches in self._branch_managers():
            with self._errors[branches.deployment]:
                branches.finish_erasures()

    def _forget_erased(self) -> None:
        """Removes from memory what other processes have erased."""
        if self.membership is None:
            return
        try:
            last = journal.find_last_erasure(self.store)
            for branches in self._branch_managers():
                with self._errors[branches.deployment]:
                    branches.forget_erased(last)
        except StorageUnavailable as error:  # it is tried again
            log.debug("erasures cannot be read at present: %s", error)

    def _find_load(self) -> Load:
        """The requests that are generated or wait."""
        engines = [d.engine for d in self.by_name.values() if isinstance(d, LanguageDeployment)]
        running = sum(engine.num_requests_running for engine in engines)
        return Load(running, sum(engine.num_requests_waiting for engine in engines))

    def _find_branches(self, name: str) -> BranchManager:
        """The branches of the deployment to which a branch belongs.

        Args:
            name: The name of a branch, DEPLOYMENT/OWNER.

        Raises:
            BranchUnavailable: This process has no such deployment, or does not let it learn.
        """
        deployment = self.by_name.get(name.partition("/")[0])
        if not isinstance(deployment, LanguageDeployment) or deployment.branches is None:
            raise BranchUnavailable("this process has no such deployment that learns")
        return deployment.branches

    def _branch_managers(self) -> list[BranchManager]:
        """The branches of all deployments that learn."""
        languages = [d for d in self.by_name.values() if isinstance(d, LanguageDeployment)]
        return [deployment.branches for deployment in languages if deployment.branches is not None]


@contextlib.contextmanager
def opened_deployments(runs: Sequence[tuple[str, Path]], store: Store, config: ServerConfig) -> Iterator[Deployments]:
    """Opens the deployments of a server, which nobody else may use in a way that it excludes.

    Args:
        runs: Name and folder of each deployment.
        store: The database, which is checked before.
        config: The settings of the server.

    Raises:
        BadInput: See `Deployments` and `Store`.
        StorageDamaged: The database is damaged.
    """
    with store.lock():
        store.check_integrity()
        store.check_snapshots()
        store.update_statistics()
        yield Deployments(runs, store, config)


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
