"""The web application and the process around it."""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from fastapi import FastAPI

from ontogeny import __version__
from ontogeny.errors import BadInput
from ontogeny.server import keys
from ontogeny.server.api import agents, assets, branches, completions, pages, sessions, tokenizer
from ontogeny.server.api.authentication import Authentication
from ontogeny.server.api.bodies import BodyParser
from ontogeny.server.api.context import ServerContext
from ontogeny.server.api.error_handlers import add_error_handlers
from ontogeny.server.api.origins import OriginGuard, is_loopback
from ontogeny.server.api.request_limits import RequestLimits
from ontogeny.server.api.routes import LenientRouting
from ontogeny.server.api.teaching import ExampleHeader
from ontogeny.server.connections import build_server
from ontogeny.server.deployment_kinds import LanguageDeployment
from ontogeny.server.deployments import Deployments
from ontogeny.server.fair_executor import FairExecutor, FairThreadPool
from ontogeny.server.key_lookup import KeyLookup
from ontogeny.server.learning.intake import ExampleIntake
from ontogeny.server.logs import configure_logs
from ontogeny.server.process_memory import trim_memory_periodically
from ontogeny.server.processes.membership import Membership
from ontogeny.server.processes.shared_limits import SharedRateLimits
from ontogeny.server.processes.shared_queues import SharedQueues
from ontogeny.server.rate_limits import RateLimits
from ontogeny.server.store import Store
from ontogeny.server.upload_limits import UploadLimits
from ontogeny.server.usage import UsageMeter

ARRIVAL_LIMIT = 20.0  # seconds in which a request must have arrived
ANY_ADDRESS = ("0.0.0.0", "::")  # hosts that stand for all addresses of the machine
MAX_OPEN_FILES = 65_536  # each connection is one
BACKLOG = 2048  # connections
NUM_THREADS = 8  # for short calls, and again for long ones
SWITCH_INTERVAL = 0.0005  # seconds for which a thread has the interpreter while others wait; Python's default is 0.005
MAX_STOP_TIME = 60.0  # seconds for a server that has failed to end in order
MAX_WAITING = 1024  # calls of one key that may wait for such a thread


class ServerApplication(NamedTuple):
    """The ASGI application of a server.

    Attributes:
        guard: The application as a web server calls it.
        limits: The part of it that limits and ends requests.
    """

    guard: OriginGuard
    limits: RequestLimits


def build_app(deployments: Deployments, url: str = "") -> ServerApplication:
    """Builds the ASGI application of a server, which starts and stops its deployments.

    Args:
        deployments: The models.
        url: Where other processes that share the database reach this one.
    """
    config = deployments.config
    api: Any = build_api(deployments, url)
    if deployments.membership is not None:
        from ontogeny.server.api.forwarding import RequestForwarding  # needs a package that only PostgreSQL brings

        assert deployments.transfers is not None
        api = RequestForwarding(api, deployments.membership, deployments.transfers.count_request)
    limits = RequestLimits(
        LenientRouting(Authentication(api, KeyLookup(deployments.store, config.key_grace_time))),
        max_body_bytes=config.max_body_bytes,
        arrival_limit=ARRIVAL_LIMIT,
        upload_limit=UploadLimits(deployments).find,
        answers_until_end=deployments.membership is not None,
    )
    reachable = config.model_copy(update={"process_url": config.process_url or url})
    return ServerApplication(OriginGuard(ExampleHeader(limits), reachable), limits)


def build_api(deployments: Deployments, url: str = "") -> FastAPI:
    """Builds the part of the application that has the routes and their OpenAPI document; see `build_app`."""
    meter, long_calls = UsageMeter(deployments), FairExecutor("long calls", NUM_THREADS, MAX_WAITING)
    bodies, store = BodyParser(), deployments.store
    rate_limits = RateLimits() if deployments.membership is None else SharedRateLimits(store)
    intake = ExampleIntake(store)
    if deployments.transfers is not None:
        deployments.transfers.export_prompts = intake.export_prompts
        deployments.transfers.import_prompts = intake.import_prompts
    for name, deployment in deployments.by_name.items():
        if isinstance(deployment, LanguageDeployment):
            deployment.on_erased = functools.partial(intake.forget_examples, name)
    shared_queues = None if deployments.membership is None else _share_queues(deployments, deployments.membership)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(FairThreadPool("calls", NUM_THREADS, MAX_WAITING))
        store.database.bound_waits()
        deployments.start(url)
        meter.start()
        rate_limits.start()
        if shared_queues is not None:
            shared_queues.start()
        if deployments.membership is not None:  # until then, other processes receive the requests
            await asyncio.to_thread(deployments.wait_for_start)
        trimming = asyncio.create_task(trim_memory_periodically())
        yield
        trimming.cancel()
        rate_limits.stop()
        if shared_queues is not None:
            shared_queues.stop()
        meter.stop()
        long_calls.stop()
        bodies.stop()
        await asyncio.to_thread(deployments.stop)

    app = FastAPI(
        title="ontogeny",
        version=__version__,
        description="Saved models, frozen or learning online: the OpenAI API, agents, and branches of weights.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.context = ServerContext(deployments, rate_limits, meter, intake, long_calls, bodies)
    for module in (completions, tokenizer, branches, sessions, agents, pages, assets):
        app.include_router(module.router)
    add_error_handlers(app)
    _omit_status_422(app)
    return app


class ListeningServer:
    """A server whose address belongs to it, and which can be run once.

    Args:
        deployments: The models.
        listening: The socket of the address.

    Attributes:
        url: The address.
    """

    def __init__(self, deployments: Deployments, listening: socket.socket) -> None:
        self.url = _url(listening)
        self._deployments, self._listening, config = deployments, listening, deployments.config
        application = build_app(deployments, self.url)
        self._server = build_server(
            application.guard,
            application.limits,
            arrival_limit=ARRIVAL_LIMIT,
            send_limit=config.time_limit,
            backlog=BACKLOG,
            drain_time=config.drain_time,
            on_exit=deployments.hand_over,
        )
        deployments.on_failed = self._end

    def run(self) -> None:
        """Serves until the process is told to stop, or until nothing can be answered any more.

        Raises:
            BadInput: The address cannot be used, or no deployment can be started.
            StorageDamaged: The database was damaged, removed or replaced.
            ServerFailed: All deployments have failed.
        """
        try:
            self._server.run(sockets=[self._listening])
        except OSError as error:  # another process has listened on the port in the meantime
            if self._server.started:
                raise
            config = self._deployments.config
            raise _unusable_address(config.host, config.port, error) from None
        if self._deployments.error is not None:
            raise self._deployments.error

    def stop(self) -> None:
        """Begins to end the server as SIGTERM does: it hands its branches over and answers what it has accepted."""
        self._server.handle_exit(signal.SIGTERM, None)

    def _end(self) -> None:
        """Ends the server in order, or at least the process if a thread does not end."""
        self._server.should_exit = True
        timer = threading.Timer(MAX_STOP_TIME, os._exit, [1])
        timer.daemon = True
        timer.start()


def open_server(deployments: Deployments, address: tuple[str, int] | None = None) -> ListeningServer:
    """Opens the address of a server.

    Args:
        deployments: The models; their configuration names the address at which clients connect.
        address: Host and port of this process, if a program in front of it has that address.

    Raises:
        BadInput: The address cannot be used; other machines could reach it although no key exists, or other processes
            could not reach it.
    """
    config = deployments.config
    host, port = address or (config.host, config.port)
    for reachable in (host, config.host):
        require_key(deployments.store, reachable)
    if deployments.membership is not None and not config.process_url and host in ANY_ADDRESS:
        raise BadInput(f"other processes cannot reach this one at '{host}': name its address with --process-url")
    _raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL)
    configure_logs(config.log_level)
    return ListeningServer(deployments, _bind(host, port, listens=deployments.membership is None))


def require_key(store: Store, host: str) -> None:
    """Raises `BadInput` if other machines could use an address without a key, because none exists."""
    if not is_loopback(host) and not keys.has_valid_key(store):
        raise BadInput(
            f"other machines could use '{host}' without a key: create one with `ontogeny keys create`, "
            "or listen on 127.0.0.1"
        )


def serve(deployments: Deployments, *, on_listening: Callable[[str], None]) -> None:
    """Serves until the process is told to stop; see `open_server` and `ListeningServer.run`.

    Args:
        deployments: The models; their configuration names the address.
        on_listening: Called once the address belongs to the server, with the URL of the server.
    """
    server = open_server(deployments)
    on_listening(server.url)
    server.run()


def require_free_address(host: str, port: int) -> None:
    """Raises `BadInput` if no server can listen on an address of this machine at present."""
    _bind(host, port, listens=True).close()


def _share_queues(deployments: Deployments, membership: Membership) -> SharedQueues:
    """Lets the limits of all queues hold over the processes that share the database."""
    shared_queues = SharedQueues(deployments.store, membership)
    for name, deployment in deployments.by_name.items():
        shared_queues.add(name, deployment.queues)
    return shared_queues


def _omit_status_422(app: FastAPI) -> None:
    """Removes status 422, which FastAPI assumes, from the OpenAPI document; the server answers 400 instead."""
    build_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build_document()
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
        return build_document()

    app.openapi = openapi  # type: ignore[method-assign]


def _bind(host: str, port: int, *, listens: bool) -> socket.socket:
    """Opens the socket of the server, which refuses connections until it listens.

    Raises:
        BadInput: The address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        if listens:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise _unusable_address(host, port, error) from None


def _unusable_address(host: str, port: int, error: OSError) -> BadInput:
    """Creates the error of an address on which the server cannot listen."""
    reason = (error.strerror or str(error)).partition(" (while")[0]  # Python repeats the address
    return BadInput(f"the server cannot listen on '{host}' port {port}: {reason}")


def _url(listening: socket.socket) -> str:
    """The address of a listening socket, with the port that the system chose for port 0."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


def _raise_file_limit() -> None:
    """Allows the process as many open files, and so connections, as the system permits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = min(hard_limit, MAX_OPEN_FILES) if hard_limit > 0 else MAX_OPEN_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard_limit))
