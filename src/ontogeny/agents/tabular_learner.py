"""Learners that choose in every state of `relay`, as records of pure functions that several agents can combine.

Letters: A actions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.types import EnvSpec, Percept, PyTree


class TabularStep(NamedTuple):
    """One step in a graph of numbered states."""

    state: Array  # [] int32
    action: Array  # [] int32, carried out
    next_state: Array  # [] int32; meaningless if `is_end` or `is_cut`
    reward: Array  # []
    is_end: Array  # [] bool, the episode terminates with an outcome
    is_cut: Array  # [] bool, the episode is truncated: nothing is observed, so that no learner may update


class TabularLearner(NamedTuple):
    """What an organism remembers and how it values actions, as pure functions of the memory."""

    memory: PyTree  # before any experience
    update: Callable[[Any, TabularStep], PyTree]  # memory, step -> memory
    values: Callable[[Any, Array], Array]  # memory, observation [] int32 -> action values [A]


def num_graph_states(spec: EnvSpec) -> int:
    """Returns S; the last A observations are the start with a cue."""
    return spec.num_observations - spec.num_actions


def to_graph_state(spec: EnvSpec, observation: Array) -> Array:
    """Returns the state that an observation shows; a cue shows the start, state 0."""
    return jnp.where(observation >= num_graph_states(spec), 0, observation)


def to_tabular_step(spec: EnvSpec, last_observation: Array, percept: Percept) -> TabularStep:
    """Returns the step from an observation to a percept; it is meaningless where the percept has no last action."""
    return TabularStep(
        state=to_graph_state(spec, last_observation),
        action=jnp.maximum(percept.action, 0),
        next_state=to_graph_state(spec, percept.observation),
        reward=percept.reward,
        is_end=percept.first & (percept.discount == 0),
        is_cut=percept.first & (percept.discount > 0),
    )
