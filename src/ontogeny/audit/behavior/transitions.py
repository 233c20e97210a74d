"""Which transitions of a two-step task are common, where a file does not say so, and whether that changes.

One direction is pooled over participants, so that short runs do not decide by chance; only where participants clearly
disagree, as with counterbalanced keys, each one has its own. A change between sessions or within one is noted:
transitions that are drawn independently show no autocorrelation (Box & Pierce 1970, JASA 65:1509).
"""

from collections.abc import Sequence

import numpy as np

from ontogeny.report.formatting import pluralize

MIN_CLEAR_Z = 3.0  # standard errors by which a share of common transitions differs from one half where it is clear
MIN_POOLED_Z = 2.0  # the same for the pooled share, without a warning
NUM_LAGS = 8  # of the autocorrelation
MIN_CHANGE_Z = 4.0  # of the summed autocorrelation, above which the common transition changes


def find_common_transitions(
    participants: Sequence[str],
    is_straight: np.ndarray,
    has_outcome: np.ndarray,
    session: np.ndarray,
    is_common_in_file: np.ndarray | None,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the common state of each first choice.

    Args:
        participants: Names of the S participants.
        is_straight: [S, T] bool, a choice led to the state of the same number.
        has_outcome: [S, T] bool, the trials that count.
        session: [S, T] int from 0.
        is_common_in_file: [S, T] bool, where the file states it.
        notes: Receives a sentence about the decision.

    Returns:
        Whether each transition was common, [S, T] bool, and the common state of each choice [S, 2].
    """
    is_straight = is_straight == (True if is_common_in_file is None else is_common_in_file)
    num_straight, num_trials = _count(is_straight, has_outcome), has_outcome.sum(axis=1)
    if is_common_in_file is not None:
        share = num_straight / num_trials
        majority = np.maximum(share, 1 - share)
        contradictory = [f"{participants[s]} ({1 - majority[s]:.0%})" for s in np.nonzero(majority < 1)[0].tolist()]
        if contradictory:
            notes.append(
                "WARNING: 'transition' and states disagree in part of the trials of "
                f"{', '.join(contradictory)}, possibly because transitions change within a session; "
                "models use the majority"
            )
        return is_common_in_file, np.where(share[:, None] >= 0.5, [0, 1], [1, 0])
    direction = _pool_directions(participants, num_straight, num_trials, notes)
    is_common = has_outcome & (is_straight == (direction > 0)[:, None])
    _note_changes(participants, is_straight, has_outcome, session, notes)
    return is_common, np.where(direction[:, None] > 0, [0, 1], [1, 0])


def _count(is_true: np.ndarray, is_counted: np.ndarray) -> np.ndarray:
    """How many of the trials that count have a property, [S]."""
    return (is_true & is_counted).sum(axis=1)


def _z_score(num_straight: np.ndarray, num_trials: np.ndarray) -> np.ndarray:
    """By how many standard errors a share differs from one half; 0 where there are no trials."""
    return (2 * num_straight - num_trials) / np.sqrt(np.maximum(num_trials, 1))


def _pool_directions(
    participants: Sequence[str], num_straight: np.ndarray, num_trials: np.ndarray, notes: list[str]
) -> np.ndarray:
    """1 where the first choice commonly leads to the first state, -1 where it leads to the second, [S]."""
    z = _z_score(num_straight, num_trials)
    pooled_z = float(_z_score(num_straight.sum(), num_trials.sum()))
    is_clear = np.abs(z) >= MIN_CLEAR_Z
    do_disagree = len(np.unique(np.sign(z[is_clear]))) > 1
    majority = np.where(z == 0, 1.0 if pooled_z >= 0 else -1.0, np.sign(z))
    direction = majority if do_disagree else np.full(len(z), 1.0 if pooled_z >= 0 else -1.0)
    share = float(np.where(direction > 0, num_straight, num_trials - num_straight).sum() / num_trials.sum())
    source = "inferred for each participant, as participants disagree" if do_disagree else "pooled over participants"
    notes.append(
        f"common and rare transitions are {source}: {share:.1%} common; the first choice commonly leads to the first "
        f"state for {(direction > 0).sum()} of {pluralize(len(z), 'participant')}"
    )
    if do_disagree and not is_clear.all():
        unclear = [f"{participants[s]} ({abs(z[s]):.1f} standard errors)" for s in np.nonzero(~is_clear)[0].tolist()]
        notes.append(f"WARNING: which transition is common is not clear for {', '.join(unclear)}")
    if not do_disagree and abs(pooled_z) < MIN_POOLED_Z:
        notes.append(f"WARNING: which transition is common is not clear: {share:.1%} of all trials")
    return direction


def _note_changes(
    participants: Sequence[str],
    is_straight: np.ndarray,
    has_outcome: np.ndarray,
    session: np.ndarray,
    notes: list[str],
) -> None:
    """Notes the participants whose common transition changes between sessions or within one; all arrays are [S, T]."""
    z_by_session = _z_scores_by_session(is_straight, has_outcome, session)
    changes = (z_by_session.max(axis=1) >= MIN_CLEAR_Z) & (z_by_session.min(axis=1) <= -MIN_CLEAR_Z)
    pooled = z_by_session.sum(axis=0) / np.sqrt(len(z_by_session))
    advice = "the analysis takes the same one throughout; a column 'transition' states it for each trial"
    if changes.any():
        names = ", ".join(participants[s] for s in np.nonzero(changes)[0].tolist())
        notes.append(f"WARNING: the common transition changes between sessions of {names}; {advice}")
    elif pooled.max() >= MIN_CLEAR_Z and pooled.min() <= -MIN_CLEAR_Z:
        notes.append(f"WARNING: the common transition changes between sessions; {advice}")
    autocorrelation = _autocorrelation_z(is_straight, has_outcome, session)
    changes = autocorrelation >= MIN_CHANGE_Z
    if changes.any() or autocorrelation.sum() >= MIN_CHANGE_Z * np.sqrt(len(autocorrelation)):
        names = ", ".join(participants[s] for s in np.nonzero(changes)[0].tolist()) or "several participants"
        notes.append(f"WARNING: the common transition changes within sessions of {names}; {advice}")


def _z_scores_by_session(is_straight: np.ndarray, has_outcome: np.ndarray, session: np.ndarray) -> np.ndarray:
    """The z score of each participant in each session, [S, sessions]."""
    S, num_sessions = len(session), int(session.max()) + 1
    index = (np.arange(S)[:, None] * num_sessions + session).ravel()
    counts = (
        np.bincount(index, weights.ravel(), S * num_sessions).reshape(S, num_sessions)
        for weights in (is_straight & has_outcome, has_outcome)
    )
    return _z_score(*counts)


def _autocorrelation_z(is_straight: np.ndarray, has_outcome: np.ndarray, session: np.ndarray) -> np.ndarray:
    """The standardized sum [S] of the first autocorrelations of transitions within sessions; all arrays are [S, T]."""
    num_trials = np.maximum(has_outcome.sum(axis=1, keepdims=True), 1)
    mean = _count(is_straight, has_outcome)[:, None] / num_trials
    deviation = np.where(has_outcome, is_straight - mean, 0.0)
    products, num_products = np.zeros(len(session)), np.zeros(len(session))
    for lag in range(1, NUM_LAGS + 1):
        is_within = session[:, lag:] == session[:, :-lag]
        products += (deviation[:, lag:] * deviation[:, :-lag] * is_within).sum(axis=1)
        num_products += (has_outcome[:, lag:] & has_outcome[:, :-lag] & is_within).sum(axis=1)
    variance = (deviation**2).sum(axis=1) / num_trials[:, 0]
    return products / np.maximum(variance * np.sqrt(np.maximum(num_products, 1)), 1e-12)
