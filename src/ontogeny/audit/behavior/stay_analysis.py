"""Stay probabilities by the outcome of a choice, their contrasts over participants, and the regression of staying.

All statistics use pairs of consecutive trials whose outcome is known. Contrasts of stay probabilities come first: each
is unbiased for each participant, however unequal the cells are. The regression (`stay_regression`) follows. Its
corrected form has the term whether the choice was the better one; where the file does not state it, it is estimated in
hindsight from the rewards of each state before and after the trial, without the trial itself.

Intervals over participants are Student's t; those of shares are Wilson's with an effective number of observations.
Letters: S participants, T trials.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from ontogeny import bounded
from ontogeny.audit.behavior.base import CELLS, ChoiceData, ParticipantTrials
from ontogeny.audit.behavior.smoothing import sum_neighbors
from ontogeny.audit.behavior.stay_regression import Coefficient, fit_pooled_logit
from ontogeny.stats import ZERO_SPREAD, clopper_pearson, confidence_interval, mean_and_standard_error, share_interval

HINDSIGHT_WINDOW = 8.0  # trials, time constant of the smoothing of rewards
TERMS: dict[
    str, dict[str, tuple[int, ...]]
] = {  # of the regression, after the intercept, with their values in each cell of `base.CELLS`
    "two_step": {"reward": (1, 1, -1, -1), "transition": (1, -1, 1, -1), "reward x transition": (1, -1, -1, 1)},
    "bandit": {"reward": (1, -1)},
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
    regression: dict[str, Coefficient]  # by term
    corrected_regression: dict[str, Coefficient]  # empty for a bandit
    num_pairs: int


def analyze_stays(choices: ChoiceData) -> StayAnalysis:
    """Estimates stay probabilities, their contrasts, and both regressions."""
    names = CELLS[choices.task]
    num_stays, num_pairs = _count_stays(choices)
    with np.errstate(invalid="ignore"):
        shares = num_stays / num_pairs  # [S, cells], NaN where a participant has no such pair
    by_participant = {
        name: [_stay_probability(int(k), int(n)) for k, n in zip(num_stays[:, i], num_pairs[:, i], strict=True)]
        for i, name in enumerate(names)
    }
    cell_means = {name: mean_share(values) for name, values in zip(names, shares.T, strict=True)}
    if choices.task == "two_step":
        common_rewarded, rare_rewarded, common_unrewarded, rare_unrewarded = shares.T
        contrasts = {
            "interaction": (common_rewarded - rare_rewarded - common_unrewarded + rare_unrewarded, 2.0),
            "reward": ((common_rewarded + rare_rewarded - common_unrewarded - rare_unrewarded) / 2, 1.0),
            "transition": ((common_rewarded - rare_rewarded + common_unrewarded - rare_unrewarded) / 2, 1.0),
        }
    else:
        contrasts = {"reward": (shares[:, 0] - shares[:, 1], 1.0)}
    contrast_means = {name: mean_over_participants(values, bound) for name, (values, bound) in contrasts.items()}
    regressions = fit_regressions(choices)
    return StayAnalysis(by_participant, cell_means, contrast_means, *regressions, int(num_pairs.sum()))


def _stay_probability(num_stays: int, num_pairs: int) -> StayProbability:
    """A share with its exact interval; 0 to 1 where there are no pairs."""
    if not num_pairs:
        return StayProbability(num_stays, num_pairs, 0.0, 0.0, 1.0)
    return StayProbability(num_stays, num_pairs, num_stays / num_pairs, *clopper_pearson(num_stays, num_pairs))


def mean_share(shares: np.ndarray) -> ParticipantMean:
    """Returns the mean over participants of shares, whose interval stays within 0 to 1.

    Args:
        shares: [S], NaN where a participant has none.
    """
    mean = mean_over_participants(shares)
    if mean.num_participants < 2:
        return mean
    low, high = share_interval(mean.mean, mean.standard_error, mean.num_participants, mean.num_participants - 1)
    return mean._replace(low=low, high=high)


def mean_over_participants(values: np.ndarray, bound: float = float("inf")) -> ParticipantMean:
    """Returns the mean over the participants that have a value.

    Args:
        values: [S], NaN where a participant has none.
        bound: No value, and so no end of the interval, can be larger than it or smaller than its negative. Without
            it, values that all agree have no interval; with it, their interval and p-value are those of `bounded`.
    """
    values = np.asarray(values, np.float64)[np.isfinite(values)]
    number, nan = len(values), float("nan")
    if number < 2:
        return ParticipantMean(float(values[0]) if number else nan, nan, nan, nan, nan, number)
    mean, error = (float(statistic) for statistic in mean_and_standard_error(values))
    if error < ZERO_SPREAD:
        if not np.isfinite(bound):
            return ParticipantMean(mean, 0.0, nan, nan, nan, number)
        counts = ((mean, number),)
        p_values = bounded.p_mean_above(counts, -bound, 0.0), bounded.p_mean_below(counts, bound, 0.0)
        return ParticipantMean(
            mean, 0.0, *bounded.mean_bounds(counts, -bound, bound), min(2 * min(p_values), 1.0), number
        )
    interval = confidence_interval(mean, error, number, number - 1)
    p_value = 2 * stdtr(number - 1, -abs(mean) / error)
    return ParticipantMean(mean, error, max(interval.low, -bound), min(interval.high, bound), float(p_value), number)


def replace_trials(choices: ChoiceData, trials: ParticipantTrials, participant: np.ndarray) -> ChoiceData:
    """Returns the same task with simulated trials; those in which anything was missed do not count.

    Args:
        choices: The choices of S participants.
        trials: [N, T].
        participant: [N], the participant in whose task each simulation takes place.
    """
    common_state = choices.common_state[participant]
    rows = np.arange(len(participant))[:, None]
    # A reward counts as rewarded from the lowest reward on that counts so for the participant.
    min_rewarded = np.where(choices.is_rewarded, choices.trials.reward, np.inf).min(axis=1)
    return choices._replace(
        participants=tuple(choices.participants[s] for s in participant.tolist()),
        trials=trials,
        has_outcome=trials.is_complete,
        is_pair=trials.is_consecutive,
        is_common=trials.state == common_state[rows, np.minimum(trials.choice, 1)],
        common_state=common_state,
        is_rewarded=trials.is_complete & (trials.reward >= min_rewarded[participant, None]),
        is_correct=None,
    )


def fit_regressions(choices: ChoiceData) -> tuple[dict[str, Coefficient], dict[str, Coefficient]]:
    """Fits the plain and the corrected regression.

    Returns:
        Coefficients by term; the corrected regression of a bandit is empty.
    """
    terms = TERMS[choices.task]
    values = np.array(list(terms.values()), float).T  # [cells, terms]
    plain = dict(zip(("intercept", *terms), fit_pooled_logit(values, *_count_stays(choices)), strict=True))
    if choices.task == "bandit":
        return plain, {}
    is_better = is_better_choice(choices)
    counts = zip(*(_count_stays(choices, is_better == better) for better in (True, False)), strict=True)
    corrected_values = np.concatenate([np.column_stack([values, np.full(len(values), sign)]) for sign in (1.0, -1.0)])
    coefficients = fit_pooled_logit(corrected_values, *(np.concatenate(parts, axis=1) for parts in counts))
    return plain, dict(zip(("intercept", *terms, "correct"), coefficients, strict=True))


def is_better_choice(choices: ChoiceData) -> np.ndarray:
    """Returns whether each choice was the better one, as the file states or in hindsight, [S, T] bool."""
    if choices.is_correct is not None:
        return choices.is_correct
    trials = choices.trials
    S, T = trials.choice.shape
    mean = trials.reward[choices.has_outcome].mean()
    state_values = np.zeros((S, T, 2))
    for state in (0, 1):
        is_visited = choices.has_outcome & (trials.state == state)
        reward, number = (
            sum_neighbors(values, HINDSIGHT_WINDOW) - values
            for values in (is_visited * trials.reward, is_visited * 1.0)
        )
        state_values[:, :, state] = (reward + 0.5 * mean) / (number + 0.5)
    rows, times = np.arange(S)[:, None], np.arange(T)[None, :]
    reached = choices.common_state[rows, np.minimum(trials.choice, 1)]
    return state_values[rows, times, reached] > state_values[rows, times, 1 - reached]


def _count_stays(choices: ChoiceData, is_included: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """In how many pairs the choice is repeated, and how many pairs there are, [S, cells] each.

    Args:
        choices: The choices of S participants.
        is_included: [S, T] bool, the first trials of pairs that count; by default all.
    """
    S, num_cells = len(choices.participants), len(CELLS[choices.task])
    cell = (~choices.is_rewarded[:, :-1]).astype(int)
    if choices.task == "two_step":
        cell = 2 * cell + ~choices.is_common[:, :-1]
    is_counted = choices.is_pair[:, 1:] if is_included is None else choices.is_pair[:, 1:] & is_included[:, :-1]
    is_stay = choices.trials.choice[:, 1:] == choices.trials.choice[:, :-1]
    index = (np.arange(S)[:, None] * num_cells + cell)[is_counted]
    num_stays, num_pairs = (
        np.bincount(part, minlength=S * num_cells).reshape(S, num_cells) for part in (index[is_stay[is_counted]], index)
    )
    return num_stays, num_pairs
