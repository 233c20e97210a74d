"""The style of charts: matplotlib figures as inline SVG, small enough that a phone shows each at full size.

Colors are drawn as placeholder values that become CSS variables of the page, so that one drawing serves light pages,
dark pages and paper. The same input gives the same bytes.
"""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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
