"""Logistic regression of staying on reward and transition, pooled over participants, with errors clustered by them.

The plain regression has the terms reward, transition and their product (Daw et al. 2011, Neuron 69:1204). The corrected
one has a further term, whether the choice was the better one (Akam, Costa & Dayan 2015, PLoS Comput Biol 11:e1004648),
because the better option both is rewarded and is repeated. The correction does not exclude agents that act on latent
states, as model organisms show.

One logit for all participants estimates population-averaged log odds. A logit of each participant is biased where cells
are unequal: in someone who nearly always stays, the cell with fewer trials is shrunk more. Terms are coded +1 and -1
and centered within participants, so that no coefficient compares different people. The fit has Firth's penalty (1993,
Biometrika 80:27), which keeps it finite. Errors are cluster-robust (CR2) with Satterthwaite degrees of freedom (Bell &
McCaffrey 2002, Survey Methodology 28:169; Pustejovsky & Tipton 2018, J Bus Econ Stat 36:672).

Letters: S participants, C combinations of the terms' values, K terms.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit, stdtr

from ontogeny.stats import Z95, critical_value

MAX_STEP = 2.0  # length of a step of the fit
MAX_STEPS = 50
TOLERANCE = 1e-9  # length of the last step
MIN_ERROR = 1e-9  # a smaller one is rounding, where all participants are equal
MAX_LEVERAGE = 1 - 1e-9  # of a cluster; beyond it a direction is determined by this cluster alone


class Coefficient(NamedTuple):
    """A population-averaged coefficient in log odds, with its 95 % interval.

    All are NaN where the pairs do not determine the coefficient, and the interval is NaN with too few participants.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float  # two-sided, against zero
    num_participants: int
    degrees_of_freedom: float


def fit_pooled_logit(terms: np.ndarray, num_stays: np.ndarray, num_pairs: np.ndarray) -> list[Coefficient]:
    """Fits one logit to the pairs of all participants.

    Args:
        terms: [C, K], the values of the terms without intercept in each combination.
        num_stays: [S, C], pairs of trials in which the choice is repeated.
        num_pairs: [S, C], all pairs of trials.

    Returns:
        The coefficients of the intercept and of the K terms.
    """
    has_pairs = num_pairs.sum(axis=1) > 0
    num_stays, num_pairs = num_stays[has_pairs].astype(float), num_pairs[has_pairs].astype(float)
    S, K = len(num_pairs), terms.shape[1] + 1
    if not S:
        return [_to_coefficient(math.nan, math.nan, math.nan, 0)] * K
    means = num_pairs @ terms / num_pairs.sum(axis=1, keepdims=True)
    centered = terms[None] - means[:, None]
    design = np.concatenate([np.ones((S, len(terms), 1)), centered], axis=2)  # [S, C, K]
    coefficients = np.zeros(K)
    for _ in range(MAX_STEPS):
        information, scores = _information_and_scores(design, num_stays, num_pairs, coefficients)
        step = np.linalg.pinv(information.sum(axis=0), hermitian=True) @ scores.sum(axis=0)
        length = float(np.linalg.norm(step))
        coefficients += step * min(1.0, MAX_STEP / max(length, TOLERANCE))
        if length < TOLERANCE:
            break
    information, scores = _information_and_scores(design, num_stays, num_pairs, coefficients)
    errors, degrees_of_freedom = _clustered_errors(information, scores)
    coefficients[~_are_determined(design, num_pairs)] = np.nan
    return [_to_coefficient(*values, S) for values in zip(coefficients, errors, degrees_of_freedom, strict=True)]


def _are_determined(design: np.ndarray, num_pairs: np.ndarray) -> np.ndarray:
    """Which coefficients the pairs determine, [K] bool: a term that never varies, or varies with others, is not."""
    gram = np.einsum("sc,sck,scl->kl", num_pairs, design, design)
    return np.diag(np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ gram) > 1 - 1e-6


def _to_coefficient(estimate: float, error: float, degrees_of_freedom: float, num_participants: int) -> Coefficient:
    """A coefficient with its Student's t interval, NaN without an error."""
    if not error > MIN_ERROR or math.isnan(estimate):
        return Coefficient(float(estimate), math.nan, math.nan, math.nan, math.nan, num_participants, math.nan)
    half_width = critical_value(Z95, degrees_of_freedom) * error
    p_value = 2 * float(stdtr(degrees_of_freedom, -abs(estimate) / error))
    low, high = float(estimate - half_width), float(estimate + half_width)
    return Coefficient(float(estimate), float(error), low, high, p_value, num_participants, float(degrees_of_freedom))


def _information_and_scores(
    design: np.ndarray, num_stays: np.ndarray, num_pairs: np.ndarray, coefficients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The information [S, K, K] and the penalized score [S, K] of each participant; `design` is [S, C, K]."""
    probability = expit(design @ coefficients)
    variance = probability * (1 - probability)
    information = np.einsum("sc,sck,scl->skl", num_pairs * variance, design, design)
    inverse = np.linalg.pinv(information.sum(axis=0), hermitian=True)
    leverage = variance * np.einsum("sck,kl,scl->sc", design, inverse, design)
    residual = num_stays - num_pairs * probability + num_pairs * leverage * (0.5 - probability)
    return information, np.einsum("sc,sck->sk", residual, design)


def _clustered_errors(information: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors [K] (CR2) and degrees of freedom [K]; NaN for fewer than two clusters.

    With the rows of a cluster's weighted design Z, CR2 multiplies its residuals by (I - Z M Z')^(-1/2), where M inverts
    the summed information. As Z enters through Z'Z = R^2 only, all matrices here are [K, K].

    Args:
        information: [S, K, K], Z'Z of each cluster.
        scores: [S, K].
    """
    S, K, _ = information.shape
    if S < 2:
        return np.full(K, np.nan), np.full(K, np.nan)
    inverse = np.linalg.pinv(information.sum(axis=0), hermitian=True)
    root, inverse_root = _symmetric_roots(information)
    leverage, vectors = np.linalg.eigh(root @ inverse @ root)  # [S, K], [S, K, K]
    is_free = leverage < MAX_LEVERAGE
    factor = np.where(is_free, 1 / np.sqrt(np.where(is_free, 1 - leverage, 1.0)), 0.0)
    adjustment = (vectors * factor[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    adjusted_scores = np.einsum("skl,slm,smn,sn->sk", root, adjustment, inverse_root, scores)
    variance = np.diag(inverse @ adjusted_scores.T @ adjusted_scores @ inverse)
    # Under the working model the variance is a quadratic form whose matrix P has rows and columns of clusters:
    # P_ii = u_i'(I - H)u_i and P_ij = -b_i'M b_j, with u_i the adjusted rows and b_i = Z_i'u_i.
    directions = adjustment @ root @ inverse  # [S, K, coefficients]
    projected = np.swapaxes(vectors, 1, 2) @ directions
    diagonal = np.einsum("skc,sk->sc", projected**2, 1 - leverage)
    crossed = root @ directions  # b, [S, K, coefficients]
    squared_lengths = np.einsum("skc,kl,slc->sc", crossed, inverse, crossed)
    sums = inverse @ np.einsum("skc,slc->ckl", crossed, crossed)
    off_diagonal = np.einsum("ckl,clk->c", sums, sums) - (squared_lengths**2).sum(axis=0)
    degrees_of_freedom = diagonal.sum(axis=0) ** 2 / np.maximum((diagonal**2).sum(axis=0) + off_diagonal, 1e-300)
    return np.sqrt(np.maximum(variance, 0.0)), np.maximum(degrees_of_freedom, 1.0)


def _symmetric_roots(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square roots of matrices [S, K, K] and the pseudo-inverses of these roots."""
    values, vectors = np.linalg.eigh(matrices)
    is_positive = values > 1e-10 * values[:, -1:]
    roots = np.sqrt(np.where(is_positive, values, 0.0))
    inverse_roots = np.where(is_positive, 1 / np.where(is_positive, roots, 1.0), 0.0)
    transposed = np.swapaxes(vectors, 1, 2)
    return (vectors * roots[:, None, :]) @ transposed, (vectors * inverse_roots[:, None, :]) @ transposed
