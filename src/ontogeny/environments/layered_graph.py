"""The graph of `relay`: layers of states, the values of actions in it, and changes of single links.

Letters: S states, A actions, O outcomes, C candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int32

from ontogeny.rng import random_index
from ontogeny.types import Key

NUM_ACTIONS, NUM_OUTCOMES = 2, 8
MIN_MARGIN = 1e-6  # between the values of two actions, for one to be the best


class RelayParams(NamedTuple):
    """The settings that the dynamics need; all but the first three may be traced."""

    depth: int = 2
    width: int = 8
    num_steps: int = 60
    unreliable_share: ArrayLike = 0.25
    failure_probability: ArrayLike = 0.1
    early_trial_probability: ArrayLike = 0.1
    change_probability: ArrayLike = 0.3
    repeat_probability: ArrayLike = 0.2
    glance_probability: ArrayLike = 0.1
    relevant_share: ArrayLike = 1.0
    cue: ArrayLike = False
    num_instances: ArrayLike = 0  # 0: unlimited


class Targets(NamedTuple):
    """The possible targets of the links of each state, a range of states or outcomes."""

    first: Int32[Array, "S"]
    size: Int32[Array, "S"]


class LinkChange(NamedTuple):
    """One link and where it leads from now on."""

    state: Int32[Array, ""]
    action: Int32[Array, ""]
    successor: Int32[Array, ""]  # a state, or in the last layer an outcome


def num_states(params: RelayParams) -> int:
    """The number of states S."""
    return layer_bounds(params)[-1]


def layer_bounds(params: RelayParams) -> list[int]:
    """The first state of each layer, then S."""
    return [0, *(1 + layer * params.width for layer in range(params.depth))]


def layer_of_states(params: RelayParams) -> Int32[Array, "S"]:
    """The layer of each state, 0 for the start."""
    return jnp.asarray(np.repeat(np.arange(params.depth), np.diff(layer_bounds(params))), jnp.int32)


def is_last_layer(params: RelayParams) -> Bool[Array, "S"]:
    """Whether the links of a state lead to outcomes."""
    return layer_of_states(params) == params.depth - 1


def reachable_states(params: RelayParams, links: Int32[Array, "S A"]) -> Bool[Array, "S"]:
    """Whether a state can be reached from the start by links that do not fail.

    Args:
        params: Of the environment.
        links: Current links.
    """
    states = jnp.arange(num_states(params))
    leads_to = jnp.any(links[..., None] == states, axis=1) & ~is_last_layer(params)[:, None]  # [S, S]
    reachable = states == 0
    for _ in range(params.depth - 1):
        reachable |= jnp.any(leads_to & reachable[:, None], axis=0)
    return reachable


def action_values(
    params: RelayParams, links: Int32[Array, "S A"], outcome_values: Float[Array, "O"]
) -> Float[Array, "S A"]:
    """The value of each action under the best later choices, by backward induction over layers, without failures.

    Args:
        params: Of the environment.
        links: Current links.
        outcome_values: Value of each outcome.

    Returns:
        The values; the best action of a state is their first maximum.
    """
    return _induce_backward(params, links, outcome_values, jnp.max)


def mean_action_values(
    params: RelayParams, links: Int32[Array, "S A"], outcome_values: Float[Array, "O"]
) -> Float[Array, "S A"]:
    """The value of each action where all later choices are uniformly random, without failures.

    Args:
        params: Of the environment.
        links: Current links.
        outcome_values: Value of each outcome.
    """
    return _induce_backward(params, links, outcome_values, jnp.mean)


def draw_graph(params: RelayParams, key: Key) -> tuple[Array, Array]:
    """Draws the links [S, A] and the unreliable states [S]."""
    link_key, unreliable_key = jax.random.split(key)
    S, (first_target, num_targets) = num_states(params), targets_of_links(params)
    draws = jax.random.uniform(link_key, (S, NUM_ACTIONS))
    links = first_target[:, None] + draw_index(draws, num_targets[:, None])
    is_unreliable = jax.random.uniform(unreliable_key, (S,)) < params.unreliable_share
    return links, is_unreliable & (jnp.arange(S) > 0)


def targets_of_links(params: RelayParams) -> Targets:
    """The possible targets of the links of each state."""
    is_last, layer = is_last_layer(params), layer_of_states(params)
    first = jnp.where(is_last, 0, jnp.asarray(layer_bounds(params)[1:])[layer]).astype(jnp.int32)
    return Targets(first, jnp.where(is_last, NUM_OUTCOMES, params.width).astype(jnp.int32))


def draw_index(draw: Array, count: ArrayLike) -> Array:
    """A uniform draw as an index below `count`."""
    return jnp.floor(draw * count).astype(jnp.int32)


def best_action(values: Float[Array, "A"]) -> tuple[Int32[Array, ""], Bool[Array, ""]]:
    """The better action, and whether it is better at all."""
    return jnp.argmax(values).astype(jnp.int32), jnp.abs(values[0] - values[1]) > MIN_MARGIN


def apply_change(links: Int32[Array, "S A"], change: LinkChange) -> Int32[Array, "S A"]:
    """The links after a change."""
    return links.at[change.state, change.action].set(change.successor)


def list_changes(params: RelayParams, layer: int) -> LinkChange:
    """All changes of links of a layer; leading axis C."""
    bounds = layer_bounds(params)
    successors = range(NUM_OUTCOMES) if layer == params.depth - 1 else range(*bounds[layer + 1 : layer + 3])
    states = range(*bounds[layer : layer + 2])
    grid = jnp.meshgrid(jnp.asarray(states), jnp.arange(NUM_ACTIONS), jnp.asarray(successors), indexing="ij")
    return LinkChange(*(axis.ravel().astype(jnp.int32) for axis in grid))


def list_reachable_changes(params: RelayParams, links: Int32[Array, "S A"]) -> LinkChange:
    """The changes of single links that can be reached from the start, some of them repeatedly; leading axis C."""
    first_target = targets_of_links(params).first
    states, by_layer = jnp.zeros(1, jnp.int32), []
    for layer in range(params.depth):
        size = NUM_OUTCOMES if layer == params.depth - 1 else params.width
        grid = jnp.meshgrid(states, jnp.arange(NUM_ACTIONS), jnp.arange(size), indexing="ij")
        state, action, target = (axis.ravel().astype(jnp.int32) for axis in grid)
        by_layer.append(LinkChange(state, action, first_target[state] + target))
        states = links[states].ravel()
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *by_layer)


def draw_change(key: Key, candidates: LinkChange, allowed: Bool[Array, "C"]) -> tuple[LinkChange, Bool[Array, ""]]:
    """Draws one of the allowed changes, and says whether there is one."""
    index = random_index(key, allowed)
    return jax.tree.map(lambda leaf: leaf[index], candidates), jnp.any(allowed)


def introduction_length(params: RelayParams) -> int:
    """Steps in which every link is exposed once: two for each link, and one in the last layer."""
    first_of_last_layer, num_states = layer_bounds(params)[-2:]
    return NUM_ACTIONS * (num_states + first_of_last_layer)


def _induce_backward(
    params: RelayParams, links: Array, outcome_values: Array, summarize: Callable[..., Array]
) -> Float[Array, "S A"]:
    """The values of all actions where a state is worth a summary of the values of its actions."""
    bounds = layer_bounds(params)
    values = [outcome_values[links[bounds[-2] :]]]
    for layer in reversed(range(params.depth - 1)):
        successors = links[bounds[layer] : bounds[layer + 1]] - bounds[layer + 1]
        values.append(summarize(values[-1], axis=1)[successors])
    return jnp.concatenate(values[::-1])
