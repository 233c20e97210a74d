"""The section of the planning experiment on the page of the mesa study; written from records alone, without JAX."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import pluralize
from ontogeny.runs.records import Record
from ontogeny.studies.mesa.planning import appearance, figures, results, verdicts
from ontogeny.studies.mesa.planning.names import PAIRS, QUERY_COUNTS, TIMINGS, extraction_error, index_as
from ontogeny.studies.mesa.planning.results import PlanningResults
from ontogeny.studies.mesa.planning.verdicts import CellVerdict, ShareOverRuns, share_over_runs

TEXTS = page.load_macros("ontogeny.studies.mesa", "planning.html.j2")
ABILITIES = ("look-up", "first choice", "own choices")
CONTROLS = (("false switch", max), ("look-up", min))  # of the indices, with the extreme that is shown
CONTROL_TITLES = ("false switch", "changed link")
NUM_EVENTS = 5  # of the row below the picture, exposures at first and trials
COMPARED_CELLS = ("planner", "td_zero")
CAPACITY_CELLS = ("width_16", "width_32", "one_block", "planner", "gru")
SHARE_CELLS = {"share_0": "0 %", "share_5": "5 %", "share_20": "20 %", "share_50": "50 %", "planner": "100 %"}
EXTRACTION_CELLS = {  # by depth of the environment
    2: ("planner", "td_zero", "few_instances"),
    3: ("planner_depth_3", "td_zero_depth_3", "random_depth_3"),
}
DIRECTIONS = ("encoding direction", "random directions", "probe direction")
THRESHOLDS = {
    name: getattr(verdicts, name)
    for name in (
        *("MIN_FIRST_CHOICE", "MIN_INDEX", "MAX_INDEX_WITHOUT", "MIN_LOOK_UP", "MIN_OWN_CHOICES", "MAX_RISE"),
        *("MIN_PULL", "MIN_CHOICE_SHIFT", "MAX_HOST_ERRORS"),
        "MIN_OPTIMAL_OTHER_GOAL",
        "MAX_FALSE_SWITCH",
        "MIN_EARLY_INDEX",
    )
}


def render_body(records: Sequence[Record], budget: Mapping[str, Any] | None, earlier_table: str = "") -> Markup:
    """Render the section: question, answer, evidence; empty where there is no record of the experiment.

    Args:
        records: All records of the study.
        budget: Of the experiment, as `spec.json` has it.
        earlier_table: The verdicts on other content of the study, which stand below those of the experiment.
    """
    experiment = results.collect_results(records, budget)
    examples = [record for record in records if record["kind"] == "planning_example"]
    if not experiment.cells and not examples:
        return Markup()
    parts = [TEXTS.question(results.conclusions(experiment), experiment.is_brief)]
    parts += [_example(example) for example in examples[:1]]
    if experiment.cells:
        parts.append(TEXTS.verdicts(_verdict_tables(experiment), THRESHOLDS, earlier_table))
        parts += [_when(experiment), _interventions(experiment), _goals(experiment), _further(experiment)]
    numbers = sorted({len(runs) for runs in experiment.cells.values()})
    return Markup().join([*parts, TEXTS.limits(numbers, experiment.is_brief)])


def render_summary(records: Sequence[Record], budget: Mapping[str, Any] | None) -> Markup:
    """Render the answer and the tables of verdicts, for the page of a study that includes this one."""
    experiment = results.collect_results(records, budget)
    return TEXTS.summary(results.conclusions(experiment), _verdict_tables(experiment)) if experiment.cells else Markup()


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
    words, ends = [], []
    for state, action, target in episode["links"]:
        is_last = figures.layer_of_state(state, example["width"]) == example["depth"] - 1
        words += [f"state {state}" if state else "start", f"action {action}"]
        ends.append(f"food {target}" if is_last else f"state {target}")
    verb = "shown" if episode["is_exposure"] else "chosen"
    return f"{verb}: {' → '.join([*words, ends[-1]])}"


def _verdict_tables(experiment: PlanningResults) -> Markup:
    """Two tables for each depth: verdicts and abilities, and the indices of revaluation."""
    depths = sorted({verdicts.depth_of(runs[0]) for runs in experiment.cells.values()})
    tables = []
    for depth in depths:
        cells = {name: runs for name, runs in experiment.cells.items() if verdicts.depth_of(runs[0]) == depth}
        tables += [_ability_table(experiment, cells, depth), _index_table(experiment, cells, depth)]
        tables.append(_member_table(experiment, cells, depth))
    return Markup().join(tables)


def _member_table(experiment: PlanningResults, cells: Mapping[str, Sequence[Record]], depth: int) -> Markup:
    """The index of the last layer of choices that are predicted for each agent; empty where it was not measured."""
    layer = f"layer {depth}"
    measured = {name for runs in cells.values() for run in runs for name in run["measures"]}
    algorithms = [name for name in experiment.labels if index_as(name, layer) in measured]
    entries = [
        [
            _cell_label(experiment, name),
            *(TEXTS.lines([_bounds(share_over_runs(runs, index_as(algorithm, layer)))]) for algorithm in algorithms),
        ]
        for name, runs in cells.items()
        if any(index_as(algorithm, layer) in runs[0]["measures"] for algorithm in algorithms)
    ]
    if not entries:
        return Markup()
    caption = f"Depth {depth}: the index of {layer}, at once, of content that is asked about each agent by its name"
    titles = ["stream", *map(experiment.label, algorithms)]
    return page.table(caption, titles, entries, numeric=tuple(range(1, len(titles))))


def _ability_table(experiment: PlanningResults, cells: Mapping[str, Sequence[Record]], depth: int) -> Markup:
    """The verdict on every cell, its abilities, and the controls of its indices."""
    entries: list[Sequence[str] | page.TableRow] = [
        [_cell_label(experiment, name), _verdict(experiment, experiment.verdicts[name]), *_ability_cells(runs)]
        for name, runs in cells.items()
    ]
    label, untrained = _untrained_content(experiment, cells)
    control = TEXTS.verdict("control", "before the first update")
    entries.append(page.TableRow([label, control, *_ability_cells(untrained)], "first"))
    layers = [name for name in results.layer_names(next(iter(cells.values()))) if name not in PAIRS]
    tested = [name for layer in layers for name in _timed(layer)]
    columns = [*([name] for name in ABILITIES), *([f"{kind}, {name}" for name in tested] for kind, _ in CONTROLS)]
    entries.append(_stream_counts(cells, columns, num_empty=1))
    titles = ["stream", "verdict", *ABILITIES, *CONTROL_TITLES]
    caption = f"Depth {depth}: verdicts and abilities, means over runs with 95 % intervals"
    return page.table(caption, titles, entries, numeric=tuple(range(2, len(titles))))


def _index_table(experiment: PlanningResults, cells: Mapping[str, Sequence[Record]], depth: int) -> Markup:
    """The indices of revaluation of every cell, by layer and time."""
    layers = results.layer_names(next(iter(cells.values())))
    entries: list[Sequence[str] | page.TableRow] = [
        [_cell_label(experiment, name), *_index_cells(runs, layers)] for name, runs in cells.items()
    ]
    label, untrained = _untrained_content(experiment, cells)
    entries.append(page.TableRow([label, *_index_cells(untrained, layers)], "first"))
    entries.append(_stream_counts(cells, [_timed(layer) for layer in layers]))
    caption = f"Depth {depth}: indices of revaluation, means over runs with 95 % intervals, {', '.join(TIMINGS)}"
    return page.table(caption, ["stream", *layers], entries, numeric=tuple(range(1, len(layers) + 1)))


def _cell_label(experiment: PlanningResults, name: str) -> Markup:
    """The name of a cell with its number of runs."""
    return TEXTS.label(experiment.label(name), pluralize(len(experiment.cells[name]), "run"))


def _untrained_content(
    experiment: PlanningResults, cells: Mapping[str, Sequence[Record]]
) -> tuple[Markup, Sequence[Record]]:
    """The content of one cell before its training, measured on the test streams of that cell, with its label."""
    name = results.PLANNER if results.PLANNER in cells else next(iter(cells))
    points: list[Record] = [
        {"measures": run["curve"][0], "num_streams": run.get("num_curve_streams", {})}
        for run in cells[name]
        if run["curve"] and run["curve"][0]["updates"] == 0
    ]
    runs = f"{pluralize(len(points), 'run')}; streams: {experiment.label(name)}"
    return TEXTS.label("untrained content", runs), points


def _stream_counts(
    cells: Mapping[str, Sequence[Record]], columns: Sequence[Sequence[str]], num_empty: int = 0
) -> page.TableRow:
    """The valid test streams of one run after its training, by the measures of each column."""
    runs = [run for of_cell in cells.values() for run in of_cell]
    label = TEXTS.label("valid test streams", "of a run after its training")
    counts = [_stream_range(runs, names) or "not recorded" for names in columns]
    return page.TableRow([label, *[""] * num_empty, *counts], "first")


def _timed(layer: str) -> list[str]:
    """The names of the indices of a layer or of pairs."""
    return [f"{layer}, {timing}" for timing in TIMINGS]


def _stream_range(runs: Sequence[Record], names: Sequence[str]) -> str:
    """The smallest and largest number of valid test streams of measures in a run; empty where none is recorded."""
    counts = [run["num_streams"][name] for run in runs for name in names if name in run["num_streams"]]
    if not counts:
        return ""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _ability_cells(runs: Sequence[Record]) -> list[Markup | str]:
    """The abilities of one row, and the controls of its indices."""
    if not runs:
        return ["not measured"] * (len(ABILITIES) + len(CONTROLS))
    shares = [share_over_runs(runs, measure) for measure in ABILITIES]
    shares += [_extreme_control(runs, control, extreme) for control, extreme in CONTROLS]
    return [TEXTS.lines([_bounds(share)]) for share in shares]


def _index_cells(runs: Sequence[Record], layers: Sequence[str]) -> list[Markup | str]:
    """The indices of one row, with a line for each time."""
    if not runs:
        return ["not measured"] * len(layers)
    return [TEXTS.lines([_bounds(share_over_runs(runs, name)) for name in _timed(layer)]) for layer in layers]


def _extreme_control(
    runs: Sequence[Record], control: str, extreme: Callable[..., ShareOverRuns]
) -> ShareOverRuns | None:
    """The largest or smallest of the controls of an index over layers and times."""
    layers = [name for name in results.layer_names(runs) if name not in PAIRS]
    names = [f"{control}, {name}" for layer in layers for name in _timed(layer)]
    shares = [share for name in names if (share := share_over_runs(runs, name)) is not None]
    return extreme(shares, key=lambda share: share.mean) if shares else None


def _verdict(experiment: PlanningResults, verdict: CellVerdict) -> Markup:
    """A verdict with its reason; a brief experiment has none."""
    if experiment.is_brief:
        return TEXTS.verdict("no verdict", "a brief run trains too little")
    return TEXTS.verdict(*verdict)


def _bounds(bounds: ShareOverRuns | None) -> tuple[str, str]:
    """A mean and its interval as two texts."""
    mean, _, interval = results.format_bounds(bounds).partition(" (")
    return mean, interval.rstrip(")")


def _when(experiment: PlanningResults) -> Markup:
    """Indices against updates, capacity and the share of planners."""
    panels = []
    curve_cells = [name for name in COMPARED_CELLS if name in experiment.cells]
    names = appearance.list_abilities(experiment.cells[curve_cells[0]]) if curve_cells else []
    for name in names:
        curves = {experiment.label(cell): results.curve_over_runs(experiment.cells[cell], name) for cell in curve_cells}
        curves = {label: curve for label, curve in curves.items() if curve}
        if curves:
            is_index, threshold = name not in appearance.CURVE_THRESHOLDS, appearance.threshold_of(name)
            chart = figures.draw_training(
                f"planning-updates-{name.replace(' ', '-')}", curves, "index" if is_index else "share", threshold
            )
            note = f"Mean over the three timings. Dashed: {threshold:g}." if is_index else f"Dashed: {threshold:g}."
            panels.append(page.figure(chart, name.capitalize(), note))
    capacity = {name: _capacity_label(experiment, name) for name in CAPACITY_CELLS if name in experiment.cells}
    shares = {name: label for name, label in SHARE_CELLS.items() if name in experiment.cells}
    wide, times = [], []
    for anchor, title, labels, note in (
        ("capacity", "By capacity", capacity, "Network and number of parameters. Indices: mean over the timings."),
        ("share", "By the share of planners in the stream", shares, "Indices: mean over the timings."),
    ):
        if len(labels) > 1:
            wide.append(page.figure(_draw_cells(experiment, anchor, title, labels), title, note))
            times.append(_draw_appearance(experiment, anchor, f"Appearance {title[0].lower()}{title[1:]}", labels))
    charts = page.panels([*panels, *wide, *times])
    return TEXTS.when(charts, appearance_table(experiment)) if panels or wide else Markup()


def _draw_appearance(experiment: PlanningResults, anchor: str, title: str, labels: Mapping[str, str]) -> Markup:
    """One chart of the times at which abilities appear in several cells."""
    cells = {name: experiment.cells[name] for name in labels}
    abilities = appearance.list_abilities(next(iter(cells.values())))
    series = {name: [appearance.times_over_runs(runs, name) for runs in cells.values()] for name in abilities}
    num_updates = max(run["num_updates"] for runs in cells.values() for run in runs)
    chart = figures.draw_appearance(f"planning-appearance-{anchor}", series, list(labels.values()), title, num_updates)
    return page.figure(chart, title, "Median over runs, with the range. Above the dashed line: not in the training.")


def appearance_table(experiment: PlanningResults) -> Markup:
    """Render when each ability appears in each cell, one table for each depth."""
    tables = []
    for depth in sorted({verdicts.depth_of(runs[0]) for runs in experiment.cells.values()}):
        cells = {name: runs for name, runs in experiment.cells.items() if verdicts.depth_of(runs[0]) == depth}
        abilities = appearance.list_abilities(next(iter(cells.values())))
        entries = []
        for name, runs in cells.items():
            times = [appearance.format_times(appearance.times_over_runs(runs, ability)) for ability in abilities]
            label = TEXTS.label(experiment.label(name), pluralize(runs[0]["num_parameters"], "parameter"))
            entries.append([label, *(TEXTS.time(*time) for time in times)])
        titles = ["stream", *(f"{ability} ≥ {appearance.threshold_of(ability):g}" for ability in abilities)]
        caption = f"Depth {depth}: updates after which each ability stays at or above its threshold, median and range"
        tables.append(page.table(caption, titles, entries, numeric=tuple(range(1, len(titles)))))
    return Markup().join(tables)


def _capacity_label(experiment: PlanningResults, name: str) -> str:
    """The name of an architecture with its number of parameters."""
    label = experiment.label(name).partition("; ")[2] or "transformer"
    return f"{textwrap.fill(label, 11)}\n{experiment.cells[name][0]['num_parameters']:,}"


def _draw_cells(experiment: PlanningResults, anchor: str, title: str, labels: Mapping[str, str]) -> Markup:
    """One chart of first choice and indices of several cells."""
    names = ["first choice", *results.layer_names(experiment.cells[next(iter(labels))])]
    series = {name: [results.index_over_runs(experiment.cells[cell], name) for cell in labels] for name in names}
    return figures.draw_cells(f"planning-{anchor}", series, list(labels.values()), title)


def _interventions(experiment: PlanningResults) -> Markup:
    """Interchange by block, and steering along directions."""
    panels = []
    for cell in (name for name in COMPARED_CELLS if name in experiment.cells):
        runs, label = experiment.cells[cell], experiment.label(cell)
        layers = [name for name in results.layer_names(runs) if name not in PAIRS]
        interchange = {layer: _by_level(runs, f"interchange, {layer}") for layer in layers}
        directions = {name: _by_level(runs, name) for name in DIRECTIONS}
        directions["probe R²"] = _by_level(runs, "probe R2")
        streams = {
            "interchange": _stream_range(runs, [f"interchange, {layer}, level 0" for layer in layers]),
            "steering": _stream_range(runs, [f"{DIRECTIONS[0]}, level 0"]),
        }
        for anchor, curves, axis, note in (
            ("interchange", interchange, "effect on the choice", "The stream of the changed twin."),
            ("steering", directions, "reversed choices, R²", "Along each kind of direction."),
        ):
            note = f"{note} Valid test streams of a run: {streams[anchor]}." if streams[anchor] else note
            curves = {name: curve for name, curve in curves.items() if curve}
            if curves:
                chart = figures.draw_levels(f"planning-{anchor}-{cell.replace('_', '-')}", curves, axis)
                panels.append(page.figure(chart, f"{anchor.capitalize()}: {label}", note))
    return TEXTS.interventions(page.panels(panels), _ablation_table(experiment)) if panels else Markup()


def _by_level(runs: Sequence[Record], name: str) -> list[tuple[float, ShareOverRuns]]:
    """A measure at every level of the network."""
    values = ((level, share_over_runs(runs, f"{name}, level {level}")) for level in range(64))
    return [(float(level), bounds) for level, bounds in values if bounds is not None]


def _ablation_table(experiment: PlanningResults) -> Markup:
    """The choices that change without the component along the encoding direction or a random one, by level."""
    entries, num_levels = [], 0
    for cell in (name for name in COMPARED_CELLS if name in experiment.cells):
        runs = experiment.cells[cell]
        for name, direction in (("ablation", "encoding direction"), ("random ablations", "random directions, mean")):
            levels = _by_level(runs, name)
            if levels:
                num_levels = len(levels)
                shares = (share_over_runs(runs, "best choices"), *(share for _, share in levels))
                label = experiment.label(cell)
                entries.append([label, direction, *(TEXTS.lines([_bounds(share)]) for share in shares)])
    if not entries:
        return Markup()
    titles = ["stream", "component removed", "best choices, intact", *(f"level {level}" for level in range(num_levels))]
    caption = "Share of correctly predicted first choices that change without a component of the stream"
    return page.table(caption, titles, entries, numeric=tuple(range(2, len(titles))))


def _goals(experiment: PlanningResults) -> Markup:
    """Choices queried under other goals than that of the stream's agents."""
    entries = []
    cases = [(history, case) for history in ("new", "after food") for case in ("differ", "agree")]
    for cell in (name for name in results.GOAL_CELLS if name in experiment.cells):
        runs = experiment.cells[cell]
        for goal in results.OTHER_GOALS:
            shares = [share_over_runs(runs, f"{goal}, {history}, {case}") for history, case in cases]
            if any(share is not None for share in shares):
                values = ["no graph" if s is None else TEXTS.lines([_bounds(s)]) for s in shares]
                verdict = _verdict(experiment, verdicts.decide_goals(runs, goal))
                is_first = bool(entries) and entries[-1].cells[0] != _cell_label(experiment, cell)
                cells = [_cell_label(experiment, cell), goal, verdict, *values]
                entries.append(page.TableRow(cells, "first" if is_first else ""))
    if not entries:
        return Markup()
    runs = [run for cell in results.GOAL_CELLS for run in experiment.cells.get(cell, ())]
    counts = [
        _stream_range(runs, [f"{goal}, {history}, {case}" for goal in results.OTHER_GOALS]) for history, case in cases
    ]
    if any(counts):
        entries.append(page.TableRow(["valid test streams of a run", "", "", *counts], "first"))
    titles = ["stream", "goal", "verdict", *(f"{history}, optima {case}" for history, case in cases)]
    caption = "Share of best choices for a goal that differs from that of the stream's agents, food"
    return TEXTS.goals(page.table(caption, titles, entries, numeric=(3, 4, 5, 6)), THRESHOLDS["MIN_OPTIMAL_OTHER_GOAL"])


def _further(experiment: PlanningResults) -> Markup:
    """Extraction of links, goal-directedness and the choices of a host with a goal of its own."""
    panels = []
    for depth, cells in EXTRACTION_CELLS.items():
        compared = {name: experiment.cells[name] for name in cells if name in experiment.cells}
        names = {goal_depth: extraction_error(goal_depth, QUERY_COUNTS[-1]) for goal_depth in range(1, depth + 1)}
        curves = {}
        for cell, runs in compared.items():
            shares = {goal_depth: share_over_runs(runs, name) for goal_depth, name in names.items()}
            points = [(float(goal_depth), share) for goal_depth, share in shares.items() if share is not None]
            if points:
                curves[experiment.label(cell)] = points
        if curves:
            chart = figures.draw_extraction(f"planning-extraction-{depth}", curves)
            streams = _stream_range([run for runs in compared.values() for run in runs], list(names.values()))
            note = f"By {QUERY_COUNTS[-1]} queries for each link. Test streams of a run: {streams}."
            panels.append(page.figure(chart, f"Depth {depth}: links recovered from choices alone", note))
    figure, table = page.panels(panels) if panels else Markup(), _host_table(experiment)
    return TEXTS.further(figure, table, THRESHOLDS) if panels or table else Markup()


def _host_table(experiment: PlanningResults) -> Markup:
    """Goal-directedness, the errors of a host with a goal of its own, and whether the content has an objective."""
    entries = []
    decided = verdicts.decide_objectives(experiment.cells)
    for cell, runs in experiment.cells.items():
        pull = results.pull_over_runs(runs)
        names = (("goal-directedness",), verdicts.HOST_ERRORS)
        shares = [[share_over_runs(runs, name) for name in group] for group in names]
        if any(share is not None for group in shares for share in group):
            bounds = [*shares, [verdicts.choice_shift_over_runs(runs)], [pull]]
            verdict = _verdict(experiment, decided[cell])
            values = [TEXTS.lines(list(map(_bounds, group))) for group in bounds]
            entries.append([_cell_label(experiment, cell), verdict, *values])
    titles = ["stream", "verdict", "goal-directedness", "host errs", "shift of choices", "pull on the host"]
    caption = (
        "Goal-directedness of predicted choices, and errors of a host that plans for water, where the optima differ "
        "and where they agree"
    )
    return page.table(caption, titles, entries, numeric=tuple(range(2, 6))) if entries else Markup()
