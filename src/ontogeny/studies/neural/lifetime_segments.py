"""One long lifetime in segments, so that it shows progress, can be saved between two of them, and can branch.

A lifetime in segments has the random numbers of `rollouts.rollout` with the same key, whatever the segments are. A
segment in which the learning diverges raises an error, so that nothing is made of its carry.
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

from ontogeny import rng, trees
from ontogeny.errors import require_finite_learning
from ontogeny.lifetimes import count_finite_steps
from ontogeny.rng import StepKeys
from ontogeny.rollouts import Carry, begin_lifetime, initial_carry, rollout_step
from ontogeny.types import Agent, Environment, Genome, Key, PyTree, State, Steering, Trajectory

Record = Callable[[Environment, Carry, Trajectory], PyTree]  # (env, carry after the step, the step) -> what is kept


class RecordedScore(NamedTuple):
    """What is kept of a step for a learning curve."""

    score: Array
    ends_episode: Array


class SegmentFiniteness(NamedTuple):
    """How far the learning of a segment was finite, by the name of the quantity."""

    num_finite_steps: dict[str, Array]  # steps of the segment before the first at which `info` is not finite
    has_finite_weights: dict[str, Array]  # after the segment


class SegmentProgram(NamedTuple):
    """A compiled segment.

    Attributes:
        run: (key of the lifetime, number of the first step, carry) -> carry, and what was kept of each step, [T]; it
            raises `LearningDiverged` where what `learn` computed is not finite.
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

    def run(key: Key, first_step: Array, carry: Carry) -> tuple[Carry, PyTree, SegmentFiniteness]:
        keys = rng.split_lifetime_key(key)

        def step(carry: Carry, number: Array) -> tuple[Carry, tuple[PyTree, dict[str, Array]]]:
            step_keys = StepKeys(*(jax.random.fold_in(k, number) for k in (keys.env, keys.act, keys.learn)))
            carry, trajectory = rollout_step(
                step_keys, agent, env, steering, carry, learning, reset_each_episode=reset_each_episode
            )
            return carry, (record(env, carry, trajectory), trees.finite_by_name(trajectory.info))

        after, (recorded, is_finite) = jax.lax.scan(step, carry, first_step + jnp.arange(num_steps))
        num_finite_steps = count_finite_steps(is_finite)
        return after, recorded, SegmentFiniteness(num_finite_steps, _finite_weights(carry, after) if learning else {})

    key = jax.eval_shape(partial(jax.random.key, 0))
    carry = jax.eval_shape(lambda key: begin(key, agent, env, steering, agent.genome(key)), key)
    started = time.process_time()
    compiled: Any = jax.jit(run).lower(key, jax.ShapeDtypeStruct((), jnp.int32), carry).compile()
    compile_seconds = time.process_time() - started

    def run_checked(key: Key, first_step: Array, carry: Carry) -> tuple[Carry, PyTree]:
        after, recorded, finiteness = compiled(key, first_step, carry)
        _require_finite(finiteness, int(first_step), num_steps)
        return after, recorded

    return SegmentProgram(run_checked, compile_seconds)


def _finite_weights(before: Carry, after: Carry) -> dict[str, Array]:
    """Whether each array of the learned content is finite after a segment, or was not finite before it either."""
    was_finite, is_finite = (trees.finite_by_name({"weights": c.state.weights.content}) for c in (before, after))
    return {name: holds | ~was_finite[name] for name, holds in is_finite.items()}


def _require_finite(finiteness: SegmentFiniteness, first_step: int, num_steps: int) -> None:
    """Raises `LearningDiverged` where the learning of a segment is not finite; of weights, its last step is named."""
    end = first_step + num_steps
    num_finite_steps = {name: end if holds else end - 1 for name, holds in finiteness.has_finite_weights.items()}
    num_finite_steps |= {name: first_step + int(number) for name, number in finiteness.num_finite_steps.items()}
    require_finite_learning(num_finite_steps, end)


def split_steps(num_steps: int, max_segments: int) -> tuple[int, int]:
    """The number of equal segments of a lifetime, at most `max_segments`, and the steps of each."""
    num_segments = next(number for number in range(min(max_segments, num_steps), 0, -1) if num_steps % number == 0)
    return num_segments, num_steps // num_segments


def concatenate(records: list[PyTree]) -> PyTree:
    """What was kept in successive segments as one record of NumPy arrays."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *records)
