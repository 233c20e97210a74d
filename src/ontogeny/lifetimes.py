"""Whole lifetimes of agents in any environment: the one place where the stages tell the two kinds of environment apart.

An environment in JAX is traced into compiled programs. An environment of Python objects is stepped by `host_rollouts`;
only the agent is compiled. Letters for shapes: N lifetimes, T steps.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import rng, trees
from ontogeny.errors import BadInput, require_finite_learning
from ontogeny.host_rollouts import HostRollout, begin_lifetimes, rollout_from_log_on_host, rollout_on_host
from ontogeny.parallel import put_on_devices, shard_over_devices
from ontogeny.rollouts import (
    Carry,
    begin_lifetime,
    initial_carry,
    rollout_from_log,
    rollout_lifetime,
    rollout_step,
)
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Environment,
    Genome,
    HostEnvironment,
    Key,
    PyTree,
    State,
    Steering,
    Trajectory,
    Weights,
)

# Programs that run a few batches of lifetimes compile at level 2 of LLVM: in half the time that level 3 takes, to
# programs of about the same speed whose results are bitwise equal. Another level in XLA_FLAGS takes precedence.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 2}
if "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", ""):
    COMPILER_OPTIONS.clear()
BYTES_PER_CALL = 64 * 2**20
MAX_LIFETIMES_PER_CALL = 1024  # per device
MAX_HOST_LIFETIMES_PER_CALL = 256
Function = TypeVar("Function", bound=Callable[..., Any])


class LifetimeMeasure(NamedTuple):
    """What is measured in a lifetime. The functions are defined once, because they are compiled.

    Attributes:
        record: The part of each step that is kept, so that observations need no memory.
        summarize: Weights at the start, state at the end, and the kept parts, leading axis T -> what is returned.
    """

    record: Callable[[AnyEnvironment, Trajectory], PyTree]
    summarize: Callable[[Weights, State, PyTree], PyTree]


class LifetimeStep(NamedTuple):
    """One step of a lifetime, without the axis T."""

    state: State  # after the step
    trajectory: Trajectory
    score: Array


def require_jax_env(env: AnyEnvironment, subject: str) -> Environment:
    """The environment, for a procedure that has to trace it.

    Args:
        subject: The procedure, such as "the development 'distillation'".

    Raises:
        BadInput: The environment consists of Python objects.
    """
    if isinstance(env, HostEnvironment):
        raise BadInput(
            f"{subject} needs an environment written in JAX, and '{env.spec.name}' consists of Python objects; "
            "`evolution`, `policy_gradient`, `single_lifetime`, `evaluate`, `deploy` and `audit attribution` work with "
            "both"
        )
    return env


def compile_around(env: AnyEnvironment, function: Function) -> Function:
    """`jax.jit` of a function that runs lifetimes, where the environment can be traced; the function as it is else."""
    return function if isinstance(env, HostEnvironment) else jax.jit(function)  # pyright: ignore[reportReturnType]


def lifetimes_per_call(
    agent: Agent, env: AnyEnvironment, steering: Steering, start: Genome | State, num_lifetimes: int
) -> int:
    """How many lifetimes fit comfortably into memory at once; for environments in JAX a multiple of all devices.

    Args:
        start: A genome or state that all lifetimes share.
        num_lifetimes: N.
    """
    key = jax.random.key(0)
    if isinstance(env, HostEnvironment):
        state = jax.eval_shape(lambda start: begin_lifetime(key, agent, start), start)
        fitting = BYTES_PER_CALL // max(trees.num_bytes(state), 1)
        max_lifetimes = max(1, min(fitting, MAX_HOST_LIFETIMES_PER_CALL))
        return -(-num_lifetimes // -(-num_lifetimes // max_lifetimes))  # calls of about the same size
    num_devices = jax.local_device_count()
    before, after, trajectory = _run_one.eval_shape(key, start, agent, env, steering, False)
    env_state, _ = jax.eval_shape(env.reset, key)
    num_bytes = sum(trees.num_bytes(tree) for tree in (before, after, env_state, trajectory.outcome))
    fitting = BYTES_PER_CALL // max(num_bytes, 1) // num_devices
    return max(1, min(fitting, MAX_LIFETIMES_PER_CALL, -(-num_lifetimes // num_devices))) * num_devices


def key_batches(env: AnyEnvironment, keys: Key, batch_size: int) -> Iterator[tuple[Key, int]]:
    """Batches of keys of lifetimes, and how many keys of each batch count.

    For an environment in JAX, the last batch is filled up with lifetimes that do not count, so that one program serves
    all calls, and the batches are split over the devices.
    """
    num_lifetimes = len(keys)
    for begin in range(0, num_lifetimes, batch_size):
        count = min(batch_size, num_lifetimes - begin)
        if isinstance(env, HostEnvironment):
            yield keys[begin : begin + count], count
        else:
            indices = jnp.minimum(jnp.arange(begin, begin + batch_size), num_lifetimes - 1)
            yield put_on_devices(keys[indices], 0), count


def measure_lifetimes(
    measure: LifetimeMeasure,
    keys: Key,
    start: Genome | State,
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    learning: bool,
    *,
    start_axis: int | None = None,
    reset_each_episode: bool = False,
) -> PyTree:
    """Runs one whole lifetime for each key.

    Args:
        measure: What is returned of each lifetime.
        keys: [N]; for environments in JAX, N is a multiple of the number of devices.
        start: A genome, from which the lifetimes begin, or a state, at which they continue.
        learning: Whether `learn` is called.
        start_axis: 0 where each lifetime has its own entry in `start`, None where all share it.
        reset_each_episode: Whether each episode begins as `rollouts.forget_past`.

    Returns:
        The summaries, leading axis N.
    """
    if not isinstance(env, HostEnvironment):
        return _measure(measure, keys, start, agent, env, steering, learning, start_axis, reset_each_episode)
    before = begin_lifetimes(keys, start, agent, start_axis).weights
    after, recorded = rollout_on_host(
        keys, agent, env, steering, start, env.spec.num_steps, learning, record=measure.record,
        start_axis=start_axis, reset_each_episode=reset_each_episode,
    )  # fmt: skip
    return _summarize(measure, before, after, recorded)


def count_finite_steps(info: dict[str, Array]) -> dict[str, Array]:
    """Steps of a lifetime before the first at which a quantity that `learn` reports is not finite, [] int32 by name.

    Args:
        info: `trees.finite_by_name` of what `learn` reported, leading axis T; blank steps count as finite.
    """
    return {name: jnp.sum(jnp.cumprod(is_finite)) for name, is_finite in info.items()}


def require_finite_lifetimes(num_finite_steps: dict[str, Array], num_steps: int) -> None:
    """Raises `LearningDiverged` if the learning diverged in one of several lifetimes.

    Args:
        num_finite_steps: `count_finite_steps` of each lifetime, [N].
        num_steps: T.
    """
    require_finite_learning({name: int(jnp.min(steps)) for name, steps in num_finite_steps.items()}, num_steps)


def run_one_lifetime(
    key: Key, agent: Agent, env: AnyEnvironment, steering: Steering, start: Genome | State, learning: bool
) -> tuple[State, Trajectory]:
    """One whole lifetime; arguments as of `measure_lifetimes`, without the axis N."""
    if not isinstance(env, HostEnvironment):
        return _run_one_lifetime(key, agent, env, steering, start, learning)
    batch = rollout_on_host(key[None], agent, env, steering, start, env.spec.num_steps, learning)
    return jax.tree.map(lambda leaf: leaf[0], batch)


def score_from_log(key: Key, start: Genome | State, agent: Agent, env: AnyEnvironment, steering: Steering) -> Array:
    """keys [N] -> scores [N] of lifetimes with reset activations and the weights of a lifetime that kept them.

    Raises:
        LearningDiverged: The learning diverged in one of the lifetimes that kept their activations.
    """
    num_steps = env.spec.num_steps
    if isinstance(env, HostEnvironment):
        recorded = rollout_from_log_on_host(
            key, agent, env, steering, start, num_steps, _record_score, _record_finiteness
        )
        scores, num_finite_steps = _sum_log(*recorded)
    else:
        scores, num_finite_steps = _score_from_log(key, start, agent, env, steering)
    require_finite_lifetimes(num_finite_steps, num_steps)
    return scores


def iterate_lifetime(
    key: Key, agent: Agent, env: AnyEnvironment, steering: Steering, state: State, num_steps: int, learning: bool
) -> Iterator[LifetimeStep]:
    """The steps of the lifetime that `rollouts.rollout` runs with this key, one at a time, until it is over."""
    if isinstance(env, HostEnvironment):
        with HostRollout(key[None], agent, env, steering, state) as lifetime:
            while lifetime.num_steps < num_steps and not lifetime.is_over[0]:
                trajectory, score = lifetime.step(learning, _record_step_and_score)
                yield LifetimeStep(*jax.tree.map(lambda leaf: leaf[0], (lifetime.state, trajectory, score)))
        return
    carry = _initial_carry(rng.split_lifetime_key(key).task, agent, env, steering, state)
    for number in range(num_steps):
        if env.is_over is not None and env.is_over(carry.env_state):
            return
        carry, trajectory, score = _advance(key, number, agent, env, steering, carry, learning)
        yield LifetimeStep(carry.state, trajectory, score)


def task_of(env: AnyEnvironment, key: Key) -> Any:
    """The task of a lifetime, () where the environment does not show it."""
    if isinstance(env, HostEnvironment):
        return ()
    return getattr(env.reset(rng.split_lifetime_key(key).task)[0], "task", ())


def _run_lifetime(
    key: Key, start: Genome | State, agent: Agent, env: Environment, steering: Steering, learning: bool, **options: Any
) -> tuple[Weights, State, Trajectory]:
    """The weights with which a lifetime begins, the state at its end, and its trajectory."""
    state = begin_lifetime(key, agent, start)
    after, trajectory = rollout_lifetime(key, agent, env, steering, state, learning, **options)
    return state.weights, after, trajectory


@partial(
    jax.jit,
    static_argnames=("measure", "agent", "env", "steering", "learning", "start_axis", "reset_each_episode"),
    compiler_options=COMPILER_OPTIONS,
)
def _measure(
    measure: LifetimeMeasure,
    keys: Key,
    start: Genome | State,
    agent: Agent,
    env: Environment,
    steering: Steering,
    learning: bool,
    start_axis: int | None,
    reset_each_episode: bool,
) -> PyTree:
    """`measure_lifetimes` of an environment in JAX, split over the devices."""

    def run(key: Key, start: Genome | State) -> PyTree:
        before, after, trajectory = _run_lifetime(
            key, start, agent, env, steering, learning, reset_each_episode=reset_each_episode
        )
        return measure.summarize(before, after, jax.vmap(partial(measure.record, env))(trajectory))

    return shard_over_devices(jax.vmap(run, in_axes=(0, start_axis)), (0, start_axis))(keys, start)


@partial(jax.jit, static_argnames=("measure",))
def _summarize(measure: LifetimeMeasure, before: Weights, after: State, recorded: PyTree) -> PyTree:
    """The summaries of lifetimes, [N]."""
    return jax.vmap(measure.summarize)(before, after, recorded)


_run_one = jax.jit(_run_lifetime, static_argnames=("agent", "env", "steering", "learning"))  # for its shapes only
_run_one_lifetime = jax.jit(
    rollout_lifetime,
    static_argnames=("agent", "env", "steering", "learning"),
    compiler_options=COMPILER_OPTIONS,
)
_initial_carry = jax.jit(initial_carry, static_argnames=("agent", "env", "steering"))


@partial(jax.jit, static_argnames=("agent", "env", "steering", "learning"))
def _advance(
    key: Key, step: int, agent: Agent, env: Environment, steering: Steering, carry: Carry, learning: bool
) -> tuple[Carry, Trajectory, Array]:
    """The step that `rollout` takes with this key, with the same random numbers."""
    lifetime_keys = rng.split_lifetime_key(key)
    env_key, act_key, learn_key = (
        jax.random.fold_in(k, step) for k in (lifetime_keys.env, lifetime_keys.act, lifetime_keys.learn)
    )
    carry, trajectory = rollout_step((env_key, act_key, learn_key), agent, env, steering, carry, learning)
    return carry, trajectory, env.score(trajectory.outcome)


@partial(jax.jit, static_argnames=("agent", "env", "steering"))
def _score_from_log(
    keys: Key, start: Genome | State, agent: Agent, env: Environment, steering: Steering
) -> tuple[Array, dict[str, Array]]:
    """The scores of `score_from_log`, and `count_finite_steps`, of lifetimes in an environment in JAX."""

    def run(key: Key) -> tuple[Array, dict[str, Array]]:
        trajectory = rollout_from_log(key, agent, env, steering, start, env.spec.num_steps)
        return jax.vmap(lambda step: (_record_score(env, step), _record_finiteness(env, step)))(trajectory)

    return _sum_log(*jax.vmap(run)(keys))


@jax.jit
def _sum_log(scores: Array, is_finite: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The scores of lifetimes and their `count_finite_steps`, [N], from those of their steps [N, T]."""
    return jax.vmap(lambda scores, is_finite: (jnp.sum(scores), count_finite_steps(is_finite)))(scores, is_finite)


def _record_score(env: AnyEnvironment, step: Trajectory) -> Array:
    """Keeps the score of a step."""
    return env.score(step.outcome)


def _record_finiteness(env: AnyEnvironment, step: Trajectory) -> dict[str, Array]:
    """Keeps which of the quantities that `learn` reports are finite."""
    del env
    return trees.finite_by_name(step.info)


def _record_step_and_score(env: AnyEnvironment, step: Trajectory) -> tuple[Trajectory, Array]:
    """Keeps a step with its score."""
    return step, env.score(step.outcome)
