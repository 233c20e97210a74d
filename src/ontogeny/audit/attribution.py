"""Attribution of the gain in deployment to weights and activations.

Two by two: weights frozen or online, activations kept or reset at every episode, all four in the same tasks. The total
gain is divided by the Shapley value of two players (Shapley 1953), which gives half of their interaction to each. The
four cells and the interaction are therefore always reported beside it: a redundant hybrid, either part of which would
suffice, gets equal shares like one that needs both parts. Intervals are bootstrapped over tasks.

A fifth cell acts with reset activations and with weights learned from the log of the lifetime in which activations
were kept, because with reset activations online learning also gets worse data.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import plugins, steering
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout_from_log
from ontogeny.stages.evaluate import evaluate, task_keys
from ontogeny.stats import bootstrap_means
from ontogeny.types import Agent, Environment, Genome, Key, State, Steering

CELLS = ("neither", "activations", "weights", "both")  # which of the two may change from episode to episode
LIFETIMES_PER_BATCH = 64
MIN_TASKS = 20
CONTROLS = (  # plugin kind, name, ground truth
    ("organisms", "memoryless", "no gain"),
    ("agents", "thompson", "activations"),
    ("agents", "q_learning", "weights"),
    ("organisms", "additive_hybrid", "both"),
    ("organisms", "redundant_hybrid", "either suffices"),
)
MIN_RELATIVE_GAIN = 0.02  # of the larger score; a smaller gain is not divided


class BootstrapEstimate(NamedTuple):
    """A mean over tasks with its bootstrapped 95 % interval."""

    mean: float
    low: float
    high: float


class Attribution(NamedTuple):
    """The gain and its parts, in units of score per lifetime; all estimates share their resampled tasks."""

    cells: dict[str, BootstrapEstimate]  # by `CELLS`
    weights_from_log: BootstrapEstimate  # activations reset, weights learned from the log of "both"
    gain: BootstrapEstimate  # both minus neither
    gain_of_weights: BootstrapEstimate  # Shapley value
    gain_of_activations: BootstrapEstimate
    interaction: BootstrapEstimate  # both - weights - activations + neither
    shares: tuple[float, float] | None  # of weights and activations in the gain; None where the gain is too small
    min_gain: float
    num_tasks: int
    verdict: str


def attribute(
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome_or_state: Genome | State,
    *,
    num_tasks: int = 400,
    seed: int = 0,
    min_gain: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Evaluates every cell in the same unseen tasks and divides the gain.

    Args:
        genome_or_state: A genome, or the state of a saved deployment.
        num_tasks: Tasks per cell, at least 20.
        seed: Determines tasks and all other randomness.
        min_gain: The smallest gain that is divided, in score per lifetime; by default 2 % of the larger score.
        on_progress: Called after each cell with the number of finished cells and of all cells.

    Raises:
        BadInput: If there are fewer than 20 tasks, too few for a bootstrap.
    """
    if num_tasks < MIN_TASKS:
        raise BadInput(f"an attribution needs at least {MIN_TASKS} tasks, not {num_tasks}")
    totals = {}
    for number, cell in enumerate(CELLS, start=1):
        is_online, keeps_activations = cell in ("weights", "both"), cell in ("activations", "both")
        if is_online and not agent.learning:
            totals[cell] = totals["activations" if keeps_activations else "neither"]
        else:
            totals[cell] = evaluate(
                agent, env, steering, genome_or_state, num_tasks=num_tasks, seed=seed,
                mode="online" if is_online else "frozen", reset_each_episode=not keeps_activations,
            ).totals  # fmt: skip
        if on_progress is not None:
            on_progress(number, len(CELLS) + 1)
    weights_from_log = totals["neither"]
    if agent.learning:
        keys = task_keys(seed, num_tasks)
        batches = [
            np.asarray(_score_from_log(keys[i : i + LIFETIMES_PER_BATCH], genome_or_state, agent, env, steering))
            for i in range(0, num_tasks, LIFETIMES_PER_BATCH)
        ]
        weights_from_log = np.concatenate(batches).astype(np.float64)
    if on_progress is not None:
        on_progress(len(CELLS) + 1, len(CELLS) + 1)
    return divide_gain(np.stack([*(totals[cell] for cell in CELLS), weights_from_log], axis=1), min_gain)


def attribute_controls(
    env: Environment, *, num_tasks: int = 400, seed: int = 0
) -> Iterator[tuple[str, str, Attribution]]:
    """Yields name, ground truth and attribution of each of `CONTROLS` in a bandit; arguments as of `attribute`."""
    drives = steering.build(env.spec)
    for kind, name, ground_truth in CONTROLS:
        agent = plugins.build(kind, name, env.spec, drives)
        genome = agent.genome(jax.random.key(seed))
        yield name, ground_truth, attribute(agent, env, drives, genome, num_tasks=num_tasks, seed=seed)


def divide_gain(scores: np.ndarray, min_gain: float | None = None) -> Attribution:
    """Computes the attribution from scores.

    Args:
        scores: [N, 5] by task, a column for each of `CELLS` and one for weights learned from the log.
        min_gain: As of `attribute`.
    """
    neither, activations, weights, both, log = np.eye(5)
    contrasts = {
        **dict(zip(CELLS, (neither, activations, weights, both), strict=True)),
        "weights_from_log": log,
        "gain": both - neither,
        "gain_of_weights": 0.5 * (weights - neither + both - activations),
        "gain_of_activations": 0.5 * (activations - neither + both - weights),
        "interaction": both - weights - activations + neither,
        "weights_only": weights - neither,
        "activations_only": activations - neither,
    }
    intervals = np.stack(bootstrap_means(scores @ np.stack(list(contrasts.values())).T), axis=1)
    estimates = {
        name: BootstrapEstimate(*map(float, interval)) for name, interval in zip(contrasts, intervals, strict=True)
    }
    gain = estimates["gain"]
    if min_gain is None:
        min_gain = MIN_RELATIVE_GAIN * max(abs(estimates["neither"].mean), abs(estimates["both"].mean))
    shares = None
    if gain.low > min_gain:
        shares = (estimates["gain_of_weights"].mean / gain.mean, estimates["gain_of_activations"].mean / gain.mean)
    return Attribution(
        cells={cell: estimates[cell] for cell in CELLS},
        **{name: estimate for name, estimate in estimates.items() if name in Attribution._fields},
        shares=shares,
        min_gain=min_gain,
        num_tasks=len(scores),
        verdict=_decide(estimates, min_gain),
    )


def _decide(estimates: dict[str, BootstrapEstimate], min_gain: float) -> str:
    """Returns where the gain is stored, decided by the ends of the intervals alone."""
    gain, interaction = estimates["gain"], estimates["interaction"]
    single = [estimates[name] for name in ("weights_only", "activations_only")]
    if gain.high < min_gain:
        return "no gain"
    if gain.low <= min_gain:
        return "undetermined"
    if interaction.high < 0 and all(part.low > min_gain for part in single):
        return "either suffices"
    if interaction.low > 0 and all(part.high < min_gain for part in single):
        return "only both together"
    parts = {name: estimates[f"gain_of_{name}"] for name in ("weights", "activations")}
    carriers = [name for name, part in parts.items() if part.low > min_gain]
    num_without = sum(part.high < min_gain for part in parts.values())
    if len(carriers) == 2:
        return "both"
    return carriers[0] if len(carriers) == num_without == 1 else "undetermined"


@partial(jax.jit, static_argnames=("agent", "env", "steering"))
def _score_from_log(
    keys: Key, genome_or_state: Genome | State, agent: Agent, env: Environment, steering: Steering
) -> jax.Array:
    """keys [B] -> scores [B] of lifetimes with reset activations and the weights of a lifetime that kept them."""

    def score(key: Key) -> jax.Array:
        trajectory = rollout_from_log(key, agent, env, steering, genome_or_state, env.spec.num_steps)
        return jnp.sum(jax.vmap(env.score)(trajectory.outcome))

    return jax.vmap(score)(keys)
