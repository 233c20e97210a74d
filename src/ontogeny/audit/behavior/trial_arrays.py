"""Arrangement of the rows of a file by participant and trial.

Only trials with consecutive numbers within a session count as consecutive.
"""

from collections.abc import Sequence

import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, ChoiceTable, ParticipantTrials
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

MIN_TRIALS = 10  # complete trials of a participant
MIN_Z = 2.0  # by which the share of common transitions must differ from one half


def arrange_trials(table: ChoiceTable) -> ChoiceData:
    """Arranges the rows of a file by participant and trial.

    Rows are sorted by trial number, or divided into sessions where numbers repeat. Rewards are scaled to 0 to 1, and
    the common transition is inferred where the file does not state it.

    Args:
        table: The columns of the file.

    Raises:
        BadInput: No participant has enough complete trials, or every reward is the same.
    """
    notes = list(table.notes)
    participants, rows, starts_session = _sort_rows(table, notes)
    S, T = rows.shape
    trial_numbers, is_present = table.trial[rows], rows >= 0
    is_complete = is_present & table.is_complete[rows]
    is_next_number = np.diff(trial_numbers, prepend=trial_numbers[:, :1]) == 1
    has_predecessor = is_present & ~starts_session
    # The roll brings the last trial to the first place, which has no predecessor.
    is_consecutive = is_complete & np.roll(is_complete, 1, axis=1) & is_next_number & has_predecessor
    choice, state, second_choice = (
        np.where(is_complete, 0 if column is None else column[rows], 0).astype(np.int32)
        for column in (table.choice, table.state, table.second_choice)
    )
    notes.append(
        f"{pluralize(S, 'participant')}, {pluralize(int(is_complete.sum()), 'complete trial')}; "
        f"{int((is_present & ~is_complete).sum())} missed; "
        f"{pluralize(int((has_predecessor & ~is_next_number).sum()), 'gap')} in the trial numbers; "
        f"{pluralize(int(is_consecutive.sum()), 'pair')} of consecutive trials"
    )
    reward, is_rewarded = _scale_rewards(np.where(is_complete, table.reward[rows], np.nan), is_complete, notes)
    trials = ParticipantTrials(choice, state, second_choice, reward, is_complete, is_consecutive, starts_session)
    is_common, common_state = np.zeros((S, T), bool), np.tile([0, 1], (S, 1))
    if table.task == "two_step":
        is_common_in_file = None if table.is_common is None else is_complete & (table.is_common[rows] == 1)
        is_common, common_state = _find_common_transitions(participants, trials, is_common_in_file, notes)
    is_correct = None if table.is_correct is None else is_present & table.is_correct[rows]
    return ChoiceData(
        table.task,
        tuple(participants),
        trials,
        is_common,
        common_state,
        is_rewarded,
        is_correct,
        table.num_arms,
        table.second_choice is not None,
        tuple(notes),
    )


def _sort_rows(table: ChoiceTable, notes: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorts the readable rows of participants with enough complete trials by session and trial.

    Returns:
        Names of the S participants; indices of rows of the table [S, T], -1 where a participant has no more trials;
        and whether a session starts [S, T].
    """
    all_rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    num_restarts, unsorted, excluded = 0, [], []
    for participant in dict.fromkeys(table.participant[table.is_readable].tolist()):
        participant_rows = np.nonzero(table.is_readable & (table.participant == participant))[0]
        rows_by_session, starts = [], []
        for session in dict.fromkeys(table.session[participant_rows].tolist()):
            rows = participant_rows[table.session[participant_rows] == session]
            is_backward = np.diff(table.trial[rows]) <= 0
            if len(np.unique(table.trial[rows])) == len(rows):
                unsorted += [participant] if is_backward.any() else []
                rows = rows[np.argsort(table.trial[rows])]
                is_backward[:] = False
            num_restarts += int(is_backward.sum())
            rows_by_session.append(rows)
            starts += [True, *is_backward.tolist()]
        if table.is_complete[participant_rows].sum() < MIN_TRIALS:
            excluded.append(participant)
        else:
            all_rows[participant] = np.concatenate(rows_by_session), np.array(starts)
    if unsorted:
        notes.append(f"rows are sorted by trial number for {', '.join(dict.fromkeys(unsorted))}")
    if num_restarts:
        times = pluralize(num_restarts, "time")
        notes.append(f"trial numbers restart within a participant {times}: each restart begins a new session")
    if excluded:
        notes.append(f"excluded for fewer than {MIN_TRIALS} complete trials: {', '.join(excluded)}")
    if not all_rows:
        raise BadInput(f"no participant has {MIN_TRIALS} complete trials")
    shape = len(all_rows), max(len(rows) for rows, _ in all_rows.values())
    padded_rows, starts_session = np.full(shape, -1), np.zeros(shape, bool)
    for s, (rows, starts) in enumerate(all_rows.values()):
        padded_rows[s, : len(rows)], starts_session[s, : len(rows)] = rows, starts
    return list(all_rows), padded_rows, starts_session


def _scale_rewards(rewards: np.ndarray, is_complete: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [S, T] from 0 to 1, and whether each trial counts as rewarded; `rewards` are NaN where missed."""
    low, high = np.nanmin(rewards), np.nanmax(rewards)
    if not high > low:
        raise BadInput(f"every reward is {low:g}: there is nothing to learn from")
    num_levels = len(np.unique(rewards[~np.isnan(rewards)]))
    scaled = np.where(np.isnan(rewards), 0.0, (rewards - low) / (high - low)).astype(np.float32)
    if num_levels == 2:
        if (low, high) != (0, 1):
            notes.append(f"rewards are {low:g} and {high:g}: the larger one counts as rewarded")
        return scaled, is_complete & (rewards == high)
    notes.append(
        f"rewards have {num_levels} levels from {low:g} to {high:g}: rewarded means above the participant's own mean; "
        "models use rewards scaled to the range 0 to 1"
    )
    means = np.nanmean(rewards, axis=1, keepdims=True)
    return scaled, is_complete & (np.nan_to_num(rewards, nan=low) > means)


def _find_common_transitions(
    participants: Sequence[str], trials: ParticipantTrials, is_common_in_file: np.ndarray | None, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Which transitions were common [S, T], by the file or by majority, and the common state of each choice [S, 2]."""
    num_complete = trials.is_complete.sum(axis=1)
    # Choice 1 leads to state 1, choice 2 to state 2, unless the file states that this transition is rare.
    is_straight = (trials.choice == trials.state) == (True if is_common_in_file is None else is_common_in_file)
    share = (is_straight & trials.is_complete).sum(axis=1) / num_complete
    majority = np.maximum(share, 1 - share)
    common_state = np.where(share[:, None] >= 0.5, [0, 1], [1, 0])
    if is_common_in_file is not None:
        contradictory = [f"{participants[s]} ({1 - majority[s]:.0%})" for s in np.nonzero(majority < 1)[0].tolist()]
        if contradictory:
            notes.append(
                "WARNING: 'transition' and states disagree in part of the trials of "
                f"{', '.join(contradictory)}, possibly because transitions change within a session; "
                "models use the majority"
            )
        return is_common_in_file, common_state
    notes.append(
        f"common and rare transitions are inferred from each participant's majority: {majority.mean():.1%} common; "
        f"the first choice commonly leads to the first state for {(common_state[:, 0] == 0).sum()} of "
        f"{pluralize(len(participants), 'participant')}"
    )
    is_unclear = np.abs(share - 0.5) * 2 * np.sqrt(num_complete) < MIN_Z
    if is_unclear.any():
        unclear = [f"{participants[s]} ({majority[s]:.0%})" for s in np.nonzero(is_unclear)[0].tolist()]
        notes.append(f"WARNING: which transition is common is not clear for {', '.join(unclear)}")
    commonly_reached = np.take_along_axis(common_state, trials.choice, axis=1)
    return trials.is_complete & (trials.state == commonly_reached), common_state
