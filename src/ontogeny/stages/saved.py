"""A saved agent: the folder of a finished run, or of a deployment that was kept.

Both hold `spec.json`, and a copy of each room that is a file of somebody's own: such a folder carries code, which is
run when it is read. A run holds the genome that was developed, so that a life begins with birth; a deployment holds
the state of a life (weights and activations), which goes on. Nothing here lets an agent act.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ontogeny import rng, trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.runs import checkpoint
from ontogeny.stages.subject import Room, RunSpec, Subject, assemble, own_files, parse, to_json
from ontogeny.types import Genome, State

ROOMS = "rooms"


class Saved(NamedTuple):
    """An agent as it was saved, built and ready: exactly one of `genome` and `state` counts."""

    spec: RunSpec
    subject: Subject
    genome: Genome
    state: State | None  # of a deployment


def read(folder: Path | str, *, env: Room | None = None) -> Saved:
    """Reads a run or a deployment; `environment` puts the agent into another environment than that of its development.

    Raises `BadInput` where the folder is absent, unfinished or damaged, or does not fit the other environment.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if env is not None:
        same = Path(env.name).name == Path(spec.env.name).name  # a run's own copy of a file lies elsewhere
        spec = spec._replace(env=env, drives=spec.drives if same else {})
    subject = assemble(spec)
    genome = subject.agent.genome(jax.random.key(spec.seed))
    if checkpoint.exists(folder, "state"):
        return Saved(spec, subject, None, checkpoint.load(folder, "state", _born(subject, genome, spec.seed)))
    if checkpoint.exists(folder, "genome"):
        return Saved(spec, subject, checkpoint.load(folder, "genome", genome), None)
    raise BadInput(f"the run in '{folder}' is not finished; the command that began it resumes it")


def write(folder: Path | str, spec: RunSpec, state: State, about: dict[str, Any]) -> Path:
    """Saves the state of a life in a new folder, whole or not at all; an existing folder raises `BadInput`."""
    folder = Path(folder)
    if folder.exists():
        raise BadInput(f"'{folder}' exists; not overwritten")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_spec(temporary, spec)
        checkpoint.save(temporary, "state", state, about | {"versions": checkpoint.versions()}, once=True)
        os.rename(temporary, folder)
    except OSError as error:
        raise BadInput(f"the folder '{folder}' cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.sync_folder(folder.parent)
    return folder


def init(saved: Saved, seed: int) -> tuple[jax.Array, State]:
    """The key of a life in use, and the state it begins with: newly born, or the one that was saved."""
    key = rng.sample_lifetime_keys(jax.random.key(seed), 1, "deployment")[0]
    if saved.state is not None:
        return key, saved.state
    return key, saved.subject.agent.init(rng.split_lifetime_key(key).init, saved.genome)


def write_spec(folder: Path, spec: RunSpec) -> None:
    """Writes `spec.json`, and beforehand copies of the files that it names, so that the folder can be carried away."""
    digests = {}
    for key, path in own_files(spec):
        name = _copy_of(key, path)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(folder / name, path.read_bytes())
        digests[name] = _digest(folder / name)
        spec = spec._replace(**{key: getattr(spec, key)._replace(name=name)})
    content = {"format": checkpoint.FORMAT, "run": to_json(spec), ROOMS: digests}
    checkpoint.write_json(folder / "spec.json", content)


def is_left_behind(path: Path, spec: RunSpec) -> bool:
    """Whether something in a folder without a spec is what a run leaves that is killed while it writes this one."""
    if path.name.startswith("."):
        return True
    copies = {path.parent / _copy_of(key, file): file for key, file in own_files(spec)}
    files = [file for file in path.rglob("*") if not file.is_dir() and not file.name.startswith(".")]
    return path.name == ROOMS and all(f in copies and _digest(f) == _digest(copies[f]) for f in files)


def fingerprint(spec: RunSpec) -> dict[str, Any]:
    """What makes two runs the same: the spec, with the content of the files that it names in place of their paths."""
    plain = to_json(spec)
    for key, path in own_files(spec):
        plain[key]["name"] = f"{path.name} {_digest(path)}"
    return plain


def _copy_of(key: str, path: Path) -> str:
    return f"{ROOMS}/{key}/{path.name}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_spec(folder: Path) -> RunSpec:
    """The spec that a folder was made for."""
    if not folder.is_dir():
        raise BadInput(f"there is no run in '{folder}'")
    content = checkpoint.read_json(folder / "spec.json")
    try:
        spec = parse(content.get("run"))
    except BadInput as error:
        raise BadInput(f"'{folder / 'spec.json'}' is damaged: {error}") from None
    digests = content.get(ROOMS)
    for key, path in own_files(spec):
        copy = folder / path
        if not isinstance(digests, dict) or not copy.is_file() or _digest(copy) != digests.get(path.as_posix()):
            raise BadInput(f"'{copy}' is absent or not the file that the run was made with")
        spec = spec._replace(**{key: getattr(spec, key)._replace(name=str(copy))})
    return spec


def check_frozen(before: str, state: State) -> None:
    """Raises `ContractViolation` where the weights have another digest than at the start of a frozen life."""
    after = trees.digest(state.weights)
    if after != before:
        raise ContractViolation(
            f"the weights changed while frozen, from {before[:16]} to {after[:16]}: `act` breaks the first law"
        )


def _born(subject: Subject, genome: Genome, seed: int) -> State:
    return subject.agent.init(jax.random.key(seed), genome)
