"""Settings that JAX reads when it is imported, made before any command imports it."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from ontogeny import plugins
from ontogeny.errors import BadInput

MOST_HOST_DEVICES = 8
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}


def prepare(device: str | None, *, one_thread: bool = False) -> None:
    """Settings that JAX reads when it is imported: the device, several host devices, a cache of what was compiled.

    `one_thread`: each host device computes on a thread of its own, where there is a device for each processor.
    """
    if device is not None and device not in PLATFORMS:
        raise plugins.unknown_name_error("device", device, list(PLATFORMS))
    flags = os.environ.get("XLA_FLAGS", "")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if "xla_force_host_platform_device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={min(processors, MOST_HOST_DEVICES)}"
        if one_thread and 1 < processors <= MOST_HOST_DEVICES and "xla_cpu_multi_thread_eigen" not in flags:
            flags += " --xla_cpu_multi_thread_eigen=false"
    if "xla_cpu_prefer_vector_width" not in flags:
        flags += " --xla_cpu_prefer_vector_width=512"  # wide registers where there are any: a tenth faster
    if "xla_cpu_collective_call" not in flags:
        # Members of a population are gathered from several host devices; on a busy machine one may be minutes behind,
        # and XLA's own patience of 40 seconds ends the whole process.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
        flags += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=3600"
    os.environ["XLA_FLAGS"] = flags.strip()
    if device is not None:
        os.environ["JAX_PLATFORMS"] = PLATFORMS[device]
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX asserts where the only platform that was asked for is absent
        raise BadInput(f"there is no {device or os.environ.get('JAX_PLATFORMS')} here that JAX can use") from None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def cache_folder() -> Path | None:
    """Where compiled programs are kept for the next start; None where nothing can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs are compiled for one kind of processor, and a home may be shared by several.
        kind = hashlib.sha256(f"{platform.machine()}{_processor()}".encode()).hexdigest()[:12]
        folder = home / "ontogeny" / f"compiled-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()
