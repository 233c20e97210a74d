"""Processor seconds per update of the planning experiment by depth and network, and hours of a cell at that rate.

    python benchmarks/planning_cost.py                                # depths 2 and 3, widths 16, 32 and 64
    python benchmarks/planning_cost.py --depths 3 --widths 64 --curve 9000 --streams 64    # train one run as well

An update samples 16 new streams of planners, encodes them, and updates a `causal_transformer` of 3 blocks; streams of
depth 2 have 120 positions, those of depth 3 have 152. Prints one JSON line for each depth and width: the median over
calls of the processor time per update of one run, after a call that compiles, and the hours of a cell of ten runs of
18,000 updates, without measurements. `--curve` trains one run of the cell `planner` of that depth for so many updates,
and prints its abilities on new graphs (means over the three timings) at every eighth of them; its seed is of no study.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.errors import BadInput

NUM_TIMED_UPDATES = 10  # in one call
CURVE_SEED = 2_026  # of no study
PLANNERS = {2: "planner", 3: "planner_depth_3"}


def measure_cost(depth: int, width: int, num_calls: int, precision: str) -> dict[str, Any]:
    """The processor time per update of one depth and width."""
    import jax
    import jax.numpy as jnp

    from ontogeny.agents.relay_streams import Layout
    from ontogeny.agents.stream_training import ContentSettings, build_content
    from ontogeny.environments import relay
    from ontogeny.rng import key_from_seed
    from ontogeny.studies.mesa.planning.cells import CELLS
    from ontogeny.studies.mesa.planning.schedule import NUM_UPDATES, planning_budgets
    from ontogeny.studies.mesa.planning.training import TrainingPlan, build_train_call, init_state

    cell = CELLS[PLANNERS[depth]]
    layout = Layout(relay.num_states(cell.params))
    predictor = build_content(ContentSettings(width=width), cell.params, layout)
    plan = TrainingPlan(NUM_UPDATES, updates_per_call=NUM_TIMED_UPDATES, precision=precision)
    train_call = build_train_call(plan, predictor, cell.params, layout)
    keys = key_from_seed(CURVE_SEED)[None]
    settings = jax.tree.map(lambda leaf: leaf[None], cell.settings)
    state, seconds = init_state(predictor, keys), []
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.weights))
    for call in range(1 + num_calls):
        start_time = time.process_time()
        state = jax.block_until_ready(train_call(keys, settings, state, jnp.int32(call), jnp.int32(NUM_UPDATES)))
        seconds.append((time.process_time() - start_time) / NUM_TIMED_UPDATES)
    per_update = statistics.median(seconds[1:])
    num_runs = planning_budgets()["full"].num_runs
    return {
        "depth": depth,
        "width": width,
        "num_parameters": num_parameters,
        "num_positions": 2 * cell.params.num_steps,
        "precision": precision,
        "seconds_per_update": round(per_update, 4),
        "slowest": round(max(seconds[1:]), 4),
        "core_hours_per_cell": round(per_update * NUM_UPDATES * num_runs / 3600, 1),
    }


def train_curve(depth: int, width: int, num_updates: int, num_streams: int, precision: str) -> dict[str, Any]:
    """The abilities of one run of planners at every eighth of a training."""
    from ontogeny.agents.stream_training import ContentSettings
    from ontogeny.studies.mesa.planning import results
    from ontogeny.studies.mesa.planning.cells import CELLS
    from ontogeny.studies.mesa.planning.experiment import MeasurementPlan, RunId, run_cells
    from ontogeny.studies.mesa.planning.training import TrainingPlan

    name = PLANNERS[depth]
    cells = {name: CELLS[name]._replace(content=ContentSettings(width=width))}
    training = TrainingPlan(num_updates, precision=precision)
    calls = num_updates // training.updates_per_call
    points = sorted({max(round(calls * part / 8), 1) * training.updates_per_call for part in range(1, 9)})
    measurement = MeasurementPlan(
        tuple(points), num_curve_streams=num_streams, num_streams=num_streams, has_further_measures=False
    )

    def report(updates: int, total: int) -> None:
        print(f"{updates} of {total} updates", file=sys.stderr, flush=True)

    start_time = time.process_time()
    (record,) = run_cells(cells, [RunId(name, 0)], training, measurement, CURVE_SEED, report)
    names = ("look-up", "first choice", "own choices", *results.layer_names([record]))
    curve = [
        {"updates": point["updates"]} | {name: round(results.mean_over_timings(point, name), 3) for name in names}
        for point in record["curve"]
    ]
    sizes = {"depth": depth, "width": width, "num_updates": num_updates, "num_streams": num_streams}
    return sizes | {"processor_seconds": round(time.process_time() - start_time), "curve": curve}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3], choices=list(PLANNERS))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--calls", type=int, default=5, help="timed calls of ten updates")
    parser.add_argument("--precision", default="float32", help="of gradients: float32 or bfloat16")
    parser.add_argument("--curve", type=int, default=0, help="updates of one run that is trained as well")
    parser.add_argument("--streams", type=int, default=64, help="test streams of every measurement of that run")
    options = parser.parse_args()
    configure_jax(None)
    try:
        for depth in options.depths:
            for width in options.widths:
                print(json.dumps(measure_cost(depth, width, options.calls, options.precision)), flush=True)
                if options.curve:
                    curve = train_curve(depth, width, options.curve, options.streams, options.precision)
                    print(json.dumps(curve), flush=True)
    except BadInput as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
