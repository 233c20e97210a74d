"""What the bits of learned weights depend on beside the model and the settings of learning."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

from ontogeny import __version__, kernels

CPU_FILE = Path("/proc/cpuinfo")  # of Linux
CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")  # of Linux
UNKNOWN_PROCESSOR = "unknown processor"  # of a record that names packages only
# The packages whose versions the bits of learned weights depend on: the learner, and what computes its steps.
PACKAGES = ("ontogeny", "jax", "jaxlib", "numpy", "optax")
# The version whose records do not name all packages. Digests of learners included their versions instead.
EARLIER_PROGRAM = "0.1.0"
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


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that the bits of learned weights depend on."""
    return {name: __version__ if name == "ontogeny" else version(name) for name in PACKAGES}


def describe_computation() -> str:
    """Describes this machine and the packages, such as `x86_64 avx2 fma 32K/32K/8M; ontogeny 0.1.0; jax 0.10.0; ...`.

    An accelerator on which JAX computes stands after the caches; the path by which text is generated is the last part.
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
    packages = [f"{name} {installed}" for name, installed in package_versions().items()]
    return "; ".join([processor, *packages, kernels.describe_path()])


def computes_equally(description: str, recorded: str) -> bool:
    """Whether a machine computes the bits of weights whose version has this record.

    Args:
        description: Of the machine.
        recorded: Its description, or that of another one; earlier versions of this program did not name the caches,
            nor all packages.
    """
    processor, *packages = description.split("; ")
    recorded_processor, *recorded_packages = recorded.split("; ")
    without_caches = CACHES.sub("", description, count=1).partition("; ")[0]
    processors = (processor, without_caches, UNKNOWN_PROCESSOR)
    return recorded_processor in processors and set(recorded_packages) <= set(packages)


def names_packages(recorded: str) -> bool:
    """Whether a description names all packages, unlike those of earlier versions of this program."""
    return "; ontogeny " in recorded


def add_packages(recorded: str | None) -> str:
    """Adds the present versions of the packages to the record of an earlier version of this program.

    Args:
        recorded: The description; None for a version of weights without one.
    """
    processor, *packages = (recorded or UNKNOWN_PROCESSOR).split("; ")
    versions = package_versions() | {"ontogeny": EARLIER_PROGRAM}
    further = [package for package in packages if package.partition(" ")[0] not in versions]
    return "; ".join([processor, *(f"{name} {installed}" for name, installed in versions.items()), *further])
