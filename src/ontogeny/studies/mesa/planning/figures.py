"""Charts of the planning experiment. They read records and results; they compute nothing but positions."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ontogeny.report.charts import (
    BASELINE,
    EVOLUTION,
    INK,
    ML_CODE,
    MUTED,
    PAPER,
    RULE,
    ChartLabel,
    inline_svg,
    label_curve_ends,
    new_panel,
)
from ontogeny.report.formatting import format_fixed
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning.appearance import AppearanceTimes, format_times
from ontogeny.studies.mesa.planning.results import TrainingPoint
from ontogeny.studies.mesa.planning.verdicts import ShareOverRuns

STYLES = (  # color and marker of each curve
    *((ML_CODE, "D"), (INK, "o"), (BASELINE, "s"), (EVOLUTION, "^")),
    *((MUTED, "v"), (ML_CODE, "x"), (EVOLUTION, "+")),
)
MAX_TICKS = 4  # intervals of an axis of updates, whose labels are wide
ACTION_STYLES = ("-", (0, (3, 2)))  # how links of the two actions are drawn
Curves = Mapping[str, Sequence[tuple[float, ShareOverRuns]]]  # by label, position and value


def draw_example(name: str, example: Record) -> Markup:
    """Draw a graph with its best path before and after the change of one link.

    Args:
        name: Prefix of the element ids, unique on the page.
        example: The record `planning_example`.
    """
    depth, width, links = example["depth"], example["width"], example["links"]
    before, after = example["best_paths"]
    places = _places(depth, width, example["num_outcomes"])
    with new_panel(5.4, 4.2) as (figure, axes):
        axes.set_axis_off()
        for state, successors in enumerate(links):
            for action, successor in enumerate(successors):
                _draw_link(axes, places, (state, action, successor), depth, width, color=RULE, width_of_line=0.9)
        for path, color in ((before, INK), (after, ML_CODE)):
            for link in path:
                _draw_link(axes, places, link, depth, width, color=color, width_of_line=2.2)
        change = example["change"]
        changed = (change["state"], change["action"], change["successor"])
        _draw_link(axes, places, changed, depth, width, color=ML_CODE, width_of_line=2.2)
        for place, (x, y) in places.items():
            is_outcome = place[0] == "outcome"
            text = "start" if place == ("state", 0) else str(place[1])
            box = {"boxstyle": "square" if is_outcome else "circle", "fc": PAPER, "ec": MUTED, "lw": 0.9, "pad": 0.28}
            axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
        for layer, title in enumerate(["", *["states"] * (depth - 1), "food"]):
            axes.text(layer, 0.62, title, ha="center", va="bottom", color=MUTED)
        axes.set_xlim(-0.2, depth + 0.2)
        axes.set_ylim(-0.62, 0.75)
        return inline_svg(figure, name, describe_example(example))


def describe_example(example: Record) -> str:
    """The picture in words."""
    before, after = (path[0][1] for path in example["best_paths"])
    foods = [path[-1][2] for path in example["best_paths"]]
    state, action, outcome = (example["change"][name] for name in ("state", "action", "successor"))
    num_states = len(example["links"])
    return (
        f"A graph of {num_states} states in {example['depth']} layers, each with two links, and "
        f"{example['num_outcomes']} outcomes. The best first action is {before}, which leads to food level {foods[0]}. "
        f"After action {action} of state {state} leads to food level {outcome} instead, "
        f"the best first action is {after}, which leads to food level {foods[1]}."
    )


def layer_of_state(state: int, width: int) -> int:
    """The layer of a state of a graph with `width` states in each middle layer, 0 for the start."""
    return (state + width - 1) // width


def _places(depth: int, width: int, num_outcomes: int) -> dict[tuple[str, int], tuple[float, float]]:
    """The place of each state and outcome: layers from left to right."""

    def column(count: int) -> list[float]:
        return [0.5 - (i + 0.5) / count for i in range(count)]

    places = {("state", 0): (0.0, 0.0)}
    for layer in range(1, depth):
        for i, y in enumerate(column(width)):
            places["state", 1 + (layer - 1) * width + i] = (float(layer), y)
    for level, y in enumerate(reversed(column(num_outcomes))):
        places["outcome", level] = (float(depth), y)
    return places


def _draw_link(
    axes: Axes, places: Mapping[tuple[str, int], tuple[float, float]], link: Sequence[int], depth: int, width: int,
    *, color: str, width_of_line: float,
) -> None:  # fmt: skip
    """Draw one link [state, action, target]."""
    state, action, target = link
    layer = layer_of_state(state, width)
    end = places["outcome" if layer == depth - 1 else "state", target]
    start = places["state", state]
    axes.plot(
        [start[0], end[0]], [start[1], end[1]], color=color, lw=width_of_line, ls=ACTION_STYLES[action],
        zorder=1 if color == RULE else 2,
    )  # fmt: skip


def draw_training(name: str, curves: Mapping[str, Sequence[TrainingPoint]], label: str, threshold: float) -> Markup:
    """Draw a measure against the updates of the training.

    Args:
        name: Prefix of the element ids, unique on the page.
        curves: By the label of the content.
        label: Of the vertical axis.
        threshold: Drawn as a dashed line.
    """
    points = {key: [(point.num_updates, point.bounds) for point in curve] for key, curve in curves.items()}
    return _draw_curves(name, points, label, "updates", threshold)


def draw_levels(name: str, curves: Curves, label: str) -> Markup:
    """Draw measures against the level of the residual stream, 0 for the embedding."""
    return _draw_curves(name, curves, label, "level (0: embedding, then after each block)", None)


def draw_extraction(name: str, curves: Curves) -> Markup:
    """Draw the share of links that choices do not reveal against the depth of the goal that the choices serve."""
    return _draw_curves(name, curves, "links not recovered", "depth of the goal, links", None, ticks=True)


def _draw_curves(
    name: str, curves: Curves, label: str, axis_label: str, threshold: float | None, ticks: bool = False
) -> Markup:
    """Draw curves with their intervals and the name of each at its end; `ticks` spaces the positions evenly."""
    positions = sorted({x for curve in curves.values() for x, _ in curve})
    with new_panel(4.8, 3.0) as (figure, axes):
        axes.axhline(0, color=RULE, lw=1.0)
        if threshold is not None:
            axes.axhline(threshold, color=INK, lw=0.9, ls=(0, (3, 2)))
        ends = []
        for (key, curve), (color, marker) in zip(curves.items(), cycle(STYLES), strict=False):
            xs = [positions.index(x) if ticks else x for x, _ in curve]
            bounds = [share for _, share in curve]
            lows, highs = ([_end(b, end) for b in bounds] for end in ("low", "high"))
            axes.fill_between(xs, lows, highs, color=color, alpha=0.18, lw=0)
            axes.plot(xs, [b.mean for b in bounds], marker=marker, ms=3.4, color=color, lw=1.4)
            ends.append(ChartLabel(key, xs[-1], bounds[-1].mean, color))
        if ticks:
            axes.set_xticks(range(len(positions)), [f"{x:g}" for x in positions])
        elif max(positions) >= 1000:
            axes.xaxis.set_major_locator(MaxNLocator(MAX_TICKS))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        else:
            axes.set_xticks(positions, [f"{x:g}" for x in positions])
        axes.margins(y=0.1)
        axes.set_xlabel(axis_label)
        axes.set_ylabel(label)
        label_curve_ends(axes, ends)
        values = "; ".join(
            f"{key}: " + ", ".join(f"{format_fixed(share.mean, 2)} at {x:g}" for x, share in curve)
            for key, curve in curves.items()
        )
        return inline_svg(figure, name, f"{label} by {axis_label}. {values}")


def draw_cells(
    name: str, series: Mapping[str, Sequence[ShareOverRuns]], positions: Sequence[str], title: str
) -> Markup:
    """Draw measures of several cells side by side.

    Args:
        name: Prefix of the element ids, unique on the page.
        series: By measure, the share of each cell.
        positions: Labels of the cells.
        title: What distinguishes the cells.
    """
    ranges = {
        key: [(_end(share, "low"), share.mean, _end(share, "high")) for share in bounds]
        for key, bounds in series.items()
    }
    texts = {key: [format_fixed(share.mean, 2) for share in bounds] for key, bounds in series.items()}
    with new_panel(4.8, 3.6) as (figure, axes):
        axes.axhline(0, color=RULE, lw=1.0)
        _draw_ranges(axes, ranges, positions, spacing=0.14)
        axes.margins(y=0.1)
        axes.set_ylabel("share or index")
        return inline_svg(figure, name, f"{title}. {_describe_cells(texts, positions)}")


def draw_appearance(
    name: str, series: Mapping[str, Sequence[AppearanceTimes]], positions: Sequence[str], title: str, num_updates: int
) -> Markup:
    """Draw when abilities appear in the training, by cell: the median over runs, and the range as a line.

    Args:
        name: Prefix of the element ids, unique on the page.
        series: By ability, the times of each cell.
        positions: Labels of the cells.
        title: What distinguishes the cells.
        num_updates: Of the training; what does not appear is drawn above it.
    """
    above = 1.12 * num_updates
    ranges = {
        key: [(min(time.first, above), min(time.median, above), min(time.last, above)) for time in times]
        for key, times in series.items()
    }
    texts = {key: [" ".join(format_times(time)) for time in times] for key, times in series.items()}
    with new_panel(4.8, 3.8) as (figure, axes):
        axes.axhline(num_updates, color=INK, lw=0.9, ls=(0, (3, 2)))
        _draw_ranges(axes, ranges, positions, spacing=0.8 / len(series))
        axes.set_ylim(-0.04 * num_updates, 1.2 * num_updates)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y <= num_updates else "")
        axes.set_ylabel("updates")
        return inline_svg(figure, name, f"{title}, updates. {_describe_cells(texts, positions)}")


def _draw_ranges(
    axes: Axes,
    ranges: Mapping[str, Sequence[tuple[float, float, float]]],
    positions: Sequence[str],
    *,
    spacing: float,
) -> None:
    """Draw low end, middle and high end of several series side by side at each position, with a legend."""
    for i, ((key, values), (color, marker)) in enumerate(zip(ranges.items(), cycle(STYLES), strict=False)):
        xs = [x + spacing * (i - (len(ranges) - 1) / 2) for x in range(len(positions))]
        for x, (low, _, high) in zip(xs, values, strict=True):
            axes.plot([x, x], [low, high], "-", color=color, lw=2.0)
        axes.plot(xs, [middle for _, middle, _ in values], marker, color=color, ms=5, ls="", label=key)
    axes.set_xticks(range(len(positions)), positions)
    axes.set_xlim(-0.6, len(positions) - 0.4)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _describe_cells(texts: Mapping[str, Sequence[str]], positions: Sequence[str]) -> str:
    """The values of a chart of cells in words: for each series, its text at each position."""
    return "; ".join(
        f"{key}: " + ", ".join(f"{t} at {' '.join(p.split())}" for t, p in zip(values, positions, strict=True))
        for key, values in texts.items()
    )


def _end(bounds: ShareOverRuns, end: str) -> float:
    """An end of an interval; the mean itself where there is none."""
    share = getattr(bounds, end)
    return bounds.mean if math.isnan(share) else share
