"""The HTML page of an analysis of logged choices, rendered from its record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ontogeny.report import charts, page
from ontogeny.report.charts import BASELINE, EVOLUTION, INK, ML_CODE, MUTED

INTERACTION = "reward x transition"
OUTCOMES = ("rewarded", "unrewarded")
TRANSITION_COLORS = {"common": EVOLUTION, "rare": ML_CODE}
TRANSITION_OFFSETS = {"common": -0.13, "rare": 0.13}
INTERVAL_LINE: dict[str, Any] = {"lw": 2, "solid_capstyle": "round"}

Record = Mapping[str, Any]
"""A record of `analysis.analyze_choices`, or a part of it."""


def render(record: Record, title: str) -> str:
    """Renders the page.

    Args:
        record: The result of `analysis.analyze_choices`.
        title: Heading of the page.
    """
    sections = [
        page.Section("stays", "Stay probabilities", _stays_section(record)),
        page.Section("regression", "Regression of staying", _regression_section(record)),
        page.Section("models", "Choice models", _models_section(record)),
        page.Section("recovery", "Model recovery", _recovery_section(record)),
        page.Section("participants", "Participants", _participants_section(record)),
        page.Section("reading", "Decisions in reading the file", page.bullets(record["notes"])),
    ]
    return page.document(title, _macro("opening", record["verdict_text"]), sections, "behavior")


def _stays_section(record: Record) -> Markup:
    stays = record["stay_analysis"]
    means = stays["cell_means"] | stays["contrasts"]
    participants = page.figure(
        draw_stays("stays", stays["cell_means"], stays["by_participant"]),
        "Participants",
        "Mean over participants with its 95 % interval (Student's t); one dot per participant.",
    )
    simulations = page.figure(
        draw_stays_of_models("stays-of-models", record["fitted_simulations"]),
        "Fitted models",
        "Simulated with the parameters fitted to the participants, in tasks with the same transitions and rewards.",
    )
    table = page.table(
        "Stay probabilities and their contrasts",
        ["", "mean, 95 % interval"],
        [[name, _interval(mean)] for name, mean in means.items()],
        (1,),
    )
    figures = page.panels([participants, simulations])
    return _macro("stays", stays["num_pairs"], record["task"] == "two_step", figures, table)


def draw_stays(name: str, cell_means: Record, by_participant: Record) -> Markup:
    """Draws stay probabilities by cell: means with intervals, and participants as dots.

    Args:
        name: Prefix of element ids.
        cell_means: Mean over participants by cell.
        by_participant: Stay probabilities of the participants by cell.
    """
    with charts.style():
        figure, axes = charts.new_panel(4.5, 3.4)
        _draw_cells(axes, cell_means, by_participant)
        axes.set_xticks([0, 1], [f"after {outcome}" for outcome in OUTCOMES])
        axes.set_ylabel("stay probability")
        means = ", ".join(f"{cell} {mean['mean']:.3f}" for cell, mean in cell_means.items() if mean["mean"] is not None)
        return charts.inline_svg(figure, name, f"Stay probabilities: {means}")


def draw_stays_of_models(name: str, simulations: Record) -> Markup:
    """Draws the stay probabilities of simulated models, two panels in a row.

    Args:
        name: Prefix of element ids.
        simulations: Parts of the record by model.
    """
    num_rows = -(-len(simulations) // 2)
    with charts.style():
        figure, first_axes = charts.new_panel(4.5, 0.3 + 1.5 * num_rows)
        figure.delaxes(first_axes)
        for i, (model, part) in enumerate(simulations.items()):
            axes = charts.style_axes(figure.add_subplot(num_rows, 2, i + 1))
            _draw_cells(axes, part["cell_means"])
            axes.set_title(_label(model), fontsize=9.5, loc="left")
            axes.set_xticks([0, 1], OUTCOMES)
        means = "; ".join(
            f"{_label(model)} "
            + ", ".join(f"{mean['mean']:.2f}" for mean in part["cell_means"].values() if mean["mean"])
            for model, part in simulations.items()
        )
        return charts.inline_svg(figure, name, f"Stay probabilities of models, cells as in the first chart: {means}")


def _draw_cells(axes: Axes, cell_means: Record, by_participant: Record | None = None) -> None:
    for cell, mean in cell_means.items():
        transition = cell.partition(",")[0]
        color = TRANSITION_COLORS.get(transition, EVOLUTION)
        x = OUTCOMES.index(cell.rpartition(" ")[2]) + TRANSITION_OFFSETS.get(transition, 0.0)
        if by_participant is not None:
            shares = [probability["share"] for probability in by_participant[cell] if probability["num_pairs"]]
            axes.plot([x + 0.08] * len(shares), shares, "o", ms=2.6, color=color, alpha=0.45, mew=0)
        if mean["low"] is not None:
            axes.plot([x, x], [mean["low"], mean["high"]], "-", color=color, **INTERVAL_LINE)
        if mean["mean"] is not None:
            axes.plot([x], [mean["mean"]], "D" if transition == "rare" else "o", ms=5, color=color)
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(0, 1)


def _regression_section(record: Record) -> Markup:
    stays = record["stay_analysis"]
    plain, corrected = stays["regression"], stays["corrected_regression"]
    caption = "Coefficients in log odds, mean over participants with its 95 % interval"
    if not corrected:
        table = page.table(caption, ["term", "plain"], [[term, _interval(mean)] for term, mean in plain.items()], (1,))
        return _macro("regression", table, "", "")
    rows = [[term, _interval(plain.get(term)), _interval(mean)] for term, mean in corrected.items()]
    table = page.table(caption, ["term", "plain", "corrected"], rows, (1, 2))
    organisms = page.table(
        f"{INTERACTION} in model organisms of each model, with as many trials as the participants have",
        ["model organisms", "plain", "corrected"],
        [
            [
                _label(name),
                _interval(part["regression"][INTERACTION]),
                _interval(part["corrected_regression"][INTERACTION]),
            ]
            for name, part in record["organisms"].items()
        ],
        (1, 2),
    )
    return _macro("regression", table, record["better_choice_source"], organisms)


def _models_section(record: Record) -> Markup:
    rows = [
        [
            _macro("model_name", _label(model["name"]), model["description"]),
            f"{model['summed_bic']:,.1f}",
            _interval(model["bic_difference"], 1) if model["bic_difference"] else "lowest",
            str(record["best_models"].count(model["name"])),
            f"{model['converged_share']:.0%}",
        ]
        for model in sorted(record["models"], key=lambda model: model["summed_bic"])
    ]
    heads = ["model", "summed BIC", "BIC difference per participant", "best for", "converged starts"]
    table = page.table("Models by maximum likelihood, one fit per participant", heads, rows, (1, 2, 3, 4))
    chart = page.figure(
        _draw_bic_differences(record),
        "BIC difference from the best model",
        "One dot per participant; mean with its 95 % interval.",
    )
    num_undetermined = record["best_models"].count("undetermined")
    return _macro("models", num_undetermined, len(record["participants"]), page.panels([chart]), table)


def _draw_bic_differences(record: Record) -> Markup:
    best = next(model for model in record["models"] if model["name"] == record["best_model"])
    models = sorted(record["models"], key=lambda model: -model["summed_bic"])
    with charts.style():
        figure, axes = charts.new_panel(4.5, 0.8 + 0.3 * len(models))
        axes.grid(False)
        axes.axvline(0, color=INK, lw=0.9, ls=(0, (3, 2)))
        for y, model in enumerate(models):
            differences = [bic - lowest for bic, lowest in zip(model["bic"], best["bic"], strict=True)]
            axes.plot(differences, [y] * len(differences), "o", ms=2.8, color=BASELINE, mew=0)
            mean = model["bic_difference"]
            if mean and mean["low"] is not None:
                axes.plot([mean["low"], mean["high"]], [y, y], "-", color=EVOLUTION, **INTERVAL_LINE)
            axes.plot([mean["mean"] if mean else 0.0], [y], "o", ms=5, color=EVOLUTION)
        axes.set_yticks(range(len(models)), [_label(model["name"]) for model in models])
        axes.set_xlabel(f"BIC difference from {_label(record['best_model'])}")
        totals = ", ".join(f"{_label(model['name'])} {model['summed_bic']:.1f}" for model in reversed(models))
        return charts.inline_svg(figure, "bic", f"Summed BIC, lowest first: {totals}")


def _recovery_section(record: Record) -> Markup:
    recovery = record["recovery"]
    models, by_participant = recovery["models"], recovery["by_participant"]
    chart = page.figure(
        draw_matrix("recovery", models, by_participant),
        "Confusion matrix",
        f"Rows: {recovery['num_organisms']} model organisms of each model; columns: the model with the lowest BIC.",
    )
    rows = [
        [
            _label(name),
            f"{by_participant[i][i]:.0%}",
            f"{recovery['by_group'][i][i]:.0%}",
            _precision(by_participant, i),
        ]
        for i, name in enumerate(models)
    ]
    heads = ["model", "single organisms recognized", "groups recognized", "precision"]
    caption = f"Recovery; {recovery['num_groups']} groups of as many organisms as there are participants"
    return _macro("recovery", page.panels([chart]), page.table(caption, heads, rows, (1, 2, 3)))


def _precision(shares: Sequence[Sequence[float]], column: int) -> str:
    """The share of correct identifications among all identifications of a model."""
    identified = [row[column] for row in shares]
    return f"{identified[column] / sum(identified):.0%}" if sum(identified) else "never identified"


def draw_matrix(name: str, models: Sequence[str], shares: Sequence[Sequence[float]]) -> Markup:
    """Draws a confusion matrix as shades with numbers.

    Args:
        name: Prefix of element ids.
        models: M names.
        shares: [M, M], each row sums to 1.
    """
    M, labels = len(models), [_label(model) for model in models]
    with charts.style():
        figure, axes = charts.new_panel(4.5, 0.9 + 0.45 * M)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                square = Rectangle((j - 0.47, i - 0.47), 0.94, 0.94)
                square.set(facecolor=EVOLUTION, alpha=0.06 + 0.6 * share, linewidth=0)
                axes.add_patch(square)
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", color=INK if share else MUTED, fontsize=8.5)
        axes.set_xticks(range(M), labels, rotation=30, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks(range(M), labels)
        axes.set_xlim(-0.5, M - 0.5)
        axes.set_ylim(M - 0.5, -0.5)
        diagonal = ", ".join(f"{labels[i]} {shares[i][i]:.0%}" for i in range(M))
        return charts.inline_svg(figure, name, f"Share of model organisms recognized: {diagonal}")


def _participants_section(record: Record) -> Markup:
    by_cell = record["stay_analysis"]["by_participant"]
    rows = [
        [participant, *(_share(part[i]) for part in by_cell.values()), _label(record["best_models"][i])]
        for i, participant in enumerate(record["participants"])
    ]
    heads = ["participant", *by_cell, "best model"]
    return page.table("Stay probabilities with exact 95 % intervals", heads, rows, range(1, len(by_cell) + 1))


def _share(probability: Record) -> Markup | str:
    if not probability["num_pairs"]:
        return "none"
    ends = f"{probability['low']:.2f} to {probability['high']:.2f}"
    return _macro("interval", f"{probability['share']:.2f}", ends)


def _interval(mean: Record | None, places: int = 3) -> Markup | str:
    if mean is None or mean["mean"] is None:
        return ""
    ends = "" if mean["low"] is None else f"{mean['low']:.{places}f} to {mean['high']:.{places}f}"
    return _macro("interval", f"{mean['mean']:.{places}f}", ends)


def _label(model: str) -> str:
    return model.replace("_", "-")


def _macro(name: str, *arguments: Any) -> Markup:
    """Renders a macro of the template."""
    module = page.environment(__package__ or "").get_template("behavior.html.j2").module
    return Markup(getattr(module, name)(*arguments))
