"""Random tabular decision problems: ten states, five actions, episodes of ten steps from one start state.

Duan et al. 2016 (RL^2, arXiv 1611.02779), section 3.2 and Table 2: transitions from a flat Dirichlet, mean rewards
from N(1, 1), unit-variance noise on every reward; n = 10, 25, 50, 75, 100 episodes. The horizon is part of
the task: after the tenth step nothing is to come, whatever the state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep


class Task(NamedTuple):
    transitions: Array  # [S, A, S] cumulative over the last axis
    means: Array  # [S, A] of the reward fact


class State(NamedTuple):
    task: Task
    position: Array  # [] int32
    steps: Array  # [] int32, taken in this episode


def build(*, states: int = 10, actions: int = 5, horizon: int = 10, episodes: int = 10) -> Environment:
    require_at_least(1, states=states, horizon=horizon, episodes=episodes)
    require_at_least(2, actions=actions)
    spec = EnvSpec(
        name="random_mdp",
        num_actions=actions,
        num_observations=states,
        observation_shape=(),
        outcome_features=("gain",),
        num_steps=horizon * episodes,
        horizon=horizon,
        drives=(("gain", 1.0),),
        prior=Prior(transitions=1.0, outcome_features=(FeaturePrior("normal", 1.0, 1.0, noise=1.0),)),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        transition_key, mean_key = jax.random.split(key)
        # A flat Dirichlet is a vector of exponentials over their sum.
        weights = jax.random.exponential(transition_key, (states, actions, states))
        cumulative = jnp.cumsum(weights, axis=-1)
        means = 1 + jax.random.normal(mean_key, (states, actions))
        state = State(Task(cumulative / cumulative[..., -1:], means), jnp.int32(0), jnp.int32(0))
        return state, TimeStep(state.position, jnp.zeros(1), jnp.bool_(True), jnp.float32(1))

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        move_key, noise_key = jax.random.split(key)
        cumulative = state.task.transitions[state.position, action]
        successor = jnp.sum(jax.random.uniform(move_key) >= cumulative[:-1]).astype(jnp.int32)
        gain = state.task.means[state.position, action] + jax.random.normal(noise_key)
        steps = state.steps + 1
        over = steps == horizon
        state = State(state.task, jnp.where(over, 0, successor), jnp.where(over, 0, steps))
        return state, TimeStep(state.position, gain[None], over, 1 - over.astype(jnp.float32))

    def score(outcome: Array) -> Array:
        return outcome[0]

    def reveal_task(state: State) -> TabularTask:
        return TabularTask(
            transitions=jnp.diff(state.task.transitions, axis=-1, prepend=0),
            outcomes=state.task.means[..., None],
            ends=jnp.zeros((states, actions)),
            remaining=horizon - state.steps,
        )

    return Environment(spec, reset, step, score, reveal_task)
