"""Trains the runs of several cells at once, and measures them during and after the training.

Runs of the same program (architecture and depth) share one compiled training; each run is determined by the seed of the
study, its cell and its number, whichever runs are trained beside it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.agents.relay_streams import Layout, StreamSettings, find_member
from ontogeny.agents.stream_training import ContentSettings, build_content
from ontogeny.content.base import Predictor
from ontogeny.environments import relay
from ontogeny.environments.relay import RelayParams
from ontogeny.errors import BadInput, require_at_least, require_between, require_one_of, require_probability
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.runs import checkpoint
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning import abilities, extraction, goals, interventions
from ontogeny.studies.mesa.planning.abilities import Measure, Tester, TestStreams
from ontogeny.studies.mesa.planning.cells import DEPTHS, Cell
from ontogeny.studies.mesa.planning.training import (
    TrainCall,
    TrainingPlan,
    build_train_call,
    train,
)
from ontogeny.studies.mesa.planning.verdicts import CHECK_KIND
from ontogeny.types import Key, PyTree

DIGITS = 4
FURTHER_MEASURES = (
    goals.measure_other_goals,
    goals.measure_other_members,
    goals.measure_host,
    extraction.measure_extraction,
)


class RunId(NamedTuple):
    """One run of one cell."""

    cell: str
    run: int


def record_id(run_id: RunId) -> str:
    """The id of the record of a run."""
    return f"planning/{run_id.cell}/{run_id.run}"


class MeasurementPlan(NamedTuple):
    """How many held-out streams each measure has, and when it is made.

    Attributes:
        curve_updates: Numbers of updates after which the abilities are measured, 0 for the untrained content.
        num_curve_streams: Test streams of each of these measurements, and of goals and interventions at the end.
        num_streams: Test streams of the abilities at the end.
        runs_at_once: Runs that are measured at the same time.
        has_further_measures: Whether goals, extraction and interventions are measured, which take minutes to compile;
            without them the measures at the end are those of the curve.
    """

    curve_updates: tuple[int, ...]
    num_curve_streams: int = 128
    num_streams: int = 512
    runs_at_once: int = 1
    has_further_measures: bool = True


def run_cells(
    cells: Mapping[str, Cell],
    run_ids: Sequence[RunId],
    training: TrainingPlan,
    measurement: MeasurementPlan,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    weights_folder: Path | None = None,
) -> Iterator[Record]:
    """Trains and measures runs that share a program.

    Args:
        cells: By name; those of `run_ids` have the same architecture and depth.
        run_ids: The runs.
        training: Length of the training.
        measurement: Size of the measurements.
        seed: Of the study.
        on_progress: Receives the updates done and the updates in all.
        weights_folder: Receives the trained weights of each run as `CELL-RUN.safetensors` before its record is yielded;
            None to keep no weights.

    Yields:
        One record for each run.

    Raises:
        BadInput: There is no run, a run has no cell or another architecture or depth, or a setting is out of range.
    """
    _require_runs(cells, run_ids)
    _require_plans(training, measurement)
    program = _build_program(cells[run_ids[0].cell].program, training, measurement)
    keys, settings, members = _stack_runs(cells, run_ids, seed)
    curves: list[list[dict[str, Any]]] = [[] for _ in run_ids]
    curve_counts: list[dict[str, int]] = [{} for _ in run_ids]
    tests = program.sample_tests(keys, settings)

    def on_updates(num_updates: int, weights: PyTree) -> None:
        if num_updates in measurement.curve_updates:
            measured = program.measure_curve(keys, settings, members, tests, weights)
            for curve, counts, values in zip(curves, curve_counts, measured, strict=True):
                curve.append({"updates": num_updates} | _means(values))
                counts |= _counts(values)
        if on_progress is not None:
            on_progress(num_updates, training.num_updates)

    weights = train(training, program.predictor, program.train_call, keys, settings, on_updates)
    num_parameters = trees.num_elements(weights) // len(run_ids)
    if weights_folder is not None:
        _save_weights(weights_folder, cells, run_ids, training, weights)
    measured = program.measure_final(keys, settings, members, tests, weights)
    for run_id, curve, counts, values in zip(run_ids, curves, curve_counts, measured, strict=True):
        yield {
            "id": record_id(run_id),
            "kind": "planning_run",
            "cell": run_id.cell,
            "run_index": run_id.run,
            "num_parameters": num_parameters,
            "num_updates": training.num_updates,
            "batch_size": training.batch_size,
            "measures": _means(values),
            "num_streams": _counts(values),
            "curve": curve,
            "num_curve_streams": counts,
        }


def check_runs(
    cells: Mapping[str, Cell],
    run_ids: Sequence[RunId],
    training: TrainingPlan,
    measurement: MeasurementPlan,
    seed: int,
    weights_folder: Path,
) -> Iterator[Record]:
    """Measures the abilities of trained runs again, on graphs of another seed.

    A content that was written or chosen with knowledge of the test graphs fails here: choose the seed afterwards.

    Args:
        cells: By name; those of `run_ids` have the same architecture and depth.
        run_ids: The runs.
        training: Length of their training.
        measurement: Of it `num_curve_streams` and `runs_at_once` count.
        seed: Not that of the study.
        weights_folder: As in `run_cells`.

    Yields:
        One record for each run.

    Raises:
        BadInput: As in `run_cells`, or there are no weights of a run, or they do not fit its cell.
    """
    arguments = (cells, run_ids, training, measurement, seed, weights_folder)
    yield from _measure_again(*arguments, lambda program: program.measure_curve, "new graphs", CHECK_KIND)


def measure_runs(
    cells: Mapping[str, Cell],
    run_ids: Sequence[RunId],
    training: TrainingPlan,
    measurement: MeasurementPlan,
    seed: int,
    weights_folder: Path,
    measures: Sequence[Measure],
) -> Iterator[Record]:
    """Makes some measures of trained runs, such as one that did not exist when they were trained.

    Args:
        cells: By name; those of `run_ids` have the same architecture and depth.
        run_ids: The runs.
        training: Length of their training.
        measurement: Of it `num_curve_streams` and `runs_at_once` count.
        seed: Of the test streams; that of the study for the streams of its own measures.
        weights_folder: As in `run_cells`.
        measures: Functions of one stream, such as `extraction.measure_extraction`.

    Yields:
        One record for each run, of the kind `planning_measures`.

    Raises:
        BadInput: As in `check_runs`.
    """
    arguments = (cells, run_ids, training, measurement, seed, weights_folder)

    def select(program: Program) -> Callable[..., list[dict[str, Any]]]:
        params = cells[run_ids[0].cell].params
        measure = partial(_measure_streams, tuple(measures), measurement, program.predictor, params)
        return _mapped(measure, measurement.runs_at_once)

    yield from _measure_again(*arguments, select, "measures", "planning_measures")


def _measure_again(
    cells: Mapping[str, Cell],
    run_ids: Sequence[RunId],
    training: TrainingPlan,
    measurement: MeasurementPlan,
    seed: int,
    weights_folder: Path,
    select_measure: Callable[["Program"], Callable[..., list[dict[str, Any]]]],
    suffix: str,
    kind: str,
) -> Iterator[Record]:
    """Records of measures of trained runs, whose ids end with the suffix."""
    _require_runs(cells, run_ids)
    _require_plans(training, measurement)
    program = _build_program(cells[run_ids[0].cell].program, training, measurement)
    keys, settings, members = _stack_runs(cells, run_ids, seed)
    template = jax.eval_shape(program.predictor.init, keys[0])
    by_run = [checkpoint.load(weights_folder, _weights_name(run_id), template) for run_id in run_ids]
    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_run)
    tests = program.sample_tests(keys, settings)
    measured = select_measure(program)(keys, settings, members, tests, weights)
    for run_id, values in zip(run_ids, measured, strict=True):
        yield {
            "id": f"{record_id(run_id)}/{suffix}",
            "kind": kind,
            "cell": run_id.cell,
            "run_index": run_id.run,
            "measures": _means(values),
            "num_streams": _counts(values),
        }


def _require_runs(cells: Mapping[str, Cell], run_ids: Sequence[RunId]) -> None:
    """Refuses runs that cannot be trained at once."""
    if not run_ids:
        raise BadInput("there are no runs to train or measure")
    for run_id in run_ids:
        require_one_of(cells, cell=run_id.cell)
        cell = cells[run_id.cell]
        require_between(min(DEPTHS), max(DEPTHS), depth=cell.depth)
        require_at_least(0, num_instances=cell.num_instances)
        shares = {name: getattr(cell, name) for name in ("change_probability", "relevant_share", "quiet_share")}
        require_probability(**shares)
        if cell.program != cells[run_ids[0].cell].program:
            raise BadInput(
                f"runs that are trained at once need the same content and depth, which the cells '{run_ids[0].cell}' "
                f"and '{run_id.cell}' do not have"
            )


def _require_plans(training: TrainingPlan, measurement: MeasurementPlan) -> None:
    """Refuses a training that does not consist of whole calls, and measurements that would never be made."""
    num_updates, batch_size, updates_per_call, _ = training
    require_at_least(1, num_updates=num_updates, batch_size=batch_size, updates_per_call=updates_per_call)
    counts = ("num_curve_streams", "num_streams", "runs_at_once")
    require_at_least(1, **{name: getattr(measurement, name) for name in counts})
    for number in (num_updates, *measurement.curve_updates):
        if number % updates_per_call:
            raise BadInput(f"{number} updates are no multiple of the {updates_per_call} updates of one call")
        require_between(0, num_updates, curve_updates=number)


class Program(NamedTuple):
    """The compiled functions of one architecture and depth, which all its runs share."""

    predictor: Predictor
    train_call: TrainCall
    sample_tests: Callable[[Key, StreamSettings], TestStreams]  # keys [R], settings [R] -> leading axes R, N
    measure_curve: Callable[..., list[dict[str, Any]]]
    measure_final: Callable[..., list[dict[str, Any]]]


@lru_cache(maxsize=4)
def _build_program(
    content_and_depth: tuple[ContentSettings, int], training: TrainingPlan, measurement: MeasurementPlan
) -> Program:
    """Builds the functions that train and measure; they are compiled when they are called first."""
    content, depth = content_and_depth
    params = DEPTHS[depth]
    layout = Layout(relay.num_states(params))
    predictor = build_content(content, params, layout)

    def sample(key: Key, settings: StreamSettings) -> TestStreams:
        test_keys = sample_lifetime_keys(key, measurement.num_streams, "evaluation")
        streams = jax.vmap(partial(abilities.sample_tests, params=params, settings=settings))(test_keys)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.int8), streams)

    at_once = measurement.runs_at_once
    measure_abilities = partial(_measure_streams, abilities.ABILITIES, measurement, predictor, params)
    measure_curve = _mapped(measure_abilities, at_once)
    measure_final = measure_curve
    if measurement.has_further_measures:
        measure_final = _mapped(partial(_measure_final, measurement, predictor, params), at_once)
    train_call = build_train_call(training, predictor, params, layout)
    return Program(predictor, train_call, jax.jit(jax.vmap(sample)), measure_curve, measure_final)


def _measure_streams(
    measures: Sequence[Measure], plan: MeasurementPlan, predictor: Predictor, params: RelayParams, key: Key,
    settings: StreamSettings, member: Array, tests: TestStreams, weights: PyTree,
) -> dict[str, Any]:  # fmt: skip
    """Measures of one run on its first test streams."""
    keys, tests = _first_tests(plan, key, tests, plan.num_curve_streams)
    return abilities.measure_run(keys, Tester(predictor, params, settings, member), tests, weights, measures)


def _measure_final(
    plan: MeasurementPlan, predictor: Predictor, params: RelayParams, key: Key, settings: StreamSettings, member: Array,
    tests: TestStreams, weights: PyTree,
) -> dict[str, Any]:  # fmt: skip
    """All measures of one run after its training."""
    tester = Tester(predictor, params, settings, member)
    keys, streams = _first_tests(plan, key, tests, plan.num_streams)
    measured: dict[str, Any] = dict(abilities.measure_run(keys, tester, streams, weights))
    keys, streams = _first_tests(plan, key, tests, plan.num_curve_streams)
    measured |= abilities.measure_run(keys, tester, streams, weights, FURTHER_MEASURES)
    measured["goal-directedness"] = goals.goal_directedness(tester, streams, weights)
    measured["host pull"] = goals.host_pull(tester, streams, weights)
    if predictor.query_edited is None:
        return measured
    measured |= abilities.measure_run(keys, tester, streams, weights, (interventions.measure_interchange,))
    return measured | interventions.measure_directions(key, tester, streams, weights)


def _first_tests(plan: MeasurementPlan, key: Key, tests: TestStreams, num_streams: int) -> tuple[Key, TestStreams]:
    """The keys and streams of the first tests of a run."""
    keys = sample_lifetime_keys(key, plan.num_streams, "evaluation")[:num_streams]
    return keys, jax.tree.map(lambda leaf: leaf[:num_streams].astype(jnp.int32), tests)


def _mapped(function: Callable[..., dict[str, Any]], runs_at_once: int) -> Callable[..., list[dict[str, Any]]]:
    """A function of one run as a compiled function of R runs that returns a dictionary for each run."""

    @jax.jit
    def run_all(*trees: PyTree) -> dict[str, Any]:
        return jax.lax.map(lambda run: function(*run), trees, batch_size=runs_at_once)

    def call(*trees: PyTree) -> list[dict[str, Any]]:
        measured = jax.device_get(run_all(*trees))
        num_runs = len(jax.tree.leaves(measured)[0])
        return [jax.tree.map(lambda leaf, run=run: leaf[run], measured) for run in range(num_runs)]

    return call


def _save_weights(
    folder: Path, cells: Mapping[str, Cell], run_ids: Sequence[RunId], training: TrainingPlan, weights: PyTree
) -> None:
    """Saves the weights of runs, leaves [R, ...], each in files of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = jax.device_get(weights)
    for number, run_id in enumerate(run_ids):
        cell = cells[run_id.cell]
        metadata = {"id": record_id(run_id), "num_updates": training.num_updates, "depth": cell.depth}
        metadata["num_stream_steps"] = cell.params.num_steps
        run_weights = jax.tree.map(lambda leaf, n=number: leaf[n], weights)
        checkpoint.save(folder, _weights_name(run_id), run_weights, metadata | cell.content._asdict(), write_once=True)


def _weights_name(run_id: RunId) -> str:
    """The name of the files for the weights of a run."""
    return f"{run_id.cell}-{run_id.run}"


def _stack_runs(cells: Mapping[str, Cell], run_ids: Sequence[RunId], seed: int) -> tuple[Key, StreamSettings, Array]:
    """The keys of R runs, the settings of their streams and the members whose choices are queried, [R]."""
    chosen = [cells[run_id.cell] for run_id in run_ids]
    settings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(cell.settings for cell in chosen))
    members = jnp.asarray([find_member(cell.queried_algorithm) for cell in chosen], jnp.int32)
    return jnp.stack([run_key(seed, run_id) for run_id in run_ids]), settings, members


def run_key(seed: int, run_id: RunId) -> Key:
    """The key of a run: of the seed, the name of its cell and its number."""
    cell_key = jax.random.fold_in(key_from_seed(seed), zlib.crc32(run_id.cell.encode()))
    return jax.random.fold_in(cell_key, run_id.run)


def _counts(values: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of valid test streams of all measures that are shares of streams."""
    return {name: int(pair[1]) for name, pair in values.items() if isinstance(pair, tuple)}


def _means(values: Mapping[str, Any]) -> dict[str, float]:
    """The means of all measures, rounded; their numbers of streams are left out."""
    means = {name: mean[0] if isinstance(mean, tuple) else mean for name, mean in values.items()}
    return {name: round(float(np.asarray(mean)), DIGITS) for name, mean in means.items()}
