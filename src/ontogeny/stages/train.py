"""Training: develops a genome from a spec, in a folder from which a killed run goes on.

A run is determined by its spec and seed: `records.jsonl` (one line per generation) and the genome have the same bytes
however often the run was killed and resumed. What the machine's mood decides, wall time, is in `timing.jsonl`.
The folder holds `spec.json`, the two, `checkpoint.*`, and from its end on `genome.*`: then it is finished.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import plugins, trees
from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.lock import locked
from ontogeny.stages.saved import fingerprint, is_left_behind, read_spec, write_spec
from ontogeny.stages.subject import RunSpec, assemble, complete, develop, own_files
from ontogeny.types import Development

RECORDS = "records.jsonl"
TIMING = "timing.jsonl"
Progress = Callable[[int, int, dict[str, Any]], None]


def train(spec: RunSpec, out: Path | str, *, on_progress: Progress | None = None, every: float = 5.0) -> Path:
    """Runs a spec to its end in the folder `out` and returns it.

    An unfinished run of the same spec is resumed; a finished one, another spec's, and a folder that holds something
    else raise `BadInput` and stay as they are. `every`: seconds between checkpoints, 0 for one after each dispatch.
    `on_progress(generations done, generations in all, last record)` is called after each dispatch.
    """
    if not every >= 0:
        raise BadInput(f"the seconds between checkpoints must be at least 0, not {every}")
    out = Path(out)
    subject = assemble(spec)
    development = develop(spec, subject)
    spec = complete(spec)
    own = [str(path) for _, path in own_files(spec)]
    with _claimed(out, spec), plugins.blaming(own, "training fails", only_theirs=True):
        _run(spec, development, out, on_progress, every)
    return out


def _run(spec: RunSpec, development: Development, out: Path, on_progress: Progress | None, every: float) -> None:
    total = development.num_dispatches * development.generations
    state = development.init(jax.random.key(spec.seed))
    dispatch, hashed, position = 0, hashlib.sha256(), 0
    if checkpoint.exists(out, "checkpoint"):
        found = checkpoint.about(out, "checkpoint")
        _same_versions(found.get("versions"), out)
        state = checkpoint.load(out, "checkpoint", state)
        dispatch, position = found["dispatch"], found["records_bytes"]
        hashed = _checked_prefix(out / RECORDS, position, found["records_sha256"])

    def about() -> dict[str, Any]:
        return {
            "dispatch": dispatch,
            "generation": dispatch * development.generations,
            "env_steps": dispatch * development.generations * development.num_steps,
            "records_bytes": position,
            "records_sha256": hashed.hexdigest(),
            "versions": checkpoint.versions(),
        }

    record: dict[str, Any] = {}
    _keep_timing(out / TIMING, dispatch)
    with (out / RECORDS).open("ab") as records, (out / TIMING).open("a", encoding="utf-8") as timing:
        records.truncate(position)
        saved = time.perf_counter()
        while dispatch < development.num_dispatches:
            started = time.perf_counter()
            state, info = development.step(state)
            for record in _records(jax.device_get(info), dispatch, development):
                line = (json.dumps(record, allow_nan=False) + "\n").encode()
                records.write(line)
                hashed.update(line)
                position += len(line)
            dispatch += 1
            now = time.perf_counter()
            timing.write(json.dumps({"dispatch": dispatch, "seconds": round(now - started, 6)}) + "\n")
            if now - saved >= every or dispatch == development.num_dispatches:
                records.flush()
                timing.flush()
                # A checkpoint counts on the lines it speaks of: they are on the disk before it is.
                os.fsync(records.fileno())
                checkpoint.save(out, "checkpoint", state, about())
                saved = time.perf_counter()
            if on_progress is not None:
                on_progress(dispatch * development.generations, total, record)
    genome = development.genome(state)
    if not trees.is_finite(genome):
        raise BadInput(f"the development in '{out}' went astray: its genome holds numbers that are not finite")
    checkpoint.save(out, "genome", genome, about(), once=True)


def _records(info: dict[str, Any], dispatch: int, development: Development) -> Iterator[dict[str, Any]]:
    for g in range(development.generations):
        generation = dispatch * development.generations + g + 1
        values = {name: _plain(np.asarray(value)[g]) for name, value in info.items()}
        yield {"generation": generation, "env_steps": generation * development.num_steps} | values


def _plain(value: Any) -> Any:
    """Numbers as JSON knows them: what is not finite becomes null."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _claimed(out: Path, spec: RunSpec) -> Iterator[None]:
    """Makes the folder this run's own, or says why it cannot be; no second process may work in it at the same time."""
    existed = out.exists()
    if existed:
        _refuse_foreign(out, spec)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder '{out}' cannot be made: {error.strerror}") from None
    with locked(out, "training"):
        if not (out / "spec.json").exists():
            write_spec(out, spec)
        _refuse_foreign(out, spec)
        yield


def _refuse_foreign(out: Path, spec: RunSpec) -> None:
    if not out.is_dir():
        raise BadInput(f"'{out}' exists and is not a folder; not overwritten")
    if not (out / "spec.json").exists():
        if not all(is_left_behind(path, spec) for path in out.iterdir()):
            raise BadInput(f"the folder '{out}' exists and holds no run; not overwritten")
        return
    if fingerprint(read_spec(out)) != fingerprint(spec):
        raise BadInput(f"the folder '{out}' holds a run of another spec; not overwritten")
    if checkpoint.exists(out, "genome"):
        raise BadInput(f"the folder '{out}' holds a finished run; not overwritten")


def _checked_prefix(path: Path, size: int, digest: str) -> Any:
    """The running hash of the records that a checkpoint counts on."""
    try:
        with path.open("rb") as file:
            data = file.read(size)
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    hashed = hashlib.sha256(data)
    if len(data) < size or hashed.hexdigest() != digest:
        raise BadInput(f"'{path}' is damaged: its first {size} bytes are not those that the checkpoint counts on")
    return hashed


def _keep_timing(path: Path, dispatches: int) -> None:
    """Drops the wall times of dispatches that will be done again, and a line without its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["dispatch"] <= dispatches:
                kept.append(line + "\n")
    checkpoint.write_bytes(path, "".join(kept).encode())


def _same_versions(found: Any, out: Path) -> None:
    now = checkpoint.versions()
    for name, value in now.items():
        was = found.get(name) if isinstance(found, dict) else None
        if was != value:
            raise BadInput(
                f"the run in '{out}' was begun with {name} {was}, here is {value}: it would not end in the same bits"
            )
