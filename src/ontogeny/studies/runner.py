"""Runs a study: develops every agent, measures it on unseen tasks, writes records, and calls the report.

The folder: `spec.toml`, `records.jsonl` (see `records`), `times.jsonl`, `agents/` (finished runs of `lifecycle.train`,
which can be deployed), `scores/` (one score per task, for pairing), `report.html`. A study that was killed goes on
where it was when it is started again with the same spec, seed and folder, and ends in the same records.
"""

import contextlib
import io
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import plugins, rng, steering, trees
from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.files import write_bytes
from ontogeny.runs.records import read_timings
from ontogeny.stages.assembly import Assembly, assemble
from ontogeny.stages.evaluate import evaluate, record_lifetime, task_keys
from ontogeny.stages.spec import parse_plugin_choice
from ontogeny.stages.train import train
from ontogeny.studies import comparison, page, records, spec, upper_bounds
from ontogeny.studies.folder import claimed
from ontogeny.studies.kinds import study_kinds
from ontogeny.studies.plan import (
    Step,
    as_run,
    build_env,
    check,
    development_id,
    is_kept,
    is_searched,
    plan,
    run_folder,
    scores_file,
    settings_of,
)
from ontogeny.studies.progress import OnEvent, ProgressDisplay, StudyEvent
from ontogeny.studies.records import Record
from ontogeny.studies.spec import AgentRow, EnvironmentRow, Study
from ontogeny.types import EnvSpec

TASK_NUMBERS = 600  # a field of a task with more numbers than this is not worth a line of records


def run_study(
    path: str | Path | None = None, out: str | Path = "study", seed: int | None = None, on_event: OnEvent | None = None
) -> Path:
    """Runs the spec at `path` (None: the default study) in the folder `out`; returns the path of the report.

    Without `on_event` progress and tables are printed. Raises `BadInput` for a spec that cannot be used and for a
    folder that holds anything but this very study.
    """
    study = spec.read(path, seed)
    out = Path(out)
    check(study)
    steps = list(plan(study))
    with contextlib.ExitStack() as stack:
        tell = stack.enter_context(contextlib.closing(ProgressDisplay())) if on_event is None else on_event
        stack.enter_context(claimed(out, study, steps))
        return _run(study, steps, out, tell)


def _run(study: Study, steps: list[Step], out: Path, tell: OnEvent) -> Path:
    known = {record["id"]: record for record in records.read(out / records.RECORDS_FILE)}
    tell(StudyEvent("start", study.title, len(known), len(steps) + 1))
    for number, step in enumerate(steps, start=1):
        if step.id not in known:
            tell(StudyEvent("work", step.id, number, len(steps)))
            started = time.perf_counter()
            record = _measure(step, study, out, tell)
            if record["kind"] != "development":  # a development's time is the sum over all its sessions
                records.note_time(out, step.id, time.perf_counter() - started)
            known[step.id] = record
            records.append(out / records.RECORDS_FILE, record)
        last = number == len(steps) or steps[number].env.name != step.env.name
        if last:
            _tell_table(list(known.values()), step.env.name, tell)
    for name, size in study.includes:
        study_kinds()[name].run(size, out / name, study.seed, partial(_forward, tell))
    page_path = page.write(out)
    tell(StudyEvent("end", str(page_path), len(steps), len(steps)))
    return page_path


def _forward(tell: OnEvent, event: StudyEvent) -> None:
    """Pass on the events of an included study, but not its beginning and end."""
    if event.kind in ("work", "progress"):
        tell(event)


def _measure(step: Step, study: Study, out: Path, tell: OnEvent) -> Record:
    about = {"id": step.id, "kind": step.what}
    if step.what == "env":
        return about | _env(step.env)
    if step.what == "bound":
        settings = settings_of(step.env)
        value = upper_bounds.bayes_optimal(settings["num_arms"], settings["num_pulls"])
        how = "exact dynamic programming over successes and failures"
        return about | {"env": step.env.name, "name": "Bayes-optimal", "value": value, "how": how}
    row = step.agent
    assert row is not None
    if step.what == "development":
        return about | _develop(step, row, study, out, tell)
    if step.what == "evaluation":
        return about | _evaluate(step, row, study, out, tell)
    if step.what == "replay":
        return about | _replay(step, row, study, out)
    assert step.other is not None
    apart = comparison.paired_over_seeds(*_scores_on_shared_tasks(out, step.env, row, step.other))
    return about | {
        "env": step.env.name,
        "agent": row.name,
        "other": step.other.name,
        "mean": apart.mean,
        "se": apart.se,
        "df": None if apart.df == float("inf") else apart.df,
        "num_tasks": apart.num_tasks,
    }


def _env(row: EnvironmentRow) -> Record:
    name, env = parse_plugin_choice(row.env).name, build_env(row)
    return {
        "env": row.name,
        "room": Path(name).name,  # a file of somebody's own keeps its ending: it is none of ours, whatever its name
        "help": plugins.help_line("environments", name),
        "settings": settings_of(row),
        "drives": _drives(env.spec, dict(row.drives)),
        "num_steps": env.spec.num_steps,
        "horizon": env.spec.horizon,
        "num_actions": env.spec.num_actions,
        "num_observations": env.spec.num_observations,
    }


def _drives(spec: EnvSpec, given: Mapping[str, float]) -> dict[str, float]:
    """The weight of every fact in the reward, the given ones over those that the environment proposes."""
    return dict(zip(spec.outcome_features, steering.build(spec, given).weights, strict=True))


def _develop(step: Step, row: AgentRow, study: Study, out: Path, tell: OnEvent) -> Record:
    """A reference that nobody develops has no folder; all others are runs of `lifecycle.train`."""
    assert step.home is not None
    run_spec = as_run(study, row, step.home, step.seed)
    steps = generations = 0
    if is_kept(row):
        folder = run_folder(out, row, step.home.name, step.seed)
        if not checkpoint.exists(folder, "genome"):
            train(run_spec, folder, on_progress=lambda done, total, _: tell(StudyEvent("progress", step.id, done, total)))
        found = checkpoint.read_metadata(folder, "genome")
        size = found["num_parameters"]
        if is_searched(row):  # the one lifetime that a genome as written lives for the record develops nothing
            steps, generations = found["env_steps"], found["generation"]
            records.note_time(out, step.id, _seconds_of(folder))
    else:
        subject = assemble(run_spec)
        size = trees.num_elements(subject.agent.genome(jax.random.key(run_spec.seed)))
    return {
        "agent": row.name,
        "model": row.model,
        "developed_on": step.home.name,
        "seed": step.seed,
        "development": row.development,
        "genome_size": size,
        "development_steps": steps,
        "generations": generations,
    }


def _evaluate(step: Step, row: AgentRow, study: Study, out: Path, tell: OnEvent) -> Record:
    subject, genome, case = _ready(step, row, study, out)
    found = evaluate(
        *subject,
        genome,
        num_tasks=row.tasks or step.env.tasks,
        seed=study.seed,
        mode=case,
        on_progress=lambda done, total: tell(StudyEvent("progress", step.id, done, total)),
    )
    buffer = io.BytesIO()
    np.save(buffer, found.totals)
    (out / "scores").mkdir(exist_ok=True)
    write_bytes(scores_file(out, step.env, row, step.seed), buffer.getvalue())
    measured = comparison.interval(found.mean, found.standard_error)
    own = {"drives": _drives(subject.env.spec, dict(step.env.drives) | dict(row.drives))} if row.drives else {}
    return {
        "env": step.env.name,
        "agent": row.name,
        "text": row.agent,
        "model": row.model,
        "seed": step.seed,
        "developed_on": row.home(step.env.name),
        "development": development_id(row, step.env.name, step.seed),
        "privileged": subject.agent.privileged,
        "case": case,
        "num_tasks": found.num_tasks,
        "mean": found.mean,
        "se": found.standard_error,
        "low": measured.low,
        "high": measured.high,
        "curve": {
            "unit": found.curve.unit,
            "position": found.curve.position.tolist(),
            "mean": _short(found.curve.mean),
            "se": _short(found.curve.standard_error),
        },
    } | own


def _replay(step: Step, row: AgentRow, study: Study, out: Path) -> Record:
    subject, genome, case = _ready(step, row, study, out)
    trajectory = record_lifetime(*subject, genome, study.seed, case)
    task_key = rng.split_lifetime_key(task_keys(study.seed, 1)[0]).task
    task = getattr(subject.env.reset(task_key)[0], "task", None)
    fields = getattr(task, "_asdict", dict)()
    observation = np.asarray(trajectory.observation)
    return {
        "env": step.env.name,
        "agent": row.name,
        "model": row.model,
        "seed": step.seed,
        "case": case,
        "task": {name: _short(value) for name, value in fields.items() if np.size(value) <= TASK_NUMBERS},
        "trajectory": {
            "observation": observation.tolist() if observation.ndim == 1 else [],
            "first": np.asarray(trajectory.first).tolist(),
            "action": np.asarray(trajectory.action).tolist(),
            "score": _short(jax.vmap(subject.env.score)(trajectory.outcome)),
            "discount": _short(trajectory.discount),
        },
    }


def _ready(step: Step, row: AgentRow, study: Study, out: Path) -> tuple[Assembly, Any, str]:
    """The agent built for the environment that it is measured in, its genome, and the case: online where it learns."""
    run_spec = as_run(study, row, step.env, step.seed)
    subject = assemble(run_spec)
    genome = subject.agent.genome(jax.random.key(run_spec.seed))
    if is_kept(row):
        genome = checkpoint.load(run_folder(out, row, row.home(step.env.name), step.seed), "genome", genome)
    return subject, genome, "online" if subject.agent.learning else "frozen"


def _scores_on_shared_tasks(out: Path, env: EnvironmentRow, one: AgentRow, other: AgentRow) -> list[list[np.ndarray]]:
    sides = [[_scores(scores_file(out, env, row, seed)) for seed in row.seeds] for row in (one, other)]
    shared = min(len(scores) for side in sides for scores in side)
    return [[scores[:shared] for scores in side] for side in sides]


def _scores(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"'{path}' is damaged: {str(error).splitlines()[0]}") from None


def _tell_table(found: list[Record], env: str, tell: OnEvent) -> None:
    rows = comparison.standings(found, {}).get(env, [])
    about = next(record for record in found if record["kind"] == "env" and record["env"] == env)
    ceiling = comparison.ceilings(found).get(env, ("", float("inf")))[1]
    lines = tuple(comparison.published_lines(about).items())
    tell(StudyEvent("table", env, rows=tuple(rows), lines=lines, ceiling=ceiling))


def _seconds_of(folder: Path) -> float:
    """Wall time of a development over all its sessions; what a killed session did twice counts once."""
    return sum(timing["seconds"] for timing in read_timings(folder) if "seconds" in timing)


def _short(values: Any) -> Any:
    """Arrays as lists, real numbers with seven significant digits: all that float32 holds."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[np.float64])(array).tolist()
