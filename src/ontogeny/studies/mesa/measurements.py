"""The measurements of the mesa study: each trains or audits something and yields its records.

The planning experiment comes first; its runs are described in `planning`. The rest is as follows.

Contents are trained in two ways: by prediction within one lifetime, with code around them (genome = ML code), and on
the agent's own return by evolution (the positive control). Each has a sham, in which no report changes an item. The
audit tests every run with frozen weights. The unit of inference is a run.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import trees
from ontogeny.audit import learns, plans, sacrifice, suite
from ontogeny.audit.decisions import AuditResult
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.runs import checkpoint
from ontogeny.runs.records import Record
from ontogeny.seeds import nth_seed
from ontogeny.studies.mesa import capacity, fingerprint
from ontogeny.studies.mesa.budgets import MesaBudget, content_keys
from ontogeny.studies.mesa.capacity import Measurements
from ontogeny.studies.mesa.distilled import OnWork, load_or_train
from ontogeny.studies.mesa.planning.example import EXAMPLE_ID, measure_example
from ontogeny.studies.mesa.planning.experiment import record_id, run_cells
from ontogeny.studies.mesa.planning.schedule import PlanningBudget, list_run_groups
from ontogeny.types import PyTree

STEPS_PER_SEGMENT = 50
STUDENTS = "students"  # folder of distilled networks
RUNS = "runs"  # folder of trained weights
PLANNING = "planning"  # folder in it of the weights of the planning experiment


class MesaMeasurement(NamedTuple):
    """One step of the study, and the ids of the records that it yields."""

    ids: tuple[str, ...]
    measure: Callable[[OnWork], Iterator[Record]]


class MesaContext(NamedTuple):
    """What all measurements of one study share."""

    budget: MesaBudget
    folder: Path
    seed: int


def list_measurements(context: MesaContext) -> Iterator[MesaMeasurement]:
    """All measurements in their order: the planning experiment, then the quick ones first."""
    budget = context.budget
    if budget.planning is not None:
        yield from _planning_measurements(context, budget.planning)
    for content in budget.contents:
        yield from _content_measurements(context, content)
    for content, size in budget.planners.items():
        name = f"training/{content}/payouts"
        yield MesaMeasurement((name,), partial(_train_by_payouts, context, content, size, name))
        ids = tuple(f"chain_audit/{content}/prediction/{run}" for run in range(budget.num_runs))
        yield MesaMeasurement(ids, lambda _, c=content, s=size, ids=ids: _audit_in_chain(context, c, s, ids))
    for index in range(budget.num_students):
        name = f"chain_audit/gru/student/{index}"
        yield MesaMeasurement((name,), partial(_audit_student, context, index, name))
    num_lifetimes, seed = budget.num_chain_lifetimes, context.seed
    for name in budget.organisms:
        ids = fingerprint.record_ids(name, "organism")
        yield MesaMeasurement(ids, lambda _, n=name: fingerprint.measure_organism(n, num_lifetimes, seed))
    for name in budget.teachers:
        measure = partial(fingerprint.measure_student, name, num_lifetimes, seed, budget.num_updates)
        ids = fingerprint.record_ids(name, "distilled")
        yield MesaMeasurement(ids, partial(measure, context.folder / STUDENTS))
    for agent_spec, env_spec, development_spec in budget.evolved:
        agent, env = agent_spec.partition(":")[0], env_spec.partition(":")[0]
        name = f"evolved_agent/{agent}/{env}"
        ids = (name, fingerprint.two_step_id(agent)) if env == "two_step" else (name,)
        yield MesaMeasurement(ids, partial(_evolve_and_audit, context, agent_spec, env_spec, development_spec, name))


def _planning_measurements(context: MesaContext, budget: PlanningBudget) -> Iterator[MesaMeasurement]:
    """A picture, then one run after another on a processor, and on a GPU many runs at once."""
    example_cell = next(iter(budget.cells.values()))
    yield MesaMeasurement((EXAMPLE_ID,), lambda _: measure_example(example_cell, context.seed))
    for runs in list_run_groups(budget, jax.default_backend()):
        plan = (budget.training, budget.measurement, context.seed)
        measure = partial(run_cells, budget.cells, runs, *plan, weights_folder=context.folder / RUNS / PLANNING)
        yield MesaMeasurement(tuple(record_id(run) for run in runs), measure)


def _content_measurements(context: MesaContext, content: str) -> Iterator[MesaMeasurement]:
    """Training by prediction and on return, and the audit in `stream`."""
    budget = context.budget
    name = f"training/{content}/prediction"
    yield MesaMeasurement((name,), lambda _: _train_by_prediction(context, content, name))
    for condition in budget.conditions("return"):
        for run in range(budget.num_runs):
            name_on_return = _return_id(content, condition, run)
            measure = partial(_train_on_return, context, content, condition, run, name_on_return)
            yield MesaMeasurement((name_on_return,), measure)
    ids = tuple(
        f"stream_audit/{content}/{training}/{condition}/{run}"
        for training in ("prediction", "return")
        for condition in budget.conditions(training)
        for run in range(budget.num_runs)
    )
    yield MesaMeasurement(ids, lambda _: _audit_in_stream(context, content, ids))


def min_effects() -> dict[str, float]:
    """The smallest effects that count, by hypothesis."""
    tests = {"objective": sacrifice, "learns": learns, "plans": plans}
    return {hypothesis: test.THRESHOLDS.min_effect for hypothesis, test in tests.items()}


def _return_id(content: str, condition: str, run: int) -> str:
    """The id of a training on return."""
    return f"training/{content}/return/{condition}/{run}"


def _train_by_prediction(context: MesaContext, content: str, name: str) -> Iterator[Record]:
    """Train a content to predict, R runs in the environment and R runs in its sham, all in parallel."""
    budget = context.budget
    key = jax.random.fold_in(key_from_seed(context.seed), content_keys()[content])
    keys = sample_lifetime_keys(key, 2 * budget.num_runs, "training")
    inert = jnp.arange(2 * budget.num_runs) >= budget.num_runs
    weights = capacity.train_by_prediction(content, keys, inert, budget.num_segments)
    num_steps = budget.num_segments * STEPS_PER_SEGMENT
    yield _save(context, name, content, weights, 2 * budget.num_runs, num_steps)


def _train_on_return(
    context: MesaContext, content: str, condition: str, run: int, name: str, on_progress: OnWork
) -> Iterator[Record]:
    """One run of the evolution of a content on return."""
    search = context.budget.searches[content]
    development = capacity.build_search(content, condition == "sham", search)
    # A key of its own for each run of each content; those of `_train_by_prediction` have numbers below 1000.
    key = jax.random.fold_in(key_from_seed(context.seed), 1000 * (1 + content_keys()[content]) + run)
    weights, fitness = capacity.run_search(development, key, on_progress)
    num_steps = search.num_generations * development.steps_per_generation
    yield _save(context, name, content, weights, 1, num_steps) | {"fitness": fitness}


def _train_by_payouts(
    context: MesaContext, content: str, size: int, name: str, on_progress: OnWork
) -> Iterator[Record]:
    """The curriculum of chains, R runs in parallel."""
    budget = context.budget
    key = jax.random.fold_in(key_from_seed(context.seed), 500 + content_keys()[content])
    keys = sample_lifetime_keys(key, budget.num_runs, "training")
    weights = capacity.train_by_payouts(content, size, keys, budget.num_chains, on_progress)
    num_steps = budget.num_chains * capacity.count_curriculum_steps()
    yield _save(context, name, content, weights, budget.num_runs, num_steps)


def _save(
    context: MesaContext, name: str, content: str, weights: PyTree, num_runs: int, num_steps: int
) -> dict[str, Any]:
    """Save trained weights, then return the record of the training, so that no record lacks its weights."""
    folder = context.folder / RUNS
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder, _file_name(name), weights, {"id": name}, write_once=True)
    sizes = {"num_parameters": trees.num_elements(weights) // num_runs, "num_runs": num_runs, "num_steps": num_steps}
    return {"id": name, "kind": "training", "content": content} | sizes


def _load(context: MesaContext, name: str, template: PyTree) -> PyTree:
    """The weights that `_save` wrote."""
    return checkpoint.load(context.folder / RUNS, _file_name(name), template)


def _file_name(name: str) -> str:
    """The name of the file for the weights of a training."""
    return name.replace("/", "-")


def _stack(template: PyTree, num_runs: int) -> PyTree:
    """A template of the weights of several runs, with a leading axis."""
    return jax.tree.map(lambda leaf: jnp.zeros((num_runs, *leaf.shape), leaf.dtype), template)


def _audit_in_stream(context: MesaContext, content: str, ids: tuple[str, ...]) -> Iterator[Record]:
    """The audit of all runs of a content, by prediction and on return."""
    budget, template = context.budget, capacity.item_content_template(content)
    parts = [_load(context, f"training/{content}/prediction", _stack(template, 2 * budget.num_runs))]
    for condition in budget.conditions("return"):
        for run in range(budget.num_runs):
            weights = _load(context, _return_id(content, condition, run), template)
            parts.append(jax.tree.map(lambda leaf: leaf[None], weights))
    weights = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    by_test = capacity.audit_in_stream(content, weights, budget.num_lifetimes, context.seed)
    num_parameters = trees.num_elements(template)
    for name, sacrificed, learned in zip(ids, by_test["sacrifice"], by_test["learns"], strict=True):
        yield _stream_record(name, num_parameters, sacrificed, learned)


def _stream_record(name: str, num_parameters: int, sacrificed: Measurements, learned: Measurements) -> Record:
    """The record of one run from the measurements of the tests `sacrifice` and `learns`."""
    biases = {part: sacrificed[part] for part in (sacrifice.BEYOND_ACCURACY, sacrifice.ALONG_DIRECTION)}
    gains = {part: learned[part] / learns.spread_of_score(learned) for part in (learns.EARLIER, learns.LAST)}
    return _run_record(name, num_parameters) | {
        "relative_skill": _rounded(sacrificed["skill"].mean() / sacrificed["max_skill"].mean()),
        "objective": _result_record(sacrifice.decide(sacrificed, sacrifice.THRESHOLDS), biases),
        "learns": _result_record(learns.decide(learned, learns.THRESHOLDS), gains),
    }


def _run_record(record_id: str, num_parameters: int | None) -> Record:
    """The part of the record of an audited run that its id determines."""
    kind, content, training, *conditions, run = record_id.split("/")
    condition = conditions[0] if conditions else "active"
    names = {"id": record_id, "kind": kind, "content": content, "training": training, "condition": condition}
    return names | {"run_index": int(run), "num_parameters": num_parameters}


def _audit_in_chain(context: MesaContext, content: str, size: int, ids: tuple[str, ...]) -> Iterator[Record]:
    """The audit of all runs of a content that predicts payouts."""
    budget, template = context.budget, capacity.payout_content_template(content, size)
    weights = _load(context, f"training/{content}/payouts", _stack(template, budget.num_runs))
    by_run = capacity.audit_in_chain(content, size, weights, budget.num_chain_lifetimes, context.seed)
    for name, measurements in zip(ids, by_run, strict=True):
        yield _chain_record(name, trees.num_elements(template), measurements)


def _audit_student(context: MesaContext, index: int, name: str, on_progress: OnWork) -> Iterator[Record]:
    """Whether a network can represent a plan: the test `plans` on one that is distilled from the planner."""
    budget, seed, folder = context.budget, nth_seed(context.seed, index), context.folder / STUDENTS
    student = load_or_train("planner", seed, folder, num_updates=budget.num_updates, on_progress=on_progress)
    keys = sample_lifetime_keys(key_from_seed(seed), budget.num_chain_lifetimes, "evaluation")
    measurements = plans.measure(student, keys, num_links=3)
    yield _chain_record(name, None, measurements)


def _chain_record(name: str, num_parameters: int | None, measurements: Measurements) -> Record:
    """The record of one run from the measurements of the test `plans`."""
    # Whether the formerly best action is chosen. [N, links, 2]: without and with a change of the link;
    # [N, pairs, 2]: where one of the two links has changed, and where both have.
    single, pair = np.asarray(measurements["single"], float), np.asarray(measurements["pair"], float)
    changes = [single[:, link, 0] - single[:, link, 1] for link in range(single.shape[1])]
    changes += [pair[:, p, 1] - pair[:, p, 0] for p in range(pair.shape[1])]
    result = plans.decide(measurements, plans.THRESHOLDS)
    record = _result_record(result, dict(zip(fingerprint.EFFECTS, changes, strict=True))) | {"pattern": result.pattern}
    optimal_action_rate = _rounded(single[:, :, 0].mean())
    return _run_record(name, num_parameters) | {"optimal_action_rate": optimal_action_rate, "plans": record}


def _evolve_and_audit(
    context: MesaContext, agent_spec: str, env_spec: str, development_spec: str, name: str, on_progress: OnWork
) -> Iterator[Record]:
    """The evolution of an agent from scratch, and the whole audit of it."""
    subject, fitness = capacity.evolve_agent(agent_spec, env_spec, development_spec, context.seed, on_progress)
    results = suite.audit_subject(subject, seed=context.seed)
    if subject.train_env.spec.name == "two_step":
        yield from fingerprint.measure_two_step(subject, context.seed)
    yield {
        "id": name,
        "kind": "evolved_agent",
        "agent": agent_spec,
        "env": env_spec,
        "development": development_spec,
        "fitness": _rounded(fitness),
        "verdicts": suite.combine_verdicts(results),
        "verdict_text": suite.describe_verdicts(results),
        "results": [_effects_record(result) for result in results],
    }


def _effects_record(result: AuditResult) -> dict[str, Any]:
    """A verdict with the effects from which it was computed."""
    names = ("test", "primary", "verdict", "summary", "pattern", "competence_failure")
    effects = {name: fingerprint.round_interval(effect) for name, effect in result.effects.items()}
    return {name: getattr(result, name) for name in names} | {"effects": effects}


def _result_record(result: AuditResult, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A verdict with the values of each lifetime from which it was computed."""
    lifetime_values = {name: [_rounded(value) for value in by_lifetime] for name, by_lifetime in values.items()}
    fields = {name: getattr(result, name) for name in ("verdict", "summary", "competence_failure")}
    return fields | {"lifetime_values": lifetime_values}


def _rounded(value: float) -> float:
    """A number with four significant digits."""
    return float(f"{float(value):.4g}")
