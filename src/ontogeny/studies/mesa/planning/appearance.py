"""When in the training each ability appears: from which measurement on it stays at or above its threshold.

A measurement of a curve has few test streams, so that a single low value postpones the time of one run; the median over
runs is robust against this. The module reads records and does not import JAX.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from ontogeny.report.formatting import pluralize
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning.results import layer_names, mean_over_timings
from ontogeny.studies.mesa.planning.verdicts import MIN_FIRST_CHOICE, MIN_INDEX, MIN_LOOK_UP

CURVE_THRESHOLDS: Mapping[str, float] = {"look-up": MIN_LOOK_UP, "first choice": MIN_FIRST_CHOICE}  # others: MIN_INDEX


class AppearanceTimes(NamedTuple):
    """The numbers of updates after which an ability appears, over the runs of a cell; infinite where it does not."""

    median: float
    first: float
    last: float
    num_runs: int
    num_without: int  # runs in which the ability does not appear


def list_abilities(runs: Sequence[Record]) -> list[str]:
    """The names of the abilities: look-up, first choice, and the index of each layer and of pairs."""
    return [*CURVE_THRESHOLDS, *layer_names(runs)]


def threshold_of(name: str) -> float:
    """The threshold of an ability."""
    return CURVE_THRESHOLDS.get(name, MIN_INDEX)


def time_of_appearance(run: Record, name: str) -> float:
    """The number of updates from which an ability of a run stays at or above its threshold; infinity where none does.

    Args:
        run: With its curve, in the order of the training.
        name: Of the ability; the mean over timings of an index.
    """
    time = math.inf
    for point in reversed(run["curve"]):
        if mean_over_timings(point, name) < threshold_of(name):
            break
        time = point["updates"]
    return time


def times_over_runs(runs: Sequence[Record], name: str) -> AppearanceTimes:
    """Median and range over runs of the time at which an ability appears."""
    times = [time_of_appearance(run, name) for run in runs]
    return AppearanceTimes(median(times), min(times), max(times), len(times), sum(map(math.isinf, times)))


def format_times(times: AppearanceTimes) -> tuple[str, str]:
    """The median, and the range with the runs in which the ability does not appear: `3,000` and `1,440 to 6,000`."""
    if times.num_without == times.num_runs:
        return "never", f"in {pluralize(times.num_runs, 'run')}"
    if not times.num_without:
        return f"{times.median:,.0f}", f"{times.first:,.0f} to {times.last:,.0f}"
    runs = f"in {times.num_without} of {pluralize(times.num_runs, 'run')}"
    if math.isinf(times.median):
        return "never", f"{runs}, else from {times.first:,.0f} on"
    return f"{times.median:,.0f}", f"from {times.first:,.0f} on, never {runs}"
