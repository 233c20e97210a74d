"""One measurement of a study: carried out from the spec and the files in the folder, as a record.

A measurement is a function of the spec, its seed and the results of the measurements on which it depends. These are in
the folder: the genome of a development, and the scores of evaluations. It may therefore run in any process.
"""

import errno
import io
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ontogeny import plugins, rng, steering, trees
from ontogeny.audit.attribution import attribute
from ontogeny.audit.suite import to_jsonable
from ontogeny.errors import NOT_ENOUGH_MEMORY, BadInput
from ontogeny.lifetimes import task_of
from ontogeny.runs import checkpoint
from ontogeny.runs.files import write_bytes
from ontogeny.runs.records import Record, encode_record, read_timings
from ontogeny.stages.assembly import Assembly, assemble
from ontogeny.stages.evaluate import evaluate, record_lifetime, task_keys
from ontogeny.stages.spec import parse_plugin_choice
from ontogeny.stages.train import train
from ontogeny.stats import paired_difference_over_seeds
from ontogeny.studies import plan as study_plan
from ontogeny.studies import upper_bounds
from ontogeny.studies.entries import StudyAgent, StudyEnvironment
from ontogeny.studies.plan import Measurement
from ontogeny.studies.progress import OnEvent, StudyEvent, progress_callback
from ontogeny.studies.records import Failure
from ontogeny.studies.spec import StudySpec
from ontogeny.types import EnvSpec, Genome

Outcome = TypeVar("Outcome")
MAX_TASK_VALUES = 600  # a field of a task with more values than this is left out of the records


class EvaluatedAgent(NamedTuple):
    """An agent that is built for the environment of an evaluation, with its genome and mode."""

    assembly: Assembly
    genome: Genome
    mode: str  # "online" where the agent learns in its weights, else "frozen"


def attempt(name: str, function: Callable[[OnEvent], Outcome], notify: OnEvent) -> Outcome | Failure:
    """Call a function that measures something, or describe why it failed.

    Args:
        name: The id of the measurement.
        function: Takes the receiver of its events.
        notify: Receives the events; its own errors pass.

    Raises:
        OSError: The disk is full, so that nothing else can be measured either.
    """
    errors_of_callback: list[BaseException] = []

    def forward(event: StudyEvent) -> None:
        try:
            notify(event)
        except BaseException as error:
            errors_of_callback.append(error)
            raise

    try:
        return function(forward)
    except Exception as error:
        if error in errors_of_callback or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        return Failure(name, _describe_error(error), traceback=_format_traceback(error))


def attempt_measurement(
    measurement: Measurement, spec: StudySpec, folder: Path, notify: OnEvent
) -> tuple[Record | Failure, float | None]:
    """Carry out one measurement, or describe why it failed; the arguments are those of `measure`.

    Returns:
        The record with id and kind, and its wall time in seconds (None for a development that trains nothing); or the
        failure.
    """

    def measure_and_check(notify: OnEvent) -> Record:
        record = {"id": measurement.id, "kind": measurement.kind} | measure(measurement, spec, folder, notify)
        encode_record(record)  # a number that is not finite has no place in a record
        return record

    start = time.perf_counter()
    outcome = attempt(measurement.id, measure_and_check, notify)
    if isinstance(outcome, Failure):
        return outcome, None
    return outcome, _measured_seconds(measurement, folder, time.perf_counter() - start)


def _describe_error(error: Exception) -> str:
    """One sentence about an error."""
    if isinstance(error, BadInput):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return NOT_ENOUGH_MEMORY
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' if first_line else ''}{first_line}"


def _format_traceback(error: Exception) -> str:
    """The traceback of an error that no input of the user explains, or that a file of the user raised."""
    is_explained = isinstance(error, BadInput) and error.__cause__ is None
    return "" if is_explained else "".join(traceback.format_exception(error))


def measure(measurement: Measurement, spec: StudySpec, folder: Path, notify: OnEvent) -> Record:
    """Carry out one measurement.

    Args:
        measurement: Those on which it depends have been carried out in the folder.
        spec: Of the study, with its seed.
        folder: Of the study; a development leaves a run there, an evaluation its scores.
        notify: Receives the progress.

    Returns:
        The record without id and kind.

    Raises:
        BadInput: If the measurement fails for a reason that its settings explain, such as learning that diverges.
    """
    env, agent = measurement.env, measurement.agent
    if measurement.kind == "environment":
        return _environment_record(env)
    if measurement.kind == "upper_bound":
        settings = study_plan.complete_settings(env)
        value = upper_bounds.bayes_optimal(settings["num_arms"], settings["num_pulls"])
        method = "exact dynamic programming over successes and failures"
        return {"env": env.name, "name": "Bayes-optimal", "value": value, "method": method}
    assert agent is not None
    if measurement.kind == "development":
        return _develop(measurement, agent, spec, folder, notify)
    if measurement.kind == "evaluation":
        return _evaluate(measurement, agent, spec, folder, notify)
    if measurement.kind == "recorded_lifetime":
        return _record_lifetime(measurement, agent, spec, folder)
    if measurement.kind == "attribution":
        return _attribute(measurement, agent, spec, folder, notify)
    assert measurement.other_agent is not None
    difference = paired_difference_over_seeds(*_shared_scores(folder, env, agent, measurement.other_agent))
    return {
        "env": env.name,
        "agent": agent.name,
        "other_agent": measurement.other_agent.name,
        "mean": difference.mean,
        "standard_error": difference.standard_error,
        "low": difference.low,
        "high": difference.high,
        "degrees_of_freedom": difference.degrees_of_freedom,
        "num_tasks": difference.num_tasks,
        "is_claimed": abs(difference.mean) > difference.min_claimed_difference,
    }


def _measured_seconds(measurement: Measurement, folder: Path, elapsed: float) -> float | None:
    """Seconds of a measurement; of a development those of its run, over all processes, or None without training."""
    if measurement.kind != "development":
        return round(elapsed, 3)
    assert measurement.agent is not None and measurement.train_env is not None
    if not study_plan.is_trained(measurement.agent):
        return None
    run = study_plan.agent_folder(folder, measurement.agent, measurement.train_env.name, measurement.seed)
    # A compiled call that was repeated after a kill counts once.
    seconds = {timing["compiled_call"]: timing["seconds"] for timing in read_timings(run)}
    return round(sum(seconds.values()), 3)


def _environment_record(env: StudyEnvironment) -> Record:
    """The properties of an environment."""
    name, env_spec = parse_plugin_choice(env.env).name, study_plan.build_env(env).spec
    return {
        "env": env.name,
        "plugin": Path(name).name,  # a user's file keeps its suffix, so that it is not taken for a plugin of ours
        "description": plugins.help_line("environments", name),
        "settings": study_plan.complete_settings(env),
        "drives": _all_drives(env_spec, env.drives),
    } | {size: getattr(env_spec, size) for size in ("num_steps", "horizon", "num_actions", "num_observations")}


def _all_drives(env_spec: EnvSpec, drives: Mapping[str, float]) -> dict[str, float]:
    """The weight of every outcome feature in the reward; those that are not set are the environment's."""
    return dict(zip(env_spec.outcome_features, steering.build(env_spec, drives).weights, strict=True))


def _develop(measurement: Measurement, agent: StudyAgent, spec: StudySpec, out: Path, notify: OnEvent) -> Record:
    """Train an agent as a run in the study's folder; a baseline without training has no run."""
    assert measurement.train_env is not None
    run_spec = study_plan.make_run_spec(spec, agent, measurement.train_env, measurement.seed)
    num_steps = num_generations = 0
    if study_plan.is_saved(agent):
        folder = study_plan.agent_folder(out, agent, measurement.train_env.name, measurement.seed)
        if not checkpoint.exists(folder, "genome"):
            train(run_spec, folder, on_progress=progress_callback(notify, measurement.id))
        metadata = checkpoint.read_metadata(folder, "genome")
        num_parameters = metadata["num_parameters"]
        if study_plan.is_trained(agent):  # the lifetime of a single-lifetime run changes no genome
            num_steps, num_generations = metadata["env_steps"], metadata["generation"]
    else:
        num_parameters = trees.num_elements(assemble(run_spec).agent.genome(rng.key_from_seed(run_spec.seed)))
    return {
        "agent": agent.name,
        "approach": agent.approach,
        "train_env": measurement.train_env.name,
        "seed": measurement.seed,
        "development": agent.development,
        "num_parameters": num_parameters,
        "num_training_env_steps": num_steps,
        "num_generations": num_generations,
    }


def _evaluate(measurement: Measurement, agent: StudyAgent, spec: StudySpec, out: Path, notify: OnEvent) -> Record:
    """Evaluate an agent on held-out tasks and save its score in each task."""
    env, seed = measurement.env, measurement.seed
    assembly, genome, mode = _load_agent(measurement, agent, spec, out)
    num_tasks, on_progress = agent.num_tasks or env.num_tasks, progress_callback(notify, measurement.id)
    evaluation = evaluate(*assembly, genome, num_tasks=num_tasks, seed=spec.seed, mode=mode, on_progress=on_progress)
    buffer = io.BytesIO()
    np.save(buffer, evaluation.totals)
    (out / "scores").mkdir(exist_ok=True)
    write_bytes(study_plan.scores_path(out, env, agent, seed), buffer.getvalue())
    drives = {"drives": _all_drives(assembly.env.spec, env.drives | agent.drives)} if agent.drives else {}
    names = {"env": env.name, "agent": agent.name, "agent_spec": agent.agent, "approach": agent.approach, "seed": seed}
    scores = {name: getattr(evaluation, name) for name in ("num_tasks", "mean", "standard_error")}
    scores |= dict(zip(("low", "high"), evaluation.interval, strict=True))
    return (
        names
        | {
            "train_env": agent.train_env_for(env.name),
            "development_id": study_plan.development_id(agent, env.name, seed),
            "privileged": assembly.agent.privileged,
            "mode": mode,
            **scores,
            "curve": {name: _rounded(values) for name, values in evaluation.curve._asdict().items()},
        }
        | drives
    )


def _record_lifetime(measurement: Measurement, agent: StudyAgent, spec: StudySpec, out: Path) -> Record:
    """Record one lifetime of an agent step by step, in the first task of the evaluation."""
    assembly, genome, mode = _load_agent(measurement, agent, spec, out)
    trajectory = record_lifetime(*assembly, genome, spec.seed, mode)
    task = task_of(assembly.env, task_keys(spec.seed, 1)[0])
    fields = getattr(task, "_asdict", dict)()
    observation = np.asarray(trajectory.observation)
    names = {"env": measurement.env.name, "agent": agent.name, "approach": agent.approach}
    return names | {
        "seed": measurement.seed,
        "mode": mode,
        "task": {name: _rounded(value) for name, value in fields.items() if np.size(value) <= MAX_TASK_VALUES},
        "trajectory": {
            "observation": observation.tolist() if observation.ndim == 1 else [],
            "first": np.asarray(trajectory.first).tolist(),
            "action": np.asarray(trajectory.action).tolist(),
            "score": _rounded(jax.vmap(assembly.env.score)(trajectory.outcome)),
            "discount": _rounded(trajectory.discount),
        },
    }


def _attribute(measurement: Measurement, agent: StudyAgent, spec: StudySpec, out: Path, notify: OnEvent) -> Record:
    """Attribute the gain of an agent in deployment to weights and activations."""
    env, seed = measurement.env, measurement.seed
    assembly, genome, _ = _load_agent(measurement, agent, spec, out)
    attribution = attribute(
        *assembly, genome, num_tasks=env.num_attribution_tasks, seed=spec.seed,
        on_progress=progress_callback(notify, measurement.id),
    )  # fmt: skip
    names = {"env": env.name, "agent": agent.name, "approach": agent.approach, "seed": seed}
    return names | {"verdict": attribution.verdict, "attribution": to_jsonable(attribution)}


def _load_agent(measurement: Measurement, agent: StudyAgent, spec: StudySpec, out: Path) -> EvaluatedAgent:
    """The agent of a measurement, with the genome that was developed or its initial genome."""
    run_spec = study_plan.make_run_spec(spec, agent, measurement.env, measurement.seed)
    assembly = assemble(run_spec)
    genome = assembly.agent.genome(rng.key_from_seed(run_spec.seed))
    if study_plan.is_saved(agent):
        train_env = agent.train_env_for(measurement.env.name)
        folder = study_plan.agent_folder(out, agent, train_env, measurement.seed)
        genome = checkpoint.load(folder, "genome", genome)
    return EvaluatedAgent(assembly, genome, "online" if assembly.agent.learning else "frozen")


def _shared_scores(
    out: Path, env: StudyEnvironment, agent: StudyAgent, other_agent: StudyAgent
) -> list[list[np.ndarray]]:
    """Scores of two agents by seed, on the tasks that both were evaluated on."""
    paths = [[study_plan.scores_path(out, env, a, seed) for seed in a.seeds] for a in (agent, other_agent)]
    scores = [[_read_scores(path) for path in side] for side in paths]
    num_shared = min(len(by_task) for side in scores for by_task in side)
    return [[by_task[:num_shared] for by_task in side] for side in scores]


def _read_scores(path: Path) -> np.ndarray:
    """The scores of an evaluation, one per task."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"'{path}' is damaged: {str(error).splitlines()[0]}") from None


def _rounded(values: Any) -> Any:
    """An array as a list (a string as it is), with floats rounded to the precision of float32, seven digits."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[np.float64])(array).tolist()
