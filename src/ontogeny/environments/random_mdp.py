"""Random tabular decision problems: ten states, five actions, episodes of ten steps from one start state.

Duan et al. 2016 (RL^2, arXiv 1611.02779), section 3.2 and Table 2: transitions from a flat Dirichlet, mean rewards
from N(1, 1), unit-variance noise on every reward; n = 10, 25, 50, 75, 100 episodes. The horizon is part of the task:
the last step of an episode terminates it in every state.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments.base import first_feature, initial_time_step
from ontogeny.errors import require_at_least
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep


class MdpTask(NamedTuple):
    """The transition probabilities and the mean gains of one decision problem."""

    cumulative_transitions: Array  # [S, A, S], cumulative over the last axis
    means: Array  # [S, A], of the outcome feature `gain`


class MdpState(NamedTuple):
    """The state of the environment."""

    task: MdpTask
    position: Array  # [] int32
    steps: Array  # [] int32, taken in this episode


class MdpParams(NamedTuple):
    """The settings of `build` that the dynamics need."""

    num_states: int
    num_actions: int
    horizon: int


def reset(params: MdpParams, key: Key) -> tuple[MdpState, TimeStep]:
    """Draws a task and begins in state 0."""
    transition_key, mean_key = jax.random.split(key)
    shape = (params.num_states, params.num_actions)
    # A flat Dirichlet is a vector of exponentials over their sum.
    weights = jax.random.exponential(transition_key, (*shape, params.num_states))
    cumulative = jnp.cumsum(weights, axis=-1)
    means = 1 + jax.random.normal(mean_key, shape)
    state = MdpState(MdpTask(cumulative / cumulative[..., -1:], means), jnp.int32(0), jnp.int32(0))
    return state, initial_time_step(state.position, 1)


def step(params: MdpParams, key: Key, state: MdpState, action: Array) -> tuple[MdpState, TimeStep]:
    """Draws the successor and the gain."""
    move_key, noise_key = jax.random.split(key)
    cumulative = state.task.cumulative_transitions[state.position, action]
    successor = jnp.sum(jax.random.uniform(move_key) >= cumulative[:-1]).astype(jnp.int32)
    gain = state.task.means[state.position, action] + jax.random.normal(noise_key)
    steps = state.steps + 1
    is_over = steps == params.horizon
    state = MdpState(state.task, jnp.where(is_over, 0, successor), jnp.where(is_over, 0, steps))
    return state, TimeStep(state.position, successor, gain[None], is_over, 1 - is_over.astype(jnp.float32))


def reveal_task(params: MdpParams, state: MdpState) -> TabularTask:
    """The task as tables."""
    return TabularTask(
        transitions=jnp.diff(state.task.cumulative_transitions, axis=-1, prepend=0),
        outcomes=state.task.means[..., None],
        termination_probabilities=jnp.zeros(state.task.means.shape),
        remaining_steps=params.horizon - state.steps,
    )


def build(*, num_states: int = 10, num_actions: int = 5, horizon: int = 10, num_episodes: int = 10) -> Environment:
    """Builds the environment.

    Args:
        num_states: States of each task, at least 1.
        num_actions: Actions in each state, at least 2.
        horizon: Steps per episode, at least 1.
        num_episodes: Episodes per lifetime, at least 1.
    """
    require_at_least(1, num_states=num_states, horizon=horizon, num_episodes=num_episodes)
    require_at_least(2, num_actions=num_actions)
    params = MdpParams(num_states, num_actions, horizon)
    spec = EnvSpec(
        name="random_mdp", num_actions=num_actions, num_observations=num_states, observation_shape=(),
        outcome_features=("gain",), num_steps=horizon * num_episodes, horizon=horizon, drives=(("gain", 1.0),),
        prior=Prior(transitions=1.0, outcome_features=(FeaturePrior("normal", 1.0, 1.0, noise=1.0),)),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), first_feature, partial(reveal_task, params))
