"""The folder of compiled programs: who uses it, its bound, its repair, and many processes at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from ontogeny import compilation_cache

SOURCES = str(Path(compilation_cache.__file__).parents[1])
REPORT = """
import json, jax
print(json.dumps([jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size]))
"""
# Compiles programs that differ in one constant, and prints how many were compiled and how many read from the folder.
COMPILE = """
import json, sys, jax, jax.numpy as jnp
from ontogeny import compilation_cache
first, last, max_bytes = map(int, sys.argv[1:4])
jax.numpy.zeros(3).block_until_ready()  # JAX has compiled before it learns of the folder
compilation_cache.MAX_BYTES = max_bytes
assert compilation_cache.use() is not None
counts = {"hits": 0, "misses": 0}
def count(event, **_):
    counts["hits"] += event == "/jax/compilation_cache/cache_hits"
    counts["misses"] += event == "/jax/compilation_cache/cache_misses"
jax.monitoring.register_event_listener(count)
argument = jnp.float32(1.0)
for number in range(first, last):
    assert jax.jit(lambda x: x * float(number) + 1.0)(argument) == number + 1.0
print(json.dumps(counts))
"""


def start(code: str, home: Path, *arguments: object, **variables: str) -> subprocess.Popen:
    """A process of Python with its own folder of caches; warnings are errors."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"PYTHONPATH": SOURCES, "XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-W", "default::UserWarning", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """What a process prints; it must end without an error."""
    output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    return output, complaint


def counts_of(process: subprocess.Popen) -> dict[str, int]:
    """The programs that `COMPILE` has read and compiled; it must print no warning."""
    output, complaint = finish(process)
    assert all(line.startswith("note: compiled programs are kept") for line in complaint.splitlines()), complaint
    return json.loads(output)


def the_folder(home: Path) -> Path:
    """The only folder of programs in a home."""
    (folder,) = (home / "ontogeny").iterdir()
    return folder


def size(folder: Path) -> int:
    """The bytes of all programs in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*-cache"))


def write_programs(folder: Path, times: list[int]) -> None:
    """Files as of programs `0`, `1`, ..., last used at these times."""
    for number, nanoseconds in enumerate(times):
        (folder / f"{number}-cache").write_bytes(zlib.compress(b"program"))
        (folder / f"{number}-atime").write_bytes(nanoseconds.to_bytes(8, "little"))


def programs_in(folder: Path) -> set[str]:
    """The names of the programs in a folder, each with its time of use."""
    names = {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}
    assert names == {path.name.removesuffix("-atime") for path in folder.glob("*-atime")}
    return names


def test_a_folder_that_cannot_be_created_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = compilation_cache.cache_folder()
    assert folder is not None and folder.is_dir() and folder.is_relative_to(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation_cache.cache_folder() is None


def test_repair_deletes_unfinished_programs_and_the_oldest_of_too_many(tmp_path):
    times = [50, 10, 40, 20, 30, 60]
    write_programs(tmp_path, times)
    (tmp_path / "torn-cache").write_bytes(b"half of a pro")
    (tmp_path / "lost-atime").write_bytes(b"")
    assert compilation_cache.repair(tmp_path, max_programs=6) == 1
    assert programs_in(tmp_path) == set("012345")
    assert compilation_cache.repair(tmp_path, max_programs=4) == 3  # three quarters of four remain
    assert programs_in(tmp_path) == {"0", "2", "5"}
    (tmp_path / "2-cache").write_bytes(zlib.compress(b"program")[:-1])
    assert compilation_cache.repair(tmp_path, max_programs=4) == 1
    assert programs_in(tmp_path) == {"0", "5"}
    assert compilation_cache.repair(tmp_path / "absent") == 0


def test_python_uses_the_folder_once_something_computes_and_the_user_can_turn_it_off(tmp_path):
    before, after = "import ontogeny; ontogeny.list_plugins('agents')", "import ontogeny; ontogeny.evaluate"
    off, of_user = {"JAX_ENABLE_COMPILATION_CACHE": "0"}, {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}
    unused, used, disabled, chosen = (
        start(code + REPORT, tmp_path / str(number), **variables)
        for number, (code, variables) in enumerate([(before, {}), (after, {}), (after, off), (after, of_user)])
    )
    assert json.loads(finish(unused)[0])[0] is None and not (tmp_path / "0").exists()
    output, complaint = finish(used)
    assert json.loads(output) == [str(the_folder(tmp_path / "1")), compilation_cache.MAX_BYTES]
    assert complaint.startswith("note: compiled programs are kept in") and "JAX_ENABLE_COMPILATION_CACHE=0" in complaint
    assert json.loads(finish(disabled)[0])[0] is None and not (tmp_path / "2").exists()
    assert json.loads(finish(chosen)[0]) == [str(tmp_path / "chosen"), -1] and not (tmp_path / "3").exists()


def test_a_second_process_compiles_nothing_even_after_one_was_killed_while_it_wrote(tmp_path):
    assert counts_of(start(COMPILE, tmp_path, 0, 3, 2**30))["misses"] >= 3
    folder = the_folder(tmp_path)
    second = counts_of(start(COMPILE, tmp_path, 0, 3, 2**30))
    assert second["hits"] >= 3 and not second["misses"]
    # A process was killed between the two files that JAX writes; JAX by itself would store no program any more.
    next(folder.glob("jit__lambda*-atime")).unlink()
    after_kill = counts_of(start(COMPILE, tmp_path, 0, 3, 2**30))
    assert after_kill["misses"] == 1
    assert not counts_of(start(COMPILE, tmp_path, 0, 3, 2**30))["misses"]


@pytest.mark.slow
def test_processes_that_write_and_evict_at_once_stay_within_the_bound(tmp_path):
    """Four processes at a time with equal and different programs, of which some are killed at any moment."""
    counts_of(start(COMPILE, tmp_path, 0, 20, 2**30))
    folder = the_folder(tmp_path)
    max_bytes = size(folder)  # room for 20 of the programs
    generator = random.Random(0)
    for attempt in range(8):
        processes = [start(COMPILE, tmp_path, first, first + 60, max_bytes) for first in (0, 0, 30, 90)]
        for process in processes[: attempt % 2 * 2]:
            time.sleep(generator.uniform(0.5, 3.0))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        for process in processes[attempt % 2 * 2 :]:
            counts_of(process)
        assert 0 < size(folder) <= max_bytes
    counts_of(start(COMPILE, tmp_path, 200, 205, max_bytes))
    assert len(programs_in(folder)) >= 5 and size(folder) <= max_bytes
    last = counts_of(start(COMPILE, tmp_path, 200, 205, max_bytes))
    assert last["hits"] >= 5 and not last["misses"]
