"""Deployment: a saved agent lives on in its environment, step by step, frozen (Case 2) or online (Case 1).

Lives in use are drawn from the stream "deployment": they are neither training's nor evaluation's. Scores are passed on for
people to read; the agent does not see them.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from ontogeny import rng, trees
from ontogeny.errors import BadInput
from ontogeny.rollouts import Carry, initial_carry, rollout_step
from ontogeny.stages.saved import Saved, check_frozen, init
from ontogeny.types import Agent, Environment, Key, State, Steering, Trajectory


class Step(NamedTuple):
    """One step of a life in use."""

    number: int  # from 1
    episode: int  # from 1
    observation: int | np.ndarray  # before the action
    action: int
    outcome: dict[str, float]  # facts of that action
    reward: float  # of steering
    score: float  # what was meant
    state: State  # after the step: all that is needed to go on, or to be saved


def deploy(saved: Saved, *, online: bool = False, seed: int = 0, num_steps: int | None = None) -> Iterator[Step]:
    """Yields the steps of one life, as many as a life in this environment has unless `num_steps` says otherwise.

    A frozen life that comes to its end has the weights it began with, or `ContractViolation` is raised.
    """
    if num_steps is not None and num_steps < 1:
        raise BadInput(f"a deployment needs at least 1 step, not {num_steps}")
    return _steps(saved, online, seed, num_steps or saved.subject.env.spec.num_steps)


def _steps(saved: Saved, online: bool, seed: int, num_steps: int) -> Iterator[Step]:
    agent, env, steering = saved.subject
    key, state = init(saved, seed)
    before = trees.digest(state.weights)
    carry = _begin(rng.split_lifetime_key(key).task, agent, env, steering, state)
    episode = 0
    for number in range(1, num_steps + 1):
        carry, trajectory, score = _advance(key, number - 1, agent, env, steering, carry, online)
        if not 0 <= int(trajectory.action) < env.spec.num_actions:
            raise BadInput(
                f"the agent took the action {int(trajectory.action)}, there are 0 to {env.spec.num_actions - 1}"
            )
        episode += bool(trajectory.first)
        yield Step(
            number=number,
            episode=episode,
            observation=np.asarray(trajectory.observation)
            if env.spec.observation_shape
            else int(trajectory.observation),
            action=int(trajectory.action),
            outcome=dict(zip(env.spec.outcome_features, np.asarray(trajectory.outcome).tolist(), strict=True)),
            reward=float(trajectory.reward),
            score=float(score),
            state=carry.state,
        )
    if not online:
        check_frozen(before, carry.state)


_begin = jax.jit(initial_carry, static_argnames=("agent", "env", "steering"))


@partial(jax.jit, static_argnames=("agent", "env", "steering", "online"))
def _advance(
    key: Key, step: int, agent: Agent, env: Environment, steering: Steering, carry: Carry, online: bool
) -> tuple[Carry, Trajectory, jax.Array]:
    """The same step, drawn from the same chance, as `lifetime.live` takes with this key."""
    lifetime_keys = rng.split_lifetime_key(key)
    env_key, act_key, learn_key = (
        jax.random.fold_in(k, step) for k in (lifetime_keys.env, lifetime_keys.act, lifetime_keys.learn)
    )
    carry, trajectory = rollout_step((env_key, act_key, learn_key), agent, env, steering, carry, online)
    return carry, trajectory, env.score(trajectory.outcome)
