"""A PostgreSQL server of tests and benchmarks, on a free port of loopback, with one schema per state folder.

Its files can lie in a file system of limited size, in memory, so that its disk can be filled.
"""

import contextlib
import hashlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
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
        options: Further settings of the server, such as `max_wal_size=64MB`.
        restores: Whether the folder already has the files of a server, in `data`.
    """

    def __init__(
        self, folder: Path, *, fsync: bool = False, options: Sequence[str] = (), restores: bool = False
    ) -> None:
        self.data, self.fsync, self._options = folder / "data", fsync, tuple(options)
        self.user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user is not None:
            folder.chmod(0o755)
            owner = pwd.getpwnam(self.user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if not restores:
            names = ("-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C")
            self.run_program("initdb", "-D", str(self.data), *names, "--no-sync")
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300"
        options += f" -c fsync={'on' if self.fsync else 'off'} -c shared_buffers=32MB"
        options += "".join(f" -c {shlex.quote(option)}" for option in self._options)
        self.run_program("pg_ctl", "-D", str(self.data), "-w", "-o", options, "-l", str(self.data / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: `fast` ends all connections, `immediate` is like a crash."""
        self.run_program("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def address(self, name: str) -> str:
        """The address of a schema of this name, which is created if it is absent."""
        with psycopg.connect(self._url) as connection:
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"')
        return f"{self._url}?options=-csearch_path%3D{name}"

    def address_for(self, folder: Path | str) -> str:
        """The address for a state folder."""
        return self.address(f"s{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]}")

    @property
    def is_running(self) -> bool:
        """Whether the server process exists, also while it recovers from a crash."""
        return self._call("pg_ctl", "-D", str(self.data), "status").returncode == 0

    @property
    def _url(self) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/postgres"

    def run_program(self, name: str, *arguments: str) -> None:
        """Runs a program of PostgreSQL as the user of the server."""
        done = self._call(name, *arguments)
        assert done.returncode == 0, done.stderr

    def _call(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = find_program(name)
        assert program is not None, f"{name} is not installed"
        return subprocess.run(
            [program, *arguments], user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            cwd="/", timeout=60,
        )  # fmt: skip


class LimitedDisk:
    """A file system in memory of limited size, which needs the rights of root (Linux only).

    Args:
        folder: An empty folder, over which it is mounted.
        num_bytes: Its size.
    """

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder, self._filling = folder, folder / "filling"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True)

    @staticmethod
    def is_possible() -> bool:
        """Whether this process may mount a file system."""
        folder = Path(tempfile.mkdtemp())
        try:
            LimitedDisk(folder, 1 << 20).remove()
        except (OSError, subprocess.CalledProcessError):
            return False
        finally:
            folder.rmdir()
        return True

    def fill(self) -> None:
        """Takes all free space, in ever smaller steps, because somebody else may write meanwhile."""
        with self._filling.open("ab") as file:
            for size in (16 << 20, 1 << 20, 64 << 10, 4 << 10):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)

    def release(self) -> None:
        """Returns the space that `fill` took."""
        self._filling.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmounts the file system."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextlib.contextmanager
def running_postgres(
    *, fsync: bool = False, folder: Path | None = None, options: Sequence[str] = (), restores: bool = False
) -> Iterator[PostgresServer]:
    """Starts a server of its own and stops it at the end; for `folder` and the rest, see `PostgresServer`."""
    folder = Path(tempfile.mkdtemp(prefix="ontogeny-postgres-")) if folder is None else folder
    server = PostgresServer(folder, fsync=fsync, options=options, restores=restores)
    try:
        yield server
    finally:
        with contextlib.suppress(AssertionError):
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
