"""Rewards for simulations: what each option could have paid in each trial, resampled from what it paid.

A simulated choice receives a reward that the participant received from the same option at about the same time, so that
rewards keep their levels and drift as they did. Letters: S participants, T trials, N simulated participants.
"""

import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, option_index, split_sessions

REWARD_WINDOW = 8.0  # trials, time constant by which rewards of other trials lose weight


def resample_rewards(choices: ChoiceData, participants: np.ndarray, seed: int) -> np.ndarray:
    """Resamples the reward of every option in every trial.

    A reward of the same option and session is drawn with a weight that decays exponentially with its distance in
    trials. All rewards of the participant together have the weight of one such reward without distance, so that the
    rewards of rarely chosen options stay near the mean. Time and memory are linear in the number of trials.

    Args:
        choices: The choices of S participants.
        participants: [N], the participant of each simulation.
        seed: Determines the sample.

    Returns:
        [N, T, options]; trials after a participant's last one belong to its last session.
    """
    random = np.random.default_rng(seed)
    options = option_index(choices.task, choices.has_second_choice, choices.trials)
    num_options, (_, T) = choices.num_options, choices.trials.choice.shape
    rewards = np.zeros((len(participants), T, num_options), np.float32)
    for s in np.unique(participants).tolist():
        reward, is_complete = choices.trials.reward[s], choices.trials.is_complete[s]
        complete = np.nonzero(is_complete)[0]
        simulations = np.nonzero(participants == s)[0]
        for session in split_sessions(choices.trials.starts_session[s]):
            times = np.arange(T)[session]
            for option in range(num_options):
                visits = times[is_complete[session] & (options[s, session] == option)]
                resampled = _draw_visits(random, visits, complete, times, len(simulations))
                rewards[simulations, session, option] = reward[resampled]
    return rewards


def _draw_visits(
    random: np.random.Generator, visits: np.ndarray, complete: np.ndarray, times: np.ndarray, number: int
) -> np.ndarray:
    """Draws a visit for each time [number, T] with exponentially decaying weights, or any complete trial.

    The cumulative weights are kept as logarithms, which neither overflow nor need a matrix of trials by trials.

    Args:
        random: The source of randomness.
        visits: [V], ascending trials in which the option was chosen.
        complete: All complete trials of the participant.
        times: [T], ascending.
        number: How many visits to draw for each time.
    """
    shape = (number, len(times))
    of_any = complete[random.integers(len(complete), size=shape)]
    if not len(visits):
        return of_any
    num_past = np.searchsorted(visits, times, side="right")  # visits up to each time, [T]
    past = np.logaddexp.accumulate(visits / REWARD_WINDOW)
    future = np.logaddexp.accumulate(-visits[::-1] / REWARD_WINDOW)
    num_future = len(visits) - num_past
    log_past = np.where(num_past > 0, past[num_past - 1], -np.inf)
    log_future = np.where(num_future > 0, future[num_future - 1], -np.inf)
    with np.errstate(over="ignore"):
        weights = np.exp(np.stack([log_past - times / REWARD_WINDOW, log_future + times / REWARD_WINDOW]))  # [2, T]
    source = random.uniform(0, 1 + weights.sum(axis=0), shape)
    quantile = np.log1p(-random.uniform(size=shape))  # of the cumulative weight, below zero
    from_past = np.minimum(np.searchsorted(past, log_past + quantile), np.maximum(num_past - 1, 0))
    from_future = np.minimum(np.searchsorted(future, log_future + quantile), np.maximum(num_future - 1, 0))
    nearby = np.where(source < weights[0], visits[from_past], visits[::-1][from_future])
    return np.where(source < weights.sum(axis=0), nearby, of_any)
