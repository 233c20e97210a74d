"""Runs a study: develops every agent, evaluates it on held-out tasks, writes records and the page.

The folder holds `spec.json` and `spec.toml`, `records.jsonl`, `timing.jsonl`, `agents/` (finished runs, which can be
deployed), `scores/` (one score per task, for paired differences) and `report.html`. A killed study resumes when it is
started again with the same spec, seed and folder, and ends in the same records.
"""

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import plugins, rng, steering, trees
from ontogeny.audit.attribution import attribute
from ontogeny.audit.suite import to_jsonable
from ontogeny.errors import BadInput
from ontogeny.lifetimes import task_of
from ontogeny.runs import checkpoint, formats
from ontogeny.runs.files import write_bytes
from ontogeny.runs.folder import claim
from ontogeny.runs.records import RECORDS_FILE, Record, append_record, append_timing, read_timings, repair_records
from ontogeny.stages.assembly import Assembly, assemble
from ontogeny.stages.evaluate import evaluate, record_lifetime, task_keys
from ontogeny.stages.spec import parse_plugin_choice, user_files
from ontogeny.stages.train import train
from ontogeny.stats import paired_difference_over_seeds
from ontogeny.studies import comparison, page, pairwise, upper_bounds
from ontogeny.studies import plan as study_plan
from ontogeny.studies.kinds import study_kinds
from ontogeny.studies.plan import Measurement
from ontogeny.studies.progress import OnEvent, StudyEvent, progress_callback, show_progress
from ontogeny.studies.records import read_records
from ontogeny.studies.spec import StudyAgent, StudyEnvironment, StudySpec, read_spec
from ontogeny.types import EnvSpec, Genome

MAX_TASK_VALUES = 600  # a field of a task with more values than this is left out of the records


class EvaluatedAgent(NamedTuple):
    """An agent that is built for the environment of an evaluation, with its genome and mode."""

    assembly: Assembly
    genome: Genome
    mode: str  # "online" where the agent learns in its weights, else "frozen"


def run_study(
    path: str | Path | None = None, out: str | Path = "study", seed: int | None = None, on_event: OnEvent | None = None
) -> Path:
    """Run a study in a folder, or resume it.

    Args:
        path: A TOML file; by default the study that comes with the package.
        out: The folder; it is created where it is absent.
        seed: Replaces the seed in the file.
        on_event: Receives the events; by default progress and tables are printed.

    Returns:
        The path of the page.

    Raises:
        BadInput: If the spec cannot be used, or the folder holds anything but this very study.
    """
    spec = read_spec(path, seed)
    study_plan.check_study(spec)
    measurements = list(study_plan.list_measurements(spec))
    with show_progress(on_event) as notify, _claim(Path(out), spec, measurements) as folder:
        return _run(spec, measurements, folder, notify)


@contextlib.contextmanager
def _claim(out: Path, spec: StudySpec, measurements: list[Measurement]) -> Iterator[Path]:
    """The folder of the study, claimed and locked, with copies of the files of the user that the spec names."""

    def prepare(folder: Path) -> Mapping[str, Any]:
        write_bytes(folder / "spec.toml", spec.text.encode())
        return {"planned_ids": [measurement.id for measurement in measurements]}

    content = {"title": spec.title, "question": spec.question, "seed": spec.seed, "digest": spec.digest}
    files = {}
    for agent in spec.agents:
        for env in agent.environments:
            for _, path in user_files(study_plan.make_run_spec(spec, agent, spec.find_env(env), 0)):
                files[f"files/{len(files)}-{path.name}"] = path
    with claim(out, formats.STUDY, content | {"text": spec.text}, files=files, prepare=prepare) as folder:
        repair_records(folder / RECORDS_FILE)
        yield folder


def _run(spec: StudySpec, measurements: list[Measurement], folder: Path, notify: OnEvent) -> Path:
    """Carry out the measurements that have no record yet, then the included studies, then write the page."""
    path = folder / RECORDS_FILE
    by_id = {record["id"]: record for record in read_records(folder)}
    notify(StudyEvent("start", spec.title, len(by_id), len(measurements)))
    for number, measurement in enumerate(measurements, start=1):
        if measurement.id not in by_id:
            notify(StudyEvent("work", measurement.id, number, len(measurements)))
            start_time = time.perf_counter()
            record = {"id": measurement.id, "kind": measurement.kind} | _measure(measurement, spec, folder, notify)
            if measurement.kind != "development":  # its time is the sum over all sessions, which `_develop` appends
                append_timing(folder, {"id": measurement.id, "seconds": round(time.perf_counter() - start_time, 3)})
            by_id[measurement.id] = record
            append_record(path, record)
        if number == len(measurements) or measurements[number].env.name != measurement.env.name:
            _notify_of_table(list(by_id.values()), measurement.env.name, notify)
    for name, size in spec.includes.items():
        study_kinds()[name].run(size, folder / name, spec.seed, partial(_forward, notify))
    page_path = page.write(folder)
    notify(StudyEvent("end", str(page_path), len(measurements), len(measurements)))
    return page_path


def _forward(notify: OnEvent, event: StudyEvent) -> None:
    """Pass on the events of an included study, but not its start and end."""
    if event.kind in ("work", "progress"):
        notify(event)


def _measure(measurement: Measurement, spec: StudySpec, folder: Path, notify: OnEvent) -> Record:
    """Carry out one measurement and return its record without id and kind."""
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
            append_timing(out, {"id": measurement.id, "seconds": round(_training_seconds(folder), 3)})
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


def _notify_of_table(records: list[Record], env: str, notify: OnEvent) -> None:
    """Report the scores of all agents in an environment."""
    results = comparison.collect_results(records).get(env, [])
    env_record = next(r for r in records if r["kind"] == "environment" and r["env"] == env)
    upper_bound = comparison.upper_bound_value(comparison.collect_upper_bounds(records), env)
    scores = tuple(comparison.published_scores(env_record).items())
    pairs = tuple(pairwise.compare_pairs(records, {env: results}).get(env, ()))
    notify(StudyEvent("table", env, 0, 0, tuple(results), pairs, scores, upper_bound))


def _training_seconds(folder: Path) -> float:
    """Wall time of a training run over all its processes; a call that was repeated after a kill counts once."""
    seconds = {timing["compiled_call"]: timing["seconds"] for timing in read_timings(folder)}
    return sum(seconds.values())


def _rounded(values: Any) -> Any:
    """An array as a list (a string as it is), with floats rounded to the precision of float32, seven digits."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[np.float64])(array).tolist()
