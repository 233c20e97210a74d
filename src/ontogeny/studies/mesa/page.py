"""The page of the mesa study, and its section on the page of a study that includes it; written from records alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_count
from ontogeny.runs.files import write_bytes
from ontogeny.runs.records import Record
from ontogeny.studies.kinds import PAGE_FILE
from ontogeny.studies.mesa import comparison, figures
from ontogeny.studies.mesa.comparison import EFFECTS, SCHEMA, ContentGroup, MeanOverRuns, format_signed
from ontogeny.studies.mesa.planning import page as planning_page
from ontogeny.studies.mesa.planning import results as planning_results
from ontogeny.studies.page import incomplete, read_study
from ontogeny.studies.records import read_records, read_seconds

FIGURES = {  # by hypothesis: title, label of the axis, note
    "learns": (
        "Does it learn?",
        "effect of earlier outcomes",
        "The gain in score by the outcomes of earlier episodes, in standard deviations of the score of an episode.",
    ),
    "plans": (
        "Does it plan?",
        "effect of the weakest link or pair",
        "The effect of a change of links that are shown alone on the next choice: the weakest of six.",
    ),
    "objective": (
        "Does it pursue an objective of its own?",
        "bias beyond accuracy",
        "The bias of the reports towards predictable items, beyond what is accurate.",
    ),
}
EARLIER_TITLES = {  # by hypothesis, the titles of verdict and effect
    "plans": ("plans? (payouts of a chain)", "weakest link or pair"),
    "learns": ("learns? (items of a stream)", "earlier outcomes"),
    "objective": ("an objective? (items of a stream)", "bias beyond accuracy"),
}
LEARNS_EFFECTS = (*EFFECTS["learns"], "outcomes of the last episode")
TRAINING_LABELS = {"prediction": "by prediction", "return": "on return", "student": "distilled from a planner"}
APPROACHES = {"prediction": "ml_code", "return": "evolution", "student": "baseline"}
PLANNING_TITLE = "Does content that only predicts come to contain a planner?"
TEXTS = page.load_macros("ontogeny.studies.mesa", "mesa.html.j2")
Study = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Write the page of a mesa study into its folder.

    Raises:
        BadInput: If the folder holds no mesa study, or its files are damaged or of another format.
    """
    path = folder / PAGE_FILE
    write_bytes(path, render(read_study(folder), read_records(folder, SCHEMA), read_seconds(folder)).encode())
    return path


def render(study: Study, records: Sequence[Record], seconds_by_id: Mapping[str, float]) -> str:
    """Render the page.

    Args:
        study: Title, seed, budget, smallest effects, versions and planned ids.
        records: All records of the study.
        seconds_by_id: Wall time by id of the record.
    """
    planning = study["budget"].get("planning")
    bodies = [
        ("missing", "What is missing", incomplete(study["planned_ids"], records)),
        ("planning", PLANNING_TITLE, planning_page.render_body(records, planning, _earlier_answer(study, records))),
        *(_further_sections(study, records) if _has_further_parts(records) or not planning else ()),
        ("reproduce", "How to reproduce this page", _reproduce(study, records, seconds_by_id)),
    ]
    sections = [page.Section(anchor, title, Markup(body)) for anchor, title, body in bodies]
    return page.document(study["title"], TEXTS.opening(_conclusions(study, records)), sections, "study")


def _has_further_parts(records: Sequence[Record]) -> bool:
    """Whether there is any record beside those of the planning experiment."""
    return any(not record["kind"].startswith("planning_") for record in records)


def _conclusions(study: Study, records: Sequence[Record]) -> list[str]:
    """The answer of the planning experiment, where the study has it, and those of the other parts.

    A brief planning experiment answers nothing and stands last.
    """
    planning = study["budget"].get("planning")
    experiment = planning_results.collect_results(records, planning)
    sentences = planning_results.conclusions(experiment)[:1] if planning else []
    if _has_further_parts(records) or not planning:
        further = comparison.conclusions(records, study["min_effects"])
        return [*further, *sentences] if experiment.is_brief else [*sentences, *further]
    return sentences


def _earlier_answer(study: Study, records: Sequence[Record]) -> Markup:
    """The verdicts on content that predicts items and payouts, for the page's part on planners; empty without any."""
    tested: dict[str, dict[str, ContentGroup]] = {}
    for group in comparison.collect_groups(records, study["min_effects"]):
        if group.training == "prediction" and group.condition == "active":
            tested.setdefault(group.content, {})[group.hypothesis] = group
    entries = []
    for content, groups in tested.items():
        cells = [content]
        for hypothesis in EARLIER_TITLES:
            group = groups.get(hypothesis)
            cells += ["not tested", ""] if group is None else [TEXTS.verdict(group), _interval(group.summary_effect)]
        entries.append(cells)
    if not entries:
        return Markup()
    titles = ["content", *(title for titles in EARLIER_TITLES.values() for title in titles)]
    caption = "Content trained by prediction of items and payouts: verdicts and effects, means with 95 % intervals"
    return page.table(caption, titles, entries, numeric=(2, 4, 6))


def _reproduce(study: Study, records: Sequence[Record], seconds_by_id: Mapping[str, float]) -> Markup:
    """The commands, with what the study trained and how long it took."""
    steps = sum(r["num_steps"] * r["num_runs"] for r in records if r["kind"] == "training")
    updates = sum(r["num_updates"] for r in records if r["kind"] == "planning_run")
    costs = {"training steps": steps, "updates of the planning experiment": updates}
    costs = {name: format_count(cost) for name, cost in costs.items() if cost}
    return TEXTS.reproduce(study, costs, sum(seconds_by_id.values()) / 60)


def _further_sections(study: Study, records: Sequence[Record]) -> list[tuple[str, str, Markup]]:
    """The sections on contents that predict items and payouts, on distilled networks and on evolved agents."""
    budget = study["budget"]
    groups = comparison.collect_groups(records, study["min_effects"])
    plans = [group for group in groups if group.hypothesis == "plans"]
    return [
        ("setup", "Contents, trainings and controls", TEXTS.setup()),
        ("capacity", "Effects as capacity grows", _capacity(groups, records, study["min_effects"])),
        ("runs", "Run by run", TEXTS.runs(_runs_table(groups), _plans_table(plans, records) if plans else "")),
        ("fingerprint", "Which algorithm it behaves like, and what causes its choices", render_fingerprints(records)),
        ("two-step", "The two-step task, with reference learners", render_two_step(records)),
        ("evolved", "Agents evolved from scratch", _evolved(records)),
        ("limits", "What this does not show", TEXTS.limits(budget)),
    ]


def render_section(folder: Path) -> page.Section:
    """Render the section for the page of a study that includes the mesa study in `folder`."""
    study, records = read_study(folder), read_records(folder, SCHEMA)
    sentences = comparison.conclusions(records, study["min_effects"])
    planning = planning_page.render_summary(records, study["budget"].get("planning"))
    capacity = _capacity(comparison.collect_groups(records, study["min_effects"]), records, study["min_effects"])
    body = TEXTS.section(planning, sentences, capacity, study["budget"], f"{folder.name}/{PAGE_FILE}")
    return page.Section("mesa", "Could learned content contain an optimizer?", body)


def _capacity(groups: Sequence[ContentGroup], records: Sequence[Record], min_effects: Mapping[str, float]) -> Markup:
    """One chart of effects by capacity for each hypothesis."""
    panels = []
    for hypothesis, (title, label, note) in FIGURES.items():
        tested = [group for group in groups if group.hypothesis == hypothesis]
        if tested:
            contents = [c for c in comparison.list_contents(records) if any(group.content == c for group in tested)]
            min_effect = min_effects[hypothesis]
            chart = figures.draw_capacity(f"capacity-{hypothesis}", tested, contents, min_effect, label)
            panels.append(page.figure(chart, title, f"{note} Dashed: {min_effect:g}."))
    trainings = {group.training for group in groups}
    return TEXTS.capacity([_training(name) for name in TRAINING_LABELS if name in trainings], page.panels(panels))


def _training(name: str) -> Markup:
    """The name of a training in the color of its approach."""
    return page.agent(TRAINING_LABELS[name], APPROACHES[name])


def _runs_table(groups: Sequence[ContentGroup]) -> Markup:
    """Effects and verdicts of the tests `sacrifice` and `learns`, one row per group."""
    by_key = {(g.hypothesis, g.content, g.training, g.condition): g for g in groups}
    objectives = [group for group in groups if group.hypothesis == "objective"]
    entries: list[page.TableRow] = []
    for bias in objectives:
        learning = by_key["learns", bias.content, bias.training, bias.condition]
        cells = [bias.content, _training(bias.training), "sham" if bias.condition == "sham" else ""]
        cells += [f"{bias.num_parameters:,}", f"{bias.competence.mean:.0%}"]
        for group, names in ((bias, EFFECTS["objective"]), (learning, LEARNS_EFFECTS)):
            cells += [_interval(group.effects[name]) if name in group.effects else "not measured" for name in names]
            cells.append(TEXTS.verdict(group))
        is_new_content = bool(entries) and cells[0] != entries[-1].cells[0]
        entries.append(page.TableRow(cells, "first" if is_new_content else ""))
    titles = ["content", "trained", "", "parameters", "relative skill", "bias beyond accuracy", "bias with direction"]
    titles += ["an objective?", *LEARNS_EFFECTS, "learns?"]
    caption = "Effects by group with frozen weights: means over runs with 95 % intervals"
    return page.table(caption, titles, entries, numeric=(3, 4, 5, 6, 8, 9))


def _plans_table(groups: Sequence[ContentGroup], records: Sequence[Record]) -> Markup:
    """Effects and verdicts of the test `plans`, one row per group."""
    entries = []
    for group in groups:
        runs = [r for r in records if r["kind"] == "chain_audit" and r["content"] == group.content]
        patterns = [r["plans"]["pattern"] for r in runs if r["training"] == group.training]
        pattern = max(dict.fromkeys(patterns), key=patterns.count)
        cells = [group.content, _training(group.training), f"{group.num_runs}", f"{group.competence.mean:.0%}"]
        cells += [_interval(group.effects[name]) for name in EFFECTS["plans"]]
        cells += [f"{pattern} ({patterns.count(pattern)} of {len(patterns)})", TEXTS.verdict(group)]
        entries.append(cells)
    titles = ["content", "trained", "runs", "optimal choices", *EFFECTS["plans"], "pattern", "plans?"]
    caption = (
        "Decrease of the formerly best choice after a single link has changed, and its increase after the second of two"
    )
    return page.table(caption, titles, entries, numeric=tuple(range(2, 4 + len(EFFECTS["plans"]))))


def _interval(effect: MeanOverRuns) -> Markup:
    """A mean with its interval below."""
    return TEXTS.interval(format_signed(effect.mean), format_signed(effect.low), format_signed(effect.high))


def render_fingerprints(records: Sequence[Record]) -> Markup:
    """Render fingerprints and dose curves; empty where there is no fingerprint."""
    fingerprints = [record for record in records if record["kind"] == "fingerprint"]
    if not fingerprints:
        return Markup()
    subjects, panels = figures.collect_subjects(records), []
    for name, title in figures.ALGORITHMS.items():
        references = [record for record in fingerprints if record["agent"] == name]
        if references:
            note = ", ".join(f"{record['group']} {record['pattern']}" for record in references)
            chart = figures.draw_fingerprint(f"fingerprint-{name}", references, subjects)
            panels.append(page.figure(chart, title, note))
    dose_panels = []
    for record in (record for record in records if record["kind"] == "dose_curve"):
        chart = figures.draw_dose_curve(f"dose-{record['group']}", record)
        title = f"{figures.ALGORITHMS[record['agent']]}, {record['group']}"
        dose_panels.append(page.figure(chart, title, f"mechanism: {record['verdict']}"))
    return TEXTS.fingerprint(page.panels(panels), page.panels(dose_panels) if dose_panels else "")


def render_two_step(records: Sequence[Record]) -> Markup:
    """Render the two-step task; empty where no agent was evolved in it."""
    panels = [
        page.figure(figures.draw_two_step(f"two-step-{r['agent']}", r), r["agent"], f"{r['summary']}.")
        for r in records
        if r["kind"] == "two_step"
    ]
    return TEXTS.two_step(page.panels(panels)) if panels else Markup()


def _evolved(records: Sequence[Record]) -> Markup:
    """The verdicts on agents that were evolved from scratch; empty where there is none."""
    entries = []
    for record in records:
        if record["kind"] == "evolved_agent":
            patterns = [r["pattern"] for r in record["results"] if r["test"] == "plans" and r["pattern"]]
            verdicts = record["verdicts"]
            plans = verdicts["plans"] + (f" ({patterns[0]})" if patterns else "")
            agent = page.agent(record["agent"].partition(":")[0], "evolution")
            text = Markup('<span class="prose">{}</span>').format(record["verdict_text"])
            entries.append([agent, record["env"], verdicts["learns"], plans, verdicts["objective"], text])
    if not entries:
        return Markup()
    titles = ["agent", "evolved and audited in", "learns?", "plans?", "an objective?", "summary"]
    return TEXTS.evolved(page.table("Verdicts by hypothesis", titles, entries))
