"""k Bernoulli arms with probabilities drawn uniformly; each pull is an episode.

Duan et al. 2016 (RL^2, arXiv 1611.02779), section 3.1 and Table 1: k = 5, 10, 50 arms by n = 10, 100, 500 pulls.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep


class Task(NamedTuple):
    probabilities: Array  # [A] of a payout, by arm


class State(NamedTuple):
    task: Task


def build(*, arms: int = 5, pulls: int = 100) -> Environment:
    require_at_least(2, arms=arms)
    require_at_least(1, pulls=pulls)
    spec = EnvSpec(
        name="bandit",
        num_actions=arms,
        num_observations=1,
        observation_shape=(),
        outcome_features=("payout",),
        num_steps=pulls,
        horizon=1,
        drives=(("payout", 1.0),),
        prior=Prior(transitions=1.0, outcome_features=(FeaturePrior("bernoulli", 1.0, 1.0),)),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        state = State(Task(jax.random.uniform(key, (arms,))))
        return state, observe(jnp.float32(0), jnp.float32(1))

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        paid = jax.random.uniform(key) < state.task.probabilities[action]
        return state, observe(paid.astype(jnp.float32), jnp.float32(0))

    def observe(payout: Array, discount: Array) -> TimeStep:
        return TimeStep(jnp.int32(0), payout[None], jnp.bool_(True), discount)

    def score(outcome: Array) -> Array:
        return outcome[0]

    def reveal_task(state: State) -> TabularTask:
        return TabularTask(
            transitions=jnp.ones((1, arms, 1)),
            outcomes=state.task.probabilities[None, :, None],
            ends=jnp.ones((1, arms)),
            remaining=jnp.int32(1),
        )

    return Environment(spec, reset, step, score, reveal_task)
