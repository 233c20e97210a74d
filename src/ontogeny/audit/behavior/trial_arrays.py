"""Arrangement of the rows of a file by participant and trial.

Two trials form a pair only if their numbers are consecutive within a session. A trial that was missed and asked again
under the same number forms no pair, neither with the trial before it nor with the one after it.
"""

from typing import NamedTuple

import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, ChoiceTable, ParticipantTrials
from ontogeny.audit.behavior.transitions import find_common_transitions
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

MIN_TRIALS = 10  # trials of a participant whose outcome is known
MAX_MISSED_SHARE = 0.2  # of trials, without a warning
MIN_MEAN_SESSION = 10  # trials; shorter sessions on average are a sign of unsorted rows


class _SortedRows(NamedTuple):
    """The rows of one participant in order."""

    rows: np.ndarray  # [N] int, indices of rows of the table
    starts_session: np.ndarray  # [N] bool
    is_repeated: np.ndarray  # [N] bool, the trial number occurs more than once in the session


def arrange_trials(table: ChoiceTable) -> ChoiceData:
    """Arranges the rows of a file by participant and trial.

    Rows are sorted by trial number, or divided into sessions where numbers restart. Rewards are scaled to 0 to 1, and
    the common transition is inferred where the file does not state it.

    Args:
        table: The columns of the file.

    Raises:
        BadInput: No participant has enough trials, or every reward is the same.
    """
    notes = list(table.notes)
    participants, rows, starts_session, is_repeated = _sort_rows(table, notes)
    S, T = rows.shape
    trial_numbers, is_present = table.trial[rows], rows >= 0
    is_next_number = np.diff(trial_numbers, prepend=trial_numbers[:, :1]) == 1
    # The roll brings the last trial to the first place, which starts a session.
    is_neighbor = is_next_number & is_present & ~starts_session & ~is_repeated & ~np.roll(is_repeated, 1, axis=1)
    has_outcome = is_present & table.has_outcome[rows]
    is_pair = has_outcome & np.roll(has_outcome, 1, axis=1) & is_neighbor
    num_gaps = int((is_present & ~starts_session & ~is_next_number & ~is_repeated).sum())
    _note_trials(participants, is_present, has_outcome, starts_session, is_pair, num_gaps, notes)
    second_choice = _known_second_choices(table, rows, has_outcome, notes)
    is_complete = has_outcome if second_choice is None else has_outcome & (second_choice >= 0)
    choice, state, option = (
        np.where(is_known, 0 if column is None else column, 0).astype(np.int32)
        for column, is_known in (
            (table.choice[rows], has_outcome),
            (table.state[rows], has_outcome),
            (second_choice, is_complete),
        )
    )
    reward, is_rewarded = _scale_rewards(np.where(has_outcome, table.reward[rows], np.nan), has_outcome, notes)
    is_consecutive = is_pair & is_complete & np.roll(is_complete, 1, axis=1)
    trials = ParticipantTrials(choice, state, option, reward, is_complete, is_consecutive, starts_session)
    is_common, common_state = np.zeros((S, T), bool), np.tile([0, 1], (S, 1))
    if table.task == "two_step":
        is_common_in_file = None if table.is_common is None else has_outcome & (table.is_common[rows] == 1)
        sessions = np.cumsum(starts_session, axis=1) - 1
        is_common, common_state = find_common_transitions(
            participants, choice == state, has_outcome, sessions, is_common_in_file, notes
        )
    is_correct = None if table.is_correct is None else is_present & table.is_correct[rows]
    return ChoiceData(
        table.task,
        tuple(participants),
        trials,
        has_outcome,
        is_pair,
        is_common,
        common_state,
        is_rewarded,
        is_correct,
        table.num_arms,
        second_choice is not None,
        tuple(notes),
    )


def _note_trials(
    participants: list[str],
    is_present: np.ndarray,
    has_outcome: np.ndarray,
    starts_session: np.ndarray,
    is_pair: np.ndarray,
    num_gaps: int,
    notes: list[str],
) -> None:
    """Notes the numbers of participants, sessions, trials, gaps and pairs; all arrays are [S, T]."""
    num_missed, num_trials = int((is_present & ~has_outcome).sum()), int(is_present.sum())
    notes.append(
        f"{pluralize(len(participants), 'participant')}, {pluralize(int(starts_session.sum()), 'session')}, "
        f"{pluralize(int(has_outcome.sum()), 'complete trial')}; {num_missed:,} missed "
        f"({num_missed / num_trials:.1%}); "
        f"{pluralize(num_gaps, 'gap')} in the trial numbers; "
        f"{pluralize(int(is_pair.sum()), 'pair')} of consecutive trials"
    )
    missed_shares = (is_present & ~has_outcome).sum(axis=1) / is_present.sum(axis=1)
    many = [f"{participants[s]} ({missed_shares[s]:.0%})" for s in np.nonzero(missed_shares > MAX_MISSED_SHARE)[0]]
    if many:
        notes.append(f"WARNING: many trials are missed in {', '.join(many)}; check the marks of missed trials")
    if not is_pair.any():
        notes.append("WARNING: no two trials are consecutive; check the column 'trial'")


def _known_second_choices(
    table: ChoiceTable, rows: np.ndarray, has_outcome: np.ndarray, notes: list[str]
) -> np.ndarray | None:
    """Second choices [S, T], -1 where missed; None where the file has none, or too few for choice models."""
    if table.second_choice is None:
        return None
    second_choice = table.second_choice[rows]
    is_known = has_outcome & (second_choice >= 0)
    if (is_known.sum(axis=1) < MIN_TRIALS).any():
        notes.append(
            f"WARNING: a participant has fewer than {MIN_TRIALS} second choices, and choice models ignore them"
        )
        return None
    if not is_known[has_outcome].all():
        notes.append(
            f"the second choice is missing in {int((has_outcome & ~is_known).sum()):,} trials: stay probabilities use "
            f"all {pluralize(int(has_outcome.sum()), 'complete trial')}, choice models the {int(is_known.sum()):,} "
            "trials with both choices"
        )
    return second_choice


def group_rows(labels: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of each different label in their order, by the first occurrence of the labels.

    Args:
        labels: [R].
    """
    _, first_row, index = np.unique(labels, return_index=True, return_inverse=True)
    groups = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    return [groups[i] for i in np.argsort(first_row)]


def _sort_rows(table: ChoiceTable, notes: list[str]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Sorts the readable rows of participants with enough trials by session and trial.

    Returns:
        Names of the S participants; indices of rows of the table [S, T], -1 where a participant has no more trials;
        whether a session starts [S, T]; and whether the trial number occurs more than once in the session [S, T].
    """
    readable_rows = np.nonzero(table.is_readable)[0]
    sorted_rows: dict[str, _SortedRows] = {}
    excluded: list[str] = []
    reports = _OrderReports([], [], 0, 0, 0)
    for indices in group_rows(table.participant[readable_rows]):
        rows = readable_rows[indices]
        participant = str(table.participant[rows[0]])
        if table.has_outcome[rows].sum() < MIN_TRIALS:
            excluded.append(participant)
        else:
            sorted_rows[participant], reports = _sort_participant(participant, table, rows, reports)
    notes += reports.sentences()
    if excluded:
        notes.append(f"excluded for fewer than {MIN_TRIALS} complete trials: {', '.join(excluded)}")
    if not sorted_rows:
        raise BadInput(f"no participant has {MIN_TRIALS} complete trials")
    shape = len(sorted_rows), max(len(part.rows) for part in sorted_rows.values())
    padded_rows, starts_session, is_repeated = np.full(shape, -1), np.zeros(shape, bool), np.zeros(shape, bool)
    for s, part in enumerate(sorted_rows.values()):
        N = len(part.rows)
        padded_rows[s, :N], starts_session[s, :N], is_repeated[s, :N] = part
    return list(sorted_rows), padded_rows, starts_session, is_repeated


class _OrderReports(NamedTuple):
    """What was found in sorting, for the notes."""

    unsorted: list[str]  # participants
    duplicated: list[str]  # participants with two identical sessions
    num_restarts: int  # of trial numbers
    num_repetitions: int  # rows that repeat the number of a missed trial
    num_duplicates: int  # rows that repeat the number of a complete trial

    def sentences(self) -> list[str]:
        """Returns a sentence about each finding."""
        sentences = []
        if self.unsorted:
            sentences.append(f"rows are sorted by trial number for {', '.join(dict.fromkeys(self.unsorted))}")
        if self.num_restarts:
            times = pluralize(self.num_restarts, "time")
            sentences.append(f"trial numbers restart within a participant {times}: each restart begins a new session")
        if self.num_repetitions:
            sentences.append(
                f"{pluralize(self.num_repetitions, 'missed trial')} asked again under the same number: the repetition "
                "counts as a trial, but its pairs with the trials before and after it are not used"
            )
        if self.num_duplicates:
            sentences.append(
                f"WARNING: {pluralize(self.num_duplicates, 'row')} repeat the number of a complete trial; trials with "
                "such a number form no pairs"
            )
        if self.duplicated:
            names = ", ".join(dict.fromkeys(self.duplicated))
            sentences.append(f"WARNING: two sessions are identical for {names}; perhaps the file contains them twice")
        return sentences


def _sort_participant(
    participant: str, table: ChoiceTable, all_rows: np.ndarray, reports: _OrderReports
) -> tuple[_SortedRows, _OrderReports]:
    """Sorts the rows [N] of one participant and adds to the reports."""
    sessions: list[np.ndarray] = []
    num_repetitions = num_duplicates = num_restarts = 0
    for indices in group_rows(table.session[all_rows]):
        rows = all_rows[indices]
        numbers = table.trial[rows]
        if len(np.unique(numbers)) == len(rows):
            if (np.diff(numbers) < 0).any():
                reports.unsorted.append(participant)
            sessions.append(rows[np.argsort(numbers)])
        else:
            parts = _split_at_restarts(rows, table)
            num_restarts += len(parts) - 1
            sessions += parts
    is_repeated = []
    contents: set[bytes] = set()
    for rows in sessions:
        _, index, counts = np.unique(table.trial[rows], return_inverse=True, return_counts=True)
        is_repeated.append(counts[index] > 1)
        num_complete = np.bincount(index, table.has_outcome[rows], len(counts)).astype(int)
        num_duplicates += int(np.maximum(num_complete - 1, 0).sum())
        num_repetitions += int((counts - np.maximum(num_complete, 1)).sum())
        content = np.stack([table.choice[rows], table.state[rows], table.reward[rows]]).tobytes()
        if content in contents and len(rows) >= MIN_TRIALS:
            reports.duplicated.append(participant)
        contents.add(content)
    starts = [np.arange(len(rows)) == 0 for rows in sessions]
    sorted_rows = _SortedRows(np.concatenate(sessions), np.concatenate(starts), np.concatenate(is_repeated))
    return sorted_rows, reports._replace(
        num_restarts=reports.num_restarts + num_restarts,
        num_repetitions=reports.num_repetitions + num_repetitions,
        num_duplicates=reports.num_duplicates + num_duplicates,
    )


def _split_at_restarts(rows: np.ndarray, table: ChoiceTable) -> list[np.ndarray]:
    """Divides rows [N] into sessions where trial numbers decrease, unless only missed trials are asked again."""
    numbers, has_outcome = table.trial[rows], table.has_outcome[rows]
    sessions: list[list[np.ndarray]] = []
    missed: set[int] = set()  # numbers of the session that have no outcome so far
    for segment in np.split(np.arange(len(rows)), np.nonzero(np.diff(numbers) < 0)[0] + 1):
        segment_numbers = set(numbers[segment].tolist())
        if not sessions or not segment_numbers <= missed:
            sessions.append([])
            missed = set()
        sessions[-1].append(rows[segment])
        missed = (missed | segment_numbers) - set(numbers[segment][has_outcome[segment]].tolist())
    return [np.concatenate(parts) for parts in sessions]


def _scale_rewards(rewards: np.ndarray, has_outcome: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [S, T] from 0 to 1, and whether each trial counts as rewarded; `rewards` are NaN where missed."""
    low, high = np.nanmin(rewards), np.nanmax(rewards)
    if not high > low:
        raise BadInput(f"every reward is {low:g}: there is nothing to learn from")
    num_levels = len(np.unique(rewards[~np.isnan(rewards)]))
    scaled = np.where(np.isnan(rewards), 0.0, (rewards - low) / (high - low)).astype(np.float32)
    if num_levels == 2:
        if (low, high) != (0, 1):
            notes.append(f"rewards are {low:g} and {high:g}: the larger one counts as rewarded")
        return scaled, has_outcome & (rewards == high)
    notes.append(
        f"rewards have {num_levels} levels from {low:g} to {high:g}: rewarded means above the participant's own mean; "
        "models use rewards scaled to the range 0 to 1"
    )
    if all(np.all(np.diff(row[~np.isnan(row)]) >= 0) for row in rewards):
        notes.append("WARNING: rewards never decrease within a participant, as those of a running total do")
    means = np.nanmean(rewards, axis=1, keepdims=True)
    return scaled, has_outcome & (np.nan_to_num(rewards, nan=low) > means)
