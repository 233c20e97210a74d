"""How sure a mean is. Plain numbers and numpy; needs no JAX, so that reports can be written without it."""

import numpy as np

Z95 = 1.959964  # standard errors to either side of a mean that make a normal 95 % interval


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, ...] -> mean and standard error over the first axis; N >= 2."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
