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


class ParticipantRows(NamedTuple):
    """The rows of one participant in the order of their trials."""

    participant: str
    rows: np.ndarray  # [n] int, indices of rows of the table
    starts_session: np.ndarray  # [n] bool


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
    parts = _exclude_short(_sort_rows(table, notes), table, notes)
    S, T = len(parts), max(len(part.rows) for part in parts)
    trials = ParticipantTrials(
        *(np.zeros((S, T), dtype) for dtype in (np.int32, np.int32, np.int32, np.float32, bool, bool, bool))
    )
    is_common = np.zeros((S, T), bool)
    is_correct = None if table.is_correct is None else np.zeros((S, T), bool)
    rewards = np.full((S, T), np.nan)
    num_gaps = num_missed = 0
    for s, (_, rows, starts_session) in enumerate(parts):
        n = len(rows)
        is_complete = ~table.is_missing[rows]
        follows_directly = np.concatenate([[False], np.diff(table.trial[rows]) == 1]) & ~starts_session
        num_gaps += int((~follows_directly & ~starts_session).sum())
        num_missed += int((~is_complete).sum())
        for name in ("choice", "state", "second_choice"):
            getattr(trials, name)[s, :n] = np.where(is_complete, getattr(table, name)[rows], 0)
        trials.is_complete[s, :n], trials.starts_session[s, :n] = is_complete, starts_session
        trials.is_consecutive[s, :n] = is_complete & np.concatenate([[False], is_complete[:-1]]) & follows_directly
        rewards[s, :n] = np.where(is_complete, table.reward[rows], np.nan)
        if table.is_common is not None:
            is_common[s, :n] = is_complete & (table.is_common[rows] == 1)
        if is_correct is not None and table.is_correct is not None:
            is_correct[s, :n] = table.is_correct[rows]
    notes.append(
        f"{pluralize(S, 'participant')}, {pluralize(int(trials.is_complete.sum()), 'complete trial')}; "
        f"{num_missed} missed; {pluralize(num_gaps, 'gap')} in the trial numbers; "
        f"{pluralize(int(trials.is_consecutive.sum()), 'pair')} of consecutive trials"
    )
    scaled, is_rewarded = _scale_rewards(rewards, trials.is_complete, notes)
    trials = trials._replace(reward=scaled)
    participants = tuple(part.participant for part in parts)
    common_state = np.tile([0, 1], (S, 1))
    if table.task == "two_step":
        stated = is_common if table.is_common is not None else None
        is_common, common_state = _find_common_transitions(participants, trials, stated, notes)
    return ChoiceData(
        table.task,
        participants,
        trials,
        is_common,
        common_state,
        is_rewarded,
        is_correct,
        table.num_arms,
        table.has_second_choice,
        tuple(notes),
    )


def _sort_rows(table: ChoiceTable, notes: list[str]) -> list[ParticipantRows]:
    """The readable rows by participant, sorted by session and trial."""
    parts, num_restarts, sorted_participants = [], 0, []
    for participant in dict.fromkeys(table.participant[table.is_readable].tolist()):
        of_participant = np.nonzero(table.is_readable & (table.participant == participant))[0]
        sorted_rows, all_starts = [], []
        for session in dict.fromkeys(table.session[of_participant].tolist()):
            rows = of_participant[table.session[of_participant] == session]
            steps = np.diff(table.trial[rows])
            if len(set(table.trial[rows].tolist())) == len(rows):
                if (steps < 0).any():
                    sorted_participants.append(participant)
                rows = rows[np.argsort(table.trial[rows], kind="stable")]
                starts = np.arange(len(rows)) == 0
            else:
                starts = np.concatenate([[True], steps <= 0])
                num_restarts += int(starts.sum()) - 1
            sorted_rows.append(rows)
            all_starts.append(starts)
        parts.append(ParticipantRows(participant, np.concatenate(sorted_rows), np.concatenate(all_starts)))
    if sorted_participants:
        notes.append(f"rows are sorted by trial number for {', '.join(dict.fromkeys(sorted_participants))}")
    if num_restarts:
        times = pluralize(num_restarts, "time")
        notes.append(f"trial numbers restart within a participant {times}: each restart begins a new session")
    return parts


def _exclude_short(parts: Sequence[ParticipantRows], table: ChoiceTable, notes: list[str]) -> list[ParticipantRows]:
    """The participants with enough complete trials."""
    long_enough = [part for part in parts if (~table.is_missing[part.rows]).sum() >= MIN_TRIALS]
    names = {part.participant for part in long_enough}
    excluded = [part.participant for part in parts if part.participant not in names]
    if excluded:
        notes.append(f"excluded for fewer than {MIN_TRIALS} complete trials: {', '.join(excluded)}")
    if not long_enough:
        raise BadInput(f"no participant has {MIN_TRIALS} complete trials")
    return long_enough


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
