"""Credits every link of an episode of a `relay` with the outcome, and nothing before the outcome. All in activations.

Sutton & Barto 2018, section 5.1, with a constant learning rate. An exposure of a link of the last layer is an episode
of its own and credits that link alone; an earlier link that is shown alone has no outcome and gets no credit. The
initial values are optimistic, so that each action is tried.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, build_tabular, initial_values, interpolate
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}
INITIAL_VALUE = 1.0


class ReturnMemory(NamedTuple):
    """Action values and the links of this episode."""

    values: Array  # [S, A]
    visited: Array  # [S, A] 0 or 1


def learner(spec: EnvSpec, *, rate: float = RATE) -> TabularLearner:
    """Builds the learner.

    Args:
        spec: Of the environment `relay`.
        rate: Learning rate, 0 to 1.
    """

    def update(memory: ReturnMemory, step: TabularStep) -> ReturnMemory:
        visited = memory.visited.at[step.state, step.action].set(1.0)
        credit = jnp.where(step.is_end, rate * visited, 0.0)
        values = interpolate(memory.values, step.reward, credit)
        return ReturnMemory(values, jnp.where(step.is_end | step.is_cut, 0.0, visited))

    def values(memory: ReturnMemory, observation: Array) -> Array:
        return memory.values[to_graph_state(spec, observation)]

    memory = ReturnMemory(initial_values(spec, INITIAL_VALUE), initial_values(spec, 0.0))
    return TabularLearner(memory, update, values)


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE, temperature: float = 0.0) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    return build_tabular("tabular_monte_carlo", spec, partial(learner, rate=rate), temperature=temperature)
