"""How sure a mean is. Plain numbers and numpy; needs no JAX, so that reports can be written without it."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv, ndtr, stdtrit

Z95 = 1.959964  # standard errors to either side of a mean that make a normal 95 % interval


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, ...] -> mean and standard error over the first axis; N >= 2."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def reach(standard_errors: float, df: float) -> float:
    """How many standard errors of a mean hold as much as so many do of a normal one, with `df` degrees of freedom.

    Student's t: `reach(Z95, df)` is half a 95 % interval. An error that is known from few values is itself in doubt.
    """
    return standard_errors if np.isinf(df) else float(stdtrit(df, ndtr(standard_errors)))


def degrees_of_freedom(variances: Sequence[float], each: Sequence[float]) -> float:
    """Of a sum of estimated variances, each with degrees of freedom of its own (Welch 1947; Satterthwaite 1946)."""
    doubt = sum(variance**2 / df for variance, df in zip(variances, each, strict=True))
    return sum(variances) ** 2 / doubt if doubt > 0 else float("inf")


def of_share(count: int, total: int) -> tuple[float, float]:
    """The exact 95 % interval of a share that was met `count` times in `total` (Clopper & Pearson 1934)."""
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, 0.025))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 0.975))
    return low, high


def bootstrapped(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[N, K], a row per task -> the K means with the ends of their percentile bootstrap 95 % intervals.

    Efron 1979 (Annals of Statistics 7:1). Rows are drawn whole, so that what was measured on one task stays together.
    """
    low, high = np.percentile(_resampled(len(values), resamples, seed) @ values / len(values), [2.5, 97.5], axis=0)
    return values.mean(axis=0), low, high


@lru_cache(maxsize=4)
def _resampled(tasks: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each task, [resamples, N]: the same for all that is measured on as many tasks."""
    counts = np.random.default_rng(seed).multinomial(tasks, np.full(tasks, 1 / tasks), resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts
