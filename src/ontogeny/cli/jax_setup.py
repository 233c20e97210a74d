"""Settings that JAX reads when it is imported; a command makes them before it imports JAX."""

import os
import sys

from ontogeny import compilation_cache, plugins
from ontogeny.cli.shared import print_note
from ontogeny.errors import BadInput

MAX_HOST_DEVICES = 8
HOST_DEVICES_FLAG = "xla_force_host_platform_device_count"
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}


def configure_jax(device: str | None, num_host_devices: int | None = None, *, one_thread: bool = False) -> None:
    """Choose the device and the number of host devices, import JAX, and use the cache of compiled programs.

    Args:
        device: `cpu` or `gpu`; None leaves the choice to JAX.
        num_host_devices: Devices into which the processors are divided, each with one thread, so that results do not
            depend on the number of processors; None for one device per processor, at most `MAX_HOST_DEVICES`.
        one_thread: Whether each host device computes on one thread; ignored where processors outnumber the devices.

    Raises:
        BadInput: JAX has no such device here, or `XLA_FLAGS` names another number of host devices.
    """
    if num_host_devices is not None and HOST_DEVICES_FLAG in os.environ.get("XLA_FLAGS", ""):
        raise BadInput("--num-host-devices and XLA_FLAGS both set the number of host devices; use one of them")
    if device is not None and device not in PLATFORMS:
        raise plugins.unknown_name_error("device", device, list(PLATFORMS))
    _ignore_64_bits()
    os.environ["XLA_FLAGS"] = _xla_flags(os.environ.get("XLA_FLAGS", ""), num_host_devices, one_thread)
    if device is not None:
        os.environ["JAX_PLATFORMS"] = PLATFORMS[device]
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX asserts where the only platform that was requested is absent
        raise BadInput(f"there is no {device or os.environ.get('JAX_PLATFORMS')} here that JAX can use") from None
    compilation_cache.use()


def configure_jax_of_workers(device: str | None, num_host_devices: int | None) -> None:
    """Configure JAX in a process whose tasks workers compute, each on one device of the CPU with one thread.

    The workers use the folder of compiled programs by themselves.

    Raises:
        BadInput: The user chooses another device or number of devices.
    """
    if device not in (None, "cpu") or num_host_devices not in (None, 1):
        raise BadInput(
            "workers compute on one device of the CPU each; use --on in_process with another --device or "
            "--num-host-devices"
        )
    if "jax" not in sys.modules:  # tasks have the bits of workers in this process, too
        from ontogeny.parallel.worker import prepare, worker_environment  # imports NumPy

        prepare(worker_environment(os.environ))
    configure_jax("cpu", None if HOST_DEVICES_FLAG in os.environ.get("XLA_FLAGS", "") else 1)


def _ignore_64_bits() -> None:
    """Turns off JAX's 64-bit types, which change results and for which no function of this package is written."""
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("", "0", "false", "off", "no", "n", "f"):
        return
    os.environ["JAX_ENABLE_X64"] = "0"  # for processes that this one starts, too
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)
    print_note("JAX_ENABLE_X64 is ignored: ontogeny computes in 32 bits")


def _xla_flags(flags: str, num_host_devices: int | None, one_thread: bool) -> str:
    """The flags of the user with the defaults of this program added."""
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if HOST_DEVICES_FLAG not in flags:
        flags += f" --{HOST_DEVICES_FLAG}={num_host_devices or min(num_processors, MAX_HOST_DEVICES)}"
        one_thread = num_host_devices is not None or (one_thread and 1 < num_processors <= MAX_HOST_DEVICES)
        if one_thread and "xla_cpu_multi_thread_eigen" not in flags:
            flags += " --xla_cpu_multi_thread_eigen=false"
    if "xla_cpu_prefer_vector_width" not in flags:
        flags += " --xla_cpu_prefer_vector_width=512"  # a tenth faster where the processor has such registers
    if "xla_cpu_collective_call" not in flags:
        # Members of a population are gathered from several host devices; on a busy machine one may be minutes behind,
        # and after XLA's default of 40 seconds the whole process ends.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
        flags += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=3600"
    return flags.strip()
