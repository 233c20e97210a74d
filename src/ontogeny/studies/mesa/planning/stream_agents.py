"""What the agents of the streams themselves do in the tests of a content: the values that exact prediction would have.

A content that predicts an agent perfectly has that agent's own index of revaluation, whatever this is. A row of the
results is therefore compared with the agent that its content has watched, and not with 1.

Letters: L positions, T = L / 2 steps, S states, A actions, G goals, N streams, R runs.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ontogeny.agents.relay_streams import GOALS, NUM_ACTIONS, Layout, build_learners, find_member
from ontogeny.agents.tabular_learner import TabularStep, to_graph_state
from ontogeny.content.base import PredictionBatch, Predictor, starts_sequence
from ontogeny.environments import relay
from ontogeny.environments.base import choose_tree
from ontogeny.environments.relay import RelayParams
from ontogeny.rng import sample_lifetime_keys
from ontogeny.studies.mesa.planning import abilities, goals
from ontogeny.studies.mesa.planning.abilities import ABILITIES, Measure, Measured, Tester
from ontogeny.studies.mesa.planning.cells import Cell
from ontogeny.types import Key, PyTree

CERTAIN = 20.0  # a logit


def split_inputs(layout: Layout, inputs: Float[Array, "*L I"]) -> dict[str, Array]:
    """The parts of the inputs of a predictor of streams, by the names of `Layout.input_sizes`."""
    ends = np.cumsum(list(layout.input_sizes.values()))[:-1]
    return dict(zip(layout.input_sizes, jnp.split(inputs, ends, axis=-1), strict=True))


def exact_content(algorithm: str, params: RelayParams) -> Predictor:
    """A content that looks links up, and predicts the choices of one algorithm without error.

    It has no weights, so that an update changes nothing; its memory holds the learner of each goal and all links.

    Args:
        algorithm: Of a member of the streams. Its goal is the one that the query shows, the first one without labels.
        params: Of the environment.
    """
    env, layout = relay.make_relay(params), Layout(relay.num_states(params))
    learner = build_learners(env)[find_member(algorithm)]

    def init_memory() -> tuple[PyTree, Array]:
        memories = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(GOALS), *jnp.shape(leaf))), learner.memory)
        return memories, jnp.full((layout.num_states, NUM_ACTIONS), -NUM_ACTIONS - 1, jnp.int32)  # no class at all

    def learn(memory: tuple[PyTree, Array], parts: Mapping[str, Array]) -> tuple[PyTree, Array]:
        """The memory after the step that the first position of the next step shows."""
        memories, links = memory
        observation, action, successor = (
            jnp.argmax(parts[f"{name}_before"]).astype(jnp.int32) for name in ("observation", "action", "successor")
        )
        is_observed = parts["observation_before"].sum() > 0
        is_end = is_observed & (successor >= layout.num_states)
        state, next_state = to_graph_state(env.spec, observation), jnp.where(is_end, 0, successor)
        step = TabularStep(state, action, next_state, jnp.float32(0), is_end, ~is_observed)
        features = jnp.asarray(relay.FEATURES)[jnp.maximum(successor - layout.num_states, 0)]

        def learn_goal(memory: PyTree, outcome_value: Array) -> PyTree:
            return learner.update(memory, step._replace(reward=jnp.where(is_end, outcome_value, 0.0)))

        memories = jax.vmap(learn_goal)(memories, jnp.asarray(GOALS) @ features)
        return memories, jnp.where(is_observed, links.at[state, action].set(successor), links)

    def query(weights: PyTree, memory: tuple[PyTree, Array], inputs: Array) -> tuple[Array, tuple[PyTree, Array]]:
        del weights
        parts = split_inputs(layout, inputs)
        is_first, is_start = parts["position"][0] > 0.5, starts_sequence(inputs)
        learned = choose_tree(is_first, learn(memory, parts), memory)
        memories, links = memory = choose_tree(is_start, init_memory(), learned)
        observation = jnp.argmax(parts["observation"]).astype(jnp.int32)
        values = jax.vmap(learner.values, in_axes=(0, None))(memories, observation)[jnp.argmax(parts["goal"])]
        expected = links[to_graph_state(env.spec, observation), jnp.argmax(parts["action"])]
        predicted = jnp.where(is_first, jnp.argmax(values), NUM_ACTIONS + expected)
        return CERTAIN * jax.nn.one_hot(predicted, layout.num_classes), memory

    def query_sequence(weights: PyTree, inputs: Array) -> Array:
        def step(memory: tuple[PyTree, Array], position: Array) -> tuple[tuple[PyTree, Array], Array]:
            logits, memory = query(weights, memory, position)
            return memory, logits

        return jax.lax.scan(step, init_memory(), inputs)[1]

    def update(weights: PyTree, scratch: PyTree, batch: PredictionBatch, progress: Array) -> tuple[PyTree, PyTree]:
        del batch, progress
        return weights, scratch

    return Predictor(lambda key: (), lambda weights: (), init_memory, query, query_sequence, update)


def measure_agent(
    cell: Cell, run_keys: Key, num_streams: int, measures: Sequence[Measure] = ABILITIES
) -> dict[str, tuple[float, int]]:
    """Abilities, or other measures of one stream, of the agent whose choices a cell queries; and goal-directedness.

    Args:
        cell: The agents act in its streams, and one of them is queried.
        run_keys: [R], of `experiment.run_key`; the test streams are those of these runs.
        num_streams: Test streams of each run.
        measures: Functions of one stream.

    Returns:
        By name the share of all valid test streams of all runs, and their number.
    """
    params = cell.params
    member = jnp.int32(find_member(cell.queried_algorithm))
    tester = Tester(exact_content(cell.queried_algorithm, params), params, cell.settings, member)

    def measure(run_key: Key) -> Measured:
        keys = sample_lifetime_keys(run_key, num_streams, "evaluation")
        streams = jax.vmap(partial(abilities.sample_tests, params=params, settings=cell.settings))(keys)
        measured = abilities.measure_run(keys, tester, streams, (), measures)
        directedness = goals.goal_directedness(tester, streams, ())
        return measured | {"goal-directedness": (directedness, jnp.int32(len(keys)))}

    by_run = jax.device_get(jax.jit(lambda keys: jax.lax.map(measure, keys))(run_keys))
    return {name: pool(means.tolist(), counts.tolist()) for name, (means, counts) in by_run.items()}


def pool(means: Sequence[float], counts: Sequence[int]) -> tuple[float, int]:
    """The mean over all streams of several runs, and their number."""
    total = int(np.sum(counts))
    return float(np.dot(means, counts) / max(total, 1)), total
