"""Random-effects model selection: published values, exact values, and simulated groups of participants."""

import numpy as np
import pytest
from scipy.special import betainc

from ontogeny.audit.behavior.model_selection import estimate_frequencies, exceedance_probs, family_log_evidence

# The example of the R package bmsR (M. Lisi), a translation of SPM12's spm_BMS: 12 participants, 6 models, and its
# output. The package stops when the concentrations change by less than 1e-3 and samples the exceedance probabilities.
EVIDENCE = np.array(
    [
        [2.508e-22, 3.434e-02, 6.779e-01, 2.494e-01, 3.375e-02, 4.568e-03],
        [1.466e-04, 4.463e-03, 5.210e-08, 8.628e-01, 1.168e-01, 1.580e-02],
        [4.587e-25, 1.723e-03, 6.274e-04, 8.648e-01, 1.170e-01, 1.584e-02],
        [4.105e-07, 9.908e-04, 3.885e-04, 8.656e-01, 1.171e-01, 1.585e-02],
        [6.866e-02, 1.584e-01, 3.176e-18, 1.473e-01, 4.979e-01, 1.278e-01],
        [3.678e-02, 2.954e-02, 1.912e-01, 6.436e-01, 8.710e-02, 1.179e-02],
        [1.103e-04, 1.255e-04, 3.839e-07, 8.666e-01, 1.173e-01, 1.587e-02],
        [1.681e-08, 2.722e-02, 6.192e-02, 7.895e-01, 1.069e-01, 1.446e-02],
        [1.083e-01, 5.309e-02, 5.592e-01, 2.073e-01, 6.356e-02, 8.601e-03],
        [3.958e-11, 2.073e-10, 5.067e-09, 8.668e-01, 1.173e-01, 1.588e-02],
        [3.678e-02, 2.148e-02, 4.189e-02, 7.800e-01, 1.056e-01, 1.432e-02],
        [1.090e-06, 4.734e-05, 7.020e-01, 2.583e-01, 3.495e-02, 4.730e-03],
    ]
)


def test_model_frequencies_agree_with_the_published_example():
    frequencies = estimate_frequencies(np.log(EVIDENCE))
    concentration = [1.043623, 1.064976, 1.720754, 11.835847, 1.290641, 1.044160]
    np.testing.assert_allclose(frequencies.concentration, concentration, atol=2e-3)
    mean = [0.05797903, 0.05916533, 0.09559743, 0.65754706, 0.07170226, 0.05800889]
    np.testing.assert_allclose(frequencies.mean, mean, atol=1e-4)
    exceedance = [0.000279, 0.000319, 0.001173, 0.997441, 0.000514, 0.000274]
    np.testing.assert_allclose(frequencies.exceedance_prob, exceedance, atol=1e-4)
    assert frequencies.omnibus_risk == pytest.approx(0.002890379, abs=1e-5)
    protected = [0.0007599, 0.0007998, 0.0016513, 0.9950397, 0.0009942, 0.0007549]
    np.testing.assert_allclose(frequencies.protected_exceedance_prob, protected, atol=1e-4)
    assert (frequencies.low < frequencies.mean).all() and (frequencies.mean < frequencies.high).all()


@pytest.mark.parametrize("concentration", [(1.0, 1.0), (1.2, 7.0), (300.0, 310.0)])
def test_exceedance_probabilities_of_two_models_are_exact(concentration):
    expected = betainc(concentration[1], concentration[0], 0.5)  # P(r_1 > 1/2) = P(1 - r_1 < 1/2)
    assert exceedance_probs(np.array(concentration))[0] == pytest.approx(expected, abs=1e-6)


def test_exceedance_probabilities_agree_with_samples():
    concentration = np.array([20.0, 25.0, 1.0, 30.0])
    samples = np.random.default_rng(0).dirichlet(concentration, 200_000)
    shares = np.bincount(samples.argmax(axis=1), minlength=4) / len(samples)
    np.testing.assert_allclose(exceedance_probs(concentration), shares, atol=0.005)


def test_equal_models_are_not_called_frequent():
    """Evidence that differs by chance alone: the omnibus risk is high and no protected probability is."""
    random = np.random.default_rng(1)
    for _ in range(20):
        frequencies = estimate_frequencies(random.normal(size=(15, 3)))
        assert frequencies.omnibus_risk > 0.5 and frequencies.protected_exceedance_prob.max() < 0.7


def test_few_participants_with_large_differences_do_not_decide():
    """The sum of the evidence is that of the second model, but eight of ten participants follow the first one."""
    log_evidence = np.zeros((10, 2))
    log_evidence[:8, 0], log_evidence[8:, 1] = 4.0, 60.0
    assert log_evidence.sum(axis=0).argmax() == 1
    frequencies = estimate_frequencies(log_evidence)
    assert frequencies.mean.argmax() == 0 and frequencies.exceedance_prob[0] > 0.95


def test_intervals_of_frequencies_cover_the_true_share():
    """Groups of 20 participants with clear models; the share of the first model is drawn as the prior assumes."""
    random, num_covered = np.random.default_rng(2), 0
    for _ in range(200):
        share = random.beta(1, 1)
        is_first = random.random(20) < share
        frequencies = estimate_frequencies(np.where(np.stack([is_first, ~is_first], 1), 0.0, -20.0))
        num_covered += frequencies.low[0] <= share <= frequencies.high[0]
    assert num_covered >= 180  # 95 % of 200 are 190; fewer than 180 have a probability below 0.002


def test_the_evidence_of_a_family_does_not_grow_with_its_size():
    log_evidence = np.log(np.array([[0.2, 0.2, 0.2], [0.1, 0.3, 0.5]]))
    families = family_log_evidence(log_evidence, [[0], [1, 2]])
    np.testing.assert_allclose(np.exp(families), [[0.2, 0.2], [0.1, 0.4]])
