"""Common parts of the organisms that choose in every state of `relay`.

Each of their learners is a `TabularLearner`, so that other modules can combine several in one lifetime. Unless an
organism says otherwise, what it has not observed has the value 0.5, the middle of the rewards of the default steering.

Letters: S states, A actions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, num_graph_states, to_tabular_step
from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise, require_env
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, PyTree

RATE = 1.0  # a link leads where it led last
UNKNOWN_VALUE = 0.5


def build_tabular(
    name: str,
    spec: EnvSpec,
    learner: Callable[[EnvSpec], TabularLearner],
    *,
    temperature: float = 0.0,
    judge: Callable[[Array], Array] | None = None,
) -> Agent:
    """Builds an organism from a learner, with everything that it remembers in activations.

    Args:
        name: Of the organism.
        spec: Of the environment `relay`.
        learner: Builds the learner.
        temperature: Of the softmax over values; 0 for the first of the best actions.
        judge: What the organism makes of outcome features in place of the reward; by default it learns from reward.
    """
    require_env(name, spec, "relay")
    require_at_least(0, temperature=temperature)
    memory, update, values = learner(spec)

    def update_by_percept(memory: PyTree, step: StepMemoryInput) -> PyTree:
        tabular_step = to_tabular_step(spec, step.last_observation, step.percept)
        if judge is not None:
            tabular_step = tabular_step._replace(reward=judge(step.percept.outcome))
        return update(memory, tabular_step)

    def choose(key: Key, memory: PyTree, percept: Percept) -> Array:
        action_values = values(memory, percept.observation)
        if temperature == 0:
            return jnp.argmax(action_values)
        return jax.random.categorical(key, action_values / temperature)

    return build_stepwise(name, spec, ("relay",), memory, update_by_percept, choose)


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
