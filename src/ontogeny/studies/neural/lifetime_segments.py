"""One long lifetime in segments, so that it shows progress, can be saved between two of them, and can branch.

A lifetime in segments has the random numbers of `rollouts.rollout` with the same key, whatever the segments are.
Letters: T steps of a segment.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import rng
from ontogeny.rng import StepKeys
from ontogeny.rollouts import Carry, begin_lifetime, initial_carry, rollout_step
from ontogeny.types import Agent, Environment, Genome, Key, PyTree, State, Steering, Trajectory

Record = Callable[[Environment, Carry, Trajectory], PyTree]  # (env, carry after the step, the step) -> what is kept


class RecordedScore(NamedTuple):
    """What is kept of a step for a learning curve."""

    score: Array
    ends_episode: Array


class SegmentProgram(NamedTuple):
    """A compiled segment.

    Attributes:
        run: (key of the lifetime, number of the first step, carry) -> carry, and what was kept of each step, [T].
        compile_seconds: Processor seconds of the compilation.
    """

    run: Callable[[Key, Array, Carry], tuple[Carry, PyTree]]
    compile_seconds: float


def record_score(env: Environment, carry: Carry, step: Trajectory) -> RecordedScore:
    """Keeps the score of a step, and whether an episode ended with it."""
    return RecordedScore(env.score(step.outcome), carry.percept.first)


def begin(key: Key, agent: Agent, env: Environment, steering: Steering, genome_or_state: Genome | State) -> Carry:
    """The carry before the first step of a lifetime; a state is continued as it is."""
    state = begin_lifetime(key, agent, genome_or_state)
    carry = initial_carry(rng.split_lifetime_key(key).task, agent, env, steering, state)
    return jax.tree.map(jnp.asarray, carry)


@cache
def compile_segment(
    agent: Agent,
    env: Environment,
    steering: Steering,
    num_steps: int,
    learning: bool,
    record: Record = record_score,
    reset_each_episode: bool = False,
) -> SegmentProgram:
    """Compiles a segment; the same arguments give the same program.

    Args:
        agent: Built for the spec of `env`.
        env: In JAX.
        steering: Computes the reward that the agent perceives.
        num_steps: T.
        learning: Whether `learn` is called.
        record: What is kept of each step; a function that is defined once.
        reset_each_episode: Whether each episode begins as `rollouts.forget_past`.
    """

    def run(key: Key, first_step: Array, carry: Carry) -> tuple[Carry, PyTree]:
        keys = rng.split_lifetime_key(key)

        def step(carry: Carry, number: Array) -> tuple[Carry, PyTree]:
            step_keys = StepKeys(*(jax.random.fold_in(k, number) for k in (keys.env, keys.act, keys.learn)))
            carry, trajectory = rollout_step(
                step_keys, agent, env, steering, carry, learning, reset_each_episode=reset_each_episode
            )
            return carry, record(env, carry, trajectory)

        return jax.lax.scan(step, carry, first_step + jnp.arange(num_steps))

    key = jax.eval_shape(partial(jax.random.key, 0))
    carry = jax.eval_shape(lambda key: begin(key, agent, env, steering, agent.genome(key)), key)
    started = time.process_time()
    compiled: Any = jax.jit(run).lower(key, jax.ShapeDtypeStruct((), jnp.int32), carry).compile()
    return SegmentProgram(compiled, time.process_time() - started)


def split_steps(num_steps: int, max_segments: int) -> tuple[int, int]:
    """The number of equal segments of a lifetime, at most `max_segments`, and the steps of each."""
    num_segments = next(number for number in range(min(max_segments, num_steps), 0, -1) if num_steps % number == 0)
    return num_segments, num_steps // num_segments


def concatenate(records: list[PyTree]) -> PyTree:
    """What was kept in successive segments as one record of NumPy arrays."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *records)
