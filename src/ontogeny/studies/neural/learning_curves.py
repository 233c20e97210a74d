"""Learning curves of agents that act in episodes: returns by environment step, and the step at which an aim is reached.

All learners are measured by the returns of the episodes in which they learn, exploration included; nothing is evaluated
apart. The module works on NumPy arrays and does not import JAX. Letters: T steps, K entries, M moving means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FINAL_SHARE = 0.1  # of the steps, at the end, whose episodes give the final score


class EpisodeReturns(NamedTuple):
    """Finished episodes in their order; an entry holds those that ended together, such as in copies of an environment.

    Attributes:
        steps: Environment steps until the entry, those of all copies together, [K] int.
        returns: Sum of the returns of the episodes of an entry, [K].
        counts: Episodes of an entry, at least 1, [K] int.
    """

    steps: np.ndarray
    returns: np.ndarray
    counts: np.ndarray


def episodes_of_lifetime(scores: np.ndarray, ends_episode: np.ndarray) -> EpisodeReturns:
    """The episodes of one lifetime; the last one is left out unless it has ended.

    Args:
        scores: By step, [T].
        ends_episode: Whether an episode ends with a step, [T] bool.
    """
    ends = np.flatnonzero(ends_episode)
    totals = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)[ends]])
    return EpisodeReturns(ends + 1, np.diff(totals), np.ones(len(ends), np.int64))


def episodes_of_totals(steps: np.ndarray, total_returns: np.ndarray, total_counts: np.ndarray) -> EpisodeReturns:
    """The episodes that ended between successive readings of running totals.

    Args:
        steps: Environment steps at each reading, [K].
        total_returns: Sum of the returns of all episodes so far, [K].
        total_counts: Number of all episodes so far, [K].
    """
    counts = np.diff(np.concatenate([[0], np.asarray(total_counts, np.int64)]))
    returns = np.diff(np.concatenate([[0.0], np.asarray(total_returns, np.float64)]))
    has_ended = counts > 0
    # Returns of readings between which no episode ended are zero.
    return EpisodeReturns(np.asarray(steps)[has_ended], returns[has_ended], counts[has_ended])


def moving_mean(episodes: EpisodeReturns, num_recent: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean return of recent episodes: at each entry, over the fewest last entries that hold `num_recent` episodes.

    Args:
        num_recent: At least 1.

    Returns:
        Steps and means, [M] each, from the first entry on at which there are so many episodes.
    """
    counts = np.concatenate([[0], np.cumsum(episodes.counts)])
    totals = np.concatenate([[0.0], np.cumsum(episodes.returns)])
    ends = np.flatnonzero(counts >= num_recent)
    if num_recent < 1 or not len(ends):
        return np.zeros(0, np.int64), np.zeros(0)
    # The last start after which there are still enough episodes.
    starts = np.searchsorted(counts, counts[ends] - num_recent, side="right") - 1
    return episodes.steps[ends - 1], (totals[ends] - totals[starts]) / (counts[ends] - counts[starts])


def steps_to_aim(episodes: EpisodeReturns, aim: float, num_recent: int) -> int | None:
    """The environment steps after which the moving mean first reaches an aim; None where it never does.

    Args:
        aim: Mean return per episode.
        num_recent: Episodes of the moving mean (`moving_mean`).
    """
    steps, means = moving_mean(episodes, num_recent)
    reached = np.flatnonzero(means >= aim - 1e-9)
    return int(steps[reached[0]]) if len(reached) else None


def mean_by_part(episodes: EpisodeReturns, num_steps: int, num_parts: int) -> list[float | None]:
    """The mean return of the episodes that ended in each of equal parts of the steps; None where none did.

    Args:
        num_steps: T.
        num_parts: At least 1.
    """
    part = np.minimum((episodes.steps - 1) * num_parts // num_steps, num_parts - 1)
    counts = np.bincount(part, episodes.counts, num_parts)
    totals = np.bincount(part, episodes.returns, num_parts)
    return [float(total / count) if count else None for total, count in zip(totals, counts, strict=True)]


def final_score(episodes: EpisodeReturns, num_steps: int) -> float | None:
    """The mean return of the episodes that ended in the last tenth of the steps, or of the last entry before.

    Args:
        num_steps: T.
    """
    if not len(episodes.steps):
        return None
    is_late = episodes.steps > num_steps * (1 - FINAL_SHARE)
    is_late[-1] = True
    return float(episodes.returns[is_late].sum() / episodes.counts[is_late].sum())


def mean_of_curves(curves: Sequence[Sequence[float | None]]) -> list[tuple[float, float, float] | None]:
    """Mean and 95 % interval over seeds at each point; None where a seed has no value or there is a single seed.

    Args:
        curves: One curve per seed, all of one length.

    Returns:
        (mean, low, high) per point.
    """
    from ontogeny.stats import mean_interval

    points: list[tuple[float, float, float] | None] = []
    for values in zip(*curves, strict=True):
        numbers = [point for point in values if point is not None]
        if len(numbers) < len(values) or len(numbers) < 2:
            points.append(None)
            continue
        interval = mean_interval(numbers)
        points.append((interval.mean, interval.low, interval.high))
    return points
