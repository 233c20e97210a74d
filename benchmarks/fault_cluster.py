"""A private PostgreSQL, server processes that share it, and a proxy of the database for each of them."""

import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from database_proxy import DatabaseProxy
from fault_clients import FROZEN, Client, History, Key
from local_postgres import LimitedDisk, PostgresServer, running_postgres
from ontogeny.server import keys
from ontogeny.server.store import Store
from server_group import LoadBalancer, Replica, make_tiny_run, wait_until

DISK_SIZE = 512 << 20  # bytes of the database's file system, if it is limited
WRONG_CLOCK = Path(__file__).parent / "wrong_clock.c"
ROLES = {"learner": 12, "restorer": 4, "eraser": 4}  # of twenty keys that learn
DATABASE_OPTIONS = ("max_wal_size=64MB", "min_wal_size=32MB", "log_min_messages=warning")
KEY_GRACE_TIME = 90.0  # seconds: a key that was used right before the longest outage is known until its end
LEARNING = ("--online", "--learning-fraction", "1", "--max-forgetting", "5", "--freeze", FROZEN)


class Cluster:
    """Processes under load.

    Args:
        folder: Takes the state, the logs and the history.
        num_processes: How many share the database.
        num_clients: Threads that send requests.
        num_keys: How many keys they use.
        num_learning: How many of these keys learn.
        pause: Mean seconds between two operations of a client.
        seed: Of all random choices of the clients.
        run: A language model; a tiny one is trained if there is none.

    Attributes:
        database: The PostgreSQL server.
        disk: Its file system, if this process may mount one.
        replicas: The server processes.
        proxies: The way of each process to the database.
        history: What clients did.
        run: The language model.
        address: The address of the database without a proxy.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_processes: int = 3,
        num_clients: int = 8,
        num_keys: int = 50,
        num_learning: int = 20,
        pause: float = 0.4,
        seed: int = 0,
        run: Path | None = None,
    ) -> None:
        self.folder, self._pause = folder, pause
        self._stack, self._stopping, self._threads = contextlib.ExitStack(), threading.Event(), list[threading.Thread]()
        self.history = History(folder / "history.jsonl")
        self.state_dir = folder / "state"
        self.run = make_tiny_run(folder / "run") if run is None else run
        with contextlib.ExitStack() as stack:  # what has been started ends if this fails
            self.disk, self.database = stack.enter_context(_open_database())
            self.address = self.database.address("campaign")
            self.proxies = [stack.enter_context(DatabaseProxy(self.database.port)) for _ in range(num_processes)]
            self.replicas = [self.make_replica(number) for number in range(num_processes)]
            stack.callback(self._kill_all)
            self.keys, self.admin = self._create_keys(num_keys, num_learning)
            self._stack = stack.pop_all()
        self.balancer = LoadBalancer(self.replicas, self.history.violations)
        self._states, self._pending = dict[str, bytes](), dict[str, int]()
        self.clients = [self.make_client(number, seed) for number in range(num_clients)]

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_clients()
        self.history.close()
        self._stack.close()

    def make_replica(self, number: int) -> Replica:
        """Creates a process that is not started, with the name and the proxy of this number."""
        port = self.proxies[number].port
        arguments = ["--alias", f"story={self.run}", "--alias", f"{FROZEN}={self.run}", *LEARNING]
        arguments += ["--state-dir", str(self.state_dir), "--key-grace-time", str(KEY_GRACE_TIME)]
        url = self.address.replace(f":{self.database.port}/", f":{port}/")
        arguments += ["--process-name", f"process{number}"]
        return Replica(number, arguments, url, self.folder / f"process{number}.log")

    def make_replay(self, state_dir: Path) -> Replica:
        """Creates a process that is not started and has a database of its own in a state folder."""
        replica = self.make_replica(0)
        arguments = [str(state_dir) if text == str(self.state_dir) else text for text in replica.arguments]
        return Replica(len(self.replicas), arguments, "", self.folder / "replay.log")

    def make_client(self, number: int, seed: int) -> Client:
        """Creates a client."""
        return Client(
            number, self.balancer, self.history, self.admin, random.Random(f"{seed} {number}"), keys=self.keys,
            pause=self._pause, stopping=self._stopping, states=self._states, pending=self._pending,
        )  # fmt: skip

    def start(self) -> None:
        """Starts all processes, then all clients."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            replica.wait()
        self._threads = [threading.Thread(target=client.run, daemon=True) for client in self.clients]
        for thread in self._threads:
            thread.start()

    def stop_clients(self) -> None:
        """Lets all clients finish their operations."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(200)
            if thread.is_alive():
                self.history.report("an operation of a client did not end")
        self._threads = []

    def recover(self) -> None:
        """Ends all disturbances, starts what does not run, and waits until everything is ready."""
        if self.disk is not None:
            self.disk.release()
        if not self.database.is_running:
            self.database.start()
        for proxy in self.proxies:
            proxy.restore()
        for replica in self.replicas:
            if replica.is_paused:
                replica.send_signal(signal.SIGCONT)
            if not replica.is_running:
                replica.start()
        for replica in self.replicas:
            with contextlib.suppress(RuntimeError):  # it could not start without the database
                replica.wait()
            if not replica.is_running:
                replica.start()
                replica.wait()

    def settle(self, seconds: float = 300.0) -> None:
        """Waits until nothing is pending, then lists the examples of all branches, as one last client."""
        client = self.clients[0]
        for key in self.learning_keys:
            try:
                wait_until(lambda key=key: client.read(key) == 0, seconds, f"the branch of {key.id} is learned")
            except TimeoutError as error:
                self.history.report(str(error))
            client.list_all(key)

    @property
    def learning_keys(self) -> list[Key]:
        """The keys whose branches learn."""
        return [key for key in self.keys if key.role != "frozen"]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs a query on a connection of its own; an empty list if the database or a table is absent at present."""
        try:
            with psycopg.connect(self.address, autocommit=True, connect_timeout=2) as connection:
                connection.execute("SET statement_timeout = 2000")
                return connection.execute(statement, parameters).fetchall()  # type: ignore[arg-type]
        except psycopg.Error:
            return []

    def sessions(self, number: int) -> list[tuple[int, str, str]]:
        """Port, state and last statement of the open transactions of a process at the database."""
        ports = self.proxies[number].database_ports()
        statement = (
            "SELECT client_port, state, query FROM pg_stat_activity "
            "WHERE xact_start IS NOT NULL AND client_port = ANY(%s) AND state LIKE 'idle in transaction%%'"
        )
        return self.query(statement, ports)

    def owned_branches(self) -> dict[str, int]:
        """The process numbers of the owners of all branches, as the database records them."""
        return dict(self.query("SELECT branch, owner FROM branches WHERE owner IS NOT NULL"))

    def _create_keys(self, num_keys: int, num_learning: int) -> tuple[list[Key], str]:
        """Creates the keys of the clients and an admin key."""
        roles = [role for role, share in ROLES.items() for _ in range(round(share * num_learning / 20))]
        roles += ["frozen"] * (num_keys - len(roles))
        with Store(self.state_dir, database_url=self.address) as store:
            admin = keys.create_key(store, "admin", admin=True)[1]
            created = [keys.create_key(store, f"{role} {number}") for number, role in enumerate(roles)]
        return [Key(key.id, text, role) for (key, text), role in zip(created, roles, strict=True)], admin

    def _kill_all(self) -> None:
        for replica in self.replicas:
            replica.kill()


@contextlib.contextmanager
def _open_database() -> Iterator[tuple[LimitedDisk | None, PostgresServer]]:
    """A PostgreSQL server, on a disk of limited size if this process may mount one."""
    with contextlib.ExitStack() as stack:
        disk, folder = None, Path(tempfile.mkdtemp(prefix="ontogeny-postgres-"))
        if LimitedDisk.is_possible():
            disk = LimitedDisk(folder, DISK_SIZE)
            stack.callback(folder.rmdir)
            stack.callback(disk.remove)
        folder = folder / "server"
        folder.mkdir()
        yield disk, stack.enter_context(running_postgres(folder=folder, options=DATABASE_OPTIONS))


def wrong_clock(seconds: float, folder: Path) -> dict[str, str]:
    """The environment of a process whose time of day is wrong; empty if there is no compiler of C.

    libfaketime 0.9.10 lets `time.sleep` fail, because it also changes waits until a time of another clock.
    """
    library, compiler = folder / "wrong_clock.so", shutil.which("cc")
    if compiler is None:
        return {}
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(WRONG_CLOCK), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK": f"{seconds:.0f}"}


def read_time() -> float:
    """Seconds of a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
