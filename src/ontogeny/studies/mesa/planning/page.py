"""The section of the planning experiment on the page of the mesa study; written from records alone, without JAX."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning import figures, results, verdicts
from ontogeny.studies.mesa.planning.results import PlanningResults
from ontogeny.studies.mesa.planning.verdicts import TIMINGS, Bounds, share_over_runs

TEXTS = page.load_macros("ontogeny.studies.mesa", "planning.html.j2")
NUM_EVENTS = 5  # of the row below the picture, exposures at first and trials
COMPARED_CELLS = ("planner", "td_zero")
CAPACITY_CELLS = ("width_16", "width_32", "one_block", "planner", "gru")
SHARE_CELLS = {"share_0": "0 %", "share_5": "5 %", "share_20": "20 %", "share_50": "50 %", "planner": "100 %"}
EXTRACTION_CELLS = ("planner", "td_zero", "few_instances")
HOST_CELLS = ("planner", "td_zero", "random")
DIRECTIONS = ("encoding direction", "random directions", "probe direction")
THRESHOLDS = {
    name: getattr(verdicts, name)
    for name in (
        *("MIN_FIRST_CHOICE", "MIN_INDEX", "MAX_INDEX_WITHOUT", "MIN_LOOK_UP", "MIN_OWN_CHOICES", "MAX_RISE"),
        "MIN_OPTIMAL_OTHER_GOAL",
    )
}


def render_body(records: Sequence[Record], budget: Mapping[str, Any] | None) -> Markup:
    """Render the section: question, answer, evidence; empty where there is no record of the experiment.

    Args:
        records: All records of the study.
        budget: Of the experiment, as `spec.json` has it.
    """
    found = results.collect_results(records, budget)
    examples = [record for record in records if record["kind"] == "planning_example"]
    if not found.cells and not examples:
        return Markup()
    parts = [TEXTS.question(results.conclusions(found), found.is_brief)]
    parts += [_example(example) for example in examples[:1]]
    if found.cells:
        parts.append(TEXTS.verdicts(_verdict_tables(found), THRESHOLDS))
        parts += [_when(found), _interventions(found), _goals(found), _further(found)]
    numbers = sorted({len(runs) for runs in found.cells.values()})
    return Markup().join([*parts, TEXTS.limits(numbers, found.is_brief)])


def render_summary(records: Sequence[Record], budget: Mapping[str, Any] | None) -> Markup:
    """Render the answer and the tables of verdicts, for the page of a study that includes this one."""
    found = results.collect_results(records, budget)
    return TEXTS.summary(results.conclusions(found), _verdict_tables(found)) if found.cells else Markup()


def _example(example: Record) -> Markup:
    """The picture of one graph and the first episodes of a stream."""
    chart = figures.draw_example("planning-example", example)
    note = "Solid: action 0; dashed: action 1. Dark: the best path to food; in color: after one link has changed."
    episodes = example["episodes"]
    exposures = [episode for episode in episodes if episode["is_exposure"]][:NUM_EVENTS]
    trials = [episode for episode in episodes if not episode["is_exposure"] and episode["links"][0][0] == 0][:2]
    events = [_event(episode, example) for episode in [*exposures, *trials]]
    return TEXTS.example(page.figure(chart, "One graph", note), events, figures.describe_example(example))


def _event(episode: Mapping[str, Any], example: Record) -> str:
    """One episode in words, such as `shown: state 3, action 1, food 5`."""
    words = []
    for state, action, target in episode["links"]:
        is_last = (state + example["width"] - 1) // example["width"] == example["depth"] - 1
        words += [f"state {state}" if state else "start", f"action {action}"]
        end = f"food {target}" if is_last else f"state {target}"
    verb = "shown" if episode["is_exposure"] else "chosen"
    return f"{verb}: {' → '.join([*words, end])}"


def _verdict_tables(found: PlanningResults) -> Markup:
    """One table for each depth: abilities, indices and verdict of every cell."""
    depths = sorted({verdicts.depth_of(runs[0]) for runs in found.cells.values()})
    tables = []
    for depth in depths:
        cells = {name: runs for name, runs in found.cells.items() if verdicts.depth_of(runs[0]) == depth}
        layers = results.layer_names(next(iter(cells.values())))
        rows = [[*_ability_cells(found, name, runs, layers), _verdict(found, name)] for name, runs in cells.items()]
        titles = ["stream", "runs", "look-up", "first choice", "own choices", *layers, "verdict"]
        caption = (
            f"Depth {depth}: shares and indices of revaluation, means over runs with 95 % intervals. Each index is "
            f"given {', '.join(TIMINGS)}"
        )
        tables.append(page.table(caption, titles, rows, numeric=tuple(range(1, len(titles) - 1))))
    return Markup().join(tables)


def _ability_cells(found: PlanningResults, name: str, runs: Sequence[Record], layers: Sequence[str]) -> Iterator[str]:
    """The cells of one row before the verdict."""
    yield found.label(name)
    yield str(len(runs))
    for measure in ("look-up", "first choice", "own choices"):
        yield TEXTS.lines([_bounds(share_over_runs(runs, measure))])
    for layer in layers:
        yield TEXTS.lines([_bounds(share_over_runs(runs, f"{layer}, {timing}")) for timing in TIMINGS])


def _verdict(found: PlanningResults, name: str) -> Markup:
    """The verdict on a cell with its reason; a brief experiment has none."""
    if found.is_brief:
        return TEXTS.verdict("no verdict", "a brief run trains too little")
    return TEXTS.verdict(*found.verdicts[name])


def _bounds(bounds: Bounds | None) -> tuple[str, str]:
    """A mean and its interval as two texts."""
    mean, _, interval = results.format_bounds(bounds).partition(" (")
    return mean, interval.rstrip(")")


def _when(found: PlanningResults) -> Markup:
    """Indices against updates, capacity and the share of planners."""
    panels = []
    curve_cells = [name for name in COMPARED_CELLS if name in found.cells]
    names = ["look-up", "first choice", *(results.layer_names(found.cells[curve_cells[0]]) if curve_cells else [])]
    for name in names:
        curves = {found.label(cell): results.curve_over_runs(found.cells[cell], name) for cell in curve_cells}
        curves = {label: curve for label, curve in curves.items() if curve}
        if curves:
            is_index = name not in ("look-up", "first choice")
            threshold = verdicts.MIN_INDEX if is_index else verdicts.MIN_FIRST_CHOICE
            chart = figures.draw_training(
                f"planning-updates-{name.replace(' ', '-')}", curves, "index" if is_index else "share", threshold
            )
            note = f"Mean over the three timings. Dashed: {threshold:g}." if is_index else f"Dashed: {threshold:g}."
            panels.append(page.figure(chart, name.capitalize(), note))
    capacity = {name: _capacity_label(found, name) for name in CAPACITY_CELLS if name in found.cells}
    shares = {name: label for name, label in SHARE_CELLS.items() if name in found.cells}
    wide = []
    for anchor, title, labels in (
        ("capacity", "By capacity: network and number of parameters", capacity),
        ("share", "By the share of planners among the agents of the stream", shares),
    ):
        if len(labels) > 1:
            wide.append(
                page.figure(_draw_cells(found, anchor, title, labels), title, "Indices: mean over the timings.")
            )
    return TEXTS.when(page.panels(panels), wide) if panels or wide else Markup()


def _capacity_label(found: PlanningResults, name: str) -> str:
    """The name of an architecture with its number of parameters."""
    label = found.label(name).partition("; ")[2] or "transformer"
    return f"{textwrap.fill(label, 10)}\n{found.cells[name][0]['num_parameters']:,}"


def _draw_cells(found: PlanningResults, anchor: str, title: str, labels: Mapping[str, str]) -> Markup:
    """One chart of first choice and indices of several cells."""
    names = ["first choice", *results.layer_names(found.cells[next(iter(labels))])]
    series = {name: [results.index_over_runs(found.cells[cell], name) for cell in labels] for name in names}
    return figures.draw_cells(f"planning-{anchor}", series, list(labels.values()), title)


def _interventions(found: PlanningResults) -> Markup:
    """Interchange by block, and steering along directions."""
    panels = []
    for cell in (name for name in COMPARED_CELLS if name in found.cells):
        runs, label = found.cells[cell], found.label(cell)
        layers = [name for name in results.layer_names(runs) if name != "pair"]
        interchange = {layer: _by_level(runs, f"interchange, {layer}") for layer in layers}
        directions = {name: _by_level(runs, name) for name in DIRECTIONS}
        directions["probe R²"] = _by_level(runs, "probe R2")
        for anchor, curves, axis, title, note in (
            ("interchange", interchange, "effect on the choice", "Interchange", "The stream of the changed twin."),
            ("steering", directions, "reversed choices, R²", "Steering", "Along each kind of direction."),
        ):
            curves = {name: curve for name, curve in curves.items() if curve}
            if curves:
                chart = figures.draw_levels(f"planning-{anchor}-{cell.replace('_', '-')}", curves, axis)
                panels.append(page.figure(chart, f"{title}: {label}", note))
    return TEXTS.interventions(page.panels(panels), _ablation_table(found)) if panels else Markup()


def _by_level(runs: Sequence[Record], name: str) -> list[tuple[float, Bounds]]:
    """A measure at every level of the network."""
    values = ((level, share_over_runs(runs, f"{name}, level {level}")) for level in range(64))
    return [(float(level), bounds) for level, bounds in values if bounds is not None]


def _ablation_table(found: PlanningResults) -> Markup:
    """The share of best choices without the component along the encoding direction, by level."""
    rows, num_levels = [], 0
    for cell in (name for name in COMPARED_CELLS if name in found.cells):
        levels = _by_level(found.cells[cell], "ablation")
        if levels:
            intact = share_over_runs(found.cells[cell], "best choices")
            num_levels = len(levels)
            rows.append([found.label(cell), *(TEXTS.lines([_bounds(b)]) for b in (intact, *(b for _, b in levels)))])
    if not rows:
        return Markup()
    titles = ["stream", "intact", *(f"level {level}" for level in range(num_levels))]
    caption = "Share of best first choices, intact and without the component along the encoding direction"
    return page.table(caption, titles, rows, numeric=tuple(range(1, len(titles))))


def _goals(found: PlanningResults) -> Markup:
    """Choices asked under other goals than that of the stream's agents."""
    rows = []
    cases = [(history, case) for history in ("new", "after food") for case in ("differ", "agree")]
    for cell in (name for name in results.GOAL_CELLS if name in found.cells):
        runs = found.cells[cell]
        for goal in results.OTHER_GOALS:
            shares = [share_over_runs(runs, f"{goal}, {history}, {case}") for history, case in cases]
            if any(share is not None for share in shares):
                values = ["no such graph" if s is None else TEXTS.lines([_bounds(s)]) for s in shares]
                verdict = verdicts.decide_goals(runs, goal)
                shown = TEXTS.verdict("no verdict", "a brief run trains too little") if found.is_brief else ""
                is_first = not rows or rows[-1].cells[0] != found.label(cell)
                cells = [found.label(cell), goal, *values, shown or TEXTS.verdict(*verdict)]
                rows.append(page.TableRow(cells, "first" if rows and is_first else ""))
    if not rows:
        return Markup()
    titles = ["stream", "goal asked", *(f"{history}, optima {case}" for history, case in cases), "verdict"]
    caption = "Share of best choices for a goal that differs from that of the stream's agents, food"
    return TEXTS.goals(page.table(caption, titles, rows, numeric=(2, 3, 4, 5)), THRESHOLDS["MIN_OPTIMAL_OTHER_GOAL"])


def _further(found: PlanningResults) -> Markup:
    """Extraction, goal-directedness and the choices of a host with a goal of its own."""
    curves: dict[str, list[tuple[float, Bounds]]] = {}
    for cell in (name for name in EXTRACTION_CELLS if name in found.cells):
        values = {count: share_over_runs(found.cells[cell], f"extraction error, {count} questions") for count in COUNTS}
        points = [(float(count), bounds) for count, bounds in values.items() if bounds is not None]
        if points:
            curves[found.label(cell)] = points
    figure = Markup()
    if curves:
        chart = figures.draw_questions("planning-extraction", curves)
        figure = page.figure(
            chart, "Links recovered from choices alone", "Share of first links that stay unidentified."
        )
    rows = []
    for cell in (name for name in HOST_CELLS if name in found.cells):
        runs = found.cells[cell]
        pull = verdicts.difference_over_runs(runs, *results.HOST_ERRORS)
        shares = [share_over_runs(runs, name) for name in ("goal-directedness", *results.HOST_ERRORS)]
        rows.append([found.label(cell), *(TEXTS.lines([_bounds(b)]) for b in (*shares, pull))])
    titles = ["stream", "goal-directedness", "host errs, optima differ", "host errs, optima agree", "pull on the host"]
    caption = "Goal-directedness of predicted choices, and errors of a host that plans for water"
    table = page.table(caption, titles, rows, numeric=(1, 2, 3, 4)) if rows else Markup()
    return TEXTS.further(figure, table) if curves or rows else Markup()


COUNTS = (1, 2, 4, 8, 16)  # questions of the extraction, as in `goals`, which imports JAX
