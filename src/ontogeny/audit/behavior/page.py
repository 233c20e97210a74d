"""The HTML page of an analysis of logged choices, rendered from its record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ontogeny.audit.behavior.base import INTERACTION, model_label
from ontogeny.report import charts, page
from ontogeny.report.charts import BASELINE, EVOLUTION, INK, ML_CODE, MUTED

SECTIONS = {
    "better": "Better choices",
    "stays": "Stay probabilities",
    "regression": "Regression of staying",
    "models": "Choice models",
    "recovery": "Model recovery",
    "participants": "Participants",
    "reading": "Decisions in reading the file",
}
OUTCOMES = ("rewarded", "unrewarded")
TRANSITION_COLORS = {"common": EVOLUTION, "rare": ML_CODE}
TRANSITION_OFFSETS = {"common": -0.13, "rare": 0.13}

STAYS_ONLY_SECTIONS = ("better", "stays", "regression", "participants", "reading")

Record = Mapping[str, Any]
"""A record of `analysis.analyze_choices`, or a part of it."""


def render(record: Record, title: str) -> str:
    """Renders the page.

    Args:
        record: The result of `analysis.analyze_choices` or `analysis.analyze_stays_only`.
        title: Heading of the page.
    """
    stays = record["stay_analysis"]
    drawings = {
        "stays": _draw_stays(stays["cell_means"], stays["by_participant"]),
        "better": _draw_better_choices(record["better_choices"]) if record["better_choices"] else None,
    }
    if "models" in record:
        drawings |= _draw_models(record)
    variables = {"record": record, "charts": drawings, "interaction": INTERACTION}
    macros = page.load_macros("ontogeny.audit.behavior", "behavior.html.j2", **variables)
    names = [name for name in SECTIONS if name in STAYS_ONLY_SECTIONS or "models" in record]
    sections = [page.Section(name, SECTIONS[name], getattr(macros, name)()) for name in names]
    return page.document(title, macros.opening(), sections, "behavior")


def _draw_models(record: Record) -> dict[str, Markup]:
    """The charts of choice models."""
    recovery = record["recovery"]
    return {
        "models": _draw_stays_of_models(record["fitted_simulations"]),
        "bic": _draw_bic_differences(record),
        "recovery": _draw_matrix(recovery["models"], recovery["by_participant"]),
    }


def _draw_stays(cell_means: Record, by_participant: Record) -> Markup:
    """Stay probabilities by cell: means with intervals, and one dot per participant."""
    with charts.new_panel(4.5, 3.4) as (figure, axes):
        _draw_cells(axes, cell_means, by_participant)
        axes.set_xticks([0, 1], [f"after {outcome}" for outcome in OUTCOMES])
        axes.set_ylabel("stay probability")
        return charts.inline_svg(figure, "stays", f"Stay probabilities: {_list_means(cell_means, 3)}")


def _draw_stays_of_models(simulations: Record) -> Markup:
    """Stay probabilities of simulated models, two panels in a row."""
    num_rows = -(-len(simulations) // 2)
    with charts.new_panel(4.5, 0.3 + 1.5 * num_rows) as (figure, first_axes):
        figure.delaxes(first_axes)
        for i, (model, part) in enumerate(simulations.items()):
            axes = charts.style_axes(figure.add_subplot(num_rows, 2, i + 1))
            _draw_cells(axes, part["cell_means"])
            axes.set_title(model_label(model), fontsize=9.5, loc="left")
            axes.set_xticks([0, 1], OUTCOMES)
        means = "; ".join(
            f"{model_label(model)} {_list_means(part['cell_means'], 2)}" for model, part in simulations.items()
        )
        label = f"Stay probabilities of models, cells as in the first chart: {means}"
        return charts.inline_svg(figure, "stays-of-models", label)


def _list_means(cell_means: Record, places: int) -> str:
    """The means of all cells as text."""
    return ", ".join(f"{cell} {m['mean']:.{places}f}" for cell, m in cell_means.items() if m["mean"] is not None)


def _draw_cells(axes: Axes, cell_means: Record, by_participant: Record | None = None) -> None:
    """The mean stay probability of each cell with its interval, and one dot per participant where they are given."""
    for cell, mean in cell_means.items():
        transition = cell.partition(",")[0]
        color = TRANSITION_COLORS.get(transition, EVOLUTION)
        x = OUTCOMES.index(cell.rpartition(" ")[2]) + TRANSITION_OFFSETS.get(transition, 0.0)
        if by_participant is not None:
            shares = [probability["share"] for probability in by_participant[cell] if probability["num_pairs"]]
            axes.plot([x + 0.08] * len(shares), shares, "o", ms=2.6, color=color, alpha=0.45, mew=0)
        if mean["low"] is not None:
            axes.plot([x, x], [mean["low"], mean["high"]], "-", color=color, lw=2, solid_capstyle="round")
        if mean["mean"] is not None:
            axes.plot([x], [mean["mean"]], "D" if transition == "rare" else "o", ms=5, color=color)
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(0, 1)
    for line in axes.lines:
        line.set_clip_on(False)  # markers at 0 and 1 are whole


def _draw_better_choices(better: Record) -> Markup:
    """The share of better choices by trial of the session: means with intervals, and chance as a broken line."""
    with charts.new_panel(4.5, 3.0) as (figure, axes):
        axes.axhline(better["chance"], color=INK, lw=0.9, ls=(0, (3, 2)))
        points = [point for point in better["curve"] if point["share"]["mean"] is not None]
        x = [(point["first_trial"] + point["last_trial"]) / 2 for point in points]
        axes.plot(x, [point["share"]["mean"] for point in points], "o-", ms=5, color=EVOLUTION, lw=1.2)
        for center, point in zip(x, points, strict=True):
            if point["share"]["low"] is not None:
                axes.plot([center, center], [point["share"]["low"], point["share"]["high"]], "-", color=EVOLUTION, lw=2)
        axes.set_ylim(0, 1)
        axes.set_xlabel("trial of the session")
        axes.set_ylabel("share of better choices")
        means = ", ".join(f"to trial {point['last_trial']} {point['share']['mean']:.2f}" for point in points)
        return charts.inline_svg(figure, "better", f"Share of better choices, chance {better['chance']:.2f}: {means}")


def _draw_bic_differences(record: Record) -> Markup:
    """How far the BIC of each model lies above that of the best one: dots, and means with intervals."""
    best = next(model for model in record["models"] if model["name"] == record["best_model"])
    models = sorted(record["models"], key=lambda model: -model["summed_bic"])
    with charts.new_panel(4.5, 0.8 + 0.3 * len(models)) as (figure, axes):
        axes.grid(False)
        axes.axvline(0, color=INK, lw=0.9, ls=(0, (3, 2)))
        for y, model in enumerate(models):
            differences = [bic - lowest for bic, lowest in zip(model["bic"], best["bic"], strict=True)]
            axes.plot(differences, [y] * len(differences), "o", ms=2.8, color=BASELINE, mew=0)
            mean = model["bic_difference"]
            if mean and mean["low"] is not None:
                axes.plot([mean["low"], mean["high"]], [y, y], "-", color=EVOLUTION, lw=2, solid_capstyle="round")
            axes.plot([mean["mean"] if mean else 0.0], [y], "o", ms=5, color=EVOLUTION)
        axes.set_yticks(range(len(models)), [model_label(model["name"]) for model in models])
        axes.set_xlabel(f"BIC difference from {model_label(record['best_model'])}")
        totals = ", ".join(f"{model_label(model['name'])} {model['summed_bic']:.1f}" for model in reversed(models))
        return charts.inline_svg(figure, "bic", f"Summed BIC, lowest first: {totals}")


def _draw_matrix(models: Sequence[str], shares: Sequence[Sequence[float]]) -> Markup:
    """A confusion matrix [M, M] as shades with numbers."""
    M, labels = len(models), [model_label(model) for model in models]
    with charts.new_panel(4.5, 0.9 + 0.45 * M) as (figure, axes):
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                alpha = 0.06 + 0.6 * share
                axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fc=EVOLUTION, alpha=alpha, lw=0))
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", color=INK if share else MUTED, fontsize=8.5)
        axes.set_xticks(range(M), labels, rotation=30, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks(range(M), labels)
        axes.set_xlim(-0.5, M - 0.5)
        axes.set_ylim(M - 0.5, -0.5)
        diagonal = ", ".join(f"{labels[i]} {shares[i][i]:.0%}" for i in range(M))
        return charts.inline_svg(figure, "recovery", f"Share of model organisms recognized: {diagonal}")
