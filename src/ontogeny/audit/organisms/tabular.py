"""Common parts of the organisms that choose in every state of `relay`.

Each of their learners is a record of its own, so that other modules can combine several in one lifetime. Unless an
organism says otherwise, what it has not observed has the value 0.5, the middle of the rewards of the default steering.

Letters: S states, A actions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise, require_env
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, PyTree

RATE = 1.0  # a link leads where it led last
UNKNOWN_VALUE = 0.5


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


def build_tabular(
    name: str, spec: EnvSpec, learner: Callable[[EnvSpec], TabularLearner], *, temperature: float
) -> Agent:
    """Builds an organism from a learner, with everything that it remembers in activations.

    Args:
        name: Of the organism.
        spec: Of the environment `relay`.
        learner: Builds the learner.
        temperature: Of the softmax over values; 0 for the first of the best actions.
    """
    require_env(name, spec, "relay")
    require_at_least(0, temperature=temperature)
    memory, update, values = learner(spec)

    def update_by_percept(memory: PyTree, step: StepMemoryInput) -> PyTree:
        return update(memory, to_tabular_step(spec, step.last_observation, step.percept))

    def choose(key: Key, memory: PyTree, percept: Percept) -> Array:
        action_values = values(memory, percept.observation)
        if temperature == 0:
            return jnp.argmax(action_values)
        return jax.random.categorical(key, action_values / temperature)

    return build_stepwise(name, spec, ("relay",), memory, update_by_percept, choose)


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


def initial_values(spec: EnvSpec, value: float = UNKNOWN_VALUE) -> Float[Array, "S A"]:
    """Returns action values that are all the same."""
    return jnp.full((num_graph_states(spec), spec.num_actions), value)


def td_target(values: Float[Array, "S A"], step: TabularStep) -> Float[Array, ""]:
    """Returns the target of Q-learning (Watkins & Dayan 1992); where the episode is truncated, the present value."""
    target = step.reward + jnp.where(step.is_end, 0.0, jnp.max(values[step.next_state]))
    return jnp.where(step.is_cut, values[step.state, step.action], target)


def update_by_td(values: Float[Array, "S A"], step: TabularStep, rate: float) -> Float[Array, "S A"]:
    """Returns the action values after one step of Q-learning."""
    link = (step.state, step.action)
    return values.at[link].set(interpolate(values[link], td_target(values, step), rate))


def interpolate(estimate: Array, target: Array, rate: Array | float) -> Array:
    """Returns an estimate moved towards a target: at rate 1 exactly the target, so that equal targets stay ties."""
    return (1 - rate) * estimate + rate * target
