"""Evaluation: what an agent scores on tasks that its development cannot have drawn, with intervals.

Tasks come from the stream "evaluation", so no training life can be one of them; the same seed gives the same tasks to
every agent, so that agents can be compared task by task. Offline (Case 2) is the default and never calls `learn`;
online (Case 1) must be asked for. Nothing here changes or saves an agent.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ontogeny import plugins, rng
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rollouts import rollout, rollout_lifetime
from ontogeny.stats import Z95, mean_and_standard_error
from ontogeny.types import Agent, Environment, Genome, Key, State, Steering, Trajectory

CASES = ("offline", "online")
MOST_POINTS = 100  # of a learning curve
BYTES_PER_DISPATCH = 64 * 2**20
MOST_LIVES = 1024  # per device and dispatch


class Curve(NamedTuple):
    """Mean score within a life, by position in it; K points, each the mean over one or more units."""

    unit: str  # "episode", or "step" where an episode is one step or a life holds fewer than two whole episodes
    position: np.ndarray  # [K] the last unit of each point, counted from 1
    mean: np.ndarray  # [K] score per unit
    standard_error: np.ndarray  # [K]


class Evaluation(NamedTuple):
    """Scores of N lives, each in a task of its own; float64."""

    mean: float  # score of a whole life
    standard_error: float
    interval: tuple[float, float]  # 95 %, normal
    num_tasks: int
    totals: np.ndarray  # [N] by task, the same tasks in the same order for every agent
    curve: Curve
    case: str
    env_steps: int
    seconds: float  # wall time, compilation included


def evaluate(
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome_or_state: Genome | State,
    *,
    num_tasks: int,
    seed: int,
    case: str = "offline",
    reset_each_episode: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Lets an agent live one life in each of `num_tasks` unseen tasks: from birth, or on from a `State`.

    Raises `BadInput` for another case than "offline" or "online", and `ContractViolation` where weights changed offline.
    """
    learning = is_online(case)
    if num_tasks < 2:
        raise BadInput(f"an evaluation needs at least 2 tasks for an interval, not {num_tasks}")
    if num_tasks > plugins.MOST:
        raise BadInput(f"an evaluation has at most {plugins.MOST} tasks, not {num_tasks}")
    started = time.perf_counter()
    keys = task_keys(seed, num_tasks)
    shards = jax.local_device_count()
    chunk = _lives_per_dispatch(agent, env, steering, genome_or_state, num_tasks, shards)
    totals, points = [], []
    placed = NamedSharding(_mesh(shards), P("num_lifetimes"))
    for begin in range(0, num_tasks, chunk):
        end = min(begin + chunk, num_tasks)
        # The last dispatch is filled up with lives that are not counted: one shape, one compilation.
        which = jnp.minimum(jnp.arange(begin, begin + chunk), num_tasks - 1)
        found, begins, unchanged, possible = _lives(
            jax.device_put(keys[which], placed), genome_or_state, agent, env, steering, learning, reset_each_episode
        )
        if not learning and not bool(jnp.all(unchanged)):
            raise ContractViolation(
                "the weights changed in a life without learning: this agent's `act` breaks the first law"
            )
        if not bool(jnp.all(possible)):
            raise BadInput(
                f"the agent took an action that its environment has not: there are 0 to {env.spec.num_actions - 1}"
            )
        if not np.isfinite(found).all():
            raise BadInput(f"the environment '{env.spec.name}' gave a score that is not finite")
        scores, first = np.asarray(found)[: end - begin], np.asarray(begins)[: end - begin]
        totals.append(scores.sum(axis=1, dtype=np.float64))
        points.append(by_position(scores, first, env.spec.horizon))
        if on_progress is not None:
            on_progress(end, num_tasks)
    totals = np.concatenate(totals)
    mean, error = mean_and_standard_error(totals)
    unit, starts, lengths = curve_points(env.spec.num_steps, env.spec.horizon)
    return Evaluation(
        mean=float(mean),
        standard_error=float(error),
        interval=(float(mean - Z95 * error), float(mean + Z95 * error)),
        num_tasks=num_tasks,
        totals=totals,
        curve=Curve(unit, starts + lengths, *mean_and_standard_error(np.concatenate(points))),
        case=case,
        env_steps=num_tasks * env.spec.num_steps,
        seconds=time.perf_counter() - started,
    )


def replay(
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome: Genome,
    seed: int,
    case: str = "offline",
    *,
    task: int = 0,
) -> Trajectory:
    """The record of one life, [T] on every leaf: that in the task number `task` of an evaluation with this seed."""
    key = task_keys(seed, task + 1)[task]
    return jax.device_get(_one_life(key, genome, agent, env, steering, is_online(case)))


def task_keys(seed: int, num_tasks: int) -> Key:
    """The keys of an evaluation's lives, [N]; more tasks begin with the same ones."""
    return rng.sample_lifetime_keys(jax.random.key(seed), num_tasks, "evaluation")


def is_online(case: str) -> bool:
    """Whether `learn` is called; anything but the names of the two cases raises `BadInput`."""
    if case not in CASES:
        raise plugins.unknown("case", str(case), list(CASES))
    return case == "online"


def curve_points(num_steps: int, horizon: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The unit of a life's curve, and where each of its K points starts and how many units it holds, [K].

    Only episodes that every life has whole are counted, floor(T / horizon) of them, so each point is over all lives.
    """
    episodes = num_steps // horizon
    unit, units = ("episode", episodes) if horizon > 1 and episodes > 1 else ("step", num_steps)
    num_points = min(units, MOST_POINTS)
    starts = np.arange(num_points) * units // num_points
    return unit, starts, np.diff(np.append(starts, units))


def by_position(scores: np.ndarray, first: np.ndarray, horizon: int) -> np.ndarray:
    """scores, first [N, T] -> each life's score per unit at each point of the curve, [N, K]."""
    N, T = scores.shape
    unit, starts, lengths = curve_points(T, horizon)
    by_unit = scores.astype(np.float64)
    if unit == "episode":
        units = T // horizon
        episode = np.minimum(np.cumsum(first, axis=1) - 1, units) + np.arange(N)[:, None] * (units + 1)
        sums = np.bincount(episode.ravel(), by_unit.ravel(), N * (units + 1))
        by_unit = sums.reshape(N, units + 1)[:, :units]
    return np.add.reduceat(by_unit, starts, axis=1) / lengths


def _lived(
    key: Key, subject: Genome | State, agent: Agent, env: Environment, steering: Steering, learning: bool, **how
):
    """One life -> (the weights it began with, state at its end, record)."""
    if isinstance(subject, State):
        before = subject.weights
        after, trajectory = rollout(key, agent, env, steering, subject, env.spec.num_steps, learning, **how)
    else:
        before = agent.init(rng.split_lifetime_key(key).init, subject).weights  # the birth of `whole_life`
        after, trajectory = rollout_lifetime(key, agent, env, steering, subject, learning, **how)
    return before, after, trajectory


@partial(jax.jit, static_argnames=("agent", "env", "steering", "learning", "reset_each_episode"))
def _lives(
    keys: Key,
    subject: Genome | State,
    agent: Agent,
    env: Environment,
    steering: Steering,
    learning: bool,
    reset_each_episode: bool,
) -> tuple[Array, Array, Array, Array]:
    """keys [B] -> scores [B, T], first [B, T], whether the weights kept every bit [B], whether all actions are among
    those that there are [B]; B split over the devices.
    """

    def one(key: Key, subject: Genome | State) -> tuple[Array, Array, Array, Array]:
        before, after, trajectory = _lived(
            key, subject, agent, env, steering, learning, reset_each_episode=reset_each_episode
        )
        possible = jnp.all((trajectory.action >= 0) & (trajectory.action < env.spec.num_actions))
        return jax.vmap(env.score)(trajectory.outcome), trajectory.first, _same_bits(before, after.weights), possible

    many = jax.vmap(one, in_axes=(0, None))
    mesh = _mesh(jax.local_device_count())
    split, whole = P("num_lifetimes"), P()
    return jax.shard_map(many, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)(keys, subject)


@partial(jax.jit, static_argnames=("agent", "env", "steering", "learning"))
def _one_life(
    key: Key, genome: Genome, agent: Agent, env: Environment, steering: Steering, learning: bool
) -> Trajectory:
    return _lived(key, genome, agent, env, steering, learning)[2]


def _same_bits(one, other) -> Array:
    """Whether two trees of the same structure agree in every bit, [] bool, inside jit."""

    def bits(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return leaf

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jnp.all(jnp.stack([jnp.bool_(True), *(jnp.all(bits(a) == bits(b)) for a, b in pairs)]))


def _mesh(shards: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:shards]), ("num_lifetimes",))


def _lives_per_dispatch(agent, env, steering, subject, num_tasks: int, shards: int) -> int:
    """How many lives fit comfortably into memory at once; a multiple of the number of devices."""
    key = task_keys(0, 1)[0]
    before, after, trajectory = jax.eval_shape(lambda: _lived(key, subject, agent, env, steering, False))
    env_state, _ = jax.eval_shape(env.reset, key)
    carried = sum(_bytes(tree) for tree in (before, after, env_state, trajectory.outcome))
    fitting = max(1, min(BYTES_PER_DISPATCH // max(carried, 1) // shards, MOST_LIVES, -(-num_tasks // shards)))
    return fitting * shards


def _bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
