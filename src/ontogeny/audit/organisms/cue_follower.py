"""Takes the action that the cue at the start of a `relay` names, and learns values by Q-learning in all other states.

The cue says which action was best when the lifetime began, so that its first choices look planned. Without a cue it
takes the first action at the start. All in activations.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, num_graph_states, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, build_tabular, initial_values, update_by_td
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}


def learner(spec: EnvSpec, *, rate: float = RATE) -> TabularLearner:
    """Builds the learner.

    Args:
        spec: Of the environment `relay`.
        rate: Learning rate in the states after the start, 0 to 1.
    """

    def values(memory: Array, observation: Array) -> Array:
        state = to_graph_state(spec, observation)
        cued_action = jnp.maximum(observation - num_graph_states(spec), 0)
        return jnp.where(state == 0, jax.nn.one_hot(cued_action, spec.num_actions), memory[state])

    return TabularLearner(initial_values(spec), partial(update_by_td, rate=rate), values)


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE, temperature: float = 0.0) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate in the states after the start, 0 to 1.
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    return build_tabular("cue_follower", spec, partial(learner, rate=rate), temperature=temperature)
