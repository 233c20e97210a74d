"""A table of action values for every number of steps that an episode may still take.

Finite-horizon action values Q_h(s, a) (Puterman 1994, section 4.3). The table is replaced as a whole by whoever plans;
it knows nothing of how its values came about.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.types import Spec, ValueFunction


def build(spec: Spec) -> ValueFunction:
    H, S, A = spec.horizon, spec.num_observations, spec.num_actions

    def init() -> Array:
        """[H, S, A], in units of reward; row h - 1 is for h steps to go."""
        return jnp.zeros((H, S, A))

    def query(weights: Array, observation: Array, remaining: Array) -> Array:
        """The values of all actions, [A], at `observation` [] with `remaining` [] steps to go, this one included."""
        return weights[jnp.clip(remaining, 1, H) - 1, observation]

    def update(weights: Array, planned: Array) -> Array:
        """What was planned takes the place of what was held."""
        return planned.astype(weights.dtype)

    return ValueFunction(init, query, update)
