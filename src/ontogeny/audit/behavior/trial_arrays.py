"""Arrangement of the rows of a file by participant and trial.

Only trials with consecutive numbers within a session count as consecutive.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, ChoiceTable, ParticipantTrials
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

MIN_TRIALS = 10  # complete trials of a participant
MIN_Z = 2.0  # by which the share of common transitions must differ from one half


class SortedRows(NamedTuple):
    """The rows of a table by participant, in the order of their trials."""

    participants: list[str]
    rows: np.ndarray  # [S, T] int, indices of rows of the table; -1 where a participant has no more trials
    starts_session: np.ndarray  # [S, T] bool


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
    is_present = rows >= 0
    is_complete = is_present & table.is_complete[rows]
    follows, is_after_complete = np.zeros((S, T), bool), np.zeros((S, T), bool)
    follows[:, 1:], is_after_complete[:, 1:] = np.diff(table.trial[rows]) == 1, is_complete[:, :-1]
    may_follow = is_present & ~starts_session
    is_consecutive = is_complete & is_after_complete & follows & may_follow
    choice, state, second_choice = (
        np.where(is_complete, column[rows], 0).astype(np.int32)
        for column in (table.choice, table.state, table.second_choice)
    )
    notes.append(
        f"{pluralize(S, 'participant')}, {pluralize(int(is_complete.sum()), 'complete trial')}; "
        f"{int((is_present & ~is_complete).sum())} missed; "
        f"{pluralize(int((may_follow & ~follows).sum()), 'gap')} in the trial numbers; "
        f"{pluralize(int(is_consecutive.sum()), 'pair')} of consecutive trials"
    )
    reward, is_rewarded = _scale_rewards(np.where(is_complete, table.reward[rows], np.nan), is_complete, notes)
    trials = ParticipantTrials(choice, state, second_choice, reward, is_complete, is_consecutive, starts_session)
    is_common, common_state = np.zeros((S, T), bool), np.tile([0, 1], (S, 1))
    if table.task == "two_step":
        stated = None if table.is_common is None else is_complete & (table.is_common[rows] == 1)
        is_common, common_state = _find_common_transitions(participants, trials, stated, notes)
    is_correct = None if table.is_correct is None else is_present & table.is_correct[rows]
    names, task = tuple(participants), (table.num_arms, table.has_second_choice)
    return ChoiceData(table.task, names, trials, is_common, common_state, is_rewarded, is_correct, *task, tuple(notes))


def _sort_rows(table: ChoiceTable, notes: list[str]) -> SortedRows:
    """The readable rows of participants with enough complete trials, sorted by session and trial."""
    all_rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    num_restarts, unsorted, excluded = 0, [], []
    for participant in dict.fromkeys(table.participant[table.is_readable].tolist()):
        of_participant = np.nonzero(table.is_readable & (table.participant == participant))[0]
        parts = []
        for session in dict.fromkeys(table.session[of_participant].tolist()):
            rows = of_participant[table.session[of_participant] == session]
            steps = np.diff(table.trial[rows])
            if len(set(table.trial[rows].tolist())) == len(rows):
                unsorted += [participant] if (steps < 0).any() else []
                parts.append((rows[np.argsort(table.trial[rows], kind="stable")], np.arange(len(rows)) == 0))
            else:
                parts.append((rows, np.concatenate([[True], steps <= 0])))
                num_restarts += int((steps <= 0).sum())
        if table.is_complete[of_participant].sum() < MIN_TRIALS:
            excluded.append(participant)
        else:
            rows_of_sessions, starts = zip(*parts, strict=True)
            all_rows[participant] = np.concatenate(rows_of_sessions), np.concatenate(starts)
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
    padded = SortedRows(list(all_rows), np.full(shape, -1), np.zeros(shape, bool))
    for s, (rows, starts) in enumerate(all_rows.values()):
        padded.rows[s, : len(rows)], padded.starts_session[s, : len(rows)] = rows, starts
    return padded


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
    participants: Sequence[str], trials: ParticipantTrials, stated: np.ndarray | None, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Which transitions were common [S, T], as stated or by majority, and the common state of each choice [S, 2]."""
    common_states, unclear, contradictory, shares = [], [], [], []
    for s, participant in enumerate(participants):
        is_complete = trials.is_complete[s]
        is_same_index = trials.choice[s] == trials.state[s]
        share = (is_same_index == (True if stated is None else stated[s]))[is_complete].mean()
        common_states.append([0, 1] if share >= 0.5 else [1, 0])
        majority = max(share, 1 - share)
        shares.append(majority)
        if stated is not None and majority < 1:
            contradictory.append(f"{participant} ({(1 - majority):.0%})")
        if stated is None and abs(share - 0.5) * 2 * np.sqrt(is_complete.sum()) < MIN_Z:
            unclear.append(f"{participant} ({majority:.0%})")
    common_state = np.array(common_states)
    if stated is not None:
        if contradictory:
            notes.append(
                "WARNING: 'transition' and states disagree in part of the trials of "
                f"{', '.join(contradictory)}, possibly because transitions change within a session; "
                "models use the majority"
            )
        return stated, common_state
    num_straight = len(participants) - int((common_state[:, 0] == 1).sum())
    notes.append(
        f"common and rare transitions are inferred from each participant's majority: {np.mean(shares):.1%} common; "
        f"the first choice commonly leads to the first state for {num_straight} of "
        f"{pluralize(len(participants), 'participant')}"
    )
    if unclear:
        notes.append(f"WARNING: which transition is common is not clear for {', '.join(unclear)}")
    commonly_reached = common_state[np.arange(len(participants))[:, None], trials.choice]
    return trials.is_complete & (trials.state == commonly_reached), common_state
