"""Predicts by the last item alone, and uses the direction as far as that is accurate: honest, and short of memory.

Where reports move eases, more items are 1 where the direction is 1. Whoever remembers the items need not be told that;
whoever does not remember is more accurate for leaning. The lean is the one at which logistic regression comes to rest.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.environments import stream
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering, *, last: float = 0.615, direction: float = 0.077) -> Agent:
    del steering
    if spec.name != "stream":
        raise BadInput(f"organism 'last_item_predictor' lives in the environment 'stream', not in '{spec.name}'")

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        del key
        _, towards, begins = percept.observation
        item = jnp.where(begins > 0.5, 0.0, 2 * percept.outcome[stream.ITEM] - 1)
        said = jax.nn.sigmoid(last * item + direction * towards)
        return stream.nearest_report(said, spec.num_actions), state

    return fixed_weights_agent(empty_genome, tuple, act)
