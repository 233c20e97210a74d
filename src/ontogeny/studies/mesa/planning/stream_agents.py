"""What the agents of the streams themselves do in the tests of a content: the values that exact prediction would have.

A content that predicts an agent perfectly has that agent's own index of revaluation, whatever this is. A row of the
results is therefore compared with the agent that its content has watched, and not with 1.

Letters: L positions, T = L / 2 steps, S states, A actions, G goals, N streams, R runs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ontogeny.agents.relay_streams import GOALS, NUM_ACTIONS, Layout, build_learners, find_member
from ontogeny.agents.tabular_learner import TabularStep, to_graph_state
from ontogeny.content.base import Predictor
from ontogeny.environments import relay
from ontogeny.environments.relay import RelayParams
from ontogeny.rng import sample_lifetime_keys
from ontogeny.studies.mesa.planning import abilities, goals
from ontogeny.studies.mesa.planning.abilities import Measured, Tester
from ontogeny.studies.mesa.planning.cells import Cell
from ontogeny.types import Key, PyTree

CERTAIN = 20.0  # a logit
NUM_FURTHER_STREAMS = 128  # for identification and goal-directedness, as `MeasurementPlan.num_curve_streams`


def split_inputs(layout: Layout, inputs: Float[Array, "*L I"]) -> dict[str, Array]:
    """The parts of the inputs of a predictor of streams, by the names of `Layout.input_sizes`."""
    ends = np.cumsum(list(layout.input_sizes.values()))[:-1]
    return dict(zip(layout.input_sizes, jnp.split(inputs, ends, axis=-1), strict=True))


def exact_content(algorithm: str, params: RelayParams) -> Predictor:
    """A content without weights that looks links up, and predicts the choices of one algorithm without error.

    It has no training: `query_sequence` alone may be called.

    Args:
        algorithm: Of a member of the streams. Its goal is the one that the query shows, the first one without labels.
        params: Of the environment.
    """
    env, layout = relay.make_relay(params), Layout(relay.num_states(params))
    learner = build_learners(env)[find_member(algorithm)]

    def update(memory: PyTree, step: TabularStep, outcome_value: Array) -> PyTree:
        return learner.update(memory, step._replace(reward=jnp.where(step.is_end, outcome_value, 0.0)))

    def predict_step(carry: tuple, parts: tuple[dict[str, Array], dict[str, Array]]) -> tuple[tuple, Array]:
        memories, links = carry
        choice, result = parts
        observation, action, successor = (
            jnp.argmax(choice[f"{name}_before"]).astype(jnp.int32) for name in ("observation", "action", "successor")
        )
        is_observed, is_start = choice["observation_before"].sum() > 0, choice["start"][0] > 0.5
        is_end = is_observed & (successor >= layout.num_states)
        state, next_state = to_graph_state(env.spec, observation), jnp.where(is_end, 0, successor)
        step = TabularStep(state, action, next_state, jnp.float32(0), is_end, ~is_observed)
        features = jnp.asarray(relay.FEATURES)[jnp.maximum(successor - layout.num_states, 0)]
        updated = jax.vmap(update, in_axes=(0, None, 0))(memories, step, jnp.asarray(GOALS) @ features)
        memories = jax.tree.map(lambda new, old: jnp.where(is_start, old, new), updated, memories)
        links = jnp.where(is_observed, links.at[state, action].set(successor), links)
        observed = jnp.argmax(choice["observation"]).astype(jnp.int32)
        values = jax.vmap(learner.values, in_axes=(0, None))(memories, observed)[jnp.argmax(choice["goal"])]
        expected = links[to_graph_state(env.spec, observed), jnp.argmax(result["action"])]
        classes = jnp.stack([jnp.argmax(values).astype(jnp.int32), NUM_ACTIONS + expected])
        return (memories, links), CERTAIN * jax.nn.one_hot(classes, layout.num_classes)

    def query_sequence(weights: PyTree, inputs: Array) -> Array:
        del weights
        memories = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(GOALS), *jnp.shape(leaf))), learner.memory)
        unknown = jnp.full((layout.num_states, NUM_ACTIONS), -NUM_ACTIONS - 1, jnp.int32)  # no class at all
        positions = (split_inputs(layout, inputs[0::2]), split_inputs(layout, inputs[1::2]))
        _, logits = jax.lax.scan(predict_step, (memories, unknown), positions)
        return logits.reshape(len(inputs), -1)

    def refuse(*arguments: Any) -> Any:
        raise NotImplementedError("exact predictions of an agent are not trained and have no memory of single steps")

    return Predictor(lambda key: (), lambda weights: (), tuple, refuse, query_sequence, refuse)


def measure_agent(cell: Cell, run_keys: Key, num_streams: int) -> dict[str, tuple[float, int]]:
    """All abilities, identification of links and goal-directedness of the agent whose choices a cell queries.

    Args:
        cell: The agents act in its streams, and one of them is queried.
        run_keys: [R], of `experiment.run_key`; the test streams are those of these runs.
        num_streams: Test streams of each run.

    Returns:
        By name the share of all valid test streams of all runs, and their number.
    """
    params = cell.params
    member = jnp.int32(find_member(cell.queried_algorithm))
    tester = Tester(exact_content(cell.queried_algorithm, params), params, cell.settings, member)

    def measure(run_key: Key) -> Measured:
        keys = sample_lifetime_keys(run_key, num_streams, "evaluation")
        streams = jax.vmap(partial(abilities.sample_tests, params=params, settings=cell.settings))(keys)
        measured = abilities.measure_run(keys, tester, streams, ())
        keys, streams = jax.tree.map(lambda leaf: leaf[:NUM_FURTHER_STREAMS], (keys, streams))
        measured |= abilities.measure_run(keys, tester, streams, (), (goals.measure_identification,))
        directedness = goals.goal_directedness(tester, streams, ())
        return measured | {"goal-directedness": (directedness, jnp.int32(len(keys)))}

    by_run = jax.device_get(jax.jit(lambda keys: jax.lax.map(measure, keys))(run_keys))
    return {name: pool(means.tolist(), counts.tolist()) for name, (means, counts) in by_run.items()}


def pool(means: Sequence[float], counts: Sequence[int]) -> tuple[float, int]:
    """The mean over all streams of several runs, and their number."""
    total = int(np.sum(counts))
    return float(np.dot(means, counts) / max(total, 1)), total
