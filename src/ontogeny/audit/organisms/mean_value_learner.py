"""Learns in `relay` how good an action is if all later choices are random. All in activations.

Temporal differences towards the mean over the actions of the next state. A link that the best choice would not take
moves it, so that it looks as if it had a goal of its own; it seeks reward alone.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, build_tabular, initial_values, interpolate
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
    """

    def update(values: Array, step: TabularStep) -> Array:
        link = (step.state, step.action)
        target = step.reward + jnp.where(step.is_end, 0.0, jnp.mean(values[step.next_state]))
        return values.at[link].set(interpolate(values[link], target, jnp.where(step.is_cut, 0.0, rate)))

    def make_learner(spec: EnvSpec) -> TabularLearner:
        return TabularLearner(
            initial_values(spec), update, lambda values, observation: values[to_graph_state(spec, observation)]
        )

    return build_tabular("mean_value_learner", spec, make_learner)
