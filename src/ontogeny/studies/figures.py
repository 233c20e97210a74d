"""Charts of the report: matplotlib SVG, inline, one small panel each, so that a phone shows them at full size.

Colours are drawn as marks that stand for CSS variables, so that one drawing serves light, dark and paper. The same
input gives the same bytes.
"""

import io
import logging
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ontogeny.studies.comparison import Interval, Standing, amount, number
from ontogeny.studies.mesa.comparison import Group

# Each mark is a colour that nothing else has; in the page it becomes the variable beside it.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
EVOLUTION, CODE, REFERENCE = "#050505", "#060606", "#070707"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    EVOLUTION: "var(--evolution)",
    CODE: "var(--code)",
    REFERENCE: "var(--reference)",
}
COLOUR = {"evolution": EVOLUTION, "code": CODE, "reference": REFERENCE}
MARKER = {"evolution": "o", "code": "D", "reference": "s"}
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

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


def panel(width: float = 4.5, height: float = 3.0) -> tuple[Figure, Axes]:
    """One empty chart in inches, with a quiet frame: a base line and a faint grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element: no outside reference, ids that begin with `name`, colours as variables."""
    target = io.StringIO()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"font(?:-family)?: (\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(label, quote=True)}">{body.strip()}\n'


def intervals(
    name: str, rows: Sequence[Standing], lines: Sequence[tuple[str, float]], ceiling: tuple[str, float] | None
) -> str:
    """Scores with 95 % intervals, the best on top; printed lines as hollow marks, the exact ceiling dashed."""
    entries = [(row.agent, row.score, row.model) for row in rows]
    entries += [(f"{line}, printed", Interval(value, 0, value, value, 0), "published") for line, value in lines]
    entries.sort(key=lambda entry: (entry[1].mean, entry[0]))
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 0.75 + 0.21 * len(entries))
        axes.grid(False)
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        told = {row.agent for row in rows if row.privileged}
        fair = [score.mean for entry, score, _ in entries if entry not in told] or [0.0]
        left = _cut(fair)
        span = max(fair) - max(left, min(fair))
        right = (
            max(fair) + 0.15 * span if any(score.mean > max(fair) + 0.5 * span for _, score, _ in entries) else math.inf
        )
        for y, (_, score, model) in enumerate(entries):
            if not left <= score.mean <= right:
                beyond = score.mean > right
                axes.annotate(
                    f"{number(score.mean)} ▸" if beyond else f"◂ {number(score.mean)}",
                    (float(beyond), y),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    ha="right" if beyond else "left",
                    color=COLOUR.get(model, MUTED),
                )
            elif model == "published":
                axes.plot([score.mean], [y], "o", ms=4.6, mfc=PAPER, mec=INK, mew=0.9)
            else:
                axes.plot([score.low, score.high], [y, y], "-", color=COLOUR[model], lw=2, solid_capstyle="round")
                axes.plot([score.mean], [y], MARKER[model], ms=4.8, color=COLOUR[model], mec=COLOUR[model])
        if ceiling is not None:
            axes.axvline(ceiling[1], color=INK, lw=0.9, ls=(0, (3, 2)))
        axes.set_yticks(range(len(entries)), [entry[0] for entry in entries])
        for tick, (_, _, model) in zip(axes.get_yticklabels(), entries, strict=True):
            tick.set_color(COLOUR.get(model, MUTED) if model in ("evolution", "code") else MUTED)
        axes.set_ylim(-0.7, len(entries) - 0.3)
        if left > -math.inf:
            axes.set_xlim(left=left)
        if right < math.inf:
            axes.set_xlim(right=right)
        axes.set_xlabel("score per lifetime")
        told = ", ".join(f"{entry} {number(score.mean)}" for entry, score, _ in reversed(entries))
        return inline(figure, name, f"Scores per lifetime, best first: {told}")


def _cut(means: Sequence[float]) -> float:
    """Where the axis begins, so that the weakest do not press the others together: what is left of it gets a number."""
    ordered = sorted(means)
    keep = ordered[len(ordered) // 3 :]
    span = keep[-1] - keep[0]
    return keep[0] - 0.12 * span if len(ordered) > 5 and keep[0] - ordered[0] > 0.6 * span > 0 else -math.inf


def cost(name: str, rows: Sequence[Standing]) -> str:
    """Score against agent-environment steps before birth: code on the left at none, evolution on a logarithmic axis."""
    rows = [row for row in rows if row.model in ("evolution", "code")]
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 2.7)
        spent = [row.development_steps for row in rows if row.development_steps > 0]
        first = 10 ** math.floor(math.log10(min(spent, default=1e6)))
        last = 10 ** math.ceil(math.log10(max(spent, default=1e6) * 1.01))
        none = first / 10
        axes.set_xscale("log")
        axes.set_xlim(none / 2.2, last * 2.5)
        means = [row.score.mean for row in rows]
        near = 0.1 * (max(means) - min(means)) if rows else 0.0
        for row in rows:
            crowded = any(other.score.mean > row.score.mean > other.score.mean - near for other in rows)
            x = row.development_steps or none
            axes.plot([x, x], [row.score.low, row.score.high], "-", color=COLOUR[row.model], lw=2)
            axes.plot([x], [row.score.mean], MARKER[row.model], ms=6, color=COLOUR[row.model], mec=COLOUR[row.model])
            left = x * 12 > last
            axes.annotate(
                row.agent,
                (x, row.score.mean),
                xytext=(-7 if left else 7, -12 if crowded else 5),
                textcoords="offset points",
                ha="right" if left else "left",
                color=COLOUR[row.model],
                fontsize=9.2,
            )
        ticks = [first * 10**i for i in range(round(math.log10(last / first)) + 1)]
        axes.set_xticks([none, *ticks], ["none", *(amount(tick) for tick in ticks)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.22)
        axes.set_xlabel("steps lived before birth")
        axes.set_ylabel("score per lifetime")
        told = "; ".join(
            f"{row.agent}: {number(row.score.mean)} after {amount(row.development_steps)} steps" for row in rows
        )
        return inline(figure, name, f"Score against steps of development. {told}")


def learning(name: str, rows: Sequence[Standing]) -> str:
    """Mean score by position in the lifetime, with a 95 % band: how fast an agent learns once it lives."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 2.9)
        drawn: dict[str, int] = {}
        ends = []
        for row in rows:
            count = drawn.get(row.model, 0)
            drawn[row.model] = count + 1
            x, y = row.curve.position, row.curve.mean
            axes.plot(x, y, color=COLOUR[row.model], lw=1.5, ls=DASHES[count % len(DASHES)])
            axes.fill_between(x, row.curve.low, row.curve.high, color=COLOUR[row.model], alpha=0.18, lw=0)
            ends.append((y[-1], row.agent, COLOUR[row.model]))
        begin = min(row.curve.position[0] for row in rows)
        length = max(row.curve.position[-1] for row in rows)
        low, high = axes.get_ylim()
        gap = (high - low) * 0.062
        place = -math.inf
        for value, agent, colour in sorted(ends, key=lambda end: (end[0], end[1])):
            place = max(value, place + gap)
            axes.text(length * 1.02, place, agent, color=colour, fontsize=9, va="center", clip_on=False)
        axes.set_xlim(begin, max(length, begin + 1))
        axes.set_ylim(low, max(high, place + gap / 2))
        unit = rows[0].curve.unit
        axes.set_xlabel(f"{unit} of the lifetime")
        axes.set_ylabel(f"mean score per {unit}")
        told = "; ".join(
            f"{row.agent} from {number(row.curve.mean[0])} to {number(row.curve.mean[-1])}" for row in rows
        )
        return inline(figure, name, f"Score along the lifetime. {told}")


def capacity(name: str, drawn: Sequence[Group], contents: Sequence[str], smallest: float, label: str) -> str:
    """Evidence for one question as content grows: a dot per run, means with intervals; runs of the sham as a band."""
    style = {"prediction": (CODE, "D", -0.14), "return": (EVOLUTION, "o", 0.14), "pupil": (INK, "^", 0.0)}
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 3.1)
        axes.axhline(0, color=RULE, lw=1.0)
        axes.axhline(smallest, color=INK, lw=0.9, ls=(0, (3, 2)))
        for group in drawn:
            place = contents.index(group.content)
            part = group.shown
            if group.condition == "sham":
                low, high = min(part.runs), max(part.runs)
                axes.fill_between([place - 0.4, place + 0.4], low, high, color=REFERENCE, alpha=0.22, lw=0)
                continue
            colour, marker, shift = style[group.model]
            spread = [place + shift + 0.07 * ((i % 5) / 2 - 1) for i in range(group.runs)]
            axes.plot(spread, part.runs, marker, ms=2.6, color=colour, mec=colour, alpha=0.45, ls="")
            axes.plot([place + shift] * 2, [part.low, part.high], "-", color=colour, lw=2.2, solid_capstyle="round")
            axes.plot([place + shift], [part.mean], marker, ms=5.4, color=colour, mec=colour)
        axes.set_xticks(range(len(contents)), [content.replace("_", "\n") for content in contents])
        axes.set_xlim(-0.6, len(contents) - 0.4)
        axes.margins(y=0.12)
        axes.set_ylabel(label)
        told = "; ".join(
            f"{g.content} by {g.model}{' (sham)' if g.condition == 'sham' else ''} {number(g.shown.mean)}"
            for g in drawn
        )
        return inline(figure, name, f"{label}. {told}")
