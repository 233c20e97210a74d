"""Stay probabilities by the outcome of a choice, and the regression of staying on reward and transition.

All statistics use pairs of consecutive complete trials. The plain regression has the terms reward, transition and their
product (Daw et al. 2011, Neuron 69:1204). The corrected one has a further term, whether the choice was the better one
(Akam, Costa & Dayan 2015, PLoS Comput Biol 11:e1004648), because the better option both is rewarded and is repeated.
Where the file does not state the better choice, it is estimated in hindsight from the rewards of each state before and
after the trial, without the trial itself. The correction does not exclude agents that act on latent states, as model
organisms show.

The regressions are logistic, one per participant, with a weak prior N(0, 3^2) on each coefficient; terms are coded +1
and -1. Intervals over participants are Student's t. Letters: S participants, T trials, K terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import stdtr

from ontogeny.audit.behavior.base import CELLS, ChoiceData, ParticipantTrials
from ontogeny.stats import clopper_pearson, confidence_interval, mean_and_standard_error

PRIOR_SD = 3.0  # of a coefficient, in log odds
HINDSIGHT_WINDOW = 8.0  # trials, time constant of the smoothing of rewards
MAX_NEWTON_STEP = 2.0
NUM_NEWTON_STEPS = 25
TERMS = {
    "two_step": ("intercept", "reward", "transition", "reward x transition", "correct"),
    "bandit": ("intercept", "reward"),
}


class ParticipantMean(NamedTuple):
    """A mean over participants with its 95 % interval; NaN where there are too few participants."""

    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float  # two-sided, against zero
    num_participants: int


class StayProbability(NamedTuple):
    """One participant's stay probability in one cell, with its exact interval."""

    num_stays: int
    num_pairs: int
    share: float
    low: float
    high: float


class StayAnalysis(NamedTuple):
    """Stay probabilities and regressions of all participants."""

    by_participant: dict[str, list[StayProbability]]  # by cell
    cell_means: dict[str, ParticipantMean]  # of stay probabilities
    contrasts: dict[str, ParticipantMean]  # of stay probabilities
    regression: dict[str, ParticipantMean]  # coefficients in log odds, by term
    corrected_regression: dict[str, ParticipantMean]  # empty for a bandit
    num_pairs: int


def analyze_stays(choices: ChoiceData) -> StayAnalysis:
    """Estimates stay probabilities, their contrasts, and both regressions."""
    names = CELLS[choices.task]
    is_stay, cell = _consecutive_pairs(choices)
    is_pair = cell[:, :, None] == np.arange(len(names))  # [S, T-1, cells]
    num_pairs, num_stays = is_pair.sum(axis=1), (is_pair & is_stay[:, :, None]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = num_stays / num_pairs  # [S, cells], NaN where a participant has no such pair
    by_participant = {
        name: [_stay_probability(int(k), int(n)) for k, n in zip(num_stays[:, i], num_pairs[:, i], strict=True)]
        for i, name in enumerate(names)
    }
    contrasts = {"reward": shares[:, 0] - shares[:, -1]}
    if choices.task == "two_step":
        common_rewarded, rare_rewarded, common_unrewarded, rare_unrewarded = shares.T
        contrasts = {
            "interaction": common_rewarded - rare_rewarded - common_unrewarded + rare_unrewarded,
            "reward": (common_rewarded + rare_rewarded - common_unrewarded - rare_unrewarded) / 2,
        }
    cell_means, contrast_means, plain, corrected = (
        {name: mean_over_participants(values) for name, values in columns}
        for columns in (
            zip(names, shares.T, strict=True),
            contrasts.items(),
            *(zip(TERMS[choices.task], coefficients.T, strict=False) for coefficients in fit_regressions(choices)),
        )
    )
    return StayAnalysis(by_participant, cell_means, contrast_means, plain, corrected, int(num_pairs.sum()))


def _stay_probability(num_stays: int, num_pairs: int) -> StayProbability:
    """A share with its exact interval; 0 to 1 where there are no pairs."""
    if not num_pairs:
        return StayProbability(num_stays, num_pairs, 0.0, 0.0, 1.0)
    return StayProbability(num_stays, num_pairs, num_stays / num_pairs, *clopper_pearson(num_stays, num_pairs))


def mean_over_participants(values: np.ndarray) -> ParticipantMean:
    """Returns the mean over the participants that have a value.

    Args:
        values: [S], NaN where a participant has none.
    """
    values = np.asarray(values, np.float64)[np.isfinite(values)]
    number, nan = len(values), float("nan")
    if number < 2:
        return ParticipantMean(float(values[0]) if number else nan, nan, nan, nan, nan, number)
    mean, error = (float(statistic) for statistic in mean_and_standard_error(values))
    interval = confidence_interval(mean, error, number, number - 1)
    p_value = 2 * stdtr(number - 1, -abs(mean) / error) if error > 0 else float(mean == 0)
    return ParticipantMean(mean, error, interval.low, interval.high, float(p_value), number)


def replace_trials(choices: ChoiceData, trials: ParticipantTrials) -> ChoiceData:
    """Returns the same task with simulated trials; those in which anything was missed do not count.

    Args:
        choices: The choices of S participants.
        trials: [N, T], where N is a multiple of S.
    """
    times = len(trials.choice) // len(choices.participants)
    common_state = np.tile(choices.common_state, (times, 1))
    rows = np.arange(len(common_state))[:, None]
    return choices._replace(
        participants=choices.participants * times,
        trials=trials,
        has_outcome=trials.is_complete,
        is_pair=trials.is_consecutive,
        is_common=trials.state == common_state[rows, np.minimum(trials.choice, 1)],
        common_state=common_state,
        is_rewarded=trials.reward > 0.5,
        is_correct=None,
    )


def fit_regressions(choices: ChoiceData) -> tuple[np.ndarray, np.ndarray]:
    """Fits the plain and the corrected regression.

    Returns:
        Coefficients [S, 4] and [S, 5]; for a bandit [S, 2] and [S, 0]. NaN where a participant has no pairs.
    """
    is_stay, cell = _consecutive_pairs(choices)
    reward = np.where(choices.is_rewarded, 1.0, -1.0)[:, :-1]
    terms = [np.ones_like(reward), reward]
    is_used = cell >= 0

    def fit() -> np.ndarray:
        coefficients = np.array(_fit_logistic(np.stack(terms, -1), is_stay, is_used))
        coefficients[~is_used.any(axis=1)] = np.nan
        return coefficients

    if choices.task == "bandit":
        return fit(), np.zeros((len(reward), 0))
    transition = np.where(choices.is_common, 1.0, -1.0)[:, :-1]
    terms += [transition, reward * transition]
    plain = fit()
    terms.append(np.where(is_better_choice(choices), 1.0, -1.0)[:, :-1])
    return plain, fit()


def is_better_choice(choices: ChoiceData) -> np.ndarray:
    """Returns whether each choice was the better one, as the file states or in hindsight, [S, T] bool."""
    if choices.is_correct is not None:
        return choices.is_correct
    trials = choices.trials
    S, T = trials.choice.shape
    kernel = np.exp(-np.abs(np.arange(T)[:, None] - np.arange(T)[None, :]) / HINDSIGHT_WINDOW)
    np.fill_diagonal(kernel, 0.0)
    mean = trials.reward[choices.has_outcome].mean()
    state_values = np.zeros((S, T, 2))
    for state in (0, 1):
        visited = (choices.has_outcome & (trials.state == state)).astype(float)
        state_values[:, :, state] = ((visited * trials.reward) @ kernel + 0.5 * mean) / (visited @ kernel + 0.5)
    rows, times = np.arange(S)[:, None], np.arange(T)[None, :]
    reached = choices.common_state[rows, np.minimum(trials.choice, 1)]
    return state_values[rows, times, reached] > state_values[rows, times, 1 - reached]


def _consecutive_pairs(choices: ChoiceData) -> tuple[np.ndarray, np.ndarray]:
    """Whether the next choice is the same [S, T-1], and the cell of this trial, -1 where the pair is incomplete."""
    choice = choices.trials.choice
    is_stay = choice[:, 1:] == choice[:, :-1]
    cell = (~choices.is_rewarded[:, :-1]).astype(int)
    if choices.task == "two_step":
        cell = 2 * cell + (~choices.is_common[:, :-1]).astype(int)
    return is_stay, np.where(choices.is_pair[:, 1:], cell, -1)


@jax.jit
def _fit_logistic(terms: Array, is_stay: Array, is_used: Array) -> Array:
    """Coefficients [S, K] that maximize the posterior, by Newton's method.

    Args:
        terms: [S, T, K].
        is_stay: [S, T], the dependent variable.
        is_used: [S, T], the pairs of trials that count.
    """
    K = terms.shape[-1]

    def fit_participant(x: Array, y: Array, weight: Array) -> Array:
        def step(_: Array, coefficients: Array) -> Array:
            """One Newton step of limited length."""
            probability = jax.nn.sigmoid(x @ coefficients)
            gradient = x.T @ (weight * (y - probability)) - coefficients / PRIOR_SD**2
            curvature = (x * (weight * probability * (1 - probability))[:, None]).T @ x + jnp.eye(K) / PRIOR_SD**2
            move = jnp.linalg.solve(curvature, gradient)
            return coefficients + move * jnp.minimum(1.0, MAX_NEWTON_STEP / jnp.maximum(jnp.linalg.norm(move), 1e-9))

        return jax.lax.fori_loop(0, NUM_NEWTON_STEPS, step, jnp.zeros(K))

    return jax.vmap(fit_participant)(terms, is_stay.astype(jnp.float32), is_used.astype(jnp.float32))
