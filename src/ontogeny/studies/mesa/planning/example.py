"""One graph with the beginning of one stream, as a record from which a page draws a picture."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from ontogeny.agents.relay_streams import CUT, EXPOSURE, StreamSteps, sample_stream
from ontogeny.environments import relay
from ontogeny.environments.relay import NUM_OUTCOMES, RelayParams
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning import queries
from ontogeny.studies.mesa.planning.cells import Cell
from ontogeny.studies.mesa.planning.queries import LinkChange

EXAMPLE_ID = "planning/example"
FOOD = 0  # the goal of the example
MAX_SAMPLES = 50  # of graphs, until one link of the last layer can reverse the best choice


def measure_example(cell: Cell, seed: int) -> Iterator[Record]:
    """Samples a stream of a cell whose graph has a link that reverses the best choice at the start.

    Args:
        cell: Of the stream.
        seed: Of the study.

    Yields:
        One record: the links after the introduction, the episodes of the stream, and the change of a link with the best
        path before and after.
    """
    params = cell.params
    sample = jax.jit(lambda key: sample_stream(key, params, cell.settings))
    for key in sample_lifetime_keys(key_from_seed(seed), MAX_SAMPLES, "validation"):
        steps = sample(key)
        num_introduced = _introduction_length(params, steps)
        knowledge = queries.read_knowledge(params, _first_steps(steps, num_introduced))
        change, is_valid = queries.choose_change(key, params, knowledge.links, FOOD, params.depth - 1)
        if num_introduced and bool(is_valid):
            break
    else:
        return
    tables = [knowledge.links, queries.apply_change(knowledge.links, change)]
    yield {
        "id": EXAMPLE_ID,
        "kind": "planning_example",
        "depth": params.depth,
        "width": params.width,
        "num_outcomes": NUM_OUTCOMES,
        "links": np.asarray(knowledge.links).tolist(),
        "episodes": list_episodes(params, steps),
        "change": {name: int(part) for name, part in zip(LinkChange._fields, change, strict=True)},
        "best_paths": [_best_path(params, links) for links in tables],
    }


def list_episodes(params: RelayParams, steps: StreamSteps) -> list[dict[str, Any]]:
    """The episodes of a stream: for each whether it is an exposure, and its links as [state, action, target].

    A target is a state, or in the last layer an outcome; the second step of an exposure is left out.
    """
    S, episodes, is_new = relay.num_states(params), [], True
    for kind, observation, action, successor in zip(
        *(np.asarray(leaf).tolist() for leaf in (steps.kind, steps.observation, steps.action, steps.successor)),
        strict=True,
    ):
        if kind == CUT:
            continue
        if is_new or kind == EXPOSURE:
            episodes.append({"is_exposure": kind == EXPOSURE, "links": []})
        state = 0 if observation >= S else observation
        episodes[-1]["links"].append([state, action, successor - S if successor >= S else successor])
        is_new = kind == EXPOSURE or successor >= S
    return episodes


def _introduction_length(params: RelayParams, steps: StreamSteps) -> int:
    """The number of steps after which every link has been seen; 0 where this never happens."""
    S = relay.num_states(params)
    unseen = {(state, action) for state in range(S) for action in range(relay.NUM_ACTIONS)}
    for step, (kind, observation, action) in enumerate(
        zip(*(np.asarray(leaf).tolist() for leaf in (steps.kind, steps.observation, steps.action)), strict=True)
    ):
        if kind != CUT:
            unseen.discard((0 if observation >= S else observation, action))
        if not unseen:
            return step + 1
    return 0


def _first_steps(steps: StreamSteps, num_steps: int) -> StreamSteps:
    """The first steps of a stream."""
    return jax.tree.map(lambda leaf: leaf[:num_steps], steps)


def _best_path(params: RelayParams, links: Array) -> list[list[int]]:
    """The links [state, action, target] of the best path to food."""
    values = np.asarray(relay.action_values(params, links, queries.OUTCOME_VALUES[:, FOOD]))
    state, path = 0, []
    for _ in range(params.depth):
        action = int(np.argmax(values[state]))
        path.append([state, action, int(links[state][action])])
        state = path[-1][2]
    return path
