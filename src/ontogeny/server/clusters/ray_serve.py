"""A server as an application of Ray Serve (Moritz et al. 2018, OSDI): one ingress and several replicas.

Ray places and watches the replicas, each of which is a server process (`ServerReplica`), and listens for requests on
its machines. The ingress passes each request on to a replica. Ray's multiplexed routing chooses it by the id of the
request's key, so that a replica receives the requests of the keys whose weights it has in memory. This is a hint: any
replica answers any request.
"""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from ontogeny import plugins
from ontogeny.errors import BadInput, ServerFailed, require_at_least, require_between
from ontogeny.parallel import ray_clusters
from ontogeny.parallel.worker import num_processors
from ontogeny.server import app, keys
from ontogeny.server.clusters import proxy
from ontogeny.server.clusters.ingress import IngressReplica
from ontogeny.server.clusters.replica import ReplicaSettings, ServerReplica, find_environment
from ontogeny.server.clusters.settings_check import check_settings
from ontogeny.server.config import ServerConfig
from ontogeny.server.connections import CLOSE_TIME, LINGER_TIME, MAX_PREPARATION_TIME
from ontogeny.server.store import Store, default_snapshot_url, find_address

APPLICATION = "ontogeny"  # its name in the cluster
REPLICAS = "replicas"
MAX_REPLICAS = 1024
MAX_ONGOING_REQUESTS = 10_000  # of one replica or ingress, which limit requests by themselves
MAX_KEYS = 1000  # of one replica that Ray knows; it reports all of them ten times a second
NUM_INGRESSES = 2  # so that one is there while Ray replaces the other
STOP_MARGIN = 10.0  # seconds for a replica to end after its last answer
HEALTH_CHECK_PERIOD, HEALTH_CHECK_TIMEOUT = 2.0, 6.0  # seconds
DRAIN_CHECK_INTERVAL = 0.2  # seconds
STATUS_INTERVAL = 1.0  # seconds
ERROR_MESSAGE = re.compile(r"(?:ontogeny\.errors\.)?(BadInput|ServerFailed|StorageDamaged): (.*)")
log = logging.getLogger(__name__)


class RayOptions(NamedTuple):
    """The settings of `--on ray`.

    Attributes:
        address: Of a cluster; empty for the variable RAY_ADDRESS, and without it for a new cluster on this machine.
        num_replicas: Server processes.
        num_cpus: Processors that Ray reserves for each.
    """

    address: str = ""
    num_replicas: int = 2
    num_cpus: float = 1.0


def read_options(text: str) -> RayOptions:
    """Reads the argument of `--on`.

    Args:
        text: `ray`, and settings after a colon, as "ray:num_replicas=4"; they are the fields of `RayOptions`.

    Raises:
        BadInput: There is no such cluster manager or setting, or a setting is out of its range.
    """
    name, settings = plugins.parse(text)
    if name != "ray":
        raise plugins.unknown_name_error("cluster manager", name, ["ray"])
    for setting, chosen in settings.items():
        if setting not in RayOptions._fields:
            raise BadInput(f"--on ray has no setting '{setting}'; its settings are {', '.join(RayOptions._fields)}")
        default = RayOptions._field_defaults[setting]
        settings[setting] = plugins.convert_setting(chosen, default, f"the setting '{setting}' of --on ray")
    options = RayOptions(**settings)
    require_between(1, MAX_REPLICAS, num_replicas=options.num_replicas)
    require_at_least(0, num_cpus=options.num_cpus)
    if options.address.startswith("ray://"):
        raise BadInput(
            "a server is not started through ray://: run the command on a machine of the cluster, with "
            "--on ray:address=HOST:PORT or with `ray job submit`"
        )
    return options


class RayServer:
    """A server on a Ray cluster, to which this process is connected.

    Args:
        settings: The settings of all replicas.
        options: The settings of the cluster.
        num_gpus: Graphics processors that Ray reserves for each replica.

    Raises:
        BadInput: A package or the cluster is not available, or the address of the server is in use.
    """

    def __init__(self, settings: ReplicaSettings, options: RayOptions, num_gpus: int) -> None:
        self._settings, self._options, self._num_gpus = settings, options, num_gpus
        self._stopping = threading.Event()
        self._address = address = ray_clusters.find_address(options.address)
        self._ray, self._serve = _import_ray(options)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        host, port = settings.config.host, settings.config.port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if address == ray_clusters.LOCAL:
            app.require_free_address(host, port)
        else:
            ray_clusters.require_listener(address)
        num_cpus = max(num_processors(), -int(-options.num_replicas * options.num_cpus // 1))
        ray_clusters.connect(self._ray, address, num_cpus, log_to_driver=True, variables=proxy.find_variables())

    def run(self, announce: Callable[[str], None], modes: str) -> None:
        """Serves until this process receives SIGTERM or SIGINT, and then removes the server from the cluster.

        Args:
            announce: Called with a line about the state of the server, when it can answer and when Ray has a message.
            modes: The deployments, as that line shows them.

        Raises:
            BadInput: The server cannot start with these settings.
            ServerFailed: It cannot start, or the connection to the cluster is lost.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        is_deployed = False
        try:
            had_serve = bool(self._serve.status().proxies)
            self._start_serve(had_serve)
            announce(f"starting {modes}")
            self._deploy()
            is_deployed = True
            if self._await_start(announce):
                announce(f"serving {modes} with {self._options.num_replicas} processes on {self.url}")
                is_deployed = self._watch()
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            is_deployed = False
            raise ServerFailed(f"the connection to the Ray cluster was lost: {error}") from None
        finally:
            if is_deployed:
                self._serve.delete(APPLICATION)
        if not had_serve and is_deployed and self._address != ray_clusters.LOCAL:
            self._serve.shutdown()

    def close(self) -> None:
        """Disconnects; a cluster that was started here ends."""
        self._ray.shutdown()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._stopping.set()

    def _start_serve(self, had_serve: bool) -> None:
        """Lets Ray listen at the address of the server, on every machine with a replica.

        Raises:
            BadInput: It listens at another address already.
        """
        config, quiet = self._settings.config, {"log_level": "WARNING", "enable_access_log": False}
        if had_serve:
            from ray.serve.context import _get_global_client  # pyright: ignore[reportMissingImports]

            present = _get_global_client().http_config
            if (present.host, present.port) != (config.host, config.port):
                raise BadInput(
                    f"Ray Serve listens on '{present.host}' port {present.port} of this cluster, not on "
                    f"'{config.host}' port {config.port}: name that address with --host and --port, or end it with "
                    "`serve shutdown`"
                )
        self._serve.start(http_options={"host": config.host, "port": config.port}, logging_config=quiet)

    def _deploy(self) -> None:
        """Submits the application; if the cluster has it already, Ray replaces its processes one by one."""
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        try:
            self._serve._run(self._build(), name=APPLICATION, route_prefix="/", logging_config=quiet, _blocking=False)
        except self._serve.exceptions.RayServeException as error:  # another application has the route
            raise BadInput(f"Ray Serve does not accept the server: {' '.join(str(error).split())}") from None

    def _build(self) -> Any:
        """The application: the replicas, and the ingress before them."""
        serve, config, options = self._serve, self._settings.config, self._options

        class Replica(ServerReplica):
            """A replica with Ray's list of its keys."""

            def __init__(self, settings: ReplicaSettings) -> None:
                import ray  # pyright: ignore[reportMissingImports]
                from ray import serve  # pyright: ignore[reportMissingImports]

                unique_name = serve.get_replica_context().replica_id.unique_id
                name = f"{settings.config.process_name or 'replica'}-{unique_name}"
                number = ray.get_runtime_context().get_node_id()
                host = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == number)
                super().__init__(settings, name, host)

            @serve.multiplexed(max_num_models_per_replica=MAX_KEYS)
            async def note_key(self, key: str) -> bool:
                return True

        common = {"max_ongoing_requests": MAX_ONGOING_REQUESTS, "graceful_shutdown_wait_loop_s": DRAIN_CHECK_INTERVAL}
        health = {"health_check_period_s": HEALTH_CHECK_PERIOD, "health_check_timeout_s": HEALTH_CHECK_TIMEOUT}
        stop_time = MAX_PREPARATION_TIME + LINGER_TIME + config.drain_time + CLOSE_TIME + STOP_MARGIN
        replicas = serve.deployment(
            Replica, name=REPLICAS, num_replicas=options.num_replicas, graceful_shutdown_timeout_s=stop_time,
            ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": self._num_gpus}, **common, **health,
        )  # fmt: skip
        ingress = serve.deployment(
            serve.ingress()(IngressReplica), name="ingress", num_replicas=min(NUM_INGRESSES, options.num_replicas),
            graceful_shutdown_timeout_s=config.time_limit + STOP_MARGIN, ray_actor_options={"num_cpus": 0}, **common,
        )  # fmt: skip
        hint = None if config.online and not config.shared_branch else keys.LOCAL.id if config.online else ""
        return ingress.bind(replicas.bind(self._settings), hint)

    def _await_start(self, announce: Callable[[str], None]) -> bool:
        """Waits until all replicas answer; returns False if this process is to stop before.

        Raises:
            BadInput: A replica has raised it.
            ServerFailed: A replica cannot start for another reason.
        """
        reported: set[str] = set()
        while not self._stopping.is_set():
            application = self._serve.status().applications[APPLICATION]
            if application.status == "RUNNING":
                return True
            if application.status == "DEPLOY_FAILED":
                raise _start_error(application)
            for deployment in application.deployments.values():
                if deployment.message and deployment.message not in reported:
                    reported.add(deployment.message)
                    announce(next(iter(deployment.message.splitlines())))
            self._stopping.wait(STATUS_INTERVAL)
        return False

    def _watch(self) -> bool:
        """Waits until this process is to stop; returns whether the application is still the one it deployed."""
        while not self._stopping.wait(STATUS_INTERVAL):
            application = self._serve.status().applications.get(APPLICATION)
            if application is None or application.status == "DELETING":
                return False
            if any(deployment.status == "UPDATING" for deployment in application.deployments.values()):
                return False  # another command has deployed it; no failure of a process has this status
        return True


def serve_on_ray(
    on: str,
    runs: Sequence[tuple[str, Path]],
    config: ServerConfig,
    storage: tuple[Path, str | None, str | None],
    prepare: Callable[[], None],
    *,
    needs_gpu: bool,
    announce: Callable[[str], None],
) -> None:
    """Serves on a Ray cluster until this process is told to stop.

    Args:
        on: The argument of `--on`.
        runs: Name and folder of each deployment.
        config: The settings of the server.
        storage: The state folder, and the addresses of the database and of the snapshots; see `Store`.
        prepare: Called in each replica before JAX is imported.
        needs_gpu: Whether each replica needs a graphics processor.
        announce: Called with lines about the state of the server.

    Raises:
        BadInput: The settings cannot be used.
        ServerFailed: See `RayServer.run`.
    """
    options = read_options(on)
    folder, database_url, snapshot_url = storage
    address = find_address(folder, database_url)
    if address is None:
        raise BadInput(
            "--on ray needs a PostgreSQL database, which the server processes share: name it with --database-url or "
            "ONTOGENY_DATABASE_URL"
        )
    if config.process_url or not config.port:
        name = "--process-url" if config.process_url else "--port 0"
        raise BadInput(f"{name} cannot be used with --on ray: each process chooses an address, and Ray listens on one")
    _import_ray(options)  # before anything is written
    texts = tuple(str(Path(text).resolve()) for text in config.reference_text)
    config = config.model_copy(update={"reference_text": texts})
    settings = ReplicaSettings(
        [(name, run.resolve()) for name, run in runs], folder.resolve(), address,
        snapshot_url or default_snapshot_url(folder), find_environment(os.environ), config, prepare,
    )  # fmt: skip
    with Store(folder, database_url=database_url, snapshot_url=snapshot_url) as store:
        store.check_integrity()
        store.check_snapshots()
        if not keys.has_valid_key(store):
            raise BadInput(
                "--on ray needs a key, because the processes listen where other machines reach them: create one with "
                "`ontogeny keys create` for this database"
            )
    modes = ", ".join(f"{name} ({'online' if config.online and name not in config.frozen else 'frozen'})"
                      for name, _ in runs)  # fmt: skip
    check_settings(settings, needs_gpu=needs_gpu)
    server = RayServer(settings, options, int(needs_gpu))
    try:
        server.run(announce, modes)
    finally:
        server.close()


def _import_ray(options: RayOptions) -> tuple[Any, Any]:
    """Imports Ray and Ray Serve; raises `BadInput` if they are not installed."""
    address, feature = ray_clusters.find_address(options.address), "servers on a cluster"
    return ray_clusters.import_ray(address, "ray", feature), ray_clusters.import_ray(address, "ray.serve", feature)


def _start_error(application: Any) -> BadInput | ServerFailed:
    """Creates the error of an application that Ray cannot start, from its messages, which contain tracebacks."""
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    for text in messages:
        for match in ERROR_MESSAGE.finditer(text):
            return (BadInput if match[1] == "BadInput" else ServerFailed)(match[2])
    return ServerFailed(f"Ray cannot start the server: {' '.join(' '.join(messages).split())[-500:]}")
