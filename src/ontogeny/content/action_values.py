"""Holds a table of action values for every number of steps that an episode may still take.

Finite-horizon action values Q_h(s, a) (Puterman 1994, section 4.3). A planner computes the values and replaces the
whole table.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from ontogeny.types import EnvSpec, ValueFunction


def build(spec: EnvSpec) -> ValueFunction:
    """Builds the table for an environment with numbered observations; values are in units of reward."""
    H, S, A = spec.horizon, spec.num_observations, spec.num_actions

    def init() -> Float[Array, "H S A"]:
        """The value of zero everywhere; row h - 1 is for h steps to go."""
        return jnp.zeros((H, S, A))

    def query(
        weights: Float[Array, "H S A"], observation: Int[Array, ""], steps_to_go: Int[ArrayLike, ""]
    ) -> Float[Array, "A"]:
        """The values of all actions, where `steps_to_go` includes the present step."""
        return weights[jnp.clip(steps_to_go, 1, H) - 1, observation]

    def update(weights: Float[Array, "H S A"], planned: Num[Array, "H S A"]) -> Float[Array, "H S A"]:
        """Replaces the table by planned values."""
        return planned.astype(weights.dtype)

    return ValueFunction(init, query, update)
