"""Charts of a study's page: scores, cost of development, learning curves. They read results and draw; nothing else."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from ontogeny.report.charts import (
    APPROACH_COLORS,
    APPROACH_MARKERS,
    INK,
    MUTED,
    PAPER,
    RULE,
    ChartLabel,
    inline_svg,
    label_curve_ends,
    label_points,
    new_panel,
    num_lines,
    wrap_label,
)
from ontogeny.report.formatting import format_count, format_number
from ontogeny.stats import Interval
from ontogeny.studies.comparison import AgentResult

DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
PUBLISHED = "published"  # in place of an approach
Entry = tuple[str, Interval, str]  # label, score, approach or `PUBLISHED`


def draw_scores(
    name: str,
    results: Sequence[AgentResult],
    published: Sequence[tuple[str, float]],
    upper_bound: tuple[str, float] | None,
) -> Markup:
    """Draw the scores of one environment with 95 % intervals, the best on top.

    An interval that goes on beyond the axis ends in a triangle.

    Args:
        name: Prefix of the element ids, unique on the page.
        results: Our agents.
        published: Published algorithms with their scores, drawn as hollow marks.
        upper_bound: Name and value of the exact upper bound, drawn as a dashed line.
    """
    entries: list[Entry] = [(result.agent, result.score, result.approach) for result in results]
    entries += [(f"{label}, published", Interval(s, 0, s, s, 0), PUBLISHED) for label, s in published]
    entries.sort(key=lambda entry: (entry[1].mean, entry[0]))
    privileged = {result.agent for result in results if result.privileged}
    left, right = _axis_range(entries, privileged)
    labels = [wrap_label(label) for label, _, _ in entries]
    heights = [num_lines(label) for label in labels]
    rows = [sum(heights[:i]) + (height - 1) / 2 for i, height in enumerate(heights)]
    with new_panel(4.5, 0.75 + 0.21 * sum(heights)) as (figure, axes):
        axes.grid(False)
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        for y, entry in zip(rows, entries, strict=True):
            _draw_score(axes, y, entry, left, right)
        if upper_bound is not None:
            axes.axvline(upper_bound[1], color=INK, lw=0.9, ls=(0, (3, 2)))
        axes.set_yticks(rows, labels)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for tick, (_, _, approach) in zip(axes.get_yticklabels(), entries, strict=True):
            tick.set_color(APPROACH_COLORS[approach] if approach in ("evolution", "ml_code") else MUTED)
        axes.set_ylim(-0.7, sum(heights) - 0.3)
        if left > -math.inf:
            axes.set_xlim(left=left)
        if right < math.inf:
            axes.set_xlim(right=right)
        axes.set_xlabel("score per lifetime")
        scores = ", ".join(f"{label} {format_number(score.mean)}" for label, score, _ in reversed(entries))
        return inline_svg(figure, name, f"Scores per lifetime, best first: {scores}")


def _axis_range(entries: Sequence[Entry], privileged: set[str]) -> tuple[float, float]:
    """The part of the axis that is drawn, so that outliers do not compress the rest; they are shown as numbers."""
    means = sorted(score.mean for label, score, _ in entries if label not in privileged) or [0.0]
    upper_part = means[len(means) // 3 :]  # the lowest third is cut off where it lies far below the others
    span = upper_part[-1] - upper_part[0]
    is_compressed = len(means) > 5 and upper_part[0] - means[0] > 0.6 * span > 0
    left = upper_part[0] - 0.12 * span if is_compressed else -math.inf
    span = means[-1] - max(left, means[0])
    has_outlier = any(score.mean > means[-1] + 0.5 * span for _, score, _ in entries)
    return left, means[-1] + 0.15 * span if has_outlier else math.inf


def _draw_score(axes: Axes, y: float, entry: Entry, left: float, right: float) -> None:
    """Draw one row: a score with its interval, a published score, or the number of an outlier at the edge."""
    _, score, approach = entry
    color = APPROACH_COLORS.get(approach, MUTED)
    if not left <= score.mean <= right:
        is_beyond = score.mean > right
        number = format_number(score.mean)
        axes.annotate(
            f"{number} ▸" if is_beyond else f"◂ {number}", (float(is_beyond), y), va="center", color=color,
            xycoords=("axes fraction", "data"), ha="right" if is_beyond else "left",
        )  # fmt: skip
    elif approach == PUBLISHED:
        axes.plot([score.mean], [y], "o", ms=4.6, mfc=PAPER, mec=INK, mew=0.9)
    else:
        axes.plot([score.low, score.high], [y, y], "-", color=color, lw=2, solid_capstyle="round")
        axes.plot([score.mean], [y], APPROACH_MARKERS[approach], ms=4.8, color=color, mec=color)
        for x, marker, is_cut in ((0.0, "<", score.low < left), (1.0, ">", score.high > right)):
            if is_cut:  # a triangle shows that the interval goes on
                axes.plot([x], [y], marker, ms=5, color=color, transform=axes.get_yaxis_transform(), clip_on=False)


def draw_cost(name: str, results: Sequence[AgentResult]) -> Markup:
    """Draw scores against training environment steps, logarithmic; agents without training stand on the left."""
    results = [result for result in results if result.approach in ("evolution", "ml_code")]
    with new_panel(4.5, max(2.7, 1.2 + 0.2 * len(results))) as (figure, axes):
        num_steps = [r.num_training_env_steps for r in results if r.num_training_env_steps > 0]
        first = 10 ** math.floor(math.log10(min(num_steps, default=1e6)))
        last = 10 ** math.ceil(math.log10(max(num_steps, default=1e6) * 1.01))
        untrained = first / 10
        axes.set_xscale("log")
        axes.set_xlim(untrained / 2.2, last * 2.5)
        labels = []
        for result in results:
            mean, color = result.score.mean, APPROACH_COLORS[result.approach]
            x = result.num_training_env_steps or untrained
            axes.plot([x, x], [result.score.low, result.score.high], "-", color=color, lw=2)
            axes.plot([x], [mean], APPROACH_MARKERS[result.approach], ms=6, color=color, mec=color)
            labels.append(ChartLabel(wrap_label(result.agent), x, mean, color))
        ticks = [first * 10**i for i in range(round(math.log10(last / first)) + 1)]
        axes.set_xticks([untrained, *ticks], ["none", *(format_count(tick) for tick in ticks)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.22)
        axes.set_xlabel("training environment steps")
        axes.set_ylabel("score per lifetime")
        label_points(axes, labels)
        scores = "; ".join(
            f"{r.agent}: {format_number(r.score.mean)} after {format_count(r.num_training_env_steps)} steps"
            for r in results
        )
        return inline_svg(figure, name, f"Score against training environment steps. {scores}")


def draw_learning_curves(name: str, results: Sequence[AgentResult]) -> Markup:
    """Draw the mean score by position in the lifetime, with bands of 95 % intervals."""
    names = [wrap_label(result.agent) for result in results]
    with new_panel(4.5, max(2.9, 1.0 + 0.18 * sum(map(num_lines, names)))) as (figure, axes):
        num_by_approach: dict[str, int] = {}
        labels = []
        for result, name_of_curve in zip(results, names, strict=True):
            count = num_by_approach.get(result.approach, 0)
            num_by_approach[result.approach] = count + 1
            color, curve = APPROACH_COLORS[result.approach], result.curve
            axes.plot(curve.position, curve.mean, color=color, lw=1.5, ls=DASHES[count % len(DASHES)])
            axes.fill_between(curve.position, curve.low, curve.high, color=color, alpha=0.18, lw=0)
            labels.append(ChartLabel(name_of_curve, curve.position[-1], curve.mean[-1], color))
        start = min(result.curve.position[0] for result in results)
        end = max(result.curve.position[-1] for result in results)
        axes.set_xlim(start, max(end, start + 1))
        axes.set_ylim(*axes.get_ylim())
        unit = results[0].curve.unit
        axes.set_xlabel(f"{unit} of the lifetime")
        axes.set_ylabel(f"mean score per {unit}")
        label_curve_ends(axes, labels)
        ends = "; ".join(
            f"{r.agent} from {format_number(r.curve.mean[0])} to {format_number(r.curve.mean[-1])}" for r in results
        )
        return inline_svg(figure, name, f"Score along the lifetime. {ends}")
