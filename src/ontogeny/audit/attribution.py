"""Where what an agent gains in deployment lives: in its weights, in its activations, or in either.

Two by two: weights frozen or online, activations kept or restored at every episode, all four in the same tasks. The
total gain is split by the Shapley value of two players (Shapley 1953), which gives half of their interaction to each:
so the four cells and the interaction are always shown with it, since a redundant hybrid, either part of which would
do alone, reads fifty-fifty like one that needs both. Intervals are bootstrapped over tasks.

A fifth cell acts with activations restored and weights that were learned from the log of the life in which they were
kept, because "online, restored" learns from worse data too.
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

CELLS = ("neither", "activations", "weights", "both")  # what may carry something from episode to episode
LIVES_PER_DISPATCH = 64
KNOWN = (  # family, name, the answer: what holds the instrument to its word
    ("organisms", "memoryless", "no gain"),
    ("agents", "thompson", "activations"),
    ("agents", "q_learning", "weights"),
    ("organisms", "additive_hybrid", "both"),
    ("organisms", "redundant_hybrid", "either suffices"),
)
SMALLEST_GAIN = 0.02  # of the larger score, below which there is no gain worth splitting


class Estimate(NamedTuple):
    """A mean over tasks with its bootstrapped 95 % interval."""

    mean: float
    low: float
    high: float


class Attribution(NamedTuple):
    """All in units of score per life; estimates share their resampled tasks."""

    cells: dict[str, Estimate]  # by `CELLS`
    on_log: Estimate  # activations restored, weights learned from the log of "both"
    gain: Estimate  # both minus neither
    of_weights: Estimate  # Shapley
    of_activations: Estimate
    interaction: Estimate  # both - weights - activations + neither
    shares: tuple[float, float] | None  # of weights and activations in the gain; None where the gain is too small
    smallest_gain: float
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
    smallest_gain: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Lives every cell in the same unseen tasks. `smallest_gain` in score per life, by default 2 % of the larger score.

    Raises `BadInput` for fewer than 20 tasks: a bootstrap over fewer says little.
    """
    if num_tasks < 20:
        raise BadInput(f"an attribution needs at least 20 tasks, not {num_tasks}")
    totals = {}
    for i, cell in enumerate(CELLS):
        online, kept = cell in ("weights", "both"), cell in ("activations", "both")
        if online and not agent.learning:
            totals[cell] = totals["activations" if kept else "neither"]
        else:
            totals[cell] = evaluate(
                agent,
                env,
                steering,
                genome_or_state,
                num_tasks=num_tasks,
                seed=seed,
                mode="online" if online else "frozen",
                reset_each_episode=not kept,
            ).totals
        if on_progress is not None:
            on_progress(i + 1, len(CELLS) + 1)
    on_log = totals["neither"]
    if agent.learning:
        keys = task_keys(seed, num_tasks)
        parts = [
            np.asarray(_on_log(keys[i : i + LIVES_PER_DISPATCH], genome_or_state, agent, env, steering))
            for i in range(0, num_tasks, LIVES_PER_DISPATCH)
        ]
        on_log = np.concatenate(parts).astype(np.float64)
    if on_progress is not None:
        on_progress(len(CELLS) + 1, len(CELLS) + 1)
    return split(np.stack([*(totals[cell] for cell in CELLS), on_log], axis=1), smallest_gain)


def known_cases(env: Environment, *, num_tasks: int = 400, seed: int = 0) -> Iterator[tuple[str, str, Attribution]]:
    """Each of `KNOWN` in a bandit: its name, the answer that is known, and what is found."""
    drives = steering.build(env.spec)
    for family, name, answer in KNOWN:
        agent = plugins.build(family, name, env.spec, drives)
        genome = agent.genome(jax.random.key(seed))
        yield name, answer, attribute(agent, env, drives, genome, num_tasks=num_tasks, seed=seed)


def split(scores: np.ndarray, smallest_gain: float | None = None) -> Attribution:
    """The attribution that follows from scores [N, 5]: a row per task, a column per cell and one for the log."""
    none, a, w, both, log = range(5)
    rows = np.eye(5)
    contrasts = {
        **dict(zip(CELLS, rows[:4], strict=True)),
        "on_log": rows[log],
        "gain": rows[both] - rows[none],
        "of_weights": 0.5 * (rows[w] - rows[none] + rows[both] - rows[a]),
        "of_activations": 0.5 * (rows[a] - rows[none] + rows[both] - rows[w]),
        "interaction": rows[both] - rows[w] - rows[a] + rows[none],
        "alone_w": rows[w] - rows[none],
        "alone_a": rows[a] - rows[none],
    }
    means, low, high = bootstrap_means(scores @ np.stack(list(contrasts.values())).T)
    found = {
        name: Estimate(*map(float, row)) for name, row in zip(contrasts, np.stack([means, low, high], 1), strict=True)
    }
    larger = max(abs(found["neither"].mean), abs(found["both"].mean))
    smallest = SMALLEST_GAIN * larger if smallest_gain is None else smallest_gain
    gain = found["gain"]
    shares = None
    if gain.low > smallest:
        shares = (found["of_weights"].mean / gain.mean, found["of_activations"].mean / gain.mean)
    return Attribution(
        cells={cell: found[cell] for cell in CELLS},
        on_log=found["on_log"],
        gain=gain,
        of_weights=found["of_weights"],
        of_activations=found["of_activations"],
        interaction=found["interaction"],
        shares=shares,
        smallest_gain=smallest,
        num_tasks=len(scores),
        verdict=_verdict(found, smallest),
    )


def _verdict(found: dict[str, Estimate], smallest: float) -> str:
    gain, weights, activations, interaction = (
        found[name] for name in ("gain", "of_weights", "of_activations", "interaction")
    )
    if gain.high < smallest:
        return "no gain"
    if gain.low <= smallest:
        return "undetermined"
    if interaction.high < 0 and found["alone_w"].low > smallest and found["alone_a"].low > smallest:
        return "either suffices"
    if interaction.low > 0 and found["alone_w"].high < smallest and found["alone_a"].high < smallest:
        return "only both together"
    carried = [name for name, part in (("weights", weights), ("activations", activations)) if part.low > smallest]
    spared = [name for name, part in (("weights", weights), ("activations", activations)) if part.high < smallest]
    if len(carried) == 2:
        return "both"
    if len(carried) == len(spared) == 1:
        return carried[0]
    return "undetermined"


@partial(jax.jit, static_argnames=("agent", "env", "steering"))
def _on_log(keys: Key, subject: Genome | State, agent: Agent, env: Environment, steering: Steering) -> jax.Array:
    """keys [B] -> scores [B] of lives with restored activations and the weights of a life that kept them."""

    def one(key: Key) -> jax.Array:
        trajectory = rollout_from_log(key, agent, env, steering, subject, env.spec.num_steps)
        return jnp.sum(jax.vmap(env.score)(trajectory.outcome))

    return jax.vmap(one)(keys)
