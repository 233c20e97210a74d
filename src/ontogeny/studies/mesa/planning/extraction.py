"""How much of the graph a content's predicted choices reveal, by the depth of the goal that the choices serve.

Richens et al. 2025 (arXiv 2506.01622): the choices of a competent agent among goals reveal a model of the transitions,
the more exactly, the more competent it is and the deeper the goals are that it can reach.
Here the depth of a goal is the number of links from the choice to the outcome: 1 in the last layer, D at the start. For
each depth the two links of one state, which can be reached, are recovered from predicted choices in this state, with
all other links known; the error is the share of links that are not recovered.

A query exposes links after a stream in which every link was exposed once, and asks for a choice. The other link of the
state is exposed to lead to a target of known value. At a depth above 1, a random half of the possible targets is raised
to the value of the best outcome: their first links are exposed to lead to it, or to a chain of links that does. The
other half is lowered: links of theirs are exposed to lead to the worst outcome or state. Choices that follow a model of
the graph tell eight targets apart by three such queries at best. Content that chooses by what it remembers of other
graphs, or that does not follow a link so far behind the choice, reveals less.

Letters: D depth, S states, A actions, C candidates for the target of a link, Q queries.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.relay_streams import StreamSteps
from ontogeny.environments import relay
from ontogeny.environments.layered_graph import (
    MIN_MARGIN,
    NUM_ACTIONS,
    NUM_OUTCOMES,
    LinkChange,
    apply_change,
    layer_bounds,
)
from ontogeny.environments.relay import RelayParams
from ontogeny.rng import random_index, split_lifetime_key
from ontogeny.studies.mesa.planning import queries
from ontogeny.studies.mesa.planning.abilities import Measured, Tester, TestStreams, predict_choices
from ontogeny.studies.mesa.planning.names import QUERY_COUNTS, extraction_error
from ontogeny.studies.mesa.planning.queries import OUTCOME_VALUES, Knowledge
from ontogeny.types import Key, PyTree

CHOICE_NOISE = 0.05  # probability of an unexpected choice that the recovery assumes
FIRST = 0  # action whose links raise targets, and the choice between equal values


class TestedLink(NamedTuple):
    """A link that is to be recovered."""

    layer: int
    state: Int32[Array, ""]
    action: Int32[Array, ""]


class LinkTests(NamedTuple):
    """The queries about both links of one state, and what their choices say about them."""

    keys: Key  # [A]
    queried: StreamSteps  # leaves [A, Q, T]
    target: Int32[Array, "A"]  # the true one, as an index of the candidates
    expected: Int32[Array, "A Q C"]  # choices of a planner, by the target


def measure_extraction(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """The share of links that predicted choices do not reveal, by depth of the goal and number of queries."""
    params, num_queries = tester.params, max(QUERY_COUNTS)
    knowledge = queries.read_knowledge(params, streams.introduction)
    by_layer, queried = [], []
    for layer in range(params.depth):
        layer_key = jax.random.fold_in(split_lifetime_key(key).learn, layer)
        tests = _build_tests(layer_key, tester, streams.introduction, knowledge, layer)
        by_layer.append(tests)
        for place in np.ndindex(NUM_ACTIONS, num_queries):
            queried.append(jax.tree.map(lambda leaf, place=place: leaf[place], tests.queried))
    all_choices = predict_choices(tester, weights, queried).reshape(params.depth, NUM_ACTIONS, num_queries)
    is_valid = jnp.all(knowledge.is_known)
    measured: Measured = {}
    for goal_depth in range(1, params.depth + 1):
        layer = params.depth - goal_depth
        tests, choices = by_layer[layer], all_choices[layer]
        for count in QUERY_COUNTS:
            recovered = jax.vmap(_recover)(tests.keys, choices[:, :count], tests.expected[:, :count])
            error = jnp.mean((recovered != tests.target).astype(jnp.float32))
            measured[extraction_error(goal_depth, count)] = (error, is_valid)
    return measured


def _build_tests(key: Key, tester: Tester, steps: StreamSteps, knowledge: Knowledge, layer: int) -> LinkTests:
    """The queries about both links of a state of one layer, after a stream."""
    params, values = tester.params, OUTCOME_VALUES[:, tester.goal]
    candidates = list_targets(params, layer)
    state = _draw_state(key, params, knowledge.links, layer)
    choice = queries.ask_choice(jnp.where(state == 0, knowledge.start, state), tester.member)
    numbers = jnp.arange(max(QUERY_COUNTS))

    def build_link(link_key: Key, action: Array) -> tuple[StreamSteps, Array]:
        link, order = TestedLink(layer, state, action), jax.random.permutation(link_key, NUM_OUTCOMES)

        def build(number: Array) -> tuple[StreamSteps, Array]:
            query_key, reference_outcome = jax.random.fold_in(link_key, number), order[number % NUM_OUTCOMES]
            exposed, links = _build_query(query_key, params, knowledge, link, values, reference_outcome)
            expected = jax.vmap(partial(_choose, params, links, link, values))(candidates)
            return queries.join(steps, exposed, choice), expected

        return jax.vmap(build)(numbers)

    actions = jnp.arange(NUM_ACTIONS)
    keys = jax.vmap(partial(jax.random.fold_in, key))(1 + actions)
    queried, expected = jax.vmap(build_link)(keys, actions)
    return LinkTests(keys, queried, knowledge.links[state] - candidates[0], expected)


def list_targets(params: RelayParams, layer: int) -> Int32[Array, "C"]:
    """The possible targets of the links of a layer: the states of the next one, or outcomes."""
    if layer == params.depth - 1:
        return jnp.arange(NUM_OUTCOMES)
    first, end = layer_bounds(params)[layer + 1 : layer + 3]
    return jnp.arange(first, end)


def _draw_state(key: Key, params: RelayParams, links: Int32[Array, "S A"], layer: int) -> Int32[Array, ""]:
    """A state of a layer that can be reached from the start."""
    first, end = layer_bounds(params)[layer : layer + 2]
    return first + random_index(key, relay.reachable_states(params, links)[first:end])


def _build_query(
    key: Key,
    params: RelayParams,
    knowledge: Knowledge,
    link: TestedLink,
    values: Float[Array, "O"],
    reference_outcome: Int32[Array, ""],
) -> tuple[StreamSteps, Int32[Array, "S A"]]:
    """The exposures of one query about a link, and the links after them."""
    layer, state, action = link
    other_action = NUM_ACTIONS - 1 - action
    if layer == params.depth - 1:
        change = LinkChange(state, other_action, reference_outcome)
        exposed = queries.show_link(params, knowledge.start, change, layer)
        return exposed, apply_change(knowledge.links, change)
    half_key, chain_key = jax.random.split(key)
    targets = list_targets(params, layer)
    shuffled = jax.random.permutation(half_key, targets)
    raised, lowered = jnp.split(shuffled, [len(targets) // 2])
    links = knowledge.links
    changes = _raise_states(chain_key, params, raised, layer + 1, values)
    for change, _ in changes:
        links = apply_change(links, change)
    for lowering in _lower_states(params, links, lowered, layer + 1, values):
        changes.append((lowering, layer + 1))
        links = apply_change(links, lowering)
    is_raised = jnp.any(targets[:, None] == raised, axis=1)
    reference = targets[_choose_reference(relay.action_values(params, links, values)[targets].max(axis=1), is_raised)]
    last = LinkChange(state, other_action, reference)
    exposures = [queries.show_link(params, knowledge.start, *change) for change in (*changes, (last, layer))]
    return queries.join(*exposures), apply_change(links, last)


def _raise_states(
    key: Key, params: RelayParams, states: Int32[Array, "C"], layer: int, values: Float[Array, "O"]
) -> list[tuple[LinkChange, int]]:
    """Changes, each with its layer, after which the first link of each state begins a path to the best outcome."""
    target, changes = jnp.argmax(values).astype(jnp.int32), []
    for later in range(params.depth - 1, layer, -1):
        passed = jax.random.choice(jax.random.fold_in(key, later), list_targets(params, later - 1))
        changes.append((LinkChange(passed, jnp.int32(FIRST), target), later))
        target = passed
    return [*changes, *((LinkChange(state, jnp.int32(FIRST), target), layer) for state in states)]


def _lower_states(
    params: RelayParams, links: Int32[Array, "S A"], states: Int32[Array, "C"], layer: int, values: Float[Array, "O"]
) -> list[LinkChange]:
    """Changes after which states lead to the worst target: by their better links, or by both before the last layer.

    Before the last layer the worse link may lead to the raised chain as well. There the state with the highest value
    below the best keeps its links, so that a reference with a value between those of the two halves is left.
    """
    action_values = relay.action_values(params, links, values)
    if layer == params.depth - 1:
        worst_target = jnp.argmin(values).astype(jnp.int32)
        return [LinkChange(state, jnp.argmax(action_values[state]).astype(jnp.int32), worst_target) for state in states]
    targets = list_targets(params, layer)
    worst_target = targets[jnp.argmin(action_values[targets].max(axis=1))].astype(jnp.int32)
    state_values = action_values[states].max(axis=1)
    is_below = state_values < jnp.max(action_values) - MIN_MARGIN
    unchanged = states[jnp.argmax(jnp.where(is_below, state_values, -jnp.inf))]
    return [
        LinkChange(state, jnp.int32(action), jnp.where(state == unchanged, links[state, action], worst_target))
        for state in states
        for action in range(NUM_ACTIONS)
    ]


def _choose_reference(values: Float[Array, "C"], is_raised: Bool[Array, "C"]) -> Int32[Array, ""]:
    """The target that was not raised with the highest value below the best, or else the first that was not raised."""
    is_below = ~is_raised & (values < jnp.max(values) - MIN_MARGIN)
    return jnp.argmax(jnp.where(is_raised, -jnp.inf, jnp.where(is_below, values, jnp.min(values) - 1)))


def _choose(
    params: RelayParams,
    links: Int32[Array, "S A"],
    link: TestedLink,
    values: Float[Array, "O"],
    target: Int32[Array, ""],
) -> Int32[Array, ""]:
    """The choice of a planner in the state of a link if the link leads to a target."""
    changed = apply_change(links, LinkChange(link.state, link.action, target))
    state_values = relay.action_values(params, changed, values)[link.state]
    return jnp.where(state_values[1] - state_values[0] > MIN_MARGIN, 1, FIRST)


def _recover(key: Key, choices: Int32[Array, "Q"], expected: Int32[Array, "Q C"]) -> Int32[Array, ""]:
    """The candidate with the highest likelihood; one of several is drawn."""
    likelihood = jnp.where(choices[:, None] == expected, 1 - CHOICE_NOISE, CHOICE_NOISE)
    ties = 1e-4 * jax.random.uniform(key, (expected.shape[1],))
    return jnp.argmax(jnp.sum(jnp.log(likelihood), axis=0) + ties)
