"""Devaluation of an outcome: what is counted, and that imagination changes behavior without new experience."""

import jax.numpy as jnp
import pytest

from ontogeny.studies.neural import devaluation
from ontogeny.types import BadInput

ENV = "foraging:size=4,num_episodes=250"


def test_an_unknown_outcome_feature_is_refused():
    with pytest.raises(BadInput, match="has no outcome feature 'fud'"):
        devaluation.measure_devaluation(ENV, 0, 20, "fud", -1.0)


def test_amounts_are_those_of_complete_episodes_after_the_first():
    outcome = jnp.array([[9.0, 5.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.5], [0.0, 7.0]])
    ends = jnp.array([True, False, True, True, False])
    recorded = devaluation.RecordedOutcome(outcome, ends)
    assert devaluation._amount_per_episode(1, recorded) == pytest.approx((3.0 + 0.5) / 2)
    assert devaluation._amount_per_episode(1, recorded, 3) == pytest.approx(0.5)


@pytest.mark.slow
def test_a_policy_that_is_retrained_in_imagination_avoids_a_devalued_outcome_at_once():
    amounts = devaluation.measure_devaluation(ENV, 100, 4000, "food", -1.0, num_test_steps=200)
    assert amounts["before"] > 0.8 and amounts["as before"] > 0.8
    assert amounts["retrained in imagination"] < 0.3
    assert amounts["retrained on replayed steps"] <= amounts["before"] + 0.05
    assert amounts["model-free, before"] > 0.8 and amounts["model-free, frozen"] > 0.8
