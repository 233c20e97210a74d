"""How much of the graph a content's predicted choices reveal, by the depth of the goal that the choices serve.

Richens et al. 2025 (arXiv 2506.01622): whoever can ask an agent for its choices among goals recovers from them a model
of the transitions, as exactly as the agent is competent; the error is bounded for goals of the depth at which it is.
Here the depth of a goal is the number of links from the choice to the outcome: 1 in the last layer, D at the start. For
each depth the two links of one state, which can be reached, are recovered from predicted choices in this state, with
all other links known; the error is the share of links that are not recovered.

A query exposes links after a stream in which every link was exposed once, and asks for a choice. The other link of the
state is exposed to lead to a target of known value, and, at a depth above 1, a random half of the possible targets is
raised to the value of the best outcome: their first links are exposed to lead to it, or to a chain of links that does.
Content whose choices follow a model of the graph tells the targets apart by three such queries at best. Content that
chooses by what it remembers of other graphs, or that does not follow a link so far behind the choice, does not.

Letters: D depth, S states, A actions, C candidates for the target of a link, Q queries.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
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

    state: Int32[Array, ""]
    action: int
    layer: int


class LinkTest(NamedTuple):
    """The queries about one link, and what their choices say about it."""

    goal_depth: int
    key: Key
    queried: list[StreamSteps]  # Q
    target: Int32[Array, ""]  # the true one, as an index of the candidates
    expected: Int32[Array, "Q C"]  # choices of a planner, by the target


def measure_extraction(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """The share of links that predicted choices do not reveal, by depth of the goal and number of queries."""
    knowledge = queries.read_knowledge(tester.params, streams.introduction)
    tests = []
    for layer in range(tester.params.depth):
        layer_key = jax.random.fold_in(split_lifetime_key(key).learn, layer)
        state = _draw_state(layer_key, tester.params, knowledge.links, layer)
        for action in range(NUM_ACTIONS):
            link_key = jax.random.fold_in(layer_key, 1 + action)
            tests.append(
                _build_link_test(link_key, tester, streams.introduction, knowledge, TestedLink(state, action, layer))
            )
    all_choices = predict_choices(tester, weights, [steps for test in tests for steps in test.queried])
    is_valid = jnp.all(knowledge.is_known)
    measured: Measured = {}
    for depth in range(1, tester.params.depth + 1):
        for count in QUERY_COUNTS:
            errors = [
                _recover(test.key, choices[:count], test.expected[:count]) != test.target
                for test, choices in zip(tests, all_choices.reshape(len(tests), -1), strict=True)
                if test.goal_depth == depth
            ]
            measured[extraction_error(depth, count)] = (jnp.mean(jnp.stack(errors).astype(jnp.float32)), is_valid)
    return measured


def _build_link_test(key: Key, tester: Tester, steps: StreamSteps, knowledge: Knowledge, link: TestedLink) -> LinkTest:
    """The queries about one link after a stream."""
    params, values = tester.params, OUTCOME_VALUES[:, tester.goal]
    candidates = list_targets(params, link.layer)
    order = jax.random.permutation(key, NUM_OUTCOMES)
    choice = queries.ask_choice(jnp.where(link.state == 0, knowledge.start, link.state), tester.member)
    queried, expected = [], []
    for number in range(max(QUERY_COUNTS)):
        reference_outcome = order[number % NUM_OUTCOMES]  # in the last layer
        query_key = jax.random.fold_in(key, number)
        exposed, links = _build_query(query_key, params, knowledge, link, values, reference_outcome)
        queried.append(queries.join(steps, exposed, choice))
        expected.append(jax.vmap(partial(_choose, params, links, link, values))(candidates))
    target = knowledge.links[link.state, link.action] - candidates[0]
    return LinkTest(params.depth - link.layer, key, queried, target, jnp.stack(expected))


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
    state, action, layer = link
    other = NUM_ACTIONS - 1 - action
    if layer == params.depth - 1:
        change = LinkChange(state, jnp.int32(other), reference_outcome)
        exposed = queries.show_link(params, knowledge.start, change, layer)
        return exposed, apply_change(knowledge.links, change)
    raised_key, chain_key = jax.random.split(key)
    targets = list_targets(params, layer)
    half = jax.random.permutation(raised_key, targets)[: len(targets) // 2]
    changes = _raise_states(chain_key, params, half, layer + 1, values)
    links = knowledge.links
    for change, _ in changes:
        links = apply_change(links, change)
    is_raised = jnp.any(targets[:, None] == half, axis=1)
    reference = targets[_choose_reference(relay.action_values(params, links, values)[targets].max(axis=1), is_raised)]
    last = LinkChange(state, jnp.int32(other), reference)
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
    changed = apply_change(links, LinkChange(link.state, jnp.int32(link.action), target))
    state_values = relay.action_values(params, changed, values)[link.state]
    return jnp.where(state_values[1] - state_values[0] > MIN_MARGIN, 1, FIRST)


def _recover(key: Key, choices: Int32[Array, "Q"], expected: Int32[Array, "Q C"]) -> Int32[Array, ""]:
    """The candidate with the highest likelihood; one of several is drawn."""
    likelihood = jnp.where(choices[:, None] == expected, 1 - CHOICE_NOISE, CHOICE_NOISE)
    ties = 1e-4 * jax.random.uniform(key, (expected.shape[1],))
    return jnp.argmax(jnp.sum(jnp.log(likelihood), axis=0) + ties)
