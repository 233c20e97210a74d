"""Test streams: a held-out stream, then links that are shown alone, then a query of the action that an agent chooses.

Every function here works on one stream; its callers map it over streams and runs. What the links are is read from the
stream itself: a link leads where it was last seen to lead, because this is all that an observer can know.

Letters: T steps, S states, A actions, C candidates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.relay_streams import CUT, EXPOSURE, GOALS, NUM_ACTIONS, TRIAL, StreamSteps
from ontogeny.environments import relay
from ontogeny.environments.layered_graph import (
    MIN_MARGIN,
    LinkChange,
    apply_change,
    best_action,
    draw_change,
    list_changes,
)
from ontogeny.environments.relay import RelayParams
from ontogeny.rng import random_index
from ontogeny.types import Key

NUM_PAIR_CANDIDATES = 512
OUTCOME_VALUES = jnp.asarray(relay.FEATURES) @ jnp.asarray(GOALS).T  # [outcomes, goals]


class Knowledge(NamedTuple):
    """What a stream has shown."""

    links: Int32[Array, "S A"]  # last observed successor: a state, or in the last layer an outcome
    is_known: Bool[Array, "S A"]
    start: Int32[Array, ""]  # the observation at the start, with its cue if it has one


def read_knowledge(params: RelayParams, steps: StreamSteps) -> Knowledge:
    """Reads from a stream where each link led last."""
    S = relay.num_states(params)
    state = jnp.where(steps.observation >= S, 0, steps.observation)
    link = jnp.where(steps.kind == CUT, -1, state * NUM_ACTIONS + steps.action)
    is_match = link[:, None] == jnp.arange(S * NUM_ACTIONS)  # [T, S A]
    last = jnp.max(jnp.where(is_match, jnp.arange(len(link))[:, None], -1), axis=0)
    successor = jnp.where(last >= 0, steps.successor[last], 0).reshape(S, NUM_ACTIONS)
    links = jnp.where(relay.is_last_layer(params)[:, None], jnp.maximum(successor - S, 0), successor)
    cued = jnp.max(steps.observation)
    return Knowledge(links, (last >= 0).reshape(S, NUM_ACTIONS), jnp.where(cued >= S, cued, 0))


def start_values(params: RelayParams, links: Int32[Array, "S A"], goal: int | Array) -> Float[Array, "A"]:
    """The values of the actions at the start under a goal."""
    return relay.action_values(params, links, OUTCOME_VALUES[:, goal])[0]


def choose_change(
    key: Key, params: RelayParams, links: Int32[Array, "S A"], goal: int | Array, layer: int, *, reverses: bool = True
) -> tuple[LinkChange, Bool[Array, ""]]:
    """Draws a change of one link of a layer that changes the values of the actions at the start.

    Args:
        key: Of the draw.
        params: Of the environment.
        links: Before the change.
        goal: Of the agent whose choice is queried.
        layer: Of the link.
        reverses: Whether the other action is the best afterwards, or else the same one.

    Returns:
        The change, and whether there is one.
    """
    candidates = list_changes(params, layer)
    values = start_values(params, links, goal)
    best, is_clear = best_action(values)

    def is_allowed(change: LinkChange) -> Array:
        values_after = start_values(params, apply_change(links, change), goal)
        best_after, is_clear_after = best_action(values_after)
        is_relevant = jnp.any(jnp.abs(values_after - values) > MIN_MARGIN)
        return is_clear & is_clear_after & is_relevant & ((best_after != best) == reverses)

    allowed = jax.vmap(is_allowed)(candidates)
    return draw_change(key, candidates, allowed)


def choose_pair(
    key: Key, params: RelayParams, links: Int32[Array, "S A"], goal: int | Array
) -> tuple[LinkChange, LinkChange, Bool[Array, ""]]:
    """Draws changes of a first-layer and a last-layer link that reverse the best action only together."""
    candidates = [list_changes(params, layer) for layer in (0, params.depth - 1)]
    first_key, second_key, choice_key = jax.random.split(key, 3)
    first, second = (_draw_changes(k, c) for k, c in zip((first_key, second_key), candidates, strict=True))
    best, is_clear = best_action(start_values(params, links, goal))

    def is_valid(first: LinkChange, second: LinkChange) -> Array:
        tables = [apply_change(links, first), apply_change(links, second)]
        tables.append(apply_change(tables[0], second))
        bests = [best_action(start_values(params, table, goal)) for table in tables]
        only_together = (bests[0][0] == best) & (bests[1][0] == best) & (bests[2][0] != best)
        return is_clear & only_together & bests[0][1] & bests[1][1] & bests[2][1]

    allowed = jax.vmap(is_valid)(first, second)
    index = random_index(choice_key, allowed)
    first, second = (jax.tree.map(lambda leaf: leaf[index], changes) for changes in (first, second))
    return first, second, jnp.any(allowed)


def _draw_changes(key: Key, candidates: LinkChange) -> LinkChange:
    """Candidates of a pair, drawn uniformly."""
    indices = jax.random.randint(key, (NUM_PAIR_CANDIDATES,), 0, len(candidates.state))
    return jax.tree.map(lambda leaf: leaf[indices], candidates)


def show_link(params: RelayParams, start: Array, change: LinkChange, layer: int) -> StreamSteps:
    """The steps in which a link is exposed alone; one in the last layer, else two."""
    S = relay.num_states(params)
    observation = jnp.where(change.state == 0, start, change.state)
    if layer == params.depth - 1:
        return _steps((EXPOSURE, 0, observation, change.action, S + change.successor))
    exposed = (EXPOSURE, 0, observation, change.action, change.successor)
    return _steps(exposed, (CUT, 0, change.successor, 0, -1))


def ask_choice(start: Array, member: int | Array) -> StreamSteps:
    """The step at which a member chooses at the start."""
    return _steps((TRIAL, member, start, 0, -1))


def ask_successor(start: Array, member: int | Array, state: Array, action: Array) -> StreamSteps:
    """The step at which a member has chosen an action in a state, and its successor is to be predicted."""
    return _steps((TRIAL, member, jnp.where(state == 0, start, state), action, -1))


def repeat_links(
    key: Key,
    params: RelayParams,
    knowledge: Knowledge,
    num_links: int,
    relevant_share: float | Array,
    excluded: Bool[Array, "S A"],
) -> StreamSteps:
    """Exposures of random links of the last layer as they are, drawn as the environment draws them.

    Args:
        key: Of the draws.
        params: Of the environment.
        knowledge: What the stream has shown.
        num_links: Number of exposures.
        relevant_share: Probability that an exposed link can be reached from the start.
        excluded: Links that are not exposed, such as those that have changed.
    """
    S = relay.num_states(params)
    visits = jax.nn.one_hot(0, S)  # probability of a random walk from the start to be in each state
    for _ in range(params.depth - 1):
        visits = jnp.zeros(S).at[knowledge.links].add(visits[:, None] / NUM_ACTIONS)
    is_unreachable = ~relay.reachable_states(params, knowledge.links) & relay.is_last_layer(params)
    num_unreachable = jnp.sum(is_unreachable)
    relevant_share = jnp.where(num_unreachable > 0, relevant_share, 1.0)
    shares = relevant_share * visits + (1 - relevant_share) * is_unreachable / jnp.maximum(num_unreachable, 1)
    logits = jnp.log(jnp.where(excluded, 0.0, shares[:, None])).ravel()
    states, actions = jnp.divmod(jax.random.categorical(key, logits, shape=(num_links,)), NUM_ACTIONS)
    results = S + knowledge.links[states, actions]
    steps = (jnp.full(num_links, EXPOSURE), jnp.zeros(num_links), states, actions, results)
    return StreamSteps(*(column.astype(jnp.int32) for column in steps))


def join(*parts: StreamSteps) -> StreamSteps:
    """One stream after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def is_usable(params: RelayParams, steps: StreamSteps, knowledge: Knowledge) -> Bool[Array, ""]:
    """Whether a stream has shown every link and ends with an episode, so that another episode may follow."""
    ends_episode = (steps.kind[-1] == CUT) | (steps.successor[-1] >= relay.num_states(params))
    return ends_episode & jnp.all(knowledge.is_known)


def _steps(*steps: tuple[int | Array, ...]) -> StreamSteps:
    """Steps from tuples in the order of the fields of `StreamSteps`."""
    columns = zip(*steps, strict=True)
    return StreamSteps(*(jnp.stack([jnp.asarray(field, jnp.int32) for field in column]) for column in columns))
