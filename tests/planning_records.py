"""Records of the planning experiment as runs of a known kind would yield them, for tests of verdicts and page."""

import numpy as np

from ontogeny.studies.mesa.planning.names import PAIRS, QUERY_COUNTS, TIMINGS, extraction_error, index_as

LAYERS = ("layer 1", "layer 2", *PAIRS)
GOALS = ("food", "water", "no food", "no water")
NUM_STREAMS, NUM_UPDATES, NUM_LEVELS = 400, 1000, 4
DESCRIPTIONS = {
    "planner": "planner",
    "td_zero": "TD(0)",
    "monte_carlo": "Monte Carlo",
    "random": "random",
    "few_instances": "planner, 64 graphs, no changes",
    "share_0": "mixture, 0 % planners",
    "share_5": "mixture, 5 % planners",
    "share_20": "mixture, 20 % planners",
    "share_50": "mixture, 50 % planners",
    "goals": "planners with four labeled goals",
    "goals_unlabeled": "planners with four unlabeled goals",
    "one_block": "planner; one block, one head",
    "width_16": "planner; width 16",
    "width_32": "planner; width 32",
    "gru": "planner; gated recurrent unit",
}
BUDGET = {"is_brief": False, "cells": {name: {"description": text} for name, text in DESCRIPTIONS.items()}}

ABILITIES = {  # look-up, first choice, own choices, and the index of each layer and of pairs
    "planner": (1.0, 0.99, 0.98, (0.97, 0.92, 0.9, 0.9)),
    "one-step learner": (1.0, 0.99, 0.98, (0.97, 0.0, 0.0, 0.0)),
    "copy": (1.0, 1.0, 0.97, (0.0, 0.0, 0.0, 0.0)),
    "look-up table": (0.7, 0.5, 0.55, (0.0, 0.0, 0.0, 0.0)),
    "random": (1.0, 0.5, 0.5, (0.0, 0.0, 0.0, 0.0)),
    "between": (1.0, 0.95, 0.95, (0.9, 0.5, 0.4, 0.4)),
}


def abilities(kind, noise=0.0):
    """The abilities of a kind of content; `noise` is added to every share but that of look-up."""
    look_up, first_choice, own_choices, indices = ABILITIES[kind]
    values = {"look-up": look_up, "first choice": first_choice, "own choices": own_choices}
    values |= {f"{layer}, {timing}": index for layer, index in zip(LAYERS, indices, strict=True) for timing in TIMINGS}
    values |= {f"false switch, {layer}, {timing}": 0.0 for layer in LAYERS[:2] for timing in TIMINGS}
    values |= {f"look-up, {layer}, {timing}": look_up for layer in LAYERS[:2] for timing in TIMINGS}
    values = {name: value + noise * ("look-up" not in name) for name, value in values.items()}
    return {name: round(float(np.clip(value, -1, 1)), 4) for name, value in values.items()}


def planning_run(
    cell,
    run,
    kind,
    *,
    spread=0.01,
    goal_share=0.5,
    pull=0.0,
    shift=0.0,
    host_errors=0.05,
    is_rising=False,
    hidden_planner=None,
    **changed,
):
    """One run of a cell.

    Args:
        cell: Its name.
        run: Its number.
        kind: A key of `ABILITIES`.
        spread: Standard deviation between runs.
        goal_share: Share of best choices for other goals where the optima differ.
        pull: Of the predictions on the host.
        shift: Of its choices, beyond the difference that follows from `host_errors`.
        host_errors: Share of its wrong choices where both goals agree.
        hidden_planner: Indices by layer of content that is asked about a planner, if not those of its agent.
        is_rising: Whether the indices still rise at the end of the training.
        **changed: Abilities that differ from those of the kind, with `_` for `, `.
    """
    random = np.random.default_rng([run, *cell.encode()])
    measures = abilities(kind, -abs(random.normal(0, spread)) if spread else 0.0)
    measures |= {
        name.replace("__", ", ").replace("_", " ").replace("look up", "look-up"): share
        for name, share in changed.items()
    }
    curve = [{"updates": updates} | abilities("random") for updates in (0, 250)]
    curve += [{"updates": 500} | {name: value - 0.45 * is_rising for name, value in measures.items()}]
    curve += [{"updates": NUM_UPDATES} | measures]
    streams = dict.fromkeys(measures, NUM_STREAMS)
    further = {"host errs, differ": 0.05 + shift, "host errs, agree": host_errors, "host pull": pull}
    errors = {"planner": 0.05, "one-step learner": 0.4}
    further |= {extraction_error(depth, n): errors.get(kind, 0.85) for depth in (1, 2) for n in QUERY_COUNTS}
    for layer in LAYERS[:2]:
        further[index_as("planner", layer)] = measures[f"{layer}, at once"]
    for goal in GOALS:
        for history in ("new", "after food"):
            further |= {f"{goal}, {history}, differ": goal_share, f"{goal}, {history}, agree": 0.99}
    for layer in LAYERS[:2]:
        for level in range(NUM_LEVELS):
            further[f"interchange, {layer}, level {level}"] = measures[f"{layer}, at once"] * level / (NUM_LEVELS - 1)
    streams |= dict.fromkeys(further, NUM_STREAMS // 4)
    for history in ("new", "after food"):
        streams[f"food, {history}, differ"] = streams[f"no food, {history}, agree"] = 0  # there is no such graph
    further |= {"goal-directedness": 0.9, "best choices": 0.98}
    streams["best choices"] = NUM_STREAMS // 4
    for level in range(NUM_LEVELS):
        effects = {"encoding direction": 0.8, "probe direction": 0.05, "random directions": 0.1, "ablation": 0.6}
        further |= {f"{name}, level {level}": effect for name, effect in effects.items()}
        streams |= dict.fromkeys((f"{name}, level {level}" for name in effects), NUM_STREAMS // 8)
        further[f"probe R2, level {level}"] = 0.3 * level
    return {
        "id": f"planning/{cell}/{run}",
        "kind": "planning_run",
        "cell": cell,
        "run_index": run,
        "num_parameters": 161000,
        "num_updates": NUM_UPDATES,
        "batch_size": 64,
        "measures": measures
        | {name: round(value + random.normal(0, 1e-3), 4) for name, value in further.items()}
        | {index_as("planner", layer): index for layer, index in (hidden_planner or {}).items()},
        "num_streams": streams,
        "curve": curve,
        "num_curve_streams": dict.fromkeys(measures, NUM_STREAMS // 4),
    }


def planning_cell(cell, kind, num_runs=10, **settings):
    """The runs of a cell."""
    return [planning_run(cell, run, kind, **settings) for run in range(num_runs)]


def controls():
    """The runs of both controls, which do not plan."""
    return planning_cell("random", "random") + planning_cell("monte_carlo", "random")


def all_cells(planner="planner", **settings):
    """The runs of all cells of `DESCRIPTIONS`; the streams of planners make content of the kind `planner`."""
    kinds = dict.fromkeys(DESCRIPTIONS, planner) | {"random": "random", "monte_carlo": "random"}
    kinds |= {"td_zero": "one-step learner", "share_0": "one-step learner", "few_instances": "look-up table"}
    kinds |= {"share_5": "between", "width_16": "between"}
    goal_shares = {"goals": 0.98}
    return [
        run
        for cell, kind in kinds.items()
        for run in planning_cell(cell, kind, goal_share=goal_shares.get(cell, 0.5), **settings)
    ]


EXAMPLE = {
    "id": "planning/example",
    "kind": "planning_example",
    "depth": 2,
    "width": 3,
    "num_outcomes": 8,
    "links": [[1, 3], [2, 6], [0, 0], [4, 3]],
    "episodes": [
        {"is_exposure": True, "links": [[3, 0, 4]]},
        {"is_exposure": True, "links": [[0, 1, 3]]},
        {"is_exposure": False, "links": [[0, 0, 1], [1, 1, 6]]},
    ],
    "change": {"state": 3, "action": 1, "successor": 7},
    "best_paths": [[[0, 0, 1], [1, 1, 6]], [[0, 1, 3], [3, 1, 7]]],
}
