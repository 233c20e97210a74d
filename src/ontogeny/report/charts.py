"""The style of charts: matplotlib figures as inline SVG, small enough that a phone shows each at full size.

Colors are drawn as placeholder values that become CSS variables of the page, so that one drawing serves light pages,
dark pages and paper. The same input gives the same bytes.
"""

import io
import logging
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# Each placeholder is a color that nothing else has; on the page it becomes the CSS variable beside it.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
EVOLUTION, ML_CODE, BASELINE = "#050505", "#060606", "#070707"
CSS_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    EVOLUTION: "var(--evolution)",
    ML_CODE: "var(--ml-code)",
    BASELINE: "var(--baseline)",
}
APPROACH_COLORS = {"evolution": EVOLUTION, "ml_code": ML_CODE, "baseline": BASELINE}
APPROACH_MARKERS = {"evolution": "o", "ml_code": "D", "baseline": "s"}

LABEL_SIZE = 9.2  # points
MAX_LABEL_WIDTH = 20  # characters

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ontogeny",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.0,
    "axes.unicode_minus": True,
}


class ChartLabel(NamedTuple):
    """A name at a point of a chart."""

    text: str
    x: float
    y: float
    color: str


@contextmanager
def new_panel(width: float = 4.5, height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """Create an empty chart with a base line and a faint grid, which must be drawn and converted within the context.

    Args:
        width: Inches.
        height: Inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        yield figure, style_axes(figure.add_subplot())


def style_axes(axes: Axes) -> Axes:
    """Give axes a base line and a faint grid, and return them."""
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def wrap_label(label: str) -> str:
    """Break a long label into lines, so that it leaves most of the chart to the data."""
    return textwrap.fill(label, MAX_LABEL_WIDTH)


def num_lines(label: str) -> int:
    """The number of lines of a label."""
    return label.count("\n") + 1


def spread_positions(centers: Sequence[float], heights: Sequence[float], limit: float = math.inf) -> list[float]:
    """Move boxes along one axis so that none overlaps another; a box moves only where it must.

    Boxes that would overlap form a cluster around the mean of their wanted centers (pool adjacent violators).

    Args:
        centers: The wanted centers, in ascending order.
        heights: Of each box.
        limit: Upper end of the axis, which no box exceeds.

    Returns:
        The centers after the move, in the same order.
    """
    clusters: list[list[float]] = []  # [sum of wanted lower ends relative to the cluster, number of boxes, height]
    for center, height in zip(centers, heights, strict=True):
        clusters.append([center - height / 2, 1, height])
        while len(clusters) > 1 and _start(clusters[-2]) + clusters[-2][2] > _start(clusters[-1]):
            total, count, size = clusters.pop()
            clusters[-1] = [
                clusters[-1][0] + total - count * clusters[-1][2],
                clusters[-1][1] + count,
                clusters[-1][2] + size,
            ]
    positions: list[float] = []
    boxes = iter(heights)
    for cluster in clusters:
        start = _start(cluster)
        for _ in range(int(cluster[1])):
            height = next(boxes)
            positions.append(start + height / 2)
            start += height
    for i in reversed(range(len(positions))):
        positions[i] = min(positions[i], limit - heights[i] / 2)
        limit = positions[i] - heights[i] / 2
    return positions


def _start(cluster: Sequence[float]) -> float:
    """The lower end of a cluster of `spread_positions`."""
    return cluster[0] / cluster[1]


def label_curve_ends(axes: Axes, labels: Sequence[ChartLabel]) -> None:
    """Write the name of each curve beside its end, moved up or down where names would overlap.

    Args:
        axes: With its final limits; the names stand right of them.
        labels: One at the end of each curve.
    """
    frame, ordered = _frame_in_points(axes), sorted(labels, key=lambda label: (label.y, label.text))
    low, high = axes.get_ylim()
    starts = [(label.y - low) / (high - low) * frame.height for label in ordered]
    heights = [_size_in_points(axes, label)[1] for label in ordered]
    for label, start, end in zip(ordered, starts, spread_positions(starts, heights, frame.height), strict=True):
        _write_label(axes, label, 8, end - start)


def label_points(axes: Axes, labels: Sequence[ChartLabel]) -> None:
    """Write the name of each point beside it, such that names overlap neither one another nor a point.

    Each name takes the nearest free place, beside its point or further up or down, where a thin line leads to it.

    Args:
        axes: With its final limits.
        labels: One at each point.
    """
    frame, scale = _frame_in_points(axes), 72 / _figure_of(axes).dpi
    marks = [axes.transData.transform((label.x, label.y)) * scale for label in labels]
    occupied = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for i in sorted(range(len(labels)), key=lambda i: (-labels[i].y, labels[i].text)):
        (x, y), (width, height) = marks[i], _size_in_points(axes, labels[i])
        places = [
            (dx, dy, Bbox.from_bounds(x + dx - (width if dx < 0 else 0), y + dy - height / 2, width, height))
            for dy in sorted(range(-180, 181, 6), key=abs)
            for dx in (8, -8)
        ]
        inside = [place for place in places if _contains(frame, place[2])]
        free = [place for place in inside if not any(place[2].overlaps(box) for box in occupied)]
        dx, dy, box = (free or inside or places)[0]
        occupied.append(box)
        _write_label(axes, labels[i], dx, dy)


def _write_label(axes: Axes, label: ChartLabel, dx: float, dy: float) -> None:
    """Write a name at an offset in points from its place, with a thin line to it where it is further away."""
    line = {"arrowstyle": "-", "color": label.color, "lw": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (dx < 0, 0.5)}
    axes.annotate(
        label.text, (label.x, label.y), xytext=(dx, dy), textcoords="offset points", va="center",
        ha="right" if dx < 0 else "left", color=label.color, fontsize=LABEL_SIZE, annotation_clip=False,
        arrowprops=line if abs(dy) > LABEL_SIZE else None,
    )  # fmt: skip


def _contains(frame: Bbox, box: Bbox) -> bool:
    """Whether a box lies in a frame, so that it changes no layout."""
    return bool(frame.x0 - 2 <= box.x0 and box.x1 <= frame.x1 + 2 and frame.y0 <= box.y0 and box.y1 <= frame.y1)


def _size_in_points(axes: Axes, label: ChartLabel) -> tuple[float, float]:
    """Width and height of a written name, with a margin."""
    text = axes.annotate(label.text, (label.x, label.y), fontsize=LABEL_SIZE)
    extent, scale = text.get_window_extent(), 72 / _figure_of(axes).dpi
    text.remove()
    return extent.width * scale + 2, extent.height * scale + 2


def _figure_of(axes: Axes) -> Figure:
    """The figure of a chart."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _frame_in_points(axes: Axes) -> Bbox:
    """The area of the axes after layout, in points."""
    figure = _figure_of(axes)
    figure.draw_without_rendering()
    return Bbox(axes.get_window_extent().get_points() * 72 / figure.dpi)


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """Convert a figure into an `<svg>` element without outside references.

    Args:
        figure: The figure, drawn in the placeholder colors of this module.
        name: Prefix of all element ids; unique on the page.
        label: What the chart shows, for screen readers.
    """
    target = io.StringIO()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None
    body = svg[svg.index(">") + 1 :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style[^>]*>.*?</style>", ""),
        (r"<!--.*?-->\s*", ""),
        (r'<g id="[^"]*"', "<g"),
        (r"<defs>\s*</defs>", ""),
        (r'\bid="([^"]+)"', rf'id="{name}-\1"'),
        (r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"'),
        (r"url\(#([^)]+)\)", rf"url(#{name}-\1)"),
        (r"font(?:-family)?: (\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1"),
        (r"font-family: [^;\"]*;?", ""),
    ):
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    for color, variable in CSS_VARIABLES.items():
        body = body.replace(color, variable)
    body = re.sub(r"\n\s*", "\n", body)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(view_box.group(1), label)
    return opening + Markup(body.strip() + "\n")
