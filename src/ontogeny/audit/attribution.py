"""Attribution of the gain in deployment to weights and activations.

Two by two: weights frozen or online, activations kept or reset at every episode, all four in the same tasks. The total
gain is divided by the Shapley value of two players (Shapley 1953), which gives half of their interaction to each. The
four cells, the gain of each part alone and the interaction are therefore always reported beside it: a redundant hybrid,
either part of which would suffice, gets equal shares like one that needs both parts. Every verdict follows from the
ends of intervals over tasks (Student's t), never from an estimate itself.

A fifth cell acts with reset activations and with weights learned from the log of the lifetime in which activations
were kept, because with reset activations online learning also gets worse data.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ontogeny import plugins, steering
from ontogeny.errors import BadInput
from ontogeny.lifetimes import score_from_log
from ontogeny.rng import key_from_seed
from ontogeny.stages.evaluate import evaluate, task_keys
from ontogeny.stats import mean_interval
from ontogeny.types import Agent, AnyEnvironment, Environment, Genome, State, Steering

CELLS = ("neither", "activations", "weights", "both")  # which of the two may change from episode to episode
PARTS = ("weights", "activations")
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
SUFFICIENT_SHARE = 0.8  # of the gain: a part that surely reaches it alone suffices
SUMMARIES = {
    "no gain": "neither weights nor activations change the score by the smallest gain that counts",
    "harm": "what changes in deployment lowers the score",
    "effects cancel": "weights and activations change the score, but what one of them adds the other takes away",
    "either suffices": f"weights alone and activations alone each reach {SUFFICIENT_SHARE:.0%} of the gain",
    "only both together": "neither weights alone nor activations alone reach the smallest gain that counts",
    "both": f"each holds a part of the gain, and neither alone reaches {SUFFICIENT_SHARE:.0%} of it",
    "undetermined": "the intervals over tasks are too wide to tell where the gain is stored",
} | {
    verdict.format(part=part, rest=rest): summary.format(part=part, rest=rest)
    for part, rest in (("weights", "activations"), ("activations", "weights"))
    for verdict, summary in (
        ("{part}", "{rest} add less than the smallest gain that counts, alone and beside {part}"),
        ("mostly {part}", f"{{part}} alone reach {SUFFICIENT_SHARE:.0%} of the gain; {{rest}} hold a part of it too"),
        ("{part}; {rest} harm", "{part} raise the score, and {rest} lower it"),
    )
}
"""What each verdict of an attribution says."""


class GainEstimate(NamedTuple):
    """A mean over tasks with its 95 % interval; the ends are NaN where there is one task."""

    mean: float
    low: float
    high: float


class EffectSize(NamedTuple):
    """Where an effect surely lies beside the smallest gain that counts, by the ends of intervals over tasks."""

    is_above: bool  # it raises the score by more than the smallest gain
    is_below: bool  # it does not raise the score by as much
    is_harm: bool  # it lowers the score by more than the smallest gain
    is_no_harm: bool  # it does not lower the score by as much

    @property
    def is_small(self) -> bool:
        """Whether it is smaller than the smallest gain in either direction."""
        return self.is_below and self.is_no_harm


class Attribution(NamedTuple):
    """The gain and its parts, in units of score per lifetime; all estimates are means over the same tasks."""

    cells: dict[str, GainEstimate]  # by `CELLS`
    weights_from_log: GainEstimate  # activations reset, weights learned from the log of "both"
    gain: GainEstimate  # both minus neither
    gain_of_weights: GainEstimate  # Shapley value
    gain_of_activations: GainEstimate
    weights_alone: GainEstimate  # weights minus neither
    activations_alone: GainEstimate
    interaction: GainEstimate  # both - weights - activations + neither
    shares: tuple[float, float] | None  # of weights and activations in the gain; None where the gain is too small
    min_gain: float
    num_tasks: int
    verdict: str  # a key of `SUMMARIES`
    summary: str  # the verdict in words


def attribute(
    agent: Agent,
    env: AnyEnvironment,
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
        min_gain: The smallest gain that is divided, in score per lifetime; by default 2 % of the larger score, whose
            error over tasks then counts in every comparison.
        on_progress: Called after each cell with the number of finished cells and of all cells.

    Raises:
        BadInput: If there are fewer than 20 tasks, too few for its intervals, or `min_gain` is negative or not finite.
    """
    if num_tasks < MIN_TASKS:
        raise BadInput(f"an attribution needs at least {MIN_TASKS} tasks, not {num_tasks}")
    if min_gain is not None and not 0 <= min_gain < math.inf:
        raise BadInput(f"the smallest gain that counts must be a finite number of at least 0, not {min_gain:g}")
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
            np.asarray(score_from_log(keys[i : i + LIFETIMES_PER_BATCH], genome_or_state, agent, env, steering))
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
        genome = agent.genome(key_from_seed(seed))
        yield name, ground_truth, attribute(agent, env, drives, genome, num_tasks=num_tasks, seed=seed)


def divide_gain(scores: np.ndarray, min_gain: float | None = None) -> Attribution:
    """Computes the attribution from scores.

    Args:
        scores: [N, 5] by task, a column for each of `CELLS` and one for weights learned from the log.
        min_gain: As of `attribute`.
    """
    neither, activations, weights, both, log = np.eye(5)
    gain, sufficient_gain = both - neither, SUFFICIENT_SHARE * (both - neither)
    contrasts = {
        **dict(zip(CELLS, (neither, activations, weights, both), strict=True)),
        "weights_from_log": log,
        "gain": gain,
        "gain_of_weights": 0.5 * (weights - neither + both - activations),
        "gain_of_activations": 0.5 * (activations - neither + both - weights),
        "interaction": both - weights - activations + neither,
        "weights_alone": weights - neither,
        "activations_alone": activations - neither,
        "weights_added": both - activations,
        "activations_added": both - weights,
        "weights_alone_excess": weights - neither - sufficient_gain,
        "activations_alone_excess": activations - neither - sufficient_gain,
    }
    estimates = {name: _estimate(scores @ contrast) for name, contrast in contrasts.items()}
    by_task = _relative_min_gain(scores @ neither, scores @ both)
    if min_gain is not None:
        by_task = np.full(len(scores), float(min_gain))
    sizes = {name: _compare(scores @ contrast, by_task) for name, contrast in contrasts.items()}
    shares = None
    if sizes["gain"].is_above:
        parts = (estimates["gain_of_weights"], estimates["gain_of_activations"])
        shares = (parts[0].mean / estimates["gain"].mean, parts[1].mean / estimates["gain"].mean)
    verdict = _decide(estimates, sizes)
    return Attribution(
        cells={cell: estimates[cell] for cell in CELLS},
        **{name: estimate for name, estimate in estimates.items() if name in Attribution._fields},
        shares=shares,
        min_gain=float(by_task.mean()),
        num_tasks=len(scores),
        verdict=verdict,
        summary=SUMMARIES[verdict],
    )


def _estimate(values: np.ndarray) -> GainEstimate:
    """The mean of values [N] by task with its interval by Student's t."""
    if len(values) < 2:
        return GainEstimate(float(values.mean()), math.nan, math.nan)
    interval = mean_interval(values)
    return GainEstimate(interval.mean, interval.low, interval.high)


def _relative_min_gain(neither: np.ndarray, both: np.ndarray) -> np.ndarray:
    """The smallest gain by task [N], whose mean is a share of the magnitude of the larger mean score."""
    larger = max((neither, both), key=lambda scores: abs(scores.mean()))
    return MIN_RELATIVE_GAIN * np.copysign(1.0, larger.mean()) * larger


def _compare(values: np.ndarray, min_gain: np.ndarray) -> EffectSize:
    """Compare an effect with the smallest gain, both by task [N]."""
    excess, deficit = _estimate(values - min_gain), _estimate(values + min_gain)
    return EffectSize(excess.low > 0, excess.high < 0, deficit.high < 0, deficit.low > 0)


def _decide(estimates: dict[str, GainEstimate], sizes: dict[str, EffectSize]) -> str:
    """The verdict, decided by the ends of the intervals alone."""
    gain = sizes["gain"]
    if gain.is_above:
        return _locate_gain(estimates, sizes)
    if gain.is_harm:
        return "harm"
    if not gain.is_small:
        return "undetermined"
    if all(sizes[f"{part}_alone"].is_small for part in PARTS):
        return "no gain"
    for part, rest in (PARTS, PARTS[::-1]):
        first, second = sizes[f"{part}_alone"], sizes[f"{rest}_added"]
        if (first.is_above and second.is_harm) or (first.is_harm and second.is_above):
            return "effects cancel"
    return "undetermined"


def _locate_gain(estimates: dict[str, GainEstimate], sizes: dict[str, EffectSize]) -> str:
    """The verdict where the gain surely counts."""
    first_gain, second_gain, shapley_value = (
        [sizes[name.format(part)] for part in PARTS] for name in ("{}_alone", "{}_added", "gain_of_{}")
    )
    excess = [estimates[f"{part}_alone_excess"] for part in PARTS]
    suffices = [part.low > 0 for part in excess]
    falls_short = [part.high < 0 for part in excess]
    is_part = [part.is_above for part in shapley_value]
    is_without = [first.is_below and second.is_below for first, second in zip(first_gain, second_gain, strict=True)]
    if all(suffices):
        return "either suffices"
    if all(part.is_below for part in first_gain):
        return "only both together"
    for number, part in enumerate(PARTS):
        rest = 1 - number
        if is_part[number] and shapley_value[rest].is_harm:
            return f"{part}; {PARTS[rest]} harm"
        if is_part[number] and is_without[rest]:
            return part
        if suffices[number] and falls_short[rest] and is_part[rest]:
            return f"mostly {part}"
    return "both" if all(is_part) and all(falls_short) else "undetermined"
