"""Evaluation: an agent's scores on tasks that its development cannot have drawn, with confidence intervals.

Tasks belong to the stage `evaluation`, so no training lifetime can be one of them. The same seed gives the same tasks
to every agent, so agents can be compared task by task. The mode `frozen` is the default and never calls `learn`.
Letters for shapes: N tasks, T steps of a lifetime, B lifetimes of one compiled call, K points of a learning curve.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, rng
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.lifetimes import (
    LifetimeMeasure,
    count_finite_steps,
    key_batches,
    lifetimes_per_call,
    measure_lifetimes,
    require_finite_lifetimes,
    run_one_lifetime,
)
from ontogeny.stats import confidence_interval, mean_and_standard_error
from ontogeny.trees import finite_by_name, has_same_bits
from ontogeny.types import Agent, AnyEnvironment, Genome, Key, State, Steering, Trajectory, Weights

MODES = ("frozen", "online")
MAX_CURVE_POINTS = 100
OnEvaluationProgress = Callable[[int, int, int], None]  # (tasks done, all tasks, steps taken)


class LifetimeCurve(NamedTuple):
    """Mean score by position within a lifetime.

    Attributes:
        unit: `episode`, or `step` where an episode is one step or a lifetime holds fewer than two whole episodes.
        position: The last unit of each point, counted from 1, [K].
        mean: Score per unit, [K]; a point is the mean over one or more units.
        standard_error: Of `mean` over tasks, [K].
    """

    unit: str
    position: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray


class AgentEvaluation(NamedTuple):
    """Scores of N lifetimes, each in its own task.

    Attributes:
        mean: Score of a lifetime.
        standard_error: Of `mean` over tasks.
        interval: The 95 % interval of `mean` by Student's t.
        totals: Score by task, [N] float64; the same tasks in the same order for every agent.
        mode: `frozen` or `online`.
        env_steps: Steps that were taken in all lifetimes together, each until it was over.
        seconds: Wall time, compilation included.
    """

    mean: float
    standard_error: float
    interval: tuple[float, float]
    num_tasks: int
    totals: np.ndarray
    curve: LifetimeCurve
    mode: str
    env_steps: int
    seconds: float


class _Steps(NamedTuple):
    """What is kept of the steps of a lifetime, leading axis T."""

    score: Array
    first: Array
    has_valid_action: Array
    is_as_specified: Array  # whether observation and discount are those of the spec
    is_finite: dict[str, Array]  # what `learn` reports, by name
    is_taken: Array


class _Lifetimes(NamedTuple):
    """Scores and checks of B lifetimes."""

    scores: Array  # [B, T]
    first: Array  # [B, T]
    has_same_weights: Array  # [B], whether the weights kept every bit
    has_valid_actions: Array  # [B]
    has_valid_time_steps: Array  # [B], whether observations and discounts are those of the spec
    num_finite_steps: dict[str, Array]  # [B], before the first at which what `learn` reports is not finite
    num_steps: Array  # [B], taken before the lifetime was over


def evaluate(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    genome_or_state: Genome | State,
    *,
    num_tasks: int,
    seed: int,
    mode: str = "frozen",
    reset_each_episode: bool = False,
    on_progress: OnEvaluationProgress | None = None,
) -> AgentEvaluation:
    """Run one lifetime in each of `num_tasks` unseen tasks.

    Args:
        agent: Built for the spec of `env`.
        env: It draws the tasks and scores them.
        steering: Perceived by the agent as its reward; scores do not depend on it otherwise.
        genome_or_state: A genome, from which each lifetime begins, or a `State`, at which each lifetime continues.
        num_tasks: At least 2.
        seed: From 0 to 2**32 - 1; it draws the tasks.
        mode: `frozen` or `online`.
        reset_each_episode: Whether an episode begins as `rollouts.forget_past`: activations reset, the past hidden.
        on_progress: Receives the number of tasks done, of all tasks, and of the steps that were taken.

    Returns:
        The mean score with its standard error and interval, and the score of each task.

    Raises:
        BadInput: An argument is out of range, or the agent takes an action that the environment does not have.
        ContractViolation: Weights changed in the mode `frozen` or although `learning` is False, or the environment
            emitted what its spec excludes.
    """
    learning = is_online(mode)
    if num_tasks < 2:
        raise BadInput(f"an evaluation needs at least 2 tasks for an interval, not {num_tasks}")
    if num_tasks > plugins.MAX_INT:
        raise BadInput(f"an evaluation has at most {plugins.MAX_INT} tasks, not {num_tasks}")
    started = time.perf_counter()
    totals, points, env_steps = [], [], 0
    batch_size = lifetimes_per_call(agent, env, steering, genome_or_state, num_tasks)
    for keys, count in key_batches(env, task_keys(seed, num_tasks), batch_size):
        lifetimes: _Lifetimes = measure_lifetimes(
            _SCORES, keys, genome_or_state, agent, env, steering, learning, reset_each_episode=reset_each_episode
        )
        _check_lifetimes(lifetimes, agent, env, learning)
        scores, first = np.asarray(lifetimes.scores)[:count], np.asarray(lifetimes.first)[:count]
        totals.append(scores.sum(axis=1, dtype=np.float64))
        env_steps += int(np.asarray(lifetimes.num_steps)[:count].sum(dtype=np.int64))
        points.append(score_by_position(scores, first, env.spec.horizon))
        if on_progress is not None:
            on_progress(sum(map(len, totals)), num_tasks, env_steps)
    all_totals = np.concatenate(totals)
    mean, standard_error = mean_and_standard_error(all_totals)
    interval = confidence_interval(float(mean), float(standard_error), num_tasks)
    unit, starts, lengths = curve_points(env.spec.num_steps, env.spec.horizon)
    return AgentEvaluation(
        mean=interval.mean,
        standard_error=interval.standard_error,
        interval=(interval.low, interval.high),
        num_tasks=num_tasks,
        totals=all_totals,
        curve=LifetimeCurve(unit, starts + lengths, *mean_and_standard_error(np.concatenate(points))),
        mode=mode,
        env_steps=env_steps,
        seconds=time.perf_counter() - started,
    )


def record_lifetime(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    genome: Genome,
    seed: int,
    mode: str = "frozen",
    *,
    task: int = 0,
) -> Trajectory:
    """The trajectory of one lifetime of an evaluation, [T] on every leaf.

    Args:
        agent: Built for the spec of `env`.
        env: It draws the task.
        steering: Perceived by the agent as its reward.
        genome: The lifetime begins from it.
        seed: Of the evaluation.
        mode: `frozen` or `online`.
        task: The number of the task in that evaluation, from 0.
    """
    key = task_keys(seed, task + 1)[task]
    return jax.device_get(run_one_lifetime(key, agent, env, steering, genome, is_online(mode))[1])


def task_keys(seed: int, num_tasks: int) -> Key:
    """The keys of an evaluation's lifetimes, [N]; a larger number of tasks begins with the same keys."""
    return rng.sample_lifetime_keys(rng.key_from_seed(seed), num_tasks, "evaluation")


def is_online(mode: str) -> bool:
    """Whether `learn` is called in a mode; a name other than `frozen` and `online` raises `BadInput`."""
    if mode not in MODES:
        raise plugins.unknown_name_error("mode", mode, list(MODES))
    return mode == "online"


def curve_points(num_steps: int, horizon: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The points of a learning curve.

    Only episodes that every lifetime has whole are counted, `num_steps // horizon` of them, so each point is a mean
    over all lifetimes.

    Args:
        num_steps: T.
        horizon: The most steps of an episode.

    Returns:
        The unit, and the first unit and the number of units of each point, [K] each.
    """
    num_episodes = num_steps // horizon
    unit, num_units = ("episode", num_episodes) if horizon > 1 and num_episodes > 1 else ("step", num_steps)
    num_points = min(num_units, MAX_CURVE_POINTS)
    starts = np.arange(num_points) * num_units // num_points
    return unit, starts, np.diff(np.append(starts, num_units))


def score_by_position(scores: np.ndarray, first: np.ndarray, horizon: int) -> np.ndarray:
    """Score per unit at each point of the learning curve, [N, K].

    Args:
        scores: By step, [N, T].
        first: Whether an episode begins at a step, [N, T].
        horizon: The most steps of an episode.
    """
    N, T = scores.shape
    unit, starts, lengths = curve_points(T, horizon)
    by_unit = scores.astype(np.float64)
    if unit == "episode":
        num_units = T // horizon
        episode = np.minimum(np.cumsum(first, axis=1) - 1, num_units) + np.arange(N)[:, None] * (num_units + 1)
        sums = np.bincount(episode.ravel(), by_unit.ravel(), N * (num_units + 1))
        by_unit = sums.reshape(N, num_units + 1)[:, :num_units]
    return np.add.reduceat(by_unit, starts, axis=1) / lengths


def _check_lifetimes(lifetimes: _Lifetimes, agent: Agent, env: AnyEnvironment, learning: bool) -> None:
    """Raise an error where lifetimes break the contract or hold scores that are not finite."""
    if not (learning and agent.learning) and not bool(jnp.all(lifetimes.has_same_weights)):
        if learning:
            raise ContractViolation(
                "the weights changed in a lifetime although `learning` is False: build the agent with `learning=True`"
            )
        raise ContractViolation("the weights changed in a lifetime without learning: `act` may change activations only")
    if not bool(jnp.all(lifetimes.has_valid_time_steps)):
        raise ContractViolation(
            f"the environment '{env.spec.name}' emitted an observation outside of the range in its spec, or a discount "
            "that is neither 0 nor 1"
        )
    if not bool(jnp.all(lifetimes.has_valid_actions)):
        raise BadInput(
            f"the agent took an action that its environment does not have: there are 0 to {env.spec.num_actions - 1}"
        )
    require_finite_lifetimes(lifetimes.num_finite_steps, lifetimes.scores.shape[1])
    if not np.isfinite(lifetimes.scores).all():
        raise BadInput(f"the environment '{env.spec.name}' gave a score that is not finite")


def _record_step(env: AnyEnvironment, step: Trajectory) -> _Steps:
    """The score of a step, and whether it is as the spec says."""
    spec = env.spec
    has_valid_action = (step.action >= 0) & (step.action < spec.num_actions)
    is_as_specified = (step.discount == 0) | (step.discount == 1)
    if spec.num_observations:
        is_as_specified &= (step.observation >= 0) & (step.observation < spec.num_observations)
    is_finite = finite_by_name(step.info)
    return _Steps(env.score(step.outcome), step.first, has_valid_action, is_as_specified, is_finite, step.is_taken)


def _summarize(before: Weights, after: State, steps: _Steps) -> _Lifetimes:
    """The scores of a lifetime, and what is checked of it."""
    return _Lifetimes(
        steps.score,
        steps.first,
        has_same_bits(before, after.weights),
        jnp.all(steps.has_valid_action),
        jnp.all(steps.is_as_specified),
        count_finite_steps(steps.is_finite),
        jnp.sum(steps.is_taken),
    )


_SCORES = LifetimeMeasure(_record_step, _summarize)
