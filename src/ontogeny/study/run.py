"""Runs a study: develops every agent, measures it on unseen tasks, writes records, and calls the report.

The folder: `spec.toml`, `records.jsonl` (see `records`), `times.jsonl`, `agents/` (finished runs of `lifecycle.train`,
which can be deployed), `scores/` (one score per task, for pairing), `report.html`. A study that was killed goes on
where it was when it is started again with the same spec, seed and folder, and ends in the same records.
"""

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import registry, steering, streams, trees
from ontogeny.errors import BadInput
from ontogeny.lifecycle import checkpoint
from ontogeny.lifecycle.evaluate import evaluate, replay, task_keys
from ontogeny.lifecycle.lock import locked
from ontogeny.lifecycle.subject import RunSpec, Subject, assemble, develop, room
from ontogeny.lifecycle.train import TIMING, train
from ontogeny.study import bounds, compare, records, report, spec
from ontogeny.study.records import Record
from ontogeny.study.screen import Screen
from ontogeny.study.spec import AgentRow, Study, WorldRow
from ontogeny.types import Spec

ORDER = ("reference", "code", "evolution")  # what is quick comes first
TASK_NUMBERS = 600  # a field of a task with more numbers than this is not worth a line of records


class Event(NamedTuple):
    """What a run tells while it goes on."""

    kind: str  # "start", "work", "progress", "table", "end"
    text: str
    done: int = 0
    total: int = 0
    rows: tuple[compare.Standing, ...] = ()  # of a table
    lines: tuple[tuple[str, float], ...] = ()  # published beside it
    ceiling: float = float("inf")  # that no strategy exceeds on average


class Step(NamedTuple):
    """One measurement to make: its records' ids are known beforehand."""

    id: str
    what: str  # a kind of record
    world: WorldRow  # under which it is listed
    agent: AgentRow | None = None
    seed: int = 0
    other: AgentRow | None = None
    home: WorldRow | None = None  # of a development: the world that it is in, which may come later in the list


OnEvent = Callable[[Event], None]


def run(
    path: str | Path | None = None, out: str | Path = "study", seed: int | None = None, on_event: OnEvent | None = None
) -> Path:
    """Runs the spec at `path` (None: the default study) in the folder `out`; returns the path of the report.

    Without `on_event` progress and tables are printed. Raises `BadInput` for a spec that cannot be used and for a
    folder that holds anything but this very study.
    """
    study = spec.read(path, seed)
    tell = Screen() if on_event is None else on_event
    out = Path(out)
    check(study)
    steps = list(plan(study))
    with _claimed(out, study, steps):
        return _run(study, steps, out, tell)


def _run(study: Study, steps: list[Step], out: Path, tell: OnEvent) -> Path:
    known = {record["id"]: record for record in records.read(out / records.RECORDS)}
    tell(Event("start", study.title, len(known), len(steps) + 1))
    for number, step in enumerate(steps, start=1):
        if step.id not in known:
            tell(Event("work", step.id, number, len(steps)))
            started = time.perf_counter()
            record = _measure(step, study, out, tell)
            if record["kind"] != "development":  # a development's time is the sum over all its sessions
                _note_time(out, step.id, time.perf_counter() - started)
            known[step.id] = record
            records.append(out / records.RECORDS, record)
        last = number == len(steps) or steps[number].world.name != step.world.name
        if last:
            _tell_table(list(known.values()), step.world.name, tell)
    page = report.write(out)
    tell(Event("end", str(page), len(steps), len(steps)))
    return page


def plan(study: Study) -> Iterator[Step]:
    """All measurements of a study in their order: world by world, cheap agents first."""
    developed: set[str] = set()
    for world in study.worlds:
        yield Step(f"world/{world.name}", "world", world)
        rows = [row for row in study.agents if world.name in row.worlds]
        rows.sort(key=lambda row: ORDER.index(row.model))
        for row in rows:
            for seed in row.seeds:
                name = development_id(row, world.name, seed)
                if name not in developed:
                    developed.add(name)
                    yield Step(name, "development", world, row, seed, home=study.world(row.home(world.name)))
                yield Step(f"evaluation/{world.name}/{row.name}/{seed}", "evaluation", world, row, seed)
            if world.replay:
                yield Step(f"replay/{world.name}/{row.name}", "replay", world, row, row.seeds[0])
        for i, row in enumerate(rows):
            for other in rows[:i]:
                if row.model != "reference":
                    yield Step(
                        f"difference/{world.name}/{row.name}/{other.name}", "difference", world, row, other=other
                    )
        if _bounded(world):
            yield Step(f"bound/{world.name}", "bound", world)


def development_id(row: AgentRow, world: str, seed: int) -> str:
    return f"development/{row.home(world)}/{row.name}/{seed}"


def check(study: Study) -> None:
    """Builds every agent in every world of the study, and every development, so that no study stops halfway."""
    for world in study.worlds:
        try:
            steering.build(
                registry.build("worlds", room(world.world).name, **room(world.world).settings).spec, dict(world.drives)
            )
        except BadInput as error:
            raise BadInput(f"world '{world.name}': {error}") from None
    for row in study.agents:
        for world in dict.fromkeys((*row.worlds, *(row.home(name) for name in row.worlds))):
            try:
                run_spec = _run_spec(study, row, study.world(world), row.seeds[0])
                develop(run_spec, assemble(run_spec))
            except BadInput as error:
                raise BadInput(f"agent '{row.name}' in '{world}': {error}") from None


def _measure(step: Step, study: Study, out: Path, tell: OnEvent) -> Record:
    about = {"id": step.id, "kind": step.what}
    if step.what == "world":
        return about | _world(step.world)
    if step.what == "bound":
        settings = _settings(step.world)
        value = bounds.bayes_optimal(settings["arms"], settings["pulls"])
        how = "exact dynamic programming over successes and failures"
        return about | {"world": step.world.name, "name": "Bayes-optimal", "value": value, "how": how}
    row = step.agent
    assert row is not None
    if step.what == "development":
        return about | _develop(step, row, study, out, tell)
    if step.what == "evaluation":
        return about | _evaluate(step, row, study, out, tell)
    if step.what == "replay":
        return about | _replay(step, row, study, out)
    assert step.other is not None
    apart = compare.paired_over_seeds(*_scores_on_shared_tasks(out, step.world, row, step.other))
    return about | {
        "world": step.world.name,
        "agent": row.name,
        "other": step.other.name,
        "mean": apart.mean,
        "se": apart.se,
        "num_tasks": apart.num_tasks,
    }


def _world(row: WorldRow) -> Record:
    name = room(row.world).name
    world = registry.build("worlds", name, **room(row.world).settings)
    return {
        "world": row.name,
        "room": Path(name).stem,
        "help": registry.help_line("worlds", name),
        "settings": _settings(row),
        "drives": _drives(world.spec, row),
        "num_steps": world.spec.num_steps,
        "horizon": world.spec.horizon,
        "num_actions": world.spec.num_actions,
        "num_observations": world.spec.num_observations,
    }


def _drives(spec: Spec, row: WorldRow) -> dict[str, float]:
    """The weight of every fact in the reward of this study."""
    return dict(zip(spec.facts, steering.build(spec, dict(row.drives)).weights, strict=True))


def _develop(step: Step, row: AgentRow, study: Study, out: Path, tell: OnEvent) -> Record:
    """A reference that nobody develops has no folder; all others are runs of `lifecycle.train`."""
    assert step.home is not None
    run_spec = _run_spec(study, row, step.home, step.seed)
    searched = run_spec.development.name != "single_lifetime"
    steps = generations = 0
    if searched or row.model != "reference":
        folder = _folder(out, row, step.home.name, step.seed)
        if not checkpoint.exists(folder, "genome"):
            train(run_spec, folder, on_progress=lambda done, total, _: tell(Event("progress", step.id, done, total)))
        found = checkpoint.about(folder, "genome")
        size = found["numbers"]
        if searched:  # the one lifetime that a genome as written lives for the record develops nothing
            steps, generations = found["env_steps"], found["generation"]
            _note_time(out, step.id, _seconds_of(folder))
    else:
        subject = assemble(run_spec)
        size = trees.size(subject.agent.genome(jax.random.key(run_spec.seed)))
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
        num_tasks=row.tasks or step.world.tasks,
        seed=study.seed,
        case=case,
        on_progress=lambda done, total: tell(Event("progress", step.id, done, total)),
    )
    buffer = io.BytesIO()
    np.save(buffer, found.totals)
    (out / "scores").mkdir(exist_ok=True)
    checkpoint.write_bytes(_scores(out, step.world, row, step.seed), buffer.getvalue())
    measured = compare.interval(found.mean, found.standard_error)
    return {
        "world": step.world.name,
        "agent": row.name,
        "text": row.agent,
        "model": row.model,
        "seed": step.seed,
        "developed_on": row.home(step.world.name),
        "development": development_id(row, step.world.name, step.seed),
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
    }


def _replay(step: Step, row: AgentRow, study: Study, out: Path) -> Record:
    subject, genome, case = _ready(step, row, study, out)
    life = replay(*subject, genome, study.seed, case)
    task_key = streams.chances(task_keys(study.seed, 1)[0]).task
    task = getattr(subject.world.reset(task_key)[0], "task", None)
    fields = getattr(task, "_asdict", dict)()
    observation = np.asarray(life.observation)
    return {
        "world": step.world.name,
        "agent": row.name,
        "model": row.model,
        "seed": step.seed,
        "case": case,
        "task": {name: _short(value) for name, value in fields.items() if np.size(value) <= TASK_NUMBERS},
        "life": {
            "observation": observation.tolist() if observation.ndim == 1 else [],
            "first": np.asarray(life.first).tolist(),
            "action": np.asarray(life.action).tolist(),
            "score": _short(jax.vmap(subject.world.score)(life.outcome)),
            "discount": _short(life.discount),
        },
    }


def _ready(step: Step, row: AgentRow, study: Study, out: Path) -> tuple[Subject, Any, str]:
    """The agent built for the world that it is measured in, its genome, and the case: online where it learns."""
    run_spec = _run_spec(study, row, step.world, step.seed)
    subject = assemble(run_spec)
    genome = subject.agent.genome(jax.random.key(run_spec.seed))
    folder = _folder(out, row, row.home(step.world.name), step.seed)
    if folder.exists():
        genome = checkpoint.load(folder, "genome", genome)
    return subject, genome, "online" if subject.agent.learns else "offline"


def _run_spec(study: Study, row: AgentRow, world: WorldRow, seed: int) -> RunSpec:
    distinct = int(np.random.SeedSequence([study.seed, seed]).generate_state(1)[0])
    drives = dict(world.drives) | dict(row.drives)
    return RunSpec(room(world.world), room(row.agent), room(row.development), drives, distinct)


def _scores_on_shared_tasks(out: Path, world: WorldRow, one: AgentRow, other: AgentRow) -> list[list[np.ndarray]]:
    sides = [[np.load(_scores(out, world, row, seed)) for seed in row.seeds] for row in (one, other)]
    shared = min(len(scores) for side in sides for scores in side)
    return [[scores[:shared] for scores in side] for side in sides]


@contextlib.contextmanager
def _claimed(out: Path, study: Study, steps: list[Step]) -> Iterator[None]:
    """Makes the folder this study's own while it runs, or says why it cannot be and leaves it as it is."""
    versions = checkpoint.versions() | {"python": ".".join(map(str, sys.version_info[:3]))}
    head: Record = {
        "id": "study",
        "kind": "study",
        "format": records.FORMAT,
        "title": study.title,
        "question": study.question,
        "seed": study.seed,
        "digest": study.digest,
        "versions": versions,
        "planned": [step.id for step in steps],
        "spec": study.text,
    }
    path = out / records.RECORDS
    _refuse_foreign(out, head)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder '{out}' cannot be made: {error.strerror}") from None
    with locked(out, "running a study"):
        _refuse_foreign(out, head)
        records.repair(path)
        if not path.exists() or not path.stat().st_size:
            records.append(path, head)
        checkpoint.write_bytes(out / "spec.toml", study.text.encode())
        yield


def _refuse_foreign(out: Path, head: Record) -> None:
    """Raises `BadInput` unless the folder is absent, empty, or this very study's, be it killed in its first line."""
    path = out / records.RECORDS
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"'{out}' exists and is no folder; not overwritten")
    if not path.is_file():
        if any(not other.name.startswith(".") for other in out.iterdir()):
            raise BadInput(f"'{out}' exists and holds no study; not overwritten")
        return
    with path.open("rb") as file:
        first = file.readline()
    if not first.endswith(b"\n"):
        if not records.line(head).startswith(first):
            raise BadInput(f"'{path}' is not the records of a study; not overwritten")
        return
    try:
        there = json.loads(first)
    except ValueError:
        there = None
    if not isinstance(there, dict) or there.get("kind") != "study":
        raise BadInput(f"'{path}' is not the records of a study; not overwritten")
    if there != json.loads(json.dumps(head)):
        differs = ", ".join(sorted(key for key in head if there.get(key) != head[key]))
        raise BadInput(f"the folder '{out}' holds another study ({differs} differ); not overwritten")


def _tell_table(found: list[Record], world: str, tell: OnEvent) -> None:
    rows = compare.standings(found, {}).get(world, [])
    about = next(record for record in found if record["kind"] == "world" and record["world"] == world)
    ceiling = compare.ceilings(found).get(world, ("", float("inf")))[1]
    lines = tuple(compare.published_lines(about).items())
    tell(Event("table", world, rows=tuple(rows), lines=lines, ceiling=ceiling))


def _settings(row: WorldRow) -> dict[str, Any]:
    name, given = room(row.world)
    return registry.settings("worlds", name) | dict(given)


def _bounded(row: WorldRow) -> bool:
    if room(row.world).name != "bandit":
        return False
    settings = _settings(row)
    return bounds.num_states(settings["arms"], settings["pulls"]) <= bounds.EXACT


def _folder(out: Path, row: AgentRow, home: str, seed: int) -> Path:
    return out / "agents" / f"{_slug(row.name)}-{_slug(home)}-{seed}"


def _scores(out: Path, world: WorldRow, row: AgentRow, seed: int) -> Path:
    return out / "scores" / f"{_slug(world.name)}-{_slug(row.name)}-{seed}.npy"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


def _note_time(out: Path, name: str, seconds: float) -> None:
    with (out / records.TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": name, "seconds": round(seconds, 3)}) + "\n")


def _seconds_of(folder: Path) -> float:
    """Wall time of a development over all its sessions; what a killed session did twice counts once."""
    by_dispatch: dict[int, float] = {}
    for line in (folder / TIMING).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            by_dispatch[row["dispatch"]] = row["seconds"]
        except (ValueError, KeyError):
            continue  # a line torn by a kill; the dispatch was done again
    return sum(by_dispatch.values())


def _short(values: Any) -> Any:
    """Arrays as lists, real numbers with seven significant digits: all that float32 holds."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[np.float64])(array).tolist()
