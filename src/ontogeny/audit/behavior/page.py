"""The page of an audit of logged choices, from its record alone: no JAX, no other file, no script."""

from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ontogeny.report import charts as figures
from ontogeny.report import old_page as page
from ontogeny.report.charts import BASELINE as REFERENCE
from ontogeny.report.charts import EVOLUTION, INK, MUTED
from ontogeny.report.charts import ML_CODE as CODE

TERM = "reward x transition"
OUTCOMES = ("rewarded", "unrewarded")
COLOURS = {"common": EVOLUTION, "rare": CODE}


def render(record: dict[str, Any], title: str) -> str:
    words = "".join(f"<p>{escape(line)}</p>" for line in record["in_words"])
    sections = [
        page.Section("staying", "How often a choice is repeated", _staying(record)),
        page.Section("regression", "What staying depends on", _regression(record)),
        page.Section("models", "Which model explains the choices", _models(record)),
        page.Section("recovery", "How far that can be trusted", _recovery(record)),
        page.Section("subjects", "Subject by subject", _subjects(record)),
        page.Section("read", "How the file was read", _read(record)),
    ]
    return page.document(title, words, sections, "behaviour")


def _staying(record: dict[str, Any]) -> str:
    own = record["stays"]
    data = page.figure(
        stay_chart("stay-data", own["pooled"], own["cells"]),
        "The subjects",
        "Mean over subjects with its 95 % interval (Student's t); a dot per subject.",
    )
    beside = page.figure(
        stay_charts("stay-models", record["simulated"]),
        "Each model in their place",
        "Simulated with the numbers fitted to the subjects, in tasks that lead and pay as theirs did.",
    )
    key = "Blue after a common transition, orange after a rare one." if record["task"] == "two_step" else ""
    rows = [[escape(name), _told(mean)] for name, mean in (own["pooled"] | own["contrasts"]).items()]
    note = (
        f"<p>{own['pairs']:,} pairs of consecutive trials that are both there. {key} Beside the subjects each model, "
        "as it would have behaved in their place.</p>"
    )
    table = page.table("Share of choices repeated, and contrasts of it", ["", "mean, 95 % interval"], rows, (1,))
    return note + page.panels([data, beside]) + table


def stay_chart(name: str, pooled: dict[str, Any], cells: dict[str, Any]) -> str:
    """Staying by cell: means with intervals, subjects as dots."""
    with matplotlib.rc_context(figures.STYLE):
        figure, axes = figures.new_panel(4.5, 3.4)
        _cells(axes, pooled, cells)
        axes.set_xticks([0, 1], [f"after {word}" for word in OUTCOMES])
        axes.set_ylabel("choice repeated")
        told = ", ".join(f"{cell} {mean['mean']:.3f}" for cell, mean in pooled.items() if mean["mean"] is not None)
        return figures.inline_svg(figure, name, f"Share of choices repeated: {told}")


def stay_charts(name: str, simulated: dict[str, Any]) -> str:
    """The same for each model, two to a row."""
    rows = -(-len(simulated) // 2)
    with matplotlib.rc_context(figures.STYLE):
        figure, first = figures.new_panel(4.5, 0.3 + 1.5 * rows)
        figure.delaxes(first)
        for i, (model, part) in enumerate(simulated.items()):
            axes = figure.add_subplot(rows, 2, i + 1)
            axes.patch.set_visible(False)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.grid(axis="y", color=figures.RULE, linewidth=0.5)
            axes.set_axisbelow(True)
            _cells(axes, part["pooled"])
            axes.set_title(_name(model), fontsize=9.5, loc="left")
            axes.set_xticks([0, 1], OUTCOMES)
        told = "; ".join(
            f"{_name(model)} " + ", ".join(f"{mean['mean']:.2f}" for mean in part["pooled"].values() if mean["mean"])
            for model, part in simulated.items()
        )
        return figures.inline_svg(figure, name, f"Share of choices repeated by models, cells as in the first chart: {told}")


def _cells(axes: Axes, pooled: dict[str, Any], cells: dict[str, Any] | None = None) -> None:
    for cell, mean in pooled.items():
        transition = cell.partition(",")[0]
        colour = COLOURS.get(transition, EVOLUTION)
        x = OUTCOMES.index(cell.rpartition(" ")[2]) + {"common": -0.13, "rare": 0.13}.get(transition, 0.0)
        if cells is not None:
            shares = [one["share"] for one in cells[cell] if one["pairs"]]
            axes.plot([x + 0.08] * len(shares), shares, "o", ms=2.6, color=colour, alpha=0.45, mew=0)
        if mean["low"] is not None:
            axes.plot([x, x], [mean["low"], mean["high"]], "-", color=colour, lw=2, solid_capstyle="round")
        if mean["mean"] is not None:
            axes.plot([x], [mean["mean"]], "D" if transition == "rare" else "o", ms=5, color=colour)
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(0, 1)


def _regression(record: dict[str, Any]) -> str:
    own = record["stays"]
    terms = list(own["corrected"] or own["plain"])
    rows = [
        [escape(term), _told(own["plain"].get(term)), _told(own["corrected"].get(term))]
        if own["corrected"]
        else [escape(term), _told(own["plain"].get(term))]
        for term in terms
    ]
    heads = ["term", "plain", "corrected"] if own["corrected"] else ["term", "plain"]
    body = page.table("Log odds of staying, mean over subjects with 95 % interval", heads, rows, range(1, len(heads)))
    if not own["corrected"]:
        return body
    body = (
        "<p>Plain: reward, transition and their product (Daw et al. 2011). Corrected: with a term more, whether the "
        f"choice was the better one, {escape(record['correct'])} (Akam, Costa and Dayan 2015). The correction does "
        "not clear agents that act on latent states: below, the same coefficients in organisms, some of which nobody "
        f"would call planners.</p>{body}"
    )
    rows = [
        [escape(_name(name)), _told(part["plain"][TERM]), _told(part["corrected"][TERM])]
        for name, part in record["organisms"].items()
    ]
    caption = f"{TERM} in organisms of each model, as many trials each as the subjects have"
    return body + page.table(caption, ["organisms", "plain", "corrected"], rows, (1, 2))


def _models(record: dict[str, Any]) -> str:
    rows = []
    for model in sorted(record["models"], key=lambda model: model["summed_bic"]):
        won = record["winners"].count(model["name"])
        behind = _told(model["behind"], 1) if model["behind"] else "lowest"
        rows.append(
            [
                f"{escape(_name(model['name']))}<br><small>{escape(model['told'])}</small>",
                f"{model['summed_bic']:,.1f}",
                behind,
                str(won),
                f"{model['starts_that_agreed']:.0%}",
            ]
        )
    heads = ["model", "summed BIC", "behind per subject", "subjects won", "starts that agreed"]
    table = page.table("Models by maximum likelihood, one fit per subject", heads, rows, (1, 2, 3, 4))
    chart = page.figure(
        _behind_chart(record), "How far each model lies behind the best", "BIC per subject; mean with 95 % interval."
    )
    unsure = record["winners"].count("undetermined")
    return (
        f"<p>A subject is won where the lowest BIC is more than 2 below the next; {unsure} of "
        f"{len(record['subjects'])} are undetermined.</p>{page.panels([chart])}{table}"
    )


def _behind_chart(record: dict[str, Any]) -> str:
    best = next(model for model in record["models"] if model["name"] == record["best"])
    models = sorted(record["models"], key=lambda model: -model["summed_bic"])
    with matplotlib.rc_context(figures.STYLE):
        figure, axes = figures.new_panel(4.5, 0.8 + 0.3 * len(models))
        axes.grid(False)
        axes.axvline(0, color=INK, lw=0.9, ls=(0, (3, 2)))
        for y, model in enumerate(models):
            apart = [one - other for one, other in zip(model["bic"], best["bic"], strict=True)]
            axes.plot(apart, [y] * len(apart), "o", ms=2.8, color=REFERENCE, mew=0)
            mean = model["behind"]
            if mean and mean["low"] is not None:
                axes.plot([mean["low"], mean["high"]], [y, y], "-", color=EVOLUTION, lw=2, solid_capstyle="round")
            axes.plot([mean["mean"] if mean else 0.0], [y], "o", ms=5, color=EVOLUTION)
        axes.set_yticks(range(len(models)), [_name(model["name"]) for model in models])
        axes.set_xlabel(f"BIC above that of {_name(record['best'])}")
        told = ", ".join(f"{_name(m['name'])} {m['summed_bic']:.1f}" for m in reversed(models))
        return figures.inline_svg(figure, "behind", f"Summed BIC, lowest first: {told}")


def _recovery(record: dict[str, Any]) -> str:
    found = record["recovery"]
    chart = page.figure(
        matrix_chart("recovery", found["models"], found["by_subject"]),
        "Who is taken for whom",
        f"Rows: {found['organisms_each']} organisms of each model; columns: the model of the lowest BIC.",
    )
    rows = [
        [escape(_name(name)), f"{found['by_subject'][i][i]:.0%}", f"{found['by_group'][i][i]:.0%}", _reliable(found, i)]
        for i, name in enumerate(found["models"])
    ]
    heads = ["model", "one organism recognised", "a whole group recognised", "right where it is named"]
    caption = f"Recovery; {found['groups_each']} groups of as many organisms as there are subjects"
    return (
        "<p>Organisms of every model, with numbers drawn from set ranges, lived as many trials as the subjects, missed "
        "the same ones, and were fitted as the subjects were. Their rewards follow those that each subject met, "
        f"smoothed.</p>{page.panels([chart])}{page.table(caption, heads, rows, (1, 2, 3))}"
    )


def _reliable(found: dict[str, Any], column: int) -> str:
    named = [row[column] for row in found["by_subject"]]
    return f"{named[column] / sum(named):.0%}" if sum(named) else "never named"


def matrix_chart(name: str, models: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """Shares as shades with their numbers."""
    M = len(models)
    with matplotlib.rc_context(figures.STYLE):
        figure, axes = figures.new_panel(4.5, 0.9 + 0.45 * M)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                square = Rectangle((j - 0.47, i - 0.47), 0.94, 0.94)
                square.set(facecolor=EVOLUTION, alpha=0.06 + 0.6 * share, linewidth=0)
                axes.add_patch(square)
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", color=INK if share else MUTED, fontsize=8.5)
        names = [_name(model) for model in models]
        axes.set_xticks(range(M), names, rotation=30, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks(range(M), names)
        axes.set_xlim(-0.5, M - 0.5)
        axes.set_ylim(M - 0.5, -0.5)
        told = ", ".join(f"{names[i]} {shares[i][i]:.0%}" for i in range(M))
        return figures.inline_svg(figure, name, f"Share of organisms recognised: {told}")


def _subjects(record: dict[str, Any]) -> str:
    cells = record["stays"]["cells"]
    rows = []
    for i, who in enumerate(record["subjects"]):
        shares = [
            f"{part[i]['share']:.2f}<br><small>{part[i]['low']:.2f} to {part[i]['high']:.2f}</small>"
            if part[i]["pairs"]
            else "none"
            for part in cells.values()
        ]
        rows.append([escape(who), *shares, escape(_name(record["winners"][i]))])
    heads = ["subject", *cells, "model"]
    return page.table("Share of choices repeated, with exact 95 % intervals", heads, rows, range(1, len(cells) + 1))


def _read(record: dict[str, Any]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in record["said"]) + "</ul>"


def _told(mean: dict[str, Any] | None, digits: int = 3) -> str:
    if mean is None or mean["mean"] is None:
        return ""
    if mean["low"] is None:
        return f"{mean['mean']:.{digits}f}"
    ends = f"{mean['low']:.{digits}f} to {mean['high']:.{digits}f}"
    return f"{mean['mean']:.{digits}f}<br><small>{ends}</small>"


def _name(model: str) -> str:
    return model.replace("_", "-")
