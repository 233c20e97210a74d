"""Measures how long the default study takes, and what a second one compiles. JSON lines.

    python benchmarks/study_time.py
    python benchmarks/study_time.py --study smoke.toml

Two studies run one after the other, each in a process of its own and in a new folder, as `make study` and `make study
OUT=studies/second` run them. The first one has an empty compilation cache. Programs that the compiler makes, and those
that the cache gives back, are counted by `jax.monitoring`.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TABLE = re.compile(r"^\[ *(\d+) s\] In ")  # the sentence under the table of an environment
CACHE_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
COUNTS = "compilations-{}.json"


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", help="a study file; by default the study of `make study`")
    parser.add_argument("--counted", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.counted:
        return run_and_count(Path(arguments.counted[0]), arguments.counted[1:])
    chosen = [arguments.study] if arguments.study else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            measure(name, Path(folder), chosen)


def measure(name: str, folder: Path, chosen: list[str]) -> None:
    """Runs one study and prints its lines.

    Args:
        name: `first` or `second`.
        folder: Holds the results and the compilation cache.
        chosen: The study file, or nothing for the default study.
    """
    counts_file = folder / COUNTS.format(name)
    command = [sys.executable, __file__, "--counted", str(counts_file), *chosen, "--out", str(folder / name)]
    environment = {name: text for name, text in os.environ.items() if name not in CACHE_SETTINGS}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tables = [int(match[1]) for line in lines if (match := TABLE.match(line))]
    setting = {"study": chosen[0] if chosen else "default", "num_processors": os.cpu_count()}

    def report(quantity: str, amount: float, unit: str) -> None:
        fields: dict[str, Any] = {"se": None, "peer": None, "peer_value": None, "ratio": None}
        line = {"name": f"study/{name}/{quantity}", "value": round(amount, 1), "unit": unit, **fields}
        print(json.dumps(line | {"seconds": round(seconds, 1), "setting": setting}), flush=True)

    report("time", seconds, "s")
    report("processor_time", processor_seconds, "s")
    if tables:
        report("first_table", tables[0], "s")
    for quantity, count in json.loads(counts_file.read_text(encoding="utf-8")).items():
        report(quantity, count, "programs")


def run_and_count(counts_file: Path, arguments: list[str]) -> None:
    """Runs `ontogeny study` in this process and writes how many programs were compiled and how many were cached.

    Args:
        counts_file: Receives the counts.
        arguments: Of `ontogeny study`.
    """
    import jax.monitoring

    counts = {"compilations": 0, "cached_programs": 0}

    def count_hits(event: str, **_: Any) -> None:
        counts["cached_programs"] += event == "/jax/compilation_cache/cache_hits"

    def count_compilations(event: str, duration: float, **_: Any) -> None:
        counts["compilations"] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_listener(count_hits)
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    from ontogeny.cli import app

    try:
        app(["study", *arguments], standalone_mode=False)
    finally:
        # JAX reports the duration of both, of what it compiles and of what it reads from the cache.
        counts["compilations"] -= counts["cached_programs"]
        counts_file.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
