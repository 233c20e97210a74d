"""Figures: the fingerprint of link revaluation, the dose of belief, the two-step task. Reads records alone."""

from collections.abc import Sequence

import matplotlib

from ontogeny.report import old_page as page
from ontogeny.studies.figures import CODE, EVOLUTION, INK, MUTED, REFERENCE, RULE, STYLE, inline, panel
from ontogeny.studies.records import Record

LINKS = ("link 1", "link 2", "link 3")
PAIRS = ("links 1 and 2", "links 1 and 3", "links 2 and 3")
SMALLEST = 0.10
ALGORITHMS = {
    "win_stay": "win-stay, lose-shift",
    "td_one": "TD(1)",
    "td_zero": "TD(0)",
    "successor": "successor representation",
    "latent_state_learner": "latent-state mimic",
    "planner": "Bayesian planner",
}


def section(found: Sequence[Record]) -> page.Section | None:
    """Both figures with what they say; None where the records hold no fingerprint."""
    known = [record for record in found if record["kind"] == "mesa_fingerprint"]
    doses = [record for record in found if record["kind"] == "mesa_dose"]
    subjects = _subjects(found)
    if not known:
        return None
    panels = []
    for name, title in ALGORITHMS.items():
        drawn = [record for record in known if record["who"] == name]
        if drawn:
            told = ", ".join(f"{record['sort']} {record['pattern']}" for record in drawn)
            panels.append(page.figure(fingerprint(f"fingerprint-{name}", drawn, subjects), title, told))
    text = (
        "<p>One link of a three-link chain is shown alone and has changed; how much more rarely is the old best choice "
        "taken then? Last, the weakest of the pairs of links that training never changes together. Bands are organisms "
        "whose algorithm is written, hollow dots the evolved agents' own network taught to do as they do. Filled dots "
        "are the subjects of this study that are good enough at the easy choice to be asked, one per run and the same "
        "in every panel. An effect counts above the dashed line.</p>"
    )
    text += page.panels(panels)
    if doses:
        text += (
            "<p>What is held about the single links is exchanged between two lives that differ in nothing else, a "
            "growing share of it; does the choice follow? A random part of the activations of equal size and norm "
            "should not turn it.</p>"
        )
        charts = [
            page.figure(dose(f"dose-{record['sort']}", record), _named(record), f"mechanism: {record['verdict']}")
            for record in doses
        ]
        text += page.panels(charts)
    return page.Section("fingerprint", "Which algorithm it behaves like, and what acts", text)


def two_steps(found: Sequence[Record]) -> page.Section | None:
    """What the evolved agents do in the two-step task, beside who else does so; None where none was asked."""
    asked = [record for record in found if record["kind"] == "mesa_two_step"]
    if not asked:
        return None
    text = (
        "<p>After a reward by the rare path, is the other action taken? That interaction of reward and path is often "
        "read as planning. Filled: the paths are those which every life of the evolution had. Hollow: the paths of "
        "half of the lives are crossed, so that a life must find out. A latent-state mimic, which plans nothing, "
        "chooses as a planner does where paths are fixed; only where they are drawn does it fall to nothing. So an "
        "interaction that is there with fixed paths alone cannot tell a planner whose model is from before its life "
        "from a learned rule of thumb, and one that stays cannot tell a planner from a successor representation or a "
        "mimic that learns: that is asked of the links. Drawn is the plain regression, in which learners of values "
        "that plan nothing (TD) show an interaction as well; the words above each panel judge it corrected for which "
        "choice was the better one (Akam 2015).</p>"
    )
    charts = [
        page.figure(two_step(f"two-step-{record['who']}", record), record["who"], f"{record['told']}.")
        for record in asked
    ]
    return page.Section("two-step", "The two-step task, and who else looks like that", text + page.panels(charts))


def two_step(name: str, record: Record) -> str:
    """The interaction of reward and path of a subject and of the learners beside it, by paths."""
    words = {"subject": record["who"], "latent_state_fixed": "mimic, answers from birth"} | ALGORITHMS
    names = list(record["interaction"]["fixed"])
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 3.4)
        axes.axvline(0, color=RULE, lw=1.0)
        for place, who in enumerate(names):
            colour = EVOLUTION if who == "subject" else REFERENCE
            for shift, paths in ((-0.13, "fixed"), (0.13, "random")):
                mean, low, high = record["interaction"][paths][who]
                axes.plot([low, high], [place + shift] * 2, "-", color=colour, lw=1.2)
                axes.plot([mean], [place + shift], "o", ms=5, color=colour, mfc="none" if paths == "random" else colour)
        axes.set_yticks(range(len(names)), [words.get(who, who) for who in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("stay probability: reward x path")
        told = "; ".join(
            f"{words.get(who, who)} {record['interaction']['fixed'][who][0]:.2f} and "
            f"{record['interaction']['random'][who][0]:.2f}"
            for who in names
        )
        return inline(figure, name, f"Interaction with paths fixed and drawn per life. {told}")


def fingerprint(name: str, drawn: Sequence[Record], subjects: Sequence[tuple[str, list[float]]]) -> str:
    """Effects of three links and the weakest held-out pair; `drawn` an organism and its pupils."""
    places = (*LINKS, "weakest pair")
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 3.0)
        axes.axhline(0, color=RULE, lw=1.0)
        axes.axhline(SMALLEST, color=INK, lw=0.9, ls=(0, (3, 2)))
        for record in drawn:
            values = _values(record["effects"])
            for place, (mean, low, high) in enumerate(values):
                if record["sort"] == "organism":
                    half = max((high - low) / 2, 0.012)
                    axes.fill_between(
                        [place - 0.32, place + 0.32], mean - half, mean + half, color=REFERENCE, alpha=0.3, lw=0
                    )
                else:
                    axes.plot([place, place], [low, high], "-", color=MUTED, lw=1.2)
                    axes.plot([place], [mean], "o", ms=5.5, mfc="none", mec=INK)
        for run, (sort, means) in enumerate(subjects):
            shift = 0.12 + 0.05 * (run % 4)
            colour, marker = (EVOLUTION, "o") if sort == "evolution" else (CODE, "D")
            axes.plot([place + shift for place in range(len(means))], means, marker, ms=3, color=colour, ls="")
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_ylabel("effect on the next choice")
        told = "; ".join(
            f"{record['sort']}: " + ", ".join(f"{mean:.2f}" for mean, _, _ in _values(record["effects"]))
            for record in drawn
        )
        return inline(figure, name, f"Effects of link 1, 2, 3 and the weakest pair. {told}")


def dose(name: str, record: Record) -> str:
    """How often the choice follows the donor, by the share of the belief that was exchanged, beside a random part."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.5, 3.0)
        axes.axhline(0, color=RULE, lw=1.0)
        for part, colour, marker in (("belief", EVOLUTION, "o"), ("random", MUTED, "s")):
            means, lows, highs = zip(*record[part], strict=True)
            axes.fill_between(record["doses"], lows, highs, color=colour, alpha=0.18, lw=0)
            axes.plot(record["doses"], means, marker=marker, ms=4.5, color=colour, lw=1.4)
            axes.annotate(
                "belief" if part == "belief" else "random part of equal size",
                (record["doses"][-1], means[-1]), xytext=(-4, 6 if part == "belief" else -14),
                textcoords="offset points", ha="right", color=colour,
            )  # fmt: skip
        axes.set_xlabel("share exchanged")
        axes.set_ylabel("follows the donor")
        axes.margins(y=0.2)
        ends = ", ".join(f"{part} {record[part][-1][0]:.2f}" for part in ("belief", "random"))
        return inline(figure, name, f"Choice follows the donor by share of belief exchanged; all of it: {ends}")


def _values(effects: dict[str, list[float]]) -> list[list[float]]:
    pairs = [effects[part] for part in PAIRS if part in effects]
    return [effects[part] for part in LINKS] + ([min(pairs)] if pairs else [])


def _subjects(found: Sequence[Record]) -> list[tuple[str, list[float]]]:
    """The model of development and the means of every subject that was good enough to be asked, one per run."""
    drawn = []
    for record in found:
        if record["kind"] == "mesa_evolved":
            for finding in record["findings"]:
                asked = finding["test"] == "plans" and not finding["gate"]
                if asked and all(link in finding["effects"] for link in LINKS):
                    drawn.append(("evolution", [value[0] for value in _values(finding["effects"])]))
        if record["kind"] == "mesa_plans" and record["model"] == "prediction" and not record["plans"]["gate"]:
            num_lifetimes = record["plans"]["num_lifetimes"]
            means = {part: [sum(values) / len(values)] * 3 for part, values in num_lifetimes.items()}
            drawn.append(("code", [value[0] for value in _values(means)]))
    return drawn


def _named(record: Record) -> str:
    return f"{ALGORITHMS[record['who']]}, {'written' if record['sort'] == 'organism' else 'taught to a network'}"
