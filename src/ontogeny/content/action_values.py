"""A table of action values for every number of steps that an episode may still take.

Finite-horizon action values Q_h(s, a) (Puterman 1994, section 4.3). The table is replaced as a whole by whoever plans;
it knows nothing of how its values came about.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from ontogeny.types import EnvSpec, ValueFunction


def build(spec: EnvSpec) -> ValueFunction:
    H, S, A = spec.horizon, spec.num_observations, spec.num_actions

    def init() -> Float[Array, "H S A"]:
        """In units of reward; row h - 1 is for h steps to go."""
        return jnp.zeros((H, S, A))

    def query(
        weights: Float[Array, "H S A"], observation: Int[Array, ""], remaining: Int[ArrayLike, ""]
    ) -> Float[Array, "A"]:
        """The values of all actions at `observation` with `remaining` steps to go, this one included."""
        return weights[jnp.clip(remaining, 1, H) - 1, observation]

    def update(weights: Float[Array, "H S A"], planned: Num[Array, "H S A"]) -> Float[Array, "H S A"]:
        """What was planned takes the place of what was held."""
        return planned.astype(weights.dtype)

    return ValueFunction(init, query, update)
