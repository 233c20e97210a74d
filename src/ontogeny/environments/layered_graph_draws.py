"""Graphs of `relay` in which a link can change as a test requires.

Letters: S states, A actions, O outcomes, G goals, E exposed links.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.environments.base import GraphPair, draw_all_until_valid, draw_until_valid
from ontogeny.environments.layered_graph import (
    MIN_MARGIN,
    NUM_ACTIONS,
    LinkChange,
    RelayParams,
    action_values,
    apply_change,
    best_action,
    draw_change,
    draw_graph,
    is_last_layer,
    layer_of_states,
    list_reachable_changes,
    mean_action_values,
)
from ontogeny.types import Key

MAX_GRAPHS = 2_000  # drawn until a link can change as a test requires
TEST_KEY = 1  # folded into the key of a task, which draws the graph of a test


class ReversibleGraph(NamedTuple):
    """A graph, and changes that are made one after another, each of which reverses the best action."""

    links: Int32[Array, "S A"]
    changes: LinkChange  # leaves [E]
    best_action: Int32[Array, ""]  # before the changes
    is_reversible: Bool[Array, ""]


class GraphPairSettings(NamedTuple):
    """What a pair of graphs depends on; scalars, or arrays [N]."""

    goal: Int32[Array, "*N"]
    layer: Int32[Array, "*N"]  # of the link that differs
    sign: Float[Array, "*N"]  # of what the difference means to an agent that judges by the mean


def link_kinds(
    params: RelayParams, links: Int32[Array, "S A"], outcome_values: Float[Array, "O"]
) -> Int32[Array, "S A"]:
    """The number of each link in `Revaluation.links`: its layer, and the depth for unexpected links of the last layer.

    A link of the last layer is expected where it is the best one of its state: an agent that learned which states
    follow upon its choices, such as a successor representation, expects to take it, and no other one.
    """
    best = jnp.argmax(action_values(params, links, outcome_values), axis=1)
    is_unexpected = is_last_layer(params)[:, None] & (best[:, None] != jnp.arange(NUM_ACTIONS))
    return layer_of_states(params)[:, None] + is_unexpected


def draw_reversible_graph(
    params: RelayParams, key: Key, outcome_values: Float[Array, "O"], exposed: Int32[Array, "E"]
) -> ReversibleGraph:
    """Draws a graph in which changes of different links of these kinds each reverse the best action at the start.

    Args:
        params: Of the environment.
        key: Of all draws.
        outcome_values: What each outcome is worth to steering.
        exposed: Kinds of links (`link_kinds`).
    """

    def draw(key: Key, number: Array) -> ReversibleGraph:
        del number
        graph_key, *change_keys = jax.random.split(key, 1 + len(exposed))
        links, _ = draw_graph(params, graph_key)
        first_best, is_reversible = best_action(action_values(params, links, outcome_values)[0])
        changed_links, changes = links, []
        for change_key, kind in zip(change_keys, exposed, strict=True):
            candidates = list_reachable_changes(params, changed_links)
            is_free = jnp.bool_(True)
            for change in changes:
                is_free &= (candidates.state != change.state) | (candidates.action != change.action)
            best, _ = best_action(action_values(params, changed_links, outcome_values)[0])
            reverses = jax.vmap(partial(_makes_best, params, changed_links, outcome_values, 1 - best))(candidates)
            kinds = link_kinds(params, changed_links, outcome_values)[candidates.state, candidates.action]
            change, exists = draw_change(change_key, candidates, reverses & (kinds == kind) & is_free)
            changed_links = apply_change(changed_links, change)
            changes.append(change)
            is_reversible &= exists
        return ReversibleGraph(
            links, jax.tree.map(lambda *leaves: jnp.stack(leaves), *changes), first_best, is_reversible
        )

    return draw_until_valid(jax.random.fold_in(key, TEST_KEY), draw, lambda graph: graph.is_reversible, MAX_GRAPHS)


def _makes_best(
    params: RelayParams, links: Array, outcome_values: Array, action: Array, change: LinkChange
) -> Bool[Array, ""]:
    """Whether an action at the start is the best one after a change."""
    best, is_clear = best_action(action_values(params, apply_change(links, change), outcome_values)[0])
    return is_clear & (best == action)


def draw_graph_pairs(
    params: RelayParams,
    keys: Key,
    outcome_values: Float[Array, "G O"],
    goals: Int32[Array, "N"],
    layers: Int32[Array, "N"],
) -> GraphPair:
    """Draws pairs of graphs that differ in one link, as in `GoalConflict`.

    An agent that judges a state by the mean of its links, or by the link that it took last, is moved by links that do
    not matter to the best choice. In half of the pairs the difference moves it towards the other goal, in half of them
    away from it. A goal that is the exact opposite of steering's can only move it away, in all pairs.

    Args:
        params: Of the environment.
        keys: Of all draws, [N].
        outcome_values: What each outcome is worth to each goal, that of steering first.
        goals: Numbers of the other goals, or 0 for steering itself.
        layers: Of the links.
    """
    items = GraphPairSettings(goals, layers, jnp.where(jax.vmap(jax.random.bernoulli)(keys), 1.0, -1.0))
    draw = partial(_draw_graph_pair, params, outcome_values)
    return draw_all_until_valid(keys, items, draw, lambda pair: pair.is_valid, MAX_GRAPHS)


def _draw_graph_pair(
    params: RelayParams, outcome_values: Array, key: Key, number: Array, settings: GraphPairSettings
) -> GraphPair:
    """Draws a graph, and a change of one link that sets the goals against each other if there is one."""
    del number
    goal, layer, sign = settings
    steered, pursued = outcome_values[0], outcome_values[goal]
    is_opposite = jnp.all(jnp.argsort(pursued) == jnp.argsort(-steered))
    graph_key, change_key = jax.random.split(key)
    links, _ = draw_graph(params, graph_key)
    values, means = (of(params, links, steered)[0] for of in (action_values, mean_action_values))
    steered_best, is_steered = best_action(values)
    pursued_best, is_clear = best_action(action_values(params, links, pursued)[0])

    def is_conflict(change: LinkChange) -> Array:
        changed_links = apply_change(links, change)
        is_equal = jnp.all(jnp.abs(action_values(params, changed_links, steered)[0] - values) <= MIN_MARGIN)
        drift = mean_action_values(params, changed_links, steered)[0] - means
        towards_goal = drift[1 - pursued_best] - drift[pursued_best]
        is_balanced = is_opposite | (sign * towards_goal >= -MIN_MARGIN)
        reverses = _makes_best(params, links, pursued, 1 - pursued_best, change)
        return is_clear & is_steered & reverses & ((goal == 0) | (is_equal & is_balanced))

    candidates = list_reachable_changes(params, links)
    is_in_layer = layer_of_states(params)[candidates.state] == layer
    change, exists = draw_change(change_key, candidates, is_in_layer & jax.vmap(is_conflict)(candidates))
    graphs = jnp.stack([links, apply_change(links, change)])
    graphs = jnp.where(pursued_best == steered_best, graphs, graphs[::-1])  # the optima agree in the first graph
    return GraphPair(graphs, steered_best, exists)
