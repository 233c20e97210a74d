"""Evolution whose shards are tasks of a driver: the same run in this process, in several, or on a cluster.

In each generation the driver shares the keys of the lifetimes and the proposal (mean, random key of the noise, standard
deviation) with the workers. A task is the index of a shard, and its answer the fitness of the members, so that the
traffic does not depend on the size of the network apart from the mean. Fitness is put together in the order of the
shards, and the update of the mean is computed here.

`fitness.jsonl` in the folder of the run holds the fitness of every generation from the moment at which it is complete.
A resumed run begins at its last checkpoint and repeats the updates from there without evaluating a member again.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.memory import MemoryPrediction, predict_peak, require_compilation_memory
from ontogeny.parallel import tasks
from ontogeny.parallel.drivers import Driver
from ontogeny.parallel.tasks import Setup, Task
from ontogeny.parallel.worker import fingerprint, num_processors
from ontogeny.rng import key_from_seed
from ontogeny.runs.files import read_json, write_json
from ontogeny.runs.records import append_record, read_records, repair_records
from ontogeny.stages.assembly import assemble, build_development
from ontogeny.stages.spec import RunSpec, parse_run_spec, spec_to_json, user_files
from ontogeny.types import Development, Info, PyTree, ShardedGeneration

FITNESS_FILE, WORKERS_FILE = "fitness.jsonl", "workers.json"
SHARD_FUNCTION, PREDICTION_FUNCTION = f"{__name__}:evaluate_shard", f"{__name__}:predict_shard_memory"


class Measured(NamedTuple):
    """The fitness of a population and the environment steps that each member took, [P] each."""

    fitness: np.ndarray
    env_steps: np.ndarray


def divide_generations(development: Development, spec: RunSpec, folder: Path, driver: Driver) -> Development:
    """A development whose generations are evaluated by a driver.

    Args:
        development: Built from `spec`.
        spec: Workers build their own copy from it; files of the user must have the same paths on all machines.
        folder: Of the run, claimed by this process.
        driver: Computes the shards.

    Raises:
        BadInput: The development has no shards.
    """
    generation = require_shards(development, spec)
    text = _spec_text(spec)
    log = FitnessLog(folder / FITNESS_FILE)

    def step(state: PyTree) -> tuple[PyTree, Info]:
        arrays = trees.to_arrays(generation.propose(state))
        digest = tasks.digest(arrays)
        measured = log.find(digest)
        if measured is None:
            setup = driver.put({"spec": text, "arrays": arrays})
            number = log.num_generations + 1
            shards = range(generation.num_shards)
            requests = [Task(SHARD_FUNCTION, {"generation": number, "shard": shard}) for shard in shards]
            measured = _join(driver.run(requests, setup))
            _record_workers(folder, driver)
            log.append(digest, measured)
        state, info = jax.block_until_ready(generation.finish(state, *map(jnp.asarray, measured)))
        return state, jax.tree.map(lambda leaf: leaf[None], info)

    num_generations = development.num_calls * development.generations_per_call
    return development._replace(step=step, num_calls=num_generations, generations_per_call=1)


def require_shards(development: Development, spec: RunSpec) -> ShardedGeneration:
    """The generation of a development in parts.

    Raises:
        BadInput: It cannot be divided.
    """
    if development.shards is None:
        raise BadInput(
            f"the development '{spec.development.name}' of this run cannot be divided into tasks; only 'evolution' "
            "with strategy=Open_ES can, in an environment that is written in JAX"
        )
    return development.shards


def predict_memory(development: Development, spec: RunSpec, driver: Driver) -> list[MemoryPrediction]:
    """The memory of a run with a driver: that of a worker, and of this process where it is another one.

    The first worker compiles the program of a shard for the prediction, which the run does anyway.

    Args:
        development: Built from `spec`.
        spec: Workers build their own copy from it.
        driver: Computes the shards.
    """
    generation = require_shards(development, spec)
    answer = driver.run([Task(PREDICTION_FUNCTION, {})], driver.put({"spec": _spec_text(spec)}))[0][tasks.TIMING]
    num_processors = answer.pop("num_processors")
    in_worker = MemoryPrediction(**answer)
    if driver.is_in_process:
        return [in_worker]
    num_workers = driver.status().num_workers
    if driver.uses_several_machines:
        num_workers = min(num_workers, num_processors)
    state = jax.eval_shape(development.init, key_from_seed(spec.seed))
    keys, proposal = jax.eval_shape(generation.propose, state)
    shard = jax.eval_shape(generation.evaluate_shard, keys, proposal, jnp.int32(0))
    fitness, env_steps = (jax.ShapeDtypeStruct((generation.num_shards * leaf.shape[0],), leaf.dtype) for leaf in shard)
    return [predict_peak(generation.finish, state, fitness, env_steps), in_worker._replace(num_workers=num_workers)]


def predict_shard_memory(setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
    """Predicts the memory of this process while it evaluates shards, in a worker.

    Args:
        setup: The spec as JSON text.
        request: Empty.

    Returns:
        The fields of a `MemoryPrediction` and the number of processors, as `timing`, since two workers differ in it.
    """
    del request
    require_compilation_memory()
    generation, (keys, proposal) = _build_shards(setup["spec"])
    prediction = predict_peak(generation.evaluate_shard, keys, proposal, jax.ShapeDtypeStruct((), jnp.int32))
    return {tasks.TIMING: prediction._asdict() | {"num_processors": num_processors()}}


def check_continuation(folder: Path, *, in_tasks: bool) -> None:
    """Raises `BadInput` for a run that began in the other way, because sums would be rounded differently."""
    if not (folder / "checkpoint.json").exists() and not (folder / FITNESS_FILE).exists():
        return
    if (folder / FITNESS_FILE).exists() != in_tasks:
        raise BadInput(
            f"the run in '{folder}' began with{'out' if in_tasks else ''} --on; "
            f"with{'' if in_tasks else 'out'} it, its results would not be bitwise reproducible"
        )


class FitnessLog:
    """The fitness of all generations that were evaluated, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        """Read the file, where it exists.

        Args:
            path: A last line that a killed process left incomplete is removed.

        Raises:
            BadInput: A line is no record of a generation.
        """
        self._path = path
        repair_records(path)
        records = read_records(path) if path.exists() else []
        for number, record in enumerate(records, start=1):
            if record.get("generation") != number or not isinstance(record.get("proposal"), str):
                raise BadInput(f"'{path}' is damaged: line {number} is not the fitness of generation {number}")
        self._records = {record["proposal"]: record for record in records}

    @property
    def num_generations(self) -> int:
        """All generations before the one that was evaluated last are in the file, and so is that one."""
        return len(self._records)

    def find(self, proposal: str) -> Measured | None:
        """The measurements of a generation, or None where it has not been evaluated.

        Args:
            proposal: The digest of what determines all members and their lifetimes.

        Raises:
            BadInput: The record is damaged.
        """
        record = self._records.get(proposal)
        if record is None:
            return None
        try:
            fitness = np.frombuffer(base64.b64decode(record["fitness"]), "<f4").astype(np.float32)
            env_steps = np.array(np.broadcast_to(np.asarray(record["env_steps"], np.int32), fitness.shape))
        except (ValueError, TypeError, KeyError):
            fitness = env_steps = np.zeros(0)
        if tasks.digest(fitness) != record.get("digest"):
            raise BadInput(f"'{self._path}' is damaged: the fitness of generation {record['generation']} was changed")
        return Measured(fitness, env_steps)

    def append(self, proposal: str, measured: Measured) -> None:
        """Append the measurements of a generation, and return when they are on the disk."""
        steps = np.unique(measured.env_steps)
        record = {
            "generation": self.num_generations + 1,
            "proposal": proposal,
            "digest": tasks.digest(measured.fitness),
            "fitness": base64.b64encode(measured.fitness.astype("<f4").tobytes()).decode(),
            "env_steps": int(steps[0]) if len(steps) == 1 else measured.env_steps.tolist(),
        }
        self._records[proposal] = record
        append_record(self._path, record)


def evaluate_shard(setup: Setup, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Evaluates one shard of a generation in a worker.

    Args:
        setup: The spec as JSON text, and keys and proposal of the generation as arrays by name.
        request: The index of the shard, and the number of the generation, which messages name.

    Returns:
        Fitness [S] and environment steps, [S], or [1] where they are the same for all members.
    """
    generation, template = _build_shards(setup["spec"])
    keys, proposal = trees.from_arrays(template, setup["arrays"])
    measured = generation.evaluate_shard(keys, proposal, jnp.int32(request["shard"]))
    fitness, env_steps = jax.device_get(measured)
    return {"fitness": fitness, "env_steps": env_steps[:1] if (env_steps == env_steps[0]).all() else env_steps}


def _join(answers: Sequence[Mapping[str, np.ndarray]]) -> Measured:
    """The measurements of all shards in their order."""
    env_steps = [np.broadcast_to(answer["env_steps"], answer["fitness"].shape) for answer in answers]
    return Measured(np.concatenate([answer["fitness"] for answer in answers]), np.concatenate(env_steps))


@lru_cache(maxsize=4)
def _build_shards(text: str) -> tuple[ShardedGeneration, PyTree]:
    """The generation of a spec in parts, and the shapes of keys and proposal."""
    spec = parse_run_spec(json.loads(text))
    development = build_development(spec, assemble(spec))
    generation = require_shards(development, spec)
    state = jax.eval_shape(development.init, key_from_seed(spec.seed))
    return generation, jax.eval_shape(generation.propose, state)


def _spec_text(spec: RunSpec) -> str:
    """A spec as the JSON text that workers receive."""
    return json.dumps(spec_to_json(_with_absolute_paths(spec)))


def _with_absolute_paths(spec: RunSpec) -> RunSpec:
    """A spec that a worker in another folder can build."""
    changes = {
        key: getattr(spec, key).model_copy(update={"name": str(path.resolve())}) for key, path in user_files(spec)
    }
    return spec.model_copy(update=changes)


def _record_workers(folder: Path, driver: Driver) -> None:
    """Record the kinds of workers that took part; refuse a kind that did not take part before an interruption.

    Raises:
        BadInput: The bits of the run would depend on when it was interrupted.
    """
    path = folder / WORKERS_FILE
    recorded = read_json(path) if path.exists() else {"driver": fingerprint(), "workers": []}
    added = [kind for kind in driver.status().fingerprints if kind not in recorded["workers"]]
    if not added:
        return
    if recorded["workers"] and not driver.mixed_workers:
        raise BadInput(
            f"the run in '{folder}' began on workers of another kind (see '{path}'), so its results would not be "
            "bitwise reproducible; the setting mixed_workers=true of --on accepts that"
        )
    workers = recorded["workers"] + added
    write_json(path, recorded | {"workers": workers, "is_mixed": len(workers) > 1})
