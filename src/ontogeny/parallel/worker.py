"""A worker process: one XLA thread, which is set before JAX is imported, and the loop that answers tasks.

The bits of a compiled program on a CPU depend on the number of threads, so all workers have one. `python -m
ontogeny.parallel.worker` is a worker of `processes`; workers of Ray call `prepare` themselves.
"""

import faulthandler
import functools
import hashlib
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from ontogeny import compilation_cache
from ontogeny.errors import BadInput
from ontogeny.parallel.tasks import Setup, Task, TaskAnswer, TaskFailure, find_function, to_plain

HOST_DEVICES_FLAG = "xla_force_host_platform_device_count"
FLAGS = (f"--{HOST_DEVICES_FLAG}=1", "--xla_cpu_multi_thread_eigen=false")
VECTOR_WIDTH_FLAG = "--xla_cpu_prefer_vector_width=512"  # a tenth faster where the processor has such registers
ENVIRONMENT = {
    "NPROC": "1",  # threads of XLA's pool
    "PJRT_NPROC": "1",  # the same in later versions
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "0",
}
SECONDS_BETWEEN_CHECKS = 1.0  # of whether the parent process still runs


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker sets before it imports JAX.

    Args:
        environment: The variables of the process that starts the workers; workers keep its other flags of XLA and its
            settings of JAX, because bits depend on them.
    """
    flags = [flag for flag in environment.get("XLA_FLAGS", "").split() if not _is_replaced(flag)]
    if not any("xla_cpu_prefer_vector_width" in flag for flag in flags):
        flags.append(VECTOR_WIDTH_FLAG)
    of_jax = {name: text for name, text in environment.items() if name.startswith("JAX_") and "_CACHE_" not in name}
    return of_jax | ENVIRONMENT | {"XLA_FLAGS": " ".join([*flags, *FLAGS])}


def _is_replaced(flag: str) -> bool:
    """Whether a flag of the user is one that workers set."""
    return any(flag.split("=")[0] == replacement.split("=")[0] for replacement in FLAGS)


def prepare(environment: Mapping[str, str]) -> None:
    """Sets the variables of `worker_environment` in this process.

    Raises:
        RuntimeError: JAX was imported before, with other variables.
    """
    changed = {name: text for name, text in environment.items() if os.environ.get(name) != text}
    if changed and "jax" in sys.modules:
        raise RuntimeError(f"JAX was imported before {', '.join(sorted(changed))} were set in this worker")
    os.environ.update(changed)


@functools.cache
def fingerprint() -> dict[str, str]:
    """What the bits of an answer depend on besides its task: processor, versions, and flags of the compiler."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {
        "machine": platform.machine(),
        "cpu_flags": hashlib.sha256(compilation_cache.processor_features().encode()).hexdigest()[:16],
        "jaxlib": metadata.version("jaxlib"),
        "jax": metadata.version("jax"),
        "numpy": metadata.version("numpy"),
        "ontogeny": metadata.version("ontogeny"),
        "xla_flags": " ".join(sorted(flag for flag in flags if "collective_call" not in flag)),  # these limit times
        "num_threads": os.environ.get("NPROC", ""),
    }


def name_of_worker() -> str:
    """The process number and host name."""
    return f"{os.getpid()}@{socket.gethostname()}"


def num_processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(task: Task, setup: Setup) -> TaskAnswer:
    """Computes a task in this process; an error becomes a `TaskFailure`."""
    start = time.perf_counter()
    try:
        function = find_function(task.function)
        if "jax" in sys.modules:
            compilation_cache.use()
        answer = to_plain(function(setup, task.request))
    except BadInput as error:
        answer = TaskFailure(str(task), str(error), is_bad_input=True)
    except Exception as error:
        answer = TaskFailure(str(task), f"{type(error).__name__}: {error}", details=traceback.format_exc())
    return TaskAnswer(answer, name_of_worker(), fingerprint(), time.perf_counter() - start)


def answer_on_ray(
    task: tuple[str, Mapping[str, Any], bool], shared: tuple[dict[str, str], list[str], Setup], limit: float | None
) -> TaskAnswer:
    """What a worker of Ray computes.

    Args:
        task: The fields of a `Task`.
        shared: The variables of `worker_environment`, the places where the driver finds modules, and the setup.
        limit: Seconds after which this process ends itself, because the task hangs; None where it may take any time.
            Ray then computes the task again in another process.
    """
    environment, search_path, setup = shared
    prepare(environment)
    sys.path.extend(entry for entry in search_path if entry not in sys.path)
    if limit is not None:
        faulthandler.dump_traceback_later(limit, exit=True)
    try:
        return execute(Task(*task), setup)._replace(attempt=_attempt_on_ray())
    finally:
        faulthandler.cancel_dump_traceback_later()


def _attempt_on_ray() -> int:
    """How often Ray has computed the present task before, in workers that ended; 0 where Ray does not tell."""
    import ray  # pyright: ignore[reportMissingImports]

    try:
        return ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()  # type: ignore
    except AttributeError:
        return 0


def main() -> NoReturn:
    """Answer tasks until the parent process closes the connection or ends.

    Messages are pickled by the parent, which runs the same code. A message holds a task and, where it has changed, the
    setup.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes; the parent ends this one
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    setup: Mapping[str, object] = {}
    while True:
        try:
            message = connection.recv_bytes()
            task, pickled_setup = pickle.loads(message)
            if pickled_setup is not None:
                setup = pickle.loads(pickled_setup)
            connection.send_bytes(pickle.dumps(execute(Task(*task), setup)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _exit_with_parent(parent: int) -> None:
    """End this process soon after its parent, even in the middle of a task."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_CHECKS)
    os._exit(1)


if __name__ == "__main__":
    main()
