"""Rows as they were read -> choices by subject and trial: only consecutive trial numbers are neighbours."""

from collections.abc import Sequence

import numpy as np

from ontogeny.audit.behavior.base import Choices, Rows, Trials, count
from ontogeny.errors import BadInput

FEWEST = 10  # trials of a subject that are there


def arranged(rows: Rows) -> Choices:
    """Sorted or cut into sessions by trial number, transitions inferred, rewards in 0 ... 1."""
    (task, arms, has_second, subject, session, trial, choice, place, second, common, reward, missing, correct, keep) = (
        rows[:-1]
    )
    said = list(rows.said)
    rows_of: list[np.ndarray] = []
    begins_of: list[np.ndarray] = []
    people, restarted, resorted = [], 0, []
    for who in dict.fromkeys(subject[keep].tolist()):
        mine = np.nonzero(keep & (subject == who))[0]
        together: list[int] = []
        begins: list[bool] = []
        for part in dict.fromkeys(session[mine].tolist()):
            own = mine[session[mine] == part]
            if len(set(trial[own].tolist())) == len(own):
                if (np.diff(trial[own]) < 0).any():
                    resorted.append(who)
                own = own[np.argsort(trial[own], kind="stable")]
                starts = np.arange(len(own)) == 0
            else:
                starts = np.concatenate([[True], np.diff(trial[own]) <= 0])
                restarted += int(starts.sum()) - 1
            together += own.tolist()
            begins += starts.tolist()
        people.append(who)
        rows_of.append(np.array(together))
        begins_of.append(np.array(begins))
    if resorted:
        said.append(f"rows sorted by trial number for {', '.join(dict.fromkeys(resorted))}")
    if restarted:
        said.append(f"trial numbers begin anew within a subject {count(restarted, 'time')}: each is a new session")
    few = [who for who, own in zip(people, rows_of, strict=True) if (~missing[own]).sum() < FEWEST]
    if few:
        said.append(f"left out for fewer than {FEWEST} whole trials: {', '.join(few)}")
        kept = [i for i, who in enumerate(people) if who not in few]
        people, rows_of = [people[i] for i in kept], [rows_of[i] for i in kept]
        begins_of = [begins_of[i] for i in kept]
    if not people:
        raise BadInput(f"no subject has {FEWEST} trials of which all is known")
    S, T = len(people), max(map(len, rows_of))
    spread = {
        name: np.zeros((S, T), kind)
        for name, kind in (
            ("choice", np.int32), ("place", np.int32), ("second", np.int32), ("reward", np.float32),
            ("there", bool), ("follows", bool), ("begins", bool),
        )
    }  # fmt: skip
    was_common, rewarded = np.zeros((S, T), bool), np.zeros((S, T), bool)
    flags = None if correct is None else np.zeros((S, T), bool)
    raw = np.full((S, T), np.nan)
    gaps = lost = 0
    for s, (own, starts) in enumerate(zip(rows_of, begins_of, strict=True)):
        n = len(own)
        there = ~missing[own]
        next_to = np.concatenate([[False], np.diff(trial[own]) == 1]) & ~starts
        gaps += int((~next_to & ~starts).sum())
        before = np.concatenate([[False], there[:-1]])
        lost += int((~there).sum())
        spread["choice"][s, :n] = np.where(there, choice[own], 0)
        spread["place"][s, :n] = np.where(there, place[own], 0)
        spread["second"][s, :n] = np.where(there, second[own], 0)
        spread["there"][s, :n], spread["begins"][s, :n] = there, starts
        spread["follows"][s, :n] = there & before & next_to
        raw[s, :n] = np.where(there, reward[own], np.nan)
        if common is not None:
            was_common[s, :n] = there & (common[own] == 1)
        if flags is not None and correct is not None:
            flags[s, :n] = correct[own]
    said.append(
        f"{count(S, 'subject')}, {count(int(spread['there'].sum()), 'trial')}; {lost} missed; "
        f"{count(gaps, 'gap')} in the trial numbers; {count(int(spread['follows'].sum()), 'pair')} of consecutive "
        "trials"
    )
    low, high = np.nanmin(raw), np.nanmax(raw)
    if not high > low:
        raise BadInput(f"every reward is {low:g}: there is nothing to learn from")
    levels = np.unique(raw[~np.isnan(raw)])
    spread["reward"] = np.where(np.isnan(raw), 0.0, (raw - low) / (high - low)).astype(np.float32)
    if len(levels) == 2:
        rewarded = spread["there"] & (raw == high)
        if (low, high) != (0, 1):
            said.append(f"rewards {low:g} and {high:g}: the larger counts as rewarded")
    else:
        rewarded = spread["there"] & (np.nan_to_num(raw, nan=low) > np.nanmean(raw, axis=1, keepdims=True))
        said.append(
            f"{len(levels)} levels of reward, {low:g} to {high:g}: rewarded means above the subject's own mean; models "
            "take rewards scaled to 0 ... 1"
        )
    good = np.tile([0, 1], (S, 1))
    trials = Trials(**spread)
    if task == "two_step":
        was_common, good = _common(people, trials, was_common if common is not None else None, said)
    return Choices(task, tuple(people), trials, was_common, good, rewarded, flags, arms, has_second, tuple(said))


def _common(
    people: Sequence[str], trials: Trials, given: np.ndarray | None, said: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Which transitions were common [S, T], as given or by each subject's majority, and where choices lead [S, 2]."""
    straight = trials.choice == trials.place
    good, unclear, against, shares = [], [], [], []
    for s, who in enumerate(people):
        there = trials.there[s]
        agrees = straight[s] == (given[s] if given is not None else True)
        share = agrees[there].mean()
        good.append([0, 1] if share >= 0.5 else [1, 0])
        clear = max(share, 1 - share)
        shares.append(clear)
        if given is not None and clear < 1:
            against.append(f"{who} ({(1 - clear):.0%})")
        if given is None and abs(share - 0.5) * 2 * np.sqrt(there.sum()) < 2:
            unclear.append(f"{who} ({clear:.0%})")
    table = np.array(good)
    if given is None:
        crossed = int((table[:, 0] == 1).sum())
        said.append(
            f"common and rare inferred by each subject's majority: {np.mean(shares):.1%} common, "
            f"the first choice leads to the first state for {len(people) - crossed} of {count(len(people), 'subject')}"
        )
        if unclear:
            said.append(f"WARNING: which transition is common is not clear for {', '.join(unclear)}")
        leads = table[np.arange(len(people))[:, None], trials.choice]
        return trials.there & (trials.place == leads), table
    if against:
        said.append(
            f"WARNING: 'transition' and second states disagree in part of the trials of {', '.join(against)}, as where "
            "transitions change within a session: models take the majority"
        )
    return given, table
