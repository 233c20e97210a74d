"""Bernoulli bandit: k arms with payout probabilities drawn uniformly; each pull is an episode.

Duan et al. 2016 (RL^2, arXiv 1611.02779), section 3.1 and Table 1: k = 5, 10, 50 arms by n = 10, 100, 500 pulls.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments.base import first_feature
from ontogeny.errors import require_at_least
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep


class BanditTask(NamedTuple):
    """The payout probability of each arm."""

    probabilities: Array  # [A]


class BanditState(NamedTuple):
    """The state of the environment: nothing but the task."""

    task: BanditTask


class BanditParams(NamedTuple):
    """The settings of `build`."""

    num_arms: int
    num_pulls: int


def reset(params: BanditParams, key: Key) -> tuple[BanditState, TimeStep]:
    """Draws a task."""
    state = BanditState(BanditTask(jax.random.uniform(key, (params.num_arms,))))
    return state, time_step(jnp.float32(0), jnp.float32(1))


def step(key: Key, state: BanditState, action: Array) -> tuple[BanditState, TimeStep]:
    """Pulls an arm."""
    is_paid = jax.random.uniform(key) < state.task.probabilities[action]
    return state, time_step(is_paid.astype(jnp.float32), jnp.float32(0))


def time_step(payout: Array, discount: Array) -> TimeStep:
    """The time step after a pull; the only observation is 0."""
    return TimeStep(jnp.int32(0), jnp.int32(0), payout[None], jnp.bool_(True), discount)


def reveal_task(state: BanditState) -> TabularTask:
    """The task as tables: every pull ends the episode."""
    num_arms = state.task.probabilities.shape[0]
    return TabularTask(
        transitions=jnp.ones((1, num_arms, 1)),
        outcomes=state.task.probabilities[None, :, None],
        termination_probabilities=jnp.ones((1, num_arms)),
        remaining_steps=jnp.int32(1),
    )


def build(*, num_arms: int = 5, num_pulls: int = 100) -> Environment:
    """Builds the environment.

    Args:
        num_arms: Arms, at least 2.
        num_pulls: Pulls per lifetime, at least 1.
    """
    require_at_least(2, num_arms=num_arms)
    require_at_least(1, num_pulls=num_pulls)
    params = BanditParams(num_arms, num_pulls)
    spec = EnvSpec(
        name="bandit", num_actions=num_arms, num_observations=1, observation_shape=(), outcome_features=("payout",),
        num_steps=num_pulls, horizon=1, drives=(("payout", 1.0),),
        prior=Prior(transitions=1.0, outcome_features=(FeaturePrior("bernoulli", 1.0, 1.0),)),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), step, first_feature, reveal_task)
