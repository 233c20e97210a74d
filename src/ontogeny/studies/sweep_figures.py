"""Charts of a sweep: the score over one numeric setting, with a line for each combination of the other settings."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from ontogeny.report.charts import (
    APPROACH_COLORS,
    APPROACH_MARKERS,
    ChartLabel,
    inline_svg,
    label_curve_ends,
    new_panel,
    num_lines,
    wrap_label,
)
from ontogeny.report.formatting import format_number
from ontogeny.studies.comparison import AgentResult
from ontogeny.studies.figures import DASHES

MIN_LOGARITHMIC_RATIO = 8.0  # of the largest to the least value of a setting whose axis is logarithmic
MAX_TICKS = 9
OFFSET = 5.0  # points between the marks of two lines
MARGIN = 0.3  # of the range of the scores of single seeds, above and below it


class SettingPoint(NamedTuple):
    """The score of one cell."""

    x: float  # the value of the setting
    score: AgentResult


class SettingLine(NamedTuple):
    """The cells that differ in one setting only, in the order of its values."""

    label: str  # the other settings
    points: list[SettingPoint]


def draw_setting(name: str, setting: str, lines: Sequence[SettingLine]) -> Markup:
    """Draw scores with 95 % intervals, and the scores of single seeds as small dots, over a setting.

    An interval that goes on beyond the axis ends in a triangle.

    Args:
        name: Prefix of the element ids, unique on the page.
        setting: On the horizontal axis.
        lines: At least one, each with a point or more.
    """
    names = [wrap_label(line.label) for line in lines]
    approach = lines[0].points[0].score.approach
    color = APPROACH_COLORS[approach]
    values = sorted({point.x for line in lines for point in line.points})
    with new_panel(4.5, max(2.9, 1.0 + 0.18 * sum(map(num_lines, names)))) as (figure, axes):
        is_logarithmic = values[0] > 0 and values[-1] / values[0] >= MIN_LOGARITHMIC_RATIO
        if is_logarithmic:
            axes.set_xscale("log")
        ticks = values[:: math.ceil(len(values) / MAX_TICKS)]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(*_axis_range(values, is_logarithmic))
        low, high = _score_range(lines)
        axes.set_ylim(low, high)
        labels = []
        for number, line in enumerate(lines):
            xs, scores = [point.x for point in line.points], [point.score for point in line.points]
            style = DASHES[number % len(DASHES)]
            # Lines lie next to each other, so that the intervals of one value do not hide one another.
            offset = ScaledTranslation((number - (len(lines) - 1) / 2) * OFFSET / 72, 0, figure.dpi_scale_trans)
            means = [scored.score.mean for scored in scores]
            axes.plot(xs, means, color=color, lw=1.5, ls=style, transform=axes.transData + offset)
            for x, scored in line.points:
                _draw_point(axes, x, scored, (low, high), offset)
            labels.append(ChartLabel(names[number], xs[-1], scores[-1].score.mean, color))
        axes.set_xlabel(setting)
        axes.set_ylabel("score per lifetime")
        if len(lines) > 1:
            label_curve_ends(axes, labels)
        texts = [
            f"{line.label}{': ' if line.label else ''}"
            + ", ".join(f"{format_number(point.score.score.mean)} at {point.x:g}" for point in line.points)
            for line in lines
        ]
        return inline_svg(figure, name, f"Score per lifetime over {setting}. {'; '.join(texts)}")


def _draw_point(
    axes: Axes, x: float, scored: AgentResult, limits: tuple[float, float], offset: ScaledTranslation
) -> None:
    """Draw the score of a cell with its interval, and those of its seeds."""
    score, color, (low, high) = scored.score, APPROACH_COLORS[scored.approach], limits
    place = axes.transData + offset
    ends = [max(score.low, low), min(score.high, high)]
    axes.plot([x, x], ends, "-", color=color, lw=1.2, alpha=0.6, transform=place)
    axes.plot([x] * len(scored.seed_means), scored.seed_means, ".", ms=4, color=color, alpha=0.7, transform=place)
    axes.plot([x], [score.mean], APPROACH_MARKERS[scored.approach], ms=4.8, color=color, mec=color, transform=place)
    for y, marker, is_cut in ((0.0, "v", score.low < low), (1.0, "^", score.high > high)):
        if is_cut:
            edge = axes.get_xaxis_transform() + offset
            axes.plot([x], [y], marker, ms=4, color=color, transform=edge, clip_on=False)


def _score_range(lines: Sequence[SettingLine]) -> tuple[float, float]:
    """The range of the scores of all seeds with a margin; intervals from few seeds would compress it."""
    scores = [mean for line in lines for point in line.points for mean in point.score.seed_means]
    margin = MARGIN * (max(scores) - min(scores)) or 0.1 * abs(scores[0]) or 1.0
    return min(scores) - margin, max(scores) + margin


def _axis_range(values: Sequence[float], is_logarithmic: bool) -> tuple[float, float]:
    """The limits of the axis of the setting."""
    if is_logarithmic:
        factor = math.exp(0.06 * math.log(values[-1] / values[0]))
        return values[0] / factor, values[-1] * factor
    margin = 0.06 * (values[-1] - values[0]) or 0.5
    return values[0] - margin, values[-1] + margin
