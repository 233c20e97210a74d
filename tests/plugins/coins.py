"""Two coins, one of which is better; each flip is an episode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ontogeny.types import Environment, EnvSpec, TimeStep


class CoinsState(NamedTuple):
    """State of a lifetime."""

    task: jax.Array  # probability of heads of either coin, [2]


def build(*, flips: int = 50, better: float = 0.8) -> Environment:
    """Build the environment.

    Args:
        flips: Steps of a lifetime, at least 1.
        better: Probability of heads of the better coin, 0.5 to 1.
    """
    spec = EnvSpec(
        name="coins",
        num_actions=2,
        num_observations=1,
        observation_shape=(),
        outcome_features=("heads",),
        num_steps=flips,
        horizon=1,
        drives=(("heads", 1.0),),
    )

    def reset(key):
        is_first_better = jax.random.bernoulli(key)
        chances = jnp.where(is_first_better, jnp.array([better, 1 - better]), jnp.array([1 - better, better]))
        return CoinsState(chances), TimeStep(jnp.int32(0), jnp.int32(0), jnp.zeros(1), jnp.bool_(True), jnp.float32(1))

    def step(key, state, action):
        heads = jax.random.uniform(key) < state.task[action]
        return state, TimeStep(jnp.int32(0), jnp.int32(0), heads[None].astype(float), jnp.bool_(True), jnp.float32(0))

    return Environment(spec, reset, step, score=lambda outcome: outcome[0])
