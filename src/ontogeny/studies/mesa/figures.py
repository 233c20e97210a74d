"""Charts of the mesa study: effects by capacity, fingerprints, dose curves and the two-step task.

They read records and groups of records; they compute nothing.
"""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ontogeny.report.charts import BASELINE, EVOLUTION, INK, ML_CODE, MUTED, RULE, inline_svg, new_panel
from ontogeny.report.formatting import format_number
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.comparison import EFFECTS, ContentGroup

LINKS, PAIRS = EFFECTS["plans"][:3], EFFECTS["plans"][3:]
MIN_EFFECT = 0.10  # of a link or pair
TRAINING_STYLES = {  # color, marker, horizontal offset
    "prediction": (ML_CODE, "D", -0.14),
    "return": (EVOLUTION, "o", 0.14),
    "student": (INK, "^", 0.0),
}
ALGORITHMS = {
    "win_stay": "win-stay, lose-shift",
    "td_one": "TD(1)",
    "td_zero": "TD(0)",
    "successor": "successor representation",
    "latent_state_learner": "latent-state learner",
    "planner": "Bayesian planner",
}


def draw_capacity(
    name: str, groups: Sequence[ContentGroup], contents: Sequence[str], min_effect: float, label: str
) -> Markup:
    """Draw the effects of one hypothesis as capacity grows.

    Args:
        name: Prefix of the element ids, unique on the page.
        groups: One mark per run and one with an interval per group; the runs of a sham are a band.
        contents: Along the axis.
        min_effect: The smallest effect that counts, drawn as a dashed line.
        label: Of the vertical axis.
    """
    with new_panel(4.5, 3.1) as (figure, axes):
        axes.axhline(0, color=RULE, lw=1.0)
        axes.axhline(min_effect, color=INK, lw=0.9, ls=(0, (3, 2)))
        for group in groups:
            x, effect = contents.index(group.content), group.summary_effect
            if group.condition == "sham":
                low, high = min(effect.run_means), max(effect.run_means)
                axes.fill_between([x - 0.4, x + 0.4], low, high, color=BASELINE, alpha=0.22, lw=0)
                continue
            color, marker, offset = TRAINING_STYLES[group.training]
            # The marks of the runs stand side by side, in five columns.
            run_x = [x + offset + 0.07 * ((i % 5) / 2 - 1) for i in range(group.num_runs)]
            axes.plot(run_x, effect.run_means, marker, ms=2.6, color=color, mec=color, alpha=0.45, ls="")
            axes.plot([x + offset] * 2, [effect.low, effect.high], "-", color=color, lw=2.2, solid_capstyle="round")
            axes.plot([x + offset], [effect.mean], marker, ms=5.4, color=color, mec=color)
        axes.set_xticks(range(len(contents)), [content.replace("_", "\n") for content in contents])
        axes.set_xlim(-0.6, len(contents) - 0.4)
        axes.margins(y=0.12)
        axes.set_ylabel(label)
        suffixes = {"active": "", "sham": " (sham)"}  # by condition
        means = "; ".join(
            f"{g.content} by {g.training}{suffixes[g.condition]} {format_number(g.summary_effect.mean)}" for g in groups
        )
        return inline_svg(figure, name, f"{label}. {means}")


def draw_fingerprint(
    name: str, references: Sequence[Record], subjects: Sequence[tuple[str, Sequence[float]]]
) -> Markup:
    """Draw the effects of the three links and of the weakest held-out pair.

    Args:
        name: Prefix of the element ids, unique on the page.
        references: Records `fingerprint` of an organism (a band) and of its students (hollow marks).
        subjects: Approach and effects of each run of the study.
    """
    positions = (*LINKS, "weakest pair")
    with new_panel(4.5, 3.0) as (figure, axes):
        axes.axhline(0, color=RULE, lw=1.0)
        axes.axhline(MIN_EFFECT, color=INK, lw=0.9, ls=(0, (3, 2)))
        for record in references:
            for x, (mean, low, high) in enumerate(link_effects(record["effects"])):
                if record["group"] == "organism":
                    half = max((high - low) / 2, 0.012)
                    band = (mean - half, mean + half)
                    axes.fill_between([x - 0.32, x + 0.32], *band, color=BASELINE, alpha=0.3, lw=0)
                else:
                    axes.plot([x, x], [low, high], "-", color=MUTED, lw=1.2)
                    axes.plot([x], [mean], "o", ms=5.5, mfc="none", mec=INK)
        for run, (approach, means) in enumerate(subjects):
            offset = 0.12 + 0.05 * (run % 4)
            color, marker = (EVOLUTION, "o") if approach == "evolution" else (ML_CODE, "D")
            axes.plot([x + offset for x in range(len(means))], means, marker, ms=3, color=color, ls="")
        axes.set_xticks(range(len(positions)), positions)
        axes.set_xlim(-0.5, len(positions) - 0.5)
        axes.set_ylabel("effect on the next choice")
        effects = "; ".join(
            f"{record['group']}: " + ", ".join(f"{mean:.2f}" for mean, _, _ in link_effects(record["effects"]))
            for record in references
        )
        return inline_svg(figure, name, f"Effects of link 1, 2, 3 and the weakest pair. {effects}")


def link_effects(effects: Mapping[str, list[float]]) -> list[list[float]]:
    """The effects of the three links and of the weakest pair: mean and ends of the interval each.

    Empty where the test was not decided because it had too few lifetimes.
    """
    if not effects:
        return []
    pairs = [effects[name] for name in PAIRS if name in effects]
    return [effects[name] for name in LINKS] + ([min(pairs)] if pairs else [])


def collect_subjects(records: Sequence[Record]) -> list[tuple[str, list[float]]]:
    """Approach and effects of every run that passes the competence check of the test `plans`."""
    subjects = []
    for record in records:
        if record["kind"] == "evolved_agent":
            for result in record["results"]:
                applies = result["test"] == "plans" and not result["competence_failure"]
                if applies and all(link in result["effects"] for link in LINKS):
                    subjects.append(("evolution", [interval[0] for interval in link_effects(result["effects"])]))
        is_content = record["kind"] == "chain_audit" and record["training"] == "prediction"
        if is_content and not record["plans"]["competence_failure"]:
            values = record["plans"]["lifetime_values"]
            means = {name: [sum(effect_values) / len(effect_values)] for name, effect_values in values.items()}
            subjects.append(("ml_code", [mean for mean, *_ in link_effects(means)]))
    return subjects


def draw_dose_curve(name: str, record: Record) -> Markup:
    """Draw how often the choice follows the donor of `audit.belief`, by the share of activations that is replaced.

    One curve replaces the belief subspace, the other a random part of the activations of equal size.
    """
    with new_panel(4.5, 3.0) as (figure, axes):
        axes.axhline(0, color=RULE, lw=1.0)
        curves = (("belief", "belief", EVOLUTION, "o", 6), ("random", "random part of equal size", MUTED, "s", -14))
        for part, label, color, marker, offset in curves:
            means, lows, highs = zip(*record[part], strict=True)
            axes.fill_between(record["doses"], lows, highs, color=color, alpha=0.18, lw=0)
            axes.plot(record["doses"], means, marker=marker, ms=4.5, color=color, lw=1.4)
            axes.annotate(
                label, (record["doses"][-1], means[-1]), xytext=(-4, offset), textcoords="offset points", ha="right",
                color=color,
            )  # fmt: skip
        axes.set_xlabel("share exchanged")
        axes.set_ylabel("follows the donor")
        axes.margins(y=0.2)
        ends = ", ".join(f"{part} {record[part][-1][0]:.2f}" for part in ("belief", "random"))
        return inline_svg(figure, name, f"Choice follows the donor by share exchanged; all of it: {ends}")


def draw_two_step(name: str, record: Record) -> Markup:
    """Draw the interaction of reward and transition of an agent and of the reference learners."""
    labels = {"subject": record["agent"], "latent_state_fixed": "latent state, fixed responses"} | ALGORITHMS
    interactions = record["interaction"]
    agents = list(interactions["fixed"])
    with new_panel(4.5, 3.4) as (figure, axes):
        axes.axvline(0, color=RULE, lw=1.0)
        for y, agent in enumerate(agents):
            color = EVOLUTION if agent == "subject" else BASELINE
            for offset, paths in ((-0.13, "fixed"), (0.13, "random")):
                mean, low, high = interactions[paths][agent]
                axes.plot([low, high], [y + offset] * 2, "-", color=color, lw=1.2)
                axes.plot([mean], [y + offset], "o", ms=5, color=color, mfc="none" if paths == "random" else color)
        axes.set_yticks(range(len(agents)), [labels.get(agent, agent) for agent in agents])
        axes.set_ylim(len(agents) - 0.5, -0.5)
        axes.set_xlabel("stay probability: reward x transition")
        means = "; ".join(
            f"{labels.get(name, name)} {interactions['fixed'][name][0]:.2f} and {interactions['random'][name][0]:.2f}"
            for name in agents
        )
        return inline_svg(figure, name, f"Interaction with fixed transitions and with sampled ones. {means}")
