"""What the bits of learned weights depend on beside the model and the settings of learning."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

from ontogeny import kernels

CPU_FILE = Path("/proc/cpuinfo")  # of Linux
CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")  # of Linux
CACHES = re.compile(r" \d+[KM](/\d+[KM])*(?=;)")  # in a description
# The instructions that compilers choose between for products and sums of float32 numbers.
INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "sve",
)


def describe_computation() -> str:
    """Describes this machine and the packages, such as `x86_64 avx2 fma 32K/32K/1M/8M; jaxlib 0.10.0; numba 0.68.1`.

    An accelerator on which JAX computes stands after the caches.
    """
    import jax

    flags: set[str] = set()
    if CPU_FILE.exists():
        fields = CPU_FILE.read_text(errors="replace").splitlines()
        flags = {flag for field in fields if field.startswith(("flags", "Features")) for flag in field.split()}
    processor = " ".join([platform.machine(), *(name for name in INSTRUCTIONS if name in flags)])
    sizes = [path.read_text().strip() for path in sorted(CACHE_FOLDER.glob("index*/size"))]
    if sizes:  # products add up blocks that fit into the caches
        processor += f" {'/'.join(sizes)}"
    device = jax.devices()[0]
    if device.platform != "cpu":
        processor += f" {device.platform} {device.device_kind}"
    return f"{processor}; jaxlib {version('jaxlib')}; {kernels.describe_path()}"


def computes_equally(description: str, recorded: str) -> bool:
    """Whether a machine computes the bits of weights whose version has this record.

    Args:
        description: Of the machine.
        recorded: Its description, or that of another one; earlier versions of this program did not name the caches.
    """
    return recorded in (description, CACHES.sub("", description, count=1))
