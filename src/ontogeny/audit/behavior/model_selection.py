"""Random-effects Bayesian model selection: how frequent each model is among participants.

A fixed-effects comparison (the sum of BICs) assumes one model for all participants, so a few participants with large
differences decide it. Here each participant's model is drawn from unknown frequencies with a Dirichlet prior; their
posterior is approximated by variational Bayes (Stephan, Penny, Daunizeau, Moran & Friston 2009, NeuroImage 46:1004).
Protected exceedance probabilities allow for the chance that all models are equally frequent (Rigoux, Stephan, Friston &
Daunizeau 2014, NeuroImage 84:971). Families of models are compared as in Penny et al. 2010 (PLoS Comput Biol
6:e1000709), with equal prior evidence for each family. Letters: S participants, M models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, digamma, entr, expit, gammainc, gammaincinv, gammaln, logsumexp, softmax

PRIOR_CONCENTRATION = 1.0  # of each model: all frequencies are equally likely
MAX_ITERATIONS = 10_000
TOLERANCE = 1e-9  # change of the concentrations at which the iteration ends
NUM_NODES = 512  # of the quadrature for exceedance probabilities


class ModelFrequencies(NamedTuple):
    """The posterior of the frequencies of M models among participants."""

    concentration: np.ndarray  # [M], parameters of the Dirichlet posterior
    mean: np.ndarray  # [M], expected frequencies
    low: np.ndarray  # [M], lower end of the 95 % credible interval of each frequency
    high: np.ndarray  # [M], its upper end
    exceedance_prob: np.ndarray  # [M], probability that a model is the most frequent one
    protected_exceedance_prob: np.ndarray  # [M], the same, allowing for equal frequencies
    omnibus_risk: float  # Bayesian omnibus risk: probability that all models are equally frequent


def estimate_frequencies(log_evidence: np.ndarray) -> ModelFrequencies:
    """Estimates how frequent each model is.

    Args:
        log_evidence: [S, M], of each model for each participant, such as minus half the BIC.
    """
    num_models = log_evidence.shape[1]
    concentration, assignment = np.full(num_models, PRIOR_CONCENTRATION), np.zeros_like(log_evidence)
    for _ in range(MAX_ITERATIONS):
        expected_log = digamma(concentration) - digamma(concentration.sum())
        assignment = softmax(log_evidence + expected_log, axis=1)  # [S, M], posterior of each participant's model
        previous, concentration = concentration, PRIOR_CONCENTRATION + assignment.sum(axis=0)
        if np.abs(concentration - previous).max() < TOLERANCE:
            break
    total = concentration.sum()
    low, high = (betaincinv(concentration, total - concentration, tail) for tail in (0.025, 0.975))
    exceedance = exceedance_probs(concentration)
    risk = _omnibus_risk(log_evidence, assignment, concentration)
    protected = (1 - risk) * exceedance + risk / num_models
    return ModelFrequencies(concentration, concentration / total, low, high, exceedance, protected, risk)


def exceedance_probs(concentration: np.ndarray) -> np.ndarray:
    """Returns the probability that each frequency is the largest, under a Dirichlet distribution.

    The frequencies are gamma variables divided by their sum, so a single integral over the largest one is enough
    (Soch & Allefeld 2016, J Neurosci Methods 268:97); it is computed by Gauss-Legendre quadrature.

    Args:
        concentration: [M], the parameters of the Dirichlet distribution.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    quantiles = gammaincinv(concentration[:, None], (nodes + 1) / 2)  # [M, nodes]
    is_below = gammainc(concentration[None, :, None], quantiles[:, None, :])  # [M, M, nodes]
    is_below[np.arange(len(concentration)), np.arange(len(concentration))] = 1.0
    probs = is_below.prod(axis=1) @ weights / 2
    return probs / probs.sum()


def family_log_evidence(log_evidence: np.ndarray, families: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the log evidence of families, whose models are equally likely beforehand, [S, families].

    Args:
        log_evidence: [S, M], or with further leading axes.
        families: Indices of the models of each family.
    """
    parts = [logsumexp(log_evidence[..., list(family)], axis=-1) - np.log(len(family)) for family in families]
    return np.stack(parts, axis=-1)


def _omnibus_risk(log_evidence: np.ndarray, assignment: np.ndarray, concentration: np.ndarray) -> float:
    """The probability of equal frequencies: their evidence against the free energy of the variational posterior."""
    num_models = len(concentration)
    expected_log = digamma(concentration) - digamma(concentration.sum())
    prior = np.full(num_models, PRIOR_CONCENTRATION)
    expected_joint = _log_dirichlet_constant(prior) + (prior - 1) @ expected_log
    expected_joint += np.sum(assignment * (log_evidence + expected_log))
    entropy = -_log_dirichlet_constant(concentration) - (concentration - 1) @ expected_log + entr(assignment).sum()
    of_equal_frequencies = np.sum(logsumexp(log_evidence, axis=1) - np.log(num_models))
    return float(expit(of_equal_frequencies - expected_joint - entropy))


def _log_dirichlet_constant(concentration: np.ndarray) -> float:
    """The logarithm of the constant of a Dirichlet density."""
    return float(gammaln(concentration.sum()) - gammaln(concentration).sum())
