"""The memory that a compiled program needs, predicted before it runs, and the memory that this machine can give.

A prediction compiles the program, which the run does anyway. To the memory that the process holds it adds the larger of
two needs: the buffers that the compiler plans for a call, while the state before the call is in memory, or the copy of
the state that a checkpoint encodes, after the call. The state before that may still take its memory, because the
allocator cannot always use it for other arrays.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ontogeny.errors import BadInput
from ontogeny.trees import num_bytes

PROCESS_FOLDER, CGROUP_FOLDER = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # bytes; version 1 of cgroups writes about 2**63 where there is no limit
FIRST_STEP_BYTES = 5 * 10**6  # stacks of threads and small programs; 2 to 4 MB were measured
COMPILATION_BYTES = 400 * 10**6  # that the compilation of a generation needs at most; 0.14 to 0.36 GB were measured
RESERVED_SHARE = 0.05  # of the available memory, for allocations that no buffer of the program explains


class MemoryPrediction(NamedTuple):
    """The memory of a run, in bytes.

    Attributes:
        peak: The largest resident memory of the process during the run.
        program: What the run adds to the present memory: arguments that are not yet on all devices, and temporary
            buffers and results of the compiled program on all devices, or the copy of the state for a checkpoint.
        present: Resident memory of the process after compilation.
        available: What the process can still allocate; None where the system does not tell.
        num_workers: Of worker processes on one machine, each of which needs this memory; 0 for this process.
    """

    peak: int
    program: int
    present: int
    available: int | None
    num_workers: int = 0

    def describe(self) -> str:
        """The prediction as one phrase."""
        available = "" if self.available is None else f", {format_bytes(self.present + self.available)} are available"
        workers = f" of each worker, {self.num_workers} on a machine," if self.num_workers else ""
        return f"predicted peak memory{workers} {format_bytes(self.peak)}{available}"


def predict_peak(program: Any, *arguments: Any, extra_bytes: int = 0) -> MemoryPrediction:
    """Compile a program and predict the memory of this process while it runs.

    Args:
        program: A function of `jax.jit`; its next call with such arguments does not compile it again.
        *arguments: Of the first call, or their shapes; results of a call are the arguments of the next one.
        extra_bytes: What the run needs beside the program.
    """
    compiled = program.lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    num_devices = max((sharding.num_devices for sharding in jax.tree.leaves(compiled.output_shardings)), default=1)
    buffers = 0 if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    leaves = jax.tree.leaves(arguments)
    sizes = [num_bytes(leaf) for leaf in leaves]
    absent = sum(size * (num_devices - _num_copies(leaf)) for size, leaf in zip(sizes, leaves, strict=True))
    checkpoint = sum(sizes) + max(sizes, default=0)  # the encoded state, and the array whose digest is computed
    # The allocator does not reuse all memory of the last state but one, which is freed between arrays that stay.
    addition = (
        absent + sum(sizes) * num_devices + max(buffers * num_devices, checkpoint) + FIRST_STEP_BYTES + extra_bytes
    )
    present = read_memory("VmRSS") or 0
    return MemoryPrediction(max(present + addition, read_memory("VmHWM") or 0), addition, present, available_bytes())


def require_compilation_memory() -> None:
    """Raises `BadInput` where too little memory is available to compile a program and predict its memory."""
    available = available_bytes()
    if available is not None and available < COMPILATION_BYTES:
        raise BadInput(
            f"this run needs about {format_bytes(COMPILATION_BYTES)} of memory for the compilation of its program, and "
            f"only {format_bytes(available)} are available"
        )


def require_memory(prediction: MemoryPrediction, advice: str) -> None:
    """Refuse a run that would exceed the memory of the machine.

    Args:
        prediction: From `predict_peak`.
        advice: What the user can change, as the end of the message.

    Raises:
        BadInput: The program needs more than is available.
    """
    num_others = max(prediction.num_workers - 1, 0)  # workers that may not have begun
    needed = prediction.program + num_others * prediction.peak
    if prediction.available is None or needed <= (1 - RESERVED_SHARE) * prediction.available:
        return
    if num_others:
        raise BadInput(
            f"each of the {prediction.num_workers} worker processes of a machine needs about "
            f"{format_bytes(prediction.peak)} of memory, and only {format_bytes(prediction.available)} more are "
            f"available to all of them; choose fewer workers, or {advice.removeprefix('choose ')}"
        )
    peak, present, available = map(format_bytes, (prediction.peak, prediction.present, prediction.available))
    raise BadInput(
        f"this run needs about {peak} of memory, of which this process has {present}, and only {available} more are "
        f"available; {advice}"
    )


def available_bytes() -> int | None:
    """The memory that this process can still allocate: what the machine and its control groups (cgroups) leave."""
    limits = list(_cgroup_remainders())
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (PROCESS_FOLDER / "meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    return max(0, min(limits)) if limits else None


def read_memory(field: str) -> int | None:
    """A field of the status of this process in bytes, such as `VmRSS` (resident) or `VmHWM` (its peak)."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (PROCESS_FOLDER / "self" / "status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
    return None


def format_bytes(count: int) -> str:
    """Bytes with the unit that suits the number, from bytes to gigabytes."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB" if count >= 1e4 else f"{count:,} byte{'' if count == 1 else 's'}"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _num_copies(leaf: Any) -> int:
    """On how many devices an argument already is; 0 for shapes."""
    return len(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else 0


def _cgroup_remainders() -> Iterator[int]:
    """What the memory limits of this process's control group and of all groups above it leave."""
    with contextlib.suppress(OSError):
        for line in (PROCESS_FOLDER / "self" / "cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                yield from _remainders(CGROUP_FOLDER, group, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _remainders(CGROUP_FOLDER / "memory", group, *names)


def _remainders(root: Path, group: str, limit_file: str, usage_file: str, reclaimable: str) -> Iterator[int]:
    """Limit minus usage of a group and of each group above it; cached files do not count as used."""
    folder = root / group.lstrip("/")
    while folder == root or root in folder.parents:
        # In a container, the folder of the group may be the root itself.
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / limit_file).read_text())
            if limit < UNLIMITED:
                usage = int((folder / usage_file).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield limit - usage + int(statistics.get(reclaimable, 0))
        folder = folder.parent
