"""Columns of the second stage of a two-step task: states, second choices and transitions."""

from collections import Counter
from statistics import mode

import numpy as np

from ontogeny.audit.behavior.column_reader import ColumnReader
from ontogeny.audit.behavior.labels import MISSING_CODES, count_labels, normalize_label, parse_number, sort_labels
from ontogeny.errors import BadInput
from ontogeny.report.formatting import pluralize

COMMON_WORDS = frozenset({"common", "c", "frequent", "likely", "expected", "usual", "true", "t"})
RARE_WORDS = frozenset({"rare", "r", "uncommon", "infrequent", "unlikely", "unexpected", "unusual", "false", "f"})
MIN_SHARE_IN_STATE = 0.9  # of a label's rows, for a second choice that exists in one state only
SECOND_CHOICE_SIZES = (2, 4)  # the same two labels in both states, or two labels for each state


def read_second_stage(
    reader: ColumnReader, choice: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Reads the columns of the second stage.

    Args:
        reader: The columns of a two-step task.
        choice: [R], first choices, -1 where missed.

    Returns:
        The state [R] from 0, -1 where state or transition are missed; the second choice [R], 0 or 1, -1 where it is
        missed; and 1 for a common, 0 for a rare and -1 for a missed transition [R]. None where the file has no such
        column.
    """
    columns = reader.columns
    is_common = _read_transitions(reader) if "transition" in columns else None
    state, second_choice = None, None
    if "state" in columns:
        state, _ = reader.read_labels("state", (2,))
    state_of_transition = None if is_common is None else _state_of_transition(choice, is_common)
    if "choice2" in columns:
        state, second_choice = _read_second_choices(reader, state, state_of_transition)
    if state is None:
        assert state_of_transition is not None  # a two-step task has one of the three columns
        state = state_of_transition
        reader.notes.append("states are derived from transitions, as the file has no column of states")
    return state if is_common is None else np.where(is_common < 0, -1, state), second_choice, is_common


def _state_of_transition(choice: np.ndarray, is_common: np.ndarray) -> np.ndarray:
    """The state [R] if each choice commonly leads to the state of the same number, -1 where it is unknown."""
    return np.where((choice < 0) | (is_common < 0), -1, np.where(is_common == 1, choice, 1 - choice))


def _read_second_choices(
    reader: ColumnReader, state: np.ndarray | None, state_of_transition: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Completed states, where the file shows them, and second choices within states, [R] each, -1 where missed."""
    known_state = state_of_transition if state is None else state
    label_texts = reader.normalized_labels("choice2")
    uses = count_labels(label_texts, reader.rewards)
    if len(uses) == 3 and known_state is not None and _is_divided_by_state(label_texts, known_state):
        reader.note_missing("choice2", label_texts)
        codes = {label: code for code, label in enumerate(sort_labels(uses))}
        label = np.array([codes.get(text, -1) for text in label_texts])
        reader.notes.append("one of the four second choices never occurs; each of the others belongs to one state")
        return _options_within_states(reader, label, known_state)
    if len(uses) == 3 and known_state is None and not set(MISSING_CODES) & uses.keys():
        return _read_numbered_choices(reader, label_texts)
    label, labels = reader.read_labels("choice2", SECOND_CHOICE_SIZES)
    if len(labels) == 4 and state is not None:
        return _options_within_states(reader, label, state)
    if len(labels) == 4:
        reader.notes.append("each state is derived from its second choices, the two lower or the two higher labels")
        return np.where(label < 0, -1, label // 2), np.where(label < 0, -1, label % 2)
    if known_state is None:
        raise BadInput(
            f"the second choices {' and '.join(labels)} do not show the state: the file needs a column 'state' or "
            "'transition'"
        )
    return state, label


def _is_divided_by_state(labels: list[str], state: np.ndarray) -> bool:
    """Whether each label belongs to one state, except for errors in single rows."""
    counts = {pair: count for pair, count in Counter(zip(labels, state.tolist(), strict=True)).items() if pair[0]}
    for label in {label for label, _ in counts}:
        counts_by_state = [counts.get((label, s), 0) for s in (0, 1)]
        if max(counts_by_state) < MIN_SHARE_IN_STATE * max(sum(counts_by_state), 1):
            return False
    return True


def _read_numbered_choices(reader: ColumnReader, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """States and second choices [R] from three of the numbers 1 to 4."""
    numbers = np.array([parse_number(label) if label else -1 for label in labels], float)  # None is NaN
    if not np.isin(numbers, (-1, 1, 2, 3, 4)).all() or not (numbers == 4).any():
        raise BadInput(
            f"the column 'choice2' contains {', '.join(sorted(set(labels) - {''}))}: with three different values the "
            "file needs a column 'state' or 'transition'"
        )
    reader.note_missing("choice2", labels)
    reader.notes.append("each state is derived from its second choices, 1 and 2 or 3 and 4, of which one never occurs")
    code = numbers.astype(int) - 1
    return np.where(code < 0, -1, code // 2), np.where(code < 0, -1, code % 2)


def _options_within_states(reader: ColumnReader, label: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States [R], completed by the second choices, and these as 0 and 1 within each state; -1 where missed."""
    num_labels = int(label.max()) + 1
    states = np.array([mode(state[(label == k) & (state >= 0)].tolist() or [-1]) for k in range(num_labels)])
    if min(states) < 0 or max(np.bincount(states)) > 2:
        raise BadInput("two of the four second choices must belong to each state: check the column 'state'")
    is_known = (label >= 0) & (state >= 0)
    reader.reject("choice2", is_known & (state != states[label]), "belongs to the other state")
    is_completed = (label >= 0) & (state < 0)
    if is_completed.any():
        rows = pluralize(int(is_completed.sum()), "row")
        reader.notes.append(f"the state is missing in {rows} and is derived from the second choice")
    rank = np.array([np.sum(states[:k] == states[k]) for k in range(num_labels)])
    return np.where(is_completed, states[label], state), np.where(label < 0, -1, rank[label])


def _read_transitions(reader: ColumnReader) -> np.ndarray:
    """1 for common, 0 for rare, -1 where missed [R]."""
    labels = [normalize_label(field.lower()) for field in reader.columns["transition"]]
    codes = _transition_codes(reader, Counter(filter(None, labels)))
    is_common = reader.encode("transition", labels, codes, "is neither common nor rare")
    reader.note_missing("transition", labels)
    if (is_common == 0).sum() > (is_common == 1).sum():
        reader.notes.append("WARNING: rare transitions are more frequent than common ones; check their coding")
    return is_common


def _transition_codes(reader: ColumnReader, counts: Counter[str]) -> dict[str, int]:
    """The code of each label, 1 for common, 0 for rare, -1 for missed, from the number of rows with each label.

    Known words and the numbers 1 and -1 have a fixed meaning; otherwise the more frequent of two labels is common.
    """
    missing_codes = MISSING_CODES
    if {"-1", "1"} <= counts.keys() and "2" not in counts:
        codes = {"1": 1, "-1": 0}
        reader.notes.append("'transition' 1 is common, -1 is rare")
    elif counts.keys() & (COMMON_WORDS | RARE_WORDS):
        codes = dict.fromkeys(COMMON_WORDS, 1) | dict.fromkeys(RARE_WORDS, 0)
    elif len(counts) < 2:
        raise BadInput("the column 'transition' has a single value: common and rare cannot be distinguished")
    else:
        (common, _), (rare, _) = counts.most_common(2)
        codes, missing_codes = {common: 1, rare: 0}, ("-1",)  # a third label 0 is an error
        reader.notes.append(f"'transition' {common} is more frequent and read as common, {rare} as rare")
    for missing_code in missing_codes:
        if counts[missing_code] and missing_code not in codes:
            codes[missing_code] = -1
            reader.notes.append(f"'transition' {missing_code} marks a missed trial ({counts[missing_code]} times)")
    return codes
