"""Choices of the better arm of a bandit: their share, and how it changes with experience.

Where the file does not state which choices were correct, the better arm is estimated in hindsight: the arm whose
rewards in other trials of the session have the highest weighted mean. The weights decay with the distance in trials;
their time constant is the one that predicts left-out rewards best, so that arms may be stable or drift. The reward of a
trial never counts for the trial itself. Letters: S participants, T trials, A arms.
"""

from typing import NamedTuple

import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, split_sessions
from ontogeny.audit.behavior.smoothing import sum_neighbors
from ontogeny.audit.behavior.stay_analysis import ParticipantMean, mean_over_participants, mean_share

TIME_CONSTANTS = (4.0, 16.0, 64.0, 256.0, 1e9)  # trials; the last one is a plain mean
NUM_CURVE_POINTS = 8  # of a learning curve
MIN_POINT_TRIALS = 5  # trials of one point of the curve


class CurvePoint(NamedTuple):
    """The share of better choices in a range of trials of each session."""

    first_trial: int  # from 1
    last_trial: int
    share: ParticipantMean


class BetterChoices(NamedTuple):
    """How often the better arm was chosen."""

    source: str  # `ChoiceData.better_choice_source`
    share: ParticipantMean
    chance: float  # of a choice that does not depend on anything
    gain: ParticipantMean  # share in the second half of each session minus the share in the first half
    curve: list[CurvePoint]


def analyze_better_choices(choices: ChoiceData) -> BetterChoices:
    """Estimates the share of better choices of a bandit and its learning curve."""
    is_better = choices.is_correct if choices.is_correct is not None else find_better_choices(choices)  # or a share
    is_used = choices.trials.is_complete
    T = is_used.shape[1]
    starts = np.maximum.accumulate(np.where(choices.trials.starts_session, np.arange(T), 0), axis=1)
    trial = np.arange(T) - starts  # of the session
    num_trials = np.zeros((len(starts), T), int)
    np.maximum.at(num_trials, (np.arange(len(starts))[:, None], starts), np.where(is_used, trial + 1, 0))
    session_length = np.take_along_axis(num_trials, starts, axis=1)
    is_second_half = 2 * trial >= session_length

    def share_where(where: np.ndarray) -> np.ndarray:
        """The share of each participant, [S]; NaN where there is no such trial."""
        count = (is_used & where).sum(axis=1)
        return np.where(count > 0, (is_better * (is_used & where)).sum(axis=1) / np.maximum(count, 1), np.nan)

    longest = int(session_length.max())
    num_points = max(1, min(NUM_CURVE_POINTS, longest // MIN_POINT_TRIALS))
    edges = np.linspace(0, longest, num_points + 1).round().astype(int)
    curve = [
        CurvePoint(first + 1, last, mean_share(share_where((trial >= first) & (trial < last))))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    gain = share_where(is_second_half) - share_where(~is_second_half)
    return BetterChoices(
        choices.better_choice_source,
        mean_share(share_where(np.ones_like(is_used))),
        1 / choices.num_arms,
        mean_over_participants(gain, 1.0),
        curve,
    )


def find_better_choices(choices: ChoiceData) -> np.ndarray:
    """Estimates in hindsight whether each choice was the best, [S, T]; one of k equally good arms counts 1 / k."""
    trials = choices.trials
    chosen = (trials.choice[:, :, None] == np.arange(choices.num_arms)) & trials.is_complete[:, :, None]  # [S, T, A]
    rewards = chosen * trials.reward[:, :, None]
    mean = trials.reward[trials.is_complete].mean()
    min_error, best_values = np.inf, np.zeros(())
    for time_constant in TIME_CONSTANTS:
        weights = _sum_other_trials(chosen, trials.starts_session, time_constant)
        # The mean reward counts as half an observation, so that every arm has a value.
        values = (_sum_other_trials(rewards, trials.starts_session, time_constant) + 0.5 * mean) / (weights + 0.5)
        error = np.square(values - trials.reward[:, :, None])[chosen].mean()
        if error < min_error:
            min_error, best_values = error, values
    is_best = best_values >= best_values.max(axis=2, keepdims=True)  # [S, T, A]
    return np.take_along_axis(is_best, trials.choice[:, :, None], axis=2)[:, :, 0] / is_best.sum(axis=2)


def _sum_other_trials(values: np.ndarray, starts_session: np.ndarray, time_constant: float) -> np.ndarray:
    """Sums values [S, T, A] over all other trials of a session, with weights that decay with the distance."""
    summed = np.zeros(values.shape)
    for s in range(len(values)):
        for session in split_sessions(starts_session[s]):
            summed[s, session] = (sum_neighbors(values[s, session].T, time_constant)).T - values[s, session]
    return summed
