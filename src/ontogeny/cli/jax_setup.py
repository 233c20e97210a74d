"""Settings that JAX reads when it is imported; a command makes them before it imports JAX."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from ontogeny import plugins
from ontogeny.errors import BadInput

MAX_HOST_DEVICES = 8
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}


def configure_jax(device: str | None, *, one_thread: bool = False) -> None:
    """Choose the device, the number of host devices and the folder of compiled programs, and import JAX.

    Args:
        device: `cpu` or `gpu`; None leaves the choice to JAX.
        one_thread: Whether each host device computes on one thread; ignored where processors outnumber the devices.

    Raises:
        BadInput: JAX has no such device here.
    """
    if device is not None and device not in PLATFORMS:
        raise plugins.unknown_name_error("device", device, list(PLATFORMS))
    os.environ["XLA_FLAGS"] = _xla_flags(os.environ.get("XLA_FLAGS", ""), one_thread)
    if device is not None:
        os.environ["JAX_PLATFORMS"] = PLATFORMS[device]
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX asserts where the only platform that was requested is absent
        raise BadInput(f"there is no {device or os.environ.get('JAX_PLATFORMS')} here that JAX can use") from None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _xla_flags(flags: str, one_thread: bool) -> str:
    """The flags of the user with the defaults of this program added."""
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if "xla_force_host_platform_device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={min(num_processors, MAX_HOST_DEVICES)}"
        if one_thread and 1 < num_processors <= MAX_HOST_DEVICES and "xla_cpu_multi_thread_eigen" not in flags:
            flags += " --xla_cpu_multi_thread_eigen=false"
    if "xla_cpu_prefer_vector_width" not in flags:
        flags += " --xla_cpu_prefer_vector_width=512"  # a tenth faster where the processor has such registers
    if "xla_cpu_collective_call" not in flags:
        # Members of a population are gathered from several host devices; on a busy machine one may be minutes behind,
        # and after XLA's default of 40 seconds the whole process ends.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
        flags += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=3600"
    return flags.strip()


def cache_folder() -> Path | None:
    """The folder in which compiled programs are kept; None where nothing can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs are compiled for one kind of processor, and several machines may share a home.
        kind = hashlib.sha256(f"{platform.machine()}{_processor()}".encode()).hexdigest()[:12]
        folder = home / "ontogeny" / f"compiled-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    return None


def _processor() -> str:
    """The features of the processor for which programs are compiled."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()
