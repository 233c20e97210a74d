"""Processes of `ontogeny` that start within milliseconds, as copies of a process that has imported all packages.

An import of JAX, FastAPI and numba takes two processor seconds, and the tests start more than a hundred servers and
commands. Each worker of pytest therefore starts one process that imports the packages and nothing else: it has
initialized no backend of JAX and has one thread. A command runs in a copy of that process (`fork`), with arguments,
variables, folder and outputs of its own, and ends like any other process.
"""

import atexit
import contextlib
import os
import pickle
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

IS_SUPPORTED = hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")  # both on Linux
# Variables that packages read when they are imported; where one differs, a process imports the packages itself.
IMPORT_VARIABLES = ("JAX_", "XLA_", "NUMBA_", "OPENBLAS_", "OMP_", "PYTHON", "LD_", "MALLOC_", "HOME", "XDG_")
OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # can also be set after the import
# What servers and commands import, also later than at their start.
MODULES = (
    "alembic.command", "anyio._backends._asyncio", "encodings.idna", "evosax", "httpx2", "jax",
    "jaxlib.mlir.dialects.mhlo", "jax.experimental.multihost_utils", "llguidance", "numba", "optax", "psycopg",
    "safetensors.numpy", "scipy.linalg", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite", "tokenizers",
    "uvicorn.lifespan.on", "uvicorn.loops.asyncio", "uvicorn.protocols.http.h11_impl", "ontogeny.cli.serve",
    "ontogeny.cli.server_keys", "ontogeny.cli.server_state", "ontogeny.cli.server_status",
    "ontogeny.engine.kernel_runner", "ontogeny.engine.kernel_sampling", "ontogeny.kernels.transformer",
    "ontogeny.lm.model", "ontogeny.parallel.drivers", "ontogeny.server.app", "ontogeny.stages.session",
    "ontogeny.studies.run_kinds",
)  # fmt: skip
MAX_REQUEST_BYTES = 1 << 20


class ForkedProcess:
    """A process that was forked, with the methods of `subprocess.Popen` that the tests use.

    Args:
        connection: To the process that has forked it, which sends the exit status as soon as there is one.
        pid: Its number.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection, self.pid, self.returncode = connection, pid, None

    def poll(self) -> int | None:
        """The exit code, negative if a signal ended the process; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the process; returns its exit code."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("ontogeny", timeout or 0.0)
            received = self._connection.recv(64)
            assert received, "the process that forks others has ended"
            self.returncode = int(received)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Template:
    """The process with the imported packages, as it is seen from a worker of pytest."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._variables = _import_variables(environment)
        self._socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with remote:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(remote.fileno())], env=dict(environment), pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.close)

    def is_suitable(self, environment: Mapping[str, str]) -> bool:
        """Whether the packages were imported with the variables of a command."""
        return _import_variables(environment) == self._variables

    def close(self) -> None:
        """Ends the process, and with it all processes that it has forked."""
        self._socket.close()
        self._process.wait(60)

    def fork(
        self, arguments: list[str], environment: Mapping[str, str], output: IO[Any], errors: IO[Any]
    ) -> ForkedProcess:
        """Runs `ontogeny` with these arguments in a copy of the process."""
        local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with remote:
            request = pickle.dumps((arguments, dict(environment), str(Path.cwd())))
            socket.send_fds(self._socket, [request], [remote.fileno(), output.fileno(), errors.fileno()])
        pid = local.recv(64)
        assert pid, "the process that forks others has ended"
        return ForkedProcess(local, int(pid))


_templates: list[_Template] = []


def start(
    arguments: list[str], environment: Mapping[str, str], output: IO[Any], errors: IO[Any]
) -> ForkedProcess | subprocess.Popen[Any]:
    """Starts `ontogeny`, as a copy of the process with the imported packages where that is possible.

    Args:
        arguments: Of the command line.
        environment: All environment variables.
        output: The file of the output.
        errors: The file of the error output.
    """
    if IS_SUPPORTED and not _templates:
        _templates.append(_Template({name: text for name, text in environment.items() if name != OPTIMIZATIONS}))
    if not IS_SUPPORTED or not _templates[0].is_suitable(environment):
        return subprocess.Popen(
            [sys.executable, "-m", "ontogeny", *arguments], env=dict(environment), stdout=output, stderr=errors
        )
    return _templates[0].fork(arguments, environment, output, errors)


def _import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that packages read when they are imported."""
    return {
        name: text for name, text in environment.items() if name.startswith(IMPORT_VARIABLES) and name != OPTIMIZATIONS
    }


def _serve_requests(requests: socket.socket) -> tuple[list[str], dict[str, str], str, list[int]] | None:
    """Forks for each request; returns the request in the forked process, and None when the worker has ended."""
    children: dict[int, tuple[int, socket.socket]] = {}  # process and connection, by pidfd
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fd)
                    pid, connection = children.pop(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, contextlib.suppress(OSError):
                        connection.send(str(code).encode())
                    continue
                request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
                if not request:
                    for pid, _ in children.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                connection = socket.socket(fileno=descriptors.pop(0))
                pid = os.fork()
                if pid == 0:
                    for descriptor, (_, open_connection) in children.items():
                        os.close(descriptor)
                        open_connection.close()
                    connection.close()
                    requests.close()
                    return *pickle.loads(request), descriptors
                for descriptor in descriptors:
                    os.close(descriptor)
                connection.send(str(pid).encode())
                watch = os.pidfd_open(pid)
                children[watch] = (pid, connection)
                selector.register(watch, selectors.EVENT_READ)


def _import_packages() -> None:
    """Imports what servers and commands import, without anything that a copy of this process could not continue."""
    import gc
    import importlib

    for module in MODULES:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:  # of an optional package
            if (error.name or "").startswith("ontogeny"):
                raise
    with contextlib.suppress(ModuleNotFoundError):  # numba imports most of its modules before its first compilation
        from numba.core.registry import cpu_target

        contexts: tuple[Any, ...] = (cpu_target.typing_context, cpu_target.target_context)
        for context in contexts:
            context.refresh()
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized(), "an import has initialized a backend of JAX"
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"
    gc.collect()
    gc.freeze()


def _main() -> None:
    """Waits for requests; in a forked process, runs the command of the request."""
    _import_packages()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        received = _serve_requests(requests)
    if received is None:
        return
    arguments, environment, folder, (output, errors) = received
    for descriptor, target in ((output, 1), (errors, 2)):
        os.dup2(descriptor, target)
    for descriptor in {output, errors} - {1, 2}:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if environment.get(OPTIMIZATIONS, "0") not in ("", "0"):
        import jax

        jax.config.update(OPTIMIZATIONS.lower(), True)
    sys.path[0], sys.argv[1:] = folder, arguments
    runpy.run_module("ontogeny", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
