"""The folder in which JAX keeps compiled programs, so that a second process compiles nothing.

The command line, the server, worker processes and the Python API call `use` before they compute. The folder lies in the
user's cache folder; its size is bounded, and any number of processes may read, write and evict programs in it at once:
JAX does each of these under the lock file of the folder. `JAX_ENABLE_COMPILATION_CACHE=0` turns the cache off, and
where `JAX_COMPILATION_CACHE_DIR` names another folder, all settings are JAX's own.
"""

import contextlib
import hashlib
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MAX_BYTES = 512 * 2**20  # of all programs; JAX then deletes those that were used least recently
MAX_PROGRAMS = 2000  # whenever JAX writes a program it reads the time of use of each, about 0.04 ms
MIN_COMPILE_SECONDS = 0.0  # programs of any size are kept, or a second study would compile the small ones
JAX_DEFAULT_MIN_COMPILE_SECONDS = 1.0
LOCK_TIMEOUT = 10.0  # seconds, as JAX waits
# The names that JAX's cache with a bounded size gives to its files.
PROGRAM_SUFFIX, TIME_SUFFIX, LOCK_FILE = "-cache", "-atime", ".lockfile"
VERIFIED_FILE = ".verified"  # bears the time of change of the newest program that was verified

_setup_lock = threading.Lock()


def use() -> Path | None:
    """Let JAX keep its compiled programs in the user's cache folder, and repair that folder.

    Settings of the user in the environment or in `jax.config` take precedence. Further calls change nothing.

    Returns:
        The folder of compiled programs; None where the cache is turned off or nothing can be written.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache as jax_cache

    with _setup_lock:
        if not _setting("jax_enable_compilation_cache"):
            return None
        if _setting("jax_compilation_cache_dir") is not None:
            return Path(_setting("jax_compilation_cache_dir"))
        folder = cache_folder()
        if folder is None:
            return None
        repair(folder)
        if _setting("jax_compilation_cache_max_size") < 0:
            jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        if _setting("jax_persistent_cache_min_compile_time_secs") == JAX_DEFAULT_MIN_COMPILE_SECONDS:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax_cache.reset_cache()  # a process that has compiled before does not read its settings again by itself
        return folder


def _setting(name: str) -> Any:
    """A setting of JAX, from its environment variable or from the user's code."""
    import jax

    return getattr(jax.config, name)


def cache_folder() -> Path | None:
    """The folder for programs that are compiled for this processor; None where nothing can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "ontogeny" / f"programs-{_processor_digest()}"
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            print(
                f"note: compiled programs are kept in '{folder}' (at most {MAX_BYTES // 2**20} MB), which may be "
                "deleted at any time; JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0 "
                "turns this off",
                file=sys.stderr,
            )
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    return None


def repair(folder: Path, max_programs: int = MAX_PROGRAMS) -> int:
    """Delete programs that JAX cannot read, and those used least recently where there are too many.

    JAX writes a program, then its time of use. A process that is killed in between leaves a program without a time,
    which JAX can neither read nor replace, and because of which it stores no further program. Nor does JAX replace a
    program that a failure of the machine has cut off: it would compile it again in every process, with a warning.
    Programs that have not changed since an earlier call are not read again.

    Args:
        folder: The folder of compiled programs.
        max_programs: If there are more, three quarters of this number remain.

    Returns:
        The number of programs deleted; 0 where another process keeps the folder locked.
    """
    try:
        with FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT):
            names = {entry.name for entry in os.scandir(folder)}
            programs = {name.removesuffix(PROGRAM_SUFFIX) for name in names if name.endswith(PROGRAM_SUFFIX)}
            times = {name.removesuffix(TIME_SUFFIX) for name in names if name.endswith(TIME_SUFFIX)}
            deleted = (programs ^ times) | _find_damaged(folder, programs & times)
            if len(programs & times) > max_programs:
                by_time = sorted(programs & times, key=lambda name: _time_of_use(folder, name))
                deleted |= set(by_time[: len(by_time) - 3 * max_programs // 4])
            for name in deleted:
                (folder / f"{name}{PROGRAM_SUFFIX}").unlink(missing_ok=True)
                (folder / f"{name}{TIME_SUFFIX}").unlink(missing_ok=True)
            return len(deleted & programs)
    except (OSError, Timeout):
        return 0


def _find_damaged(folder: Path, names: set[str]) -> set[str]:
    """The programs that have changed since the last call and cannot be decompressed."""
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:  # in another version of JAX
        return set()
    mark = folder / VERIFIED_FILE
    verified = mark.stat().st_mtime_ns if mark.exists() else 0
    changed = {name: (folder / f"{name}{PROGRAM_SUFFIX}").stat().st_mtime_ns for name in names}
    damaged = set[str]()
    for name in (name for name, changed_at in changed.items() if changed_at >= verified):
        try:
            decompress_executable((folder / f"{name}{PROGRAM_SUFFIX}").read_bytes())
        except Exception:  # of zlib or zstandard, whichever JAX uses
            damaged.add(name)
    if changed:
        mark.touch()
        newest = max(changed.values())
        os.utime(mark, ns=(newest, newest))
    return damaged


def _time_of_use(folder: Path, name: str) -> int:
    """When a program was used last, in nanoseconds."""
    return int.from_bytes((folder / f"{name}{TIME_SUFFIX}").read_bytes(), "little")


def _processor_digest() -> str:
    """A digest of the kind and number of the processors for which programs are compiled.

    Several machines may share a home, and the bits of a program can depend on the number of its threads.
    """
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("NPROC") or num_processors
    return hashlib.sha256(f"{platform.machine()}{processor_features()}{threads}".encode()).hexdigest()[:12]


def processor_features() -> str:
    """The features of the processor for which programs are compiled."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return platform.processor()
