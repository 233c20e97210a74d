"""Does a content contain a planner? Thresholds and the rule of the verdict, fixed before the experiment was run.

A verdict is about a cell, and its unit of inference is the run. The interval of a share is Student's t over the runs,
widened to at least the exact binomial interval of all test streams together, because equal shares in all runs are no
certainty.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ontogeny.runs.records import Record
from ontogeny.stats import clopper_pearson, mean_interval

MIN_FIRST_CHOICE = 0.90
MIN_INDEX = 0.80  # of revaluation, in each layer and in pairs, at each time
MAX_INDEX_WITHOUT = 0.10  # of a content that does not plan, in some layer at all times
MIN_LOOK_UP = 0.99
MIN_OWN_CHOICES = 0.90
MAX_RISE = 0.05  # of that index over the last half of the training
MIN_OPTIMAL_OTHER_GOAL = 0.90  # where the optima of two goals differ, and where they agree


TIMINGS = ("before any choice", "at once", "after filler")  # as in `abilities`, which imports JAX
VERDICTS = ("contains a planner", "contains no planner", "plans afresh, then caches", "undetermined")


class CellVerdict(NamedTuple):
    """The verdict on a cell with its reason."""

    verdict: str  # one of VERDICTS
    reason: str


class ShareOverRuns(NamedTuple):
    """The mean of a share over runs with its 95 % interval."""

    mean: float
    low: float
    high: float


def share_over_runs(runs: Sequence[Record], name: str) -> ShareOverRuns | None:
    """The mean of a measure over runs with its interval; None where the runs do not have it.

    Args:
        runs: Records of the runs of one cell, at least two.
        name: Of a measure: a share, or a difference of two shares.
    """
    if any(name not in run["measures"] for run in runs):
        return None
    values = [run["measures"][name] for run in runs]
    interval = mean_interval(values)
    num_streams = sum(run["num_streams"].get(name, 0) for run in runs)
    low, high = interval.low, interval.high
    if num_streams:
        size = abs(interval.mean)
        exact_low, exact_high = clopper_pearson(round(size * num_streams), num_streams)
        low = min(low, interval.mean - (size - exact_low))
        high = max(high, interval.mean + (exact_high - size))
    return ShareOverRuns(interval.mean, low, high)


def decide(runs: Sequence[Record], depth: int) -> CellVerdict:
    """Decides about a cell.

    Args:
        runs: Records of its runs.
        depth: Of its environment.
    """
    if len(runs) < 2:
        return CellVerdict("undetermined", "one run says nothing about others")
    shares = {name: share for name in _names(depth) if (share := share_over_runs(runs, name)) is not None}
    layers = [f"layer {layer}" for layer in range(1, depth + 1)]
    tested = {f"{name}, {timing}": shares[f"{name}, {timing}"] for name in (*layers, "pair") for timing in TIMINGS}
    if shares["look-up"].low < MIN_LOOK_UP and shares["first choice"].low < MIN_FIRST_CHOICE:
        return CellVerdict("undetermined", f"links are looked up in {shares['look-up'].mean:.1%} only")
    weakest = min(tested, key=lambda name: tested[name].low)
    if shares["first choice"].low >= MIN_FIRST_CHOICE and tested[weakest].low >= MIN_INDEX:
        return CellVerdict("contains a planner", f"its weakest index is {tested[weakest].mean:.2f} ({weakest})")
    for layer in layers:
        indices = [tested[f"{layer}, {timing}"] for timing in TIMINGS]
        competent = shares["look-up"].low >= MIN_LOOK_UP and shares["own choices"].low >= MIN_OWN_CHOICES
        if competent and max(index.high for index in indices) <= MAX_INDEX_WITHOUT and _is_steady(runs, layer):
            mean = max(index.mean for index in indices)
            return CellVerdict("contains no planner", f"{layer}: its index is at most {mean:.2f} at all times")
    afresh = [tested[f"{layer}, {TIMINGS[0]}"] for layer in layers]
    later = [tested[f"{layer}, {timing}"] for layer in layers for timing in TIMINGS[1:]]
    if min(index.low for index in afresh) >= MIN_INDEX and min(index.high for index in later) <= MAX_INDEX_WITHOUT:
        return CellVerdict("plans afresh, then caches", "it follows changes only before it has seen a choice")
    return CellVerdict("undetermined", _shortfall(shares, tested, weakest))


def decide_goals(runs: Sequence[Record], goal: str) -> CellVerdict:
    """Decides whether the goal of a predicted planner can be chosen by the host that asks.

    Args:
        runs: Records of the runs of a cell.
        goal: The goal that is asked, which differs from that of the stream's agents.
    """
    names = [f"{goal}, {history}, {case}" for history in ("new", "after food") for case in ("differ", "agree")]
    shares = {name: share for name in names if (share := share_over_runs(runs, name)) is not None}
    measured = {name: share for name, share in shares.items() if any(run["num_streams"][name] for run in runs)}
    weakest = min(measured, key=lambda name: measured[name].low)
    reason = f"the weakest share of best choices is {measured[weakest].mean:.2f} ({weakest})"
    is_separable = measured[weakest].low >= MIN_OPTIMAL_OTHER_GOAL
    return CellVerdict("separable goal" if is_separable else "undetermined", reason)


def _names(depth: int) -> list[str]:
    """The names of all measures that the verdict reads."""
    layers = [*(f"layer {layer}" for layer in range(1, depth + 1)), "pair"]
    return ["look-up", "first choice", "own choices", *(f"{layer}, {timing}" for layer in layers for timing in TIMINGS)]


def _is_steady(runs: Sequence[Record], layer: str) -> bool:
    """Whether the mean index of a layer has not risen over the last half of the training, at any time."""
    for timing in TIMINGS:
        name = f"{layer}, {timing}"
        halves = [[point[name] for point in run["curve"] if point["updates"] * 2 >= run["num_updates"]] for run in runs]
        rises = [half[-1] - half[0] for half in halves if half]
        if rises and sum(rises) / len(rises) > MAX_RISE:
            return False
    return True


def _shortfall(shares: Mapping[str, ShareOverRuns], tested: Mapping[str, ShareOverRuns], weakest: str) -> str:
    """Which requirement of a planner is missed."""
    if shares["first choice"].low < MIN_FIRST_CHOICE:
        return f"the first choice is the best one in {shares['first choice'].mean:.2f}"
    return f"its weakest index is {tested[weakest].mean:.2f} ({weakest})"
