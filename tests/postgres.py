"""A PostgreSQL server of the tests, on a free port of the loopback interface, with one schema per state folder."""

import contextlib
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg


def find_program(name: str) -> str | None:
    """The path of a program of PostgreSQL, also where Debian does not put it on the search path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ.get("PATH", "")]))


class PostgresServer:
    """A running server.

    Args:
        folder: An empty folder, which everybody can enter.
        fsync: Whether commits wait for the disk.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.data, self.fsync = folder / "data", fsync
        self.user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user is not None:
            folder.chmod(0o755)
            owner = pwd.getpwnam(self.user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", str(self.data), "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300"
        options += f" -c fsync={'on' if self.fsync else 'off'} -c shared_buffers=32MB"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-o", options, "-l", str(self.data / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: `fast` ends all connections, `immediate` is like a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def address(self, name: str) -> str:
        """The address of a schema of this name, which is created if it is absent."""
        with psycopg.connect(self._url) as connection:
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"')
        return f"{self._url}?options=-csearch_path%3D{name}"

    def address_for(self, folder: Path | str) -> str:
        """The address for a state folder."""
        return self.address(f"s{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]}")

    @property
    def _url(self) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/postgres"

    def _run(self, name: str, *arguments: str) -> None:
        program = find_program(name)
        assert program is not None, f"{name} is not installed"
        done = subprocess.run(
            [program, *arguments], user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            cwd="/", timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_postgres(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Starts a server of its own and stops it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ontogeny-postgres-"))
    server = PostgresServer(folder, fsync=fsync)
    try:
        yield server
    finally:
        with contextlib.suppress(AssertionError):
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
