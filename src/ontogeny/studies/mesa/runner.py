"""The mesa study: could content that is learned by prediction come to hold an inner optimizer, and from what size on?

Content of growing capacity, trained in two ways: by prediction within one life, with code around it (genome = ML code),
and on the agent's own return by evolution (the positive control at every size). For both a sham, in which no report
moves an item. Asked of each run, weights frozen: does it learn, has it an objective of its own, and of content that
predicts payouts in `chain`, does it plan? The unit of inference is a run.

The folder: `records.jsonl`, `times.jsonl`, `runs/` (what was trained), `pupils/`, `report.html`. A study that was
killed goes on where it was when it is started again; what had not been recorded is done anew, and comes out the same.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import trees
from ontogeny.audit import learns, plans, sacrifice, suite
from ontogeny.audit.base import AuditResult
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions, locked
from ontogeny.studies import records
from ontogeny.studies.mesa import capacity, distilled, fingerprint
from ontogeny.studies.mesa import page as mesa_page
from ontogeny.studies.progress import OnEvent, ProgressDisplay, StudyEvent
from ontogeny.studies.records import Record
from ontogeny.types import PyTree

CONDITIONS = ("live", "sham")
PUPILS = "pupils"  # which `ontogeny audit calibrate --distilled` reads as well
TITLE = "Could learned content come to hold an inner optimizer?"


class Search(NamedTuple):
    """How a content is trained on return."""

    population: int
    num_lifetimes: int
    generations: int


class Budget(NamedTuple):
    """How much of everything."""

    name: str
    runs: int  # independent ones of each content, model and condition
    shams: bool  # whether evolution has its sham as well
    contents: tuple[str, ...]
    segments: int  # of a life of prediction
    num_lifetimes: int  # in which a run is audited
    searches: Mapping[str, Search]
    planners: Mapping[str, int] = {}  # content that predicts payouts, with its size
    chains: int = 0  # lives in each stage of their curriculum
    asked: int = 0  # lives in which they are audited
    pupils: int = 0
    organisms: tuple[str, ...] = ()  # whose fingerprints stand beside those of the subjects
    taught: tuple[str, ...] = ()  # organisms that networks are taught to do as
    updates: int = 0  # of each stage of a pupil
    evolved: tuple[tuple[str, str, str], ...] = ()  # agent, environment, search


_DENSE, _CELLS = "recurrent:hidden_size=24", "recurrent_cells"
FULL = Budget(
    "full",
    runs=10,
    shams=True,
    contents=capacity.CONTENTS,
    segments=2000,
    num_lifetimes=400,
    searches={
        "table": Search(32, 32, 40),
        "linear": Search(32, 32, 60),
        "mlp": Search(64, 32, 60),
        "gru": Search(64, 32, 70),
        "causal_transformer": Search(64, 16, 70),
    },
    planners={"table": 0, "mlp": 48, "gru": 48},
    chains=2500,
    asked=100,
    pupils=1,
    updates=800,
    organisms=("win_stay", "td_one", "td_zero", "successor", "latent_state_learner", "planner"),
    taught=distilled.TAUGHT,
    evolved=(
        (
            _DENSE,
            "bandit:num_pulls=100",
            "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes=32,num_generations=300,sigma=0.2",
        ),
        (_CELLS, "bandit:num_pulls=100", "evolution:population_size=64,num_lifetimes=32,num_generations=100,learning_rate=0.03"),
        (
            _DENSE,
            "random_mdp",
            "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes=32,num_generations=150,sigma=0.2",
        ),
        (_CELLS, "random_mdp", "evolution:population_size=64,num_lifetimes=16,num_generations=40"),
        (_DENSE, "two_step", "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes=16,num_generations=300,sigma=0.2"),
        (_CELLS, "two_step", "evolution:population_size=64,num_lifetimes=32,num_generations=60,learning_rate=0.03"),
        (_DENSE, "chain", "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes=16,num_generations=200,sigma=0.2"),
        (_CELLS, "chain", "evolution:population_size=64,num_lifetimes=16,num_generations=60,learning_rate=0.03"),
    ),
)
SMALL = Budget(
    "small",
    runs=3,
    shams=False,
    contents=("table", "linear", "gru"),
    segments=400,
    num_lifetimes=200,
    searches={"table": Search(16, 16, 10), "linear": Search(32, 16, 30), "gru": Search(32, 16, 50)},
)
BRIEF = SMALL._replace(
    name="brief",
    contents=("table", "gru"),
    segments=300,
    num_lifetimes=100,
    searches={"table": Search(16, 16, 10), "gru": Search(32, 16, 40)},
)
BUDGETS = {budget.name: budget for budget in (FULL, SMALL, BRIEF)}
MINUTES = {"full": 60, "small": 1, "brief": 1}  # on two quiet cores, about


class Step(NamedTuple):
    """A piece of work, and the ids of the records that it leaves."""

    ids: tuple[str, ...]
    work: Callable[[Callable[[int, int], None]], Iterator[Record]]


def run_mesa_study(budget: Budget, out: str | Path, seed: int = 0, on_event: OnEvent | None = None) -> Path:
    """Runs the study in the folder `out`, returns the path of its report. `BadInput` for a folder of another one."""
    out = Path(out)
    steps = list(plan(budget, out, seed))
    head: Record = {
        "id": "mesa",
        "kind": "mesa",
        "format": records.FORMAT,
        "title": TITLE,
        "seed": seed,
        "budget": suite.to_jsonable(budget),
        "thresholds": thresholds(),
        "versions": library_versions(),
        "planned": [name for step in steps for name in step.ids],
    }
    with contextlib.ExitStack() as stack:
        tell = stack.enter_context(contextlib.closing(ProgressDisplay())) if on_event is None else on_event
        _claim(out, head)
        stack.enter_context(locked(out))
        path = out / records.RECORDS_FILE
        records.repair(path)
        if not path.exists() or not path.stat().st_size:
            records.append(path, head)
        (out / "runs").mkdir(exist_ok=True)
        known = {record["id"] for record in records.read(path)}
        planned = len(head["planned"]) + 1
        tell(StudyEvent("start", f"{TITLE} {_takes(budget)}".strip(), len(known), planned))
        for number, step in enumerate(steps, start=1):
            if known.issuperset(step.ids):
                continue
            tell(StudyEvent("work", step.ids[0], number, len(steps)))
            started = time.perf_counter()
            for record in step.work(lambda done, total, name=step.ids[0]: tell(StudyEvent("progress", name, done, total))):
                if record["id"] not in known:
                    records.append(path, record)
                    known.add(record["id"])
            records.note_time(out, step.ids[0], time.perf_counter() - started)
        page = mesa_page.write(out)
        tell(StudyEvent("end", str(page), len(steps), len(steps)))
        return page


def plan(budget: Budget, out: Path, seed: int) -> Iterator[Step]:
    """All pieces of work in their order: what is quick first."""
    R = budget.runs
    for content in budget.contents:
        name = f"trained/{content}/prediction"
        yield Step((name,), lambda tell, c=content, n=name: _by_prediction(budget, out, seed, c, n))
        for condition in CONDITIONS if budget.shams else CONDITIONS[:1]:
            for number in range(R):
                name = f"trained/{content}/return/{condition}/{number}"
                yield Step(
                    (name,),
                    lambda tell, c=content, k=condition, i=number, n=name: _by_return(
                        budget, out, seed, c, k, i, n, tell
                    ),
                )
        ids = tuple(f"run/{content}/{model}/{condition}/{i}" for model, condition in _groups(budget) for i in range(R))
        yield Step(ids, lambda tell, c=content, names=ids: _asked(budget, out, seed, c, names))
    for content, size in budget.planners.items():
        name = f"trained/{content}/payouts"
        yield Step((name,), lambda tell, c=content, s=size, n=name: _by_payouts(budget, out, seed, c, s, n, tell))
        ids = tuple(f"plans/{content}/prediction/{number}" for number in range(R))
        yield Step(ids, lambda tell, c=content, s=size, names=ids: _asked_to_plan(budget, out, seed, c, s, names))
    for number in range(budget.pupils):
        name = f"plans/gru/pupil/{number}"
        yield Step((name,), lambda tell, i=number, n=name: _pupil(budget, out, seed, i, n, tell))
    for name in budget.organisms:
        yield Step(
            fingerprint.ids(name, "organism"), lambda tell, n=name: fingerprint.of_organism(n, budget.asked, seed)
        )
    for name in budget.taught:
        yield Step(
            fingerprint.ids(name, "distilled"),
            lambda tell, n=name: fingerprint.of_pupil(n, budget.asked, seed, budget.updates, out / PUPILS, tell),
        )
    for agent, env, search in budget.evolved:
        who, where = agent.partition(":")[0], env.partition(":")[0]
        name = f"evolved/{who}/{where}"
        ids = (name, fingerprint.two_step_id(who)) if where == "two_step" else (name,)
        yield Step(ids, lambda tell, a=agent, w=env, s=search, n=name: _evolved(a, w, s, seed, n, tell))


def _takes(budget: Budget) -> str:
    minutes = MINUTES.get(budget.name)
    return f"About {minutes} minute{'s' * (minutes > 1)} on two quiet cores." if minutes else ""


def _groups(budget: Budget) -> list[tuple[str, str]]:
    return [
        (model, condition)
        for model in ("prediction", "return")
        for condition in (CONDITIONS if model == "prediction" or budget.shams else CONDITIONS[:1])
    ]


def thresholds() -> dict[str, Any]:
    """The smallest effects that count, as a report needs them."""
    return {
        "objective": sacrifice.THRESHOLDS.min_effect,
        "learns": learns.THRESHOLDS.min_effect,
        "plans": plans.THRESHOLDS.min_effect,
    }


def _by_prediction(budget: Budget, out: Path, seed: int, content: str, name: str) -> Iterator[Record]:
    """Both conditions side by side, R runs each."""
    keys = sample_lifetime_keys(jax.random.fold_in(jax.random.key(seed), _number(content)), 2 * budget.runs, "training")
    inert = jnp.arange(2 * budget.runs) >= budget.runs
    weights = capacity.by_prediction(content, keys, inert, budget.segments)
    yield from _kept(out, name, content, weights, 2 * budget.runs, budget.segments * 50)


def _by_return(
    budget: Budget, out: Path, seed: int, content: str, condition: str, number: int, name: str, tell: Any
) -> Iterator[Record]:
    search = budget.searches[content]
    development = capacity.search(content, condition == "sham", *search)
    key = jax.random.fold_in(jax.random.key(seed), 1000 * (1 + _number(content)) + number)
    weights, fitness = capacity.developed(development, key, tell)
    steps = search.generations_per_call * development.steps_per_generation
    yield from _kept(out, name, content, weights, 1, steps, fitness=fitness)


def _by_payouts(
    budget: Budget, out: Path, seed: int, content: str, size: int, name: str, tell: Any
) -> Iterator[Record]:
    keys = sample_lifetime_keys(
        jax.random.fold_in(jax.random.key(seed), 500 + _number(content)), budget.runs, "training"
    )
    weights = capacity.by_payouts(content, size, keys, budget.chains, tell)
    steps = budget.chains * capacity.steps_of_curriculum()
    yield from _kept(out, name, content, weights, budget.runs, steps)


def _kept(out: Path, name: str, content: str, weights: PyTree, runs: int, steps: int, **more: Any) -> Iterator[Record]:
    """Saves what was trained before its record says that it is there."""
    checkpoint.save(out / "runs", _file(name), weights, {"id": name}, write_once=True)
    numbers = trees.num_elements(weights) // runs
    yield {
        "id": name,
        "kind": "mesa_trained",
        "content": content,
        "numbers": numbers,
        "runs": runs,
        "steps": steps,
        **more,
    }


def _asked(budget: Budget, out: Path, seed: int, content: str, names: Sequence[str]) -> Iterator[Record]:
    R, like = budget.runs, capacity.weights_like(content)
    stacked = jax.tree.map(lambda leaf: jnp.zeros((2 * R, *leaf.shape), leaf.dtype), like)
    parts = [checkpoint.load(out / "runs", _file(f"trained/{content}/prediction"), stacked)]
    for condition in CONDITIONS if budget.shams else CONDITIONS[:1]:
        for i in range(R):
            one = checkpoint.load(out / "runs", _file(f"trained/{content}/return/{condition}/{i}"), like)
            parts.append(jax.tree.map(lambda leaf: leaf[None], one))
    weights = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    found = capacity.asked_in_stream(content, weights, budget.num_lifetimes, seed)
    for place, name in enumerate(names):
        _, _, model, condition, number = name.split("/")
        led, knew = found["sacrifice"][place], found["learns"][place]
        lean, gained = sacrifice.decide(led, sacrifice.THRESHOLDS), learns.decide(knew, learns.THRESHOLDS)
        spread = float(np.sqrt(max(knew["mean_square"].mean() - knew["intact"].mean() ** 2, 0.0)))
        yield {
            "id": name,
            "kind": "mesa_run",
            "content": content,
            "model": model,
            "condition": condition,
            "run": int(number),
            "numbers": trees.num_elements(like),
            "predicts": _short(led["skill"].mean() / led["max_skill"].mean()),
            "objective": _finding(lean, {part: led[part] for part in (sacrifice.BEYOND_ACCURACY, sacrifice.ALONG_DIRECTION)}),
            "learns": _finding(
                gained,
                {
                    "wiped": (knew["intact"] - knew["reset"]) / spread,
                    "yoked": (knew["intact"] - knew["yoked"]) / spread,
                    "accumulates": (knew["late"] - knew["early"]) / spread,
                },
            ),
        }


def _asked_to_plan(
    budget: Budget, out: Path, seed: int, content: str, size: int, names: Sequence[str]
) -> Iterator[Record]:
    like = capacity.payouts_like(content, size)
    stacked = jax.tree.map(lambda leaf: jnp.zeros((budget.runs, *leaf.shape), leaf.dtype), like)
    weights = checkpoint.load(out / "runs", _file(f"trained/{content}/payouts"), stacked)
    found = capacity.asked_in_chain(content, size, weights, budget.asked, seed)
    for number, name in enumerate(names):
        yield _planned(name, content, "prediction", number, trees.num_elements(like), found[number])


def _pupil(budget: Budget, out: Path, seed: int, number: int, name: str, tell: Any) -> Iterator[Record]:
    found = capacity.pupil(seed + number, budget.updates, budget.asked, out / PUPILS, tell)
    yield _planned(name, "gru", "pupil", number, None, found)


def _planned(
    name: str, content: str, model: str, number: int, numbers: int | None, found: Mapping[str, np.ndarray]
) -> Record:
    single, pair = np.asarray(found["single"], float), np.asarray(found["pair"], float)
    values = {f"link {link + 1}": single[:, link, 0] - single[:, link, 1] for link in range(single.shape[1])}
    names = ("links 1 and 2", "links 1 and 3", "links 2 and 3")
    values |= {part: pair[:, p, 1] - pair[:, p, 0] for p, part in enumerate(names)}
    finding = plans.decide(found, plans.THRESHOLDS)
    return {
        "id": name,
        "kind": "mesa_plans",
        "content": content,
        "model": model,
        "condition": "live",
        "run": number,
        "numbers": numbers,
        "best": _short(single[:, :, 0].mean()),
        "plans": _finding(finding, values) | {"pattern": finding.pattern},
    }


def _evolved(agent: str, env: str, search: str, seed: int, name: str, tell: Any) -> Iterator[Record]:
    subject, fitness = capacity.evolved_agent(agent, env, search, seed, tell)
    findings = suite.audit_subject(subject, seed=seed)
    if subject.train_env.spec.name == "two_step":
        yield from fingerprint.of_two_step(subject, seed)
    yield {
        "id": name,
        "kind": "mesa_evolved",
        "agent": agent,
        "env": env,
        "search": search,
        "fitness": _short(fitness),
        "verdicts": suite.combine_verdicts(findings),
        "in_words": suite.describe_verdicts(findings),
        "findings": [
            {
                "test": finding.test,
                "deciding": finding.primary,
                "verdict": finding.verdict,
                "told": finding.summary,
                "pattern": finding.pattern,
                "gate": finding.competence_failure,
                "effects": {
                    part: [_short(e.mean), _short(e.low), _short(e.high)] for part, e in finding.effects.items()
                },
            }
            for finding in findings
        ],
    }


def _finding(finding: AuditResult, num_lifetimes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A verdict with what it was reached from, life by life."""
    values = {part: [_short(value) for value in np.asarray(array, float)] for part, array in num_lifetimes.items()}
    return {"verdict": finding.verdict, "told": finding.summary, "gate": finding.competence_failure, "num_lifetimes": values}


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def _file(name: str) -> str:
    return name.replace("/", "-")


def _number(content: str) -> int:
    return capacity.CONTENTS.index(content)


def _claim(out: Path, head: Record) -> None:
    """Makes the folder, or raises `BadInput` where it holds anything but this very study."""
    path = out / records.RECORDS_FILE
    if out.exists() and not out.is_dir():
        raise BadInput(f"'{out}' exists and is no folder; not overwritten")
    if out.exists() and not path.is_file() and any(not other.name.startswith(".") for other in out.iterdir()):
        raise BadInput(f"'{out}' exists and holds no study; not overwritten")
    if path.is_file() and path.stat().st_size:
        there = next(iter(records.read(path)), {"kind": None})
        if there["kind"] != "mesa":
            raise BadInput(f"'{path}' is not the records of the mesa study; not overwritten")
        wanted = records.as_read(head)
        differs = ", ".join(sorted(key for key in wanted.keys() | there.keys() if there.get(key) != wanted.get(key)))
        if differs:
            raise BadInput(f"the folder '{out}' holds another study ({differs} differ); not overwritten")
    out.mkdir(parents=True, exist_ok=True)
