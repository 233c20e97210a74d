"""Does a content contain a planner? Thresholds and the rule of the verdict, fixed before the experiment was run.

A verdict is about a cell, and its unit of inference is the run. The interval of a share is Student's t over the runs,
widened to at least the exact binomial interval of all test streams together, because equal shares in all runs are no
certainty. The module reads records and computes with plain numbers; it does not import JAX.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ontogeny.report.formatting import format_fixed
from ontogeny.runs.records import Record
from ontogeny.stats import ZERO_SPREAD, clopper_pearson, mean_interval

MIN_FIRST_CHOICE = 0.90
MIN_INDEX = 0.80  # of revaluation, in each layer and in pairs, at each time
MAX_INDEX_WITHOUT = 0.10  # of a content that does not plan, in some layer at all times
MIN_LOOK_UP = 0.99
MIN_OWN_CHOICES = 0.90
MAX_RISE = 0.05  # of that index over the last half of the training
MIN_OPTIMAL_OTHER_GOAL = 0.90  # where the optima of two goals differ, and where they agree
CONTROLS = ("random", "monte_carlo")  # cells whose index must be at most MAX_INDEX_WITHOUT for any planner to count
DIFFERENCES = ("layer ", "pair, ", "interchange, ")  # how the names of differences of two shares begin
KIND = "planning_run"  # of the records

TIMINGS = ("before any choice", "at once", "after filler")  # as in `abilities`, which imports JAX
VERDICTS = ("contains a planner", "contains no planner", "plans afresh, then caches", "undetermined")


class CellVerdict(NamedTuple):
    """The verdict on a cell with its reason."""

    verdict: str  # one of VERDICTS
    reason: str


class ShareOverRuns(NamedTuple):
    """The mean of a measure over runs with its 95 % interval, whose ends are NaN for a single run."""

    mean: float
    low: float
    high: float


def collect_cells(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of runs by the name of their cell."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == KIND:
            cells.setdefault(record["cell"], []).append(record)
    return cells


def depth_of(run: Record) -> int:
    """The depth of the environment of a run, which is the number of layers that it measures."""
    return sum(f"layer {layer}, {TIMINGS[0]}" in run["measures"] for layer in range(1, 10))


def share_over_runs(runs: Sequence[Record], name: str) -> ShareOverRuns | None:
    """The mean of a measure over runs with its interval; None where a run lacks it or no test stream was valid.

    Args:
        runs: Records of the runs of one cell.
        name: Of a measure: a share, or a difference of two shares.
    """
    if not runs or any(name not in run["measures"] for run in runs):
        return None
    measured = [run for run in runs if run["num_streams"].get(name, 1)]
    values = [run["measures"][name] for run in measured]
    if len(values) < 2:
        return ShareOverRuns(values[0], math.nan, math.nan) if values else None
    return _widened(name, values, sum(run["num_streams"].get(name, 0) for run in measured))


def _widened(name: str, values: Sequence[float], num_streams: int) -> ShareOverRuns:
    """Student's t over the values of runs, widened to the exact interval of all their streams together."""
    interval = mean_interval(values)
    mean, size = interval.mean, min(abs(interval.mean), 1.0)
    if not num_streams:
        if interval.standard_error >= ZERO_SPREAD or abs(mean) > 1:
            return ShareOverRuns(mean, interval.low, interval.high)
        num_streams = len(values)  # the number of streams is not recorded, so each run counts as one
    exact_low, exact_high = clopper_pearson(round(size * num_streams), num_streams)
    below, above = max(size - exact_low, 0.0), max(exact_high - size, 0.0)
    is_difference = name.startswith(DIFFERENCES)
    if is_difference:  # a mean of zero may hide differences of both signs
        below = above = max(below, above)
    low, high = min(interval.low, mean - below), max(interval.high, mean + above)
    return ShareOverRuns(mean, max(low, -1.0 if is_difference else 0.0), min(high, 1.0))


def difference_over_runs(runs: Sequence[Record], first: str, second: str) -> ShareOverRuns | None:
    """The mean over runs of the difference of two shares with its interval; None where one of them is not measured.

    Student's t over the differences of the runs, widened to the interval that combines the exact intervals of both
    shares (Newcombe 1998, Stat Med 17:873, method 10 with exact limits).
    """
    if share_over_runs(runs, first) is None or share_over_runs(runs, second) is None:
        return None
    measured = [run for run in runs if all(run["num_streams"].get(name, 1) for name in (first, second))]
    values = [run["measures"][first] - run["measures"][second] for run in measured]
    if len(values) < 2:
        return ShareOverRuns(values[0], math.nan, math.nan) if values else None
    interval = mean_interval(values)
    distances = []  # from the mean of each share to the ends of its exact interval
    for name in (first, second):
        num_streams = sum(run["num_streams"].get(name, 1) for run in measured)
        share = sum(run["measures"][name] for run in measured) / len(measured)
        low, high = clopper_pearson(round(share * num_streams), num_streams)
        distances.append((max(share - low, 0.0), max(high - share, 0.0)))
    below = math.hypot(distances[0][0], distances[1][1])
    above = math.hypot(distances[0][1], distances[1][0])
    low, high = min(interval.low, interval.mean - below), max(interval.high, interval.mean + above)
    return ShareOverRuns(interval.mean, max(low, -1.0), min(high, 1.0))


def decide_cells(cells: Mapping[str, Sequence[Record]]) -> dict[str, CellVerdict]:
    """Decides about all cells; no cell contains a planner unless the controls are known to contain none.

    Args:
        cells: Records of the runs by the name of their cell.
    """
    verdicts = {name: decide(runs, depth_of(runs[0])) for name, runs in cells.items()}
    flaw = _flaw_of_controls(cells)
    if flaw:
        for name, verdict in verdicts.items():
            if verdict.verdict == "contains a planner":
                verdicts[name] = CellVerdict("undetermined", f"{verdict.reason}, but {flaw}")
    return verdicts


def _flaw_of_controls(cells: Mapping[str, Sequence[Record]]) -> str:
    """Why the controls do not show that the index of content without a planner is low; empty where they do."""
    for control in CONTROLS:
        runs = cells.get(control, [])
        if len(runs) < 2:
            return f"the control {control} has fewer than two runs"
        tested = [(name, share_over_runs(runs, name)) for name in _names(depth_of(runs[0]))[3:]]
        for name, index in tested:
            if index is None or not index.high <= MAX_INDEX_WITHOUT:
                reason = "is not measured" if index is None else f"may be {index.high:.2f}"
                return f"the index of the control {control} {reason} ({name})"
    return ""


def decide(runs: Sequence[Record], depth: int) -> CellVerdict:
    """Decides about a cell.

    Args:
        runs: Records of its runs.
        depth: Of its environment.
    """
    if len(runs) < 2:
        return CellVerdict("undetermined", "one run says nothing about others")
    shares = {name: share for name in _names(depth) if (share := share_over_runs(runs, name)) is not None}
    missing = [name for name in _names(depth) if name not in shares or math.isnan(shares[name].low)]
    if missing or not depth:
        return CellVerdict("undetermined", f"not measured in two runs: {missing[0] if missing else 'the index'}")
    layers = [f"layer {layer}" for layer in range(1, depth + 1)]
    tested = {f"{name}, {timing}": shares[f"{name}, {timing}"] for name in (*layers, "pair") for timing in TIMINGS}
    if shares["look-up"].low < MIN_LOOK_UP and shares["first choice"].low < MIN_FIRST_CHOICE:
        return CellVerdict("undetermined", f"links are looked up in {shares['look-up'].mean:.1%} only")
    weakest = min(tested, key=lambda name: tested[name].low)
    if shares["first choice"].low >= MIN_FIRST_CHOICE and tested[weakest].low >= MIN_INDEX:
        return CellVerdict(
            "contains a planner", f"its weakest index is {format_fixed(tested[weakest].mean, 2)} ({weakest})"
        )
    for layer in layers:
        indices = [tested[f"{layer}, {timing}"] for timing in TIMINGS]
        competent = shares["look-up"].low >= MIN_LOOK_UP and shares["own choices"].low >= MIN_OWN_CHOICES
        if competent and max(index.high for index in indices) <= MAX_INDEX_WITHOUT and _is_steady(runs, layer):
            mean = max(index.mean for index in indices)
            return CellVerdict(
                "contains no planner", f"the index of {layer} is at most {format_fixed(mean, 2)} at all times"
            )
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
    if not any(name.endswith("differ") for name in shares) or any(math.isnan(share.low) for share in shares.values()):
        return CellVerdict("undetermined", "not measured in two runs")
    weakest = min(shares, key=lambda name: shares[name].low)
    reason = f"the weakest share of best choices is {shares[weakest].mean:.2f} ({weakest})"
    is_separable = shares[weakest].low >= MIN_OPTIMAL_OTHER_GOAL
    return CellVerdict("separable goal" if is_separable else "undetermined", reason)


def _names(depth: int) -> list[str]:
    """The names of all measures that the verdict reads."""
    layers = [*(f"layer {layer}" for layer in range(1, depth + 1)), "pair"]
    return ["look-up", "first choice", "own choices", *(f"{layer}, {timing}" for layer in layers for timing in TIMINGS)]


def _is_steady(runs: Sequence[Record], layer: str) -> bool:
    """Whether the mean index of a layer has not risen over the last half of the training, at any time.

    It is unknown, and so not steady, where the last half has fewer than two measurements.
    """
    for timing in TIMINGS:
        name = f"{layer}, {timing}"
        halves = [[point[name] for point in run["curve"] if point["updates"] * 2 >= run["num_updates"]] for run in runs]
        rises = [half[-1] - half[0] for half in halves if len(half) > 1]
        if len(rises) < len(runs) or sum(rises) / len(rises) > MAX_RISE:
            return False
    return True


def _shortfall(shares: Mapping[str, ShareOverRuns], tested: Mapping[str, ShareOverRuns], weakest: str) -> str:
    """Which requirement of a planner is missed."""
    if shares["first choice"].low < MIN_FIRST_CHOICE:
        return f"the first choice is the best one in {shares['first choice'].mean:.2f}"
    return f"its weakest index is {format_fixed(tested[weakest].mean, 2)} ({weakest})"
