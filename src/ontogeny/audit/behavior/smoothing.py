"""Exponentially weighted sums over the trials before and after each trial, in time and memory linear in trials."""

import math

import numpy as np


def sum_neighbors(values: np.ndarray, time_constant: float) -> np.ndarray:
    """Sums values over time, weighted by exp(-distance / time constant), in both directions.

    Args:
        values: [..., T]; the value at each trial enters with the weight 1.
        time_constant: In trials.

    Returns:
        [..., T].
    """
    from scipy.signal import lfilter  # takes a second to import

    def sum_backward(values: np.ndarray) -> np.ndarray:
        """Sums over each trial and those before it, [..., T]."""
        return np.asarray(lfilter([1.0], [1.0, -math.exp(-1 / time_constant)], values, axis=-1))

    values = np.asarray(values, float)
    return sum_backward(values) + sum_backward(values[..., ::-1])[..., ::-1] - values
