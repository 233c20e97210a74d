"""What the page of the planning experiment shows: measures over runs, curves, and the answer in sentences.

The sentences follow from the records by rule, and a negative result is told as plainly as a positive one. A model of
another agent that the host can query is no objective of the content, so the word *mesa-optimizer* stands only where an
objective of its own is discussed. The module reads records and does not import JAX.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ontogeny.errors import BadInput
from ontogeny.report.formatting import format_fixed
from ontogeny.runs.records import Record
from ontogeny.studies.comparison import join_words
from ontogeny.studies.mesa.planning.names import PAIRS, TIMINGS
from ontogeny.studies.mesa.planning.verdicts import (
    CHECK_KIND,
    PULL,
    VERDICTS,
    CellVerdict,
    ShareOverRuns,
    collect_cells,
    decide_cells,
    decide_goals,
    decide_objectives,
    depth_of,
    interval_over_runs,
    lacks_control_alone,
    share_over_runs,
)

OTHER_GOALS = ("water", "no food", "no water")  # goals that differ from that of the stream's agents, food
GOAL_CELLS = ("goals", "goals_unlabeled", "planner")
ABILITIES = ("look-up", "first choice", "own choices", "layer ", *PAIRS)  # how the names of abilities begin
PLANNER, NO_PLANNERS = "planner", "share_0"
Cells = Mapping[str, Sequence[Record]]


class TrainingPoint(NamedTuple):
    """A measure at one time of the training."""

    num_updates: int
    bounds: ShareOverRuns


class PlanningResults(NamedTuple):
    """The runs of the experiment by cell, with verdicts and the names of the cells for people."""

    cells: Mapping[str, Sequence[Record]]
    verdicts: Mapping[str, CellVerdict]
    labels: Mapping[str, str]  # by cell
    is_brief: bool

    def label(self, cell: str) -> str:
        """The name of a cell for people."""
        return self.labels.get(cell, cell)


def collect_results(records: Sequence[Record], budget: Mapping[str, Any] | None) -> PlanningResults:
    """Collects the results of the experiment.

    Args:
        records: All records of the study.
        budget: Of the experiment, as `spec.json` has it; None where the study has none.

    Raises:
        BadInput: If a run, or a point of its curve, lacks an ability or an index that others of its cell have.
    """
    budget = budget or {}
    labels = {name: cell["description"] for name, cell in budget.get("cells", {}).items()}
    by_name = collect_cells(records)
    cells = {name: by_name[name] for name in [*labels, *by_name] if name in by_name}
    for runs in cells.values():
        _require_measures(runs)
    checks = collect_cells(records, CHECK_KIND)
    return PlanningResults(cells, decide_cells(cells, checks), labels, bool(budget.get("is_brief")))


def _require_measures(runs: Sequence[Record]) -> None:
    """Refuses runs of a cell of which one lacks an ability or index that another has: a record is damaged."""
    tables = [(run["id"], table) for run in runs for table in (run["measures"], *run["curve"])]
    required = {name for _, table in tables for name in table if name.startswith(ABILITIES)}
    for record_id, table in tables:
        if missing := sorted(required - table.keys()):
            raise BadInput(f"the record '{record_id}' is damaged: it lacks the measure '{missing[0]}'")


def mean_over_timings(values: Mapping[str, float], name: str) -> float:
    """The mean of an index over its timings; the value itself of a measure without timings."""
    if name in values:
        return values[name]
    return sum(values[f"{name}, {timing}"] for timing in TIMINGS) / len(TIMINGS)


def index_over_runs(runs: Sequence[Record], name: str) -> ShareOverRuns:
    """The mean over timings and runs of a measure, with its interval over runs."""
    values = [mean_over_timings(run["measures"], name) for run in runs]
    return interval_over_runs(name, values, _count_streams(runs, "num_streams", name))


def curve_over_runs(runs: Sequence[Record], name: str) -> list[TrainingPoint]:
    """The mean over timings and runs of a measure at every time of the training that all runs share."""
    by_updates: dict[int, list[float]] = {}
    for run in runs:
        for point in run["curve"]:
            by_updates.setdefault(point["updates"], []).append(mean_over_timings(point, name))
    num_streams = _count_streams(runs, "num_curve_streams", name)
    return [
        TrainingPoint(updates, interval_over_runs(name, values, num_streams))
        for updates, values in sorted(by_updates.items())
        if len(values) == len(runs)
    ]


def _count_streams(runs: Sequence[Record], field: str, name: str) -> int:
    """The valid test streams of all runs; of a mean over timings, those of the timing that has the fewest.

    The timings have the same test streams, so that their numbers do not add up.
    """
    counts = [run.get(field, {}) for run in runs]
    names = [name] if all(name in of_run for of_run in counts) else [f"{name}, {timing}" for timing in TIMINGS]
    return sum(min(of_run.get(timed, 0) for timed in names) for of_run in counts)


def layer_names(runs: Sequence[Record]) -> list[str]:
    """The names of the layers whose links change, and of pairs."""
    return [*(f"layer {layer}" for layer in range(1, depth_of(runs[0]) + 1)), *PAIRS]


def format_bounds(bounds: ShareOverRuns | None, places: int = 2) -> str:
    """A mean with its interval: `0.98 (0.97 to 0.99)`."""
    if bounds is None:
        return "not measured"
    mean = format_fixed(bounds.mean, places)
    if math.isnan(bounds.low):
        return f"{mean} (no interval)"
    return f"{mean} ({format_fixed(bounds.low, places)} to {format_fixed(bounds.high, places)})"


def conclusions(results: PlanningResults) -> list[str]:
    """The answer of the experiment in sentences; a brief experiment answers nothing."""
    if results.is_brief:
        return [_sentence_on_brief_form(results)]
    if not results.cells:
        return [
            "No content has been trained on the streams of other agents yet, so there is no conclusion on planners."
        ]
    sentences = [_sentence_on_planner(results), _sentence_without_planners(results), _sentence_on_goals(results)]
    sentences += [*_sentences_on_objectives(results), *_sentences_on_other_streams(results)]
    return [sentence for sentence in sentences if sentence]


def _sentence_on_brief_form(results: PlanningResults) -> str:
    """What a brief run is."""
    updates = sorted({run["num_updates"] for runs in results.cells.values() for run in runs})
    length = f" ({updates[-1]:,} updates of a small network)" if updates else ""
    return (
        f"The brief form of the planning experiment trains too little for a verdict{length}: it shows how "
        "content is trained and tested, and nothing about planners. The full study answers the question."
    )


def _sentence_on_planner(results: PlanningResults) -> str:
    """The sentence on content that predicts planners."""
    runs = results.cells.get(PLANNER)
    if not runs:
        return "No content has been trained on the streams of planners alone yet, so the main question is open."
    verdict = results.verdicts[PLANNER]
    first_choice = format_bounds(share_over_runs(runs, "first choice"))
    facts = f"on graphs that are new to it, its first choice is the best one in {first_choice}, and {verdict.reason}"
    subject = "Content that is trained only to predict what planners do"
    number = f"{len(runs)} run{'s' * (len(runs) != 1)}."
    texts = {
        "contains a planner": f"{subject} comes to contain a model of a planner that the host can query: {facts};",
        "contains no planner": f"{subject} comes to contain no planner: {facts};",
        "plans afresh, then caches": f"{subject} plans afresh and then repeats its earlier choice: {facts};",
        "undetermined": f"It is undetermined whether content that is trained only to predict what planners do comes to "
        f"contain a planner: {facts};",
    }
    return f"{texts[verdict.verdict]} {number}"


def _sentences_on_other_streams(results: PlanningResults) -> list[str]:
    """The verdicts on all other cells, one sentence for each verdict."""
    sentences = []
    for verdict in VERDICTS:
        names = [name for name, decided in results.verdicts.items() if decided.verdict == verdict and name != PLANNER]
        if names:
            sentences.append(f"Verdict “{verdict}” for the other streams: {' | '.join(map(results.label, names))}.")
    without_control = [
        results.label(name)
        for name, verdict in results.verdicts.items()
        if lacks_control_alone(results.cells[name], verdict)
    ]
    if without_control:
        sentences.append(
            f"Content of these streams shows no planner by its own records: {' | '.join(without_control)}. It is "
            "undetermined because such an absence counts only beside a positive control that contains a planner early."
        )
    return sentences


def _sentence_without_planners(results: PlanningResults) -> str:
    """The strict form of the question: streams in which nobody plans."""
    verdict = results.verdicts.get(NO_PLANNERS)
    if verdict is None:
        return ""
    texts = {
        "contains a planner": "Planning appears although nobody in the stream plans",
        "contains no planner": "Planning does not appear where nobody in the stream plans",
        "plans afresh, then caches": "Where nobody in the stream plans, content plans afresh and then caches",
        "undetermined": "Whether planning appears where nobody in the stream plans is undetermined",
    }
    return f"{texts[verdict.verdict]}: {verdict.reason}."


def _sentence_on_goals(results: PlanningResults) -> str:
    """Whether the host can choose the goal of the predicted planner."""
    runs = results.cells.get("goals")
    if not runs:
        return ""
    verdicts = {goal: decide_goals(runs, goal) for goal in OTHER_GOALS}
    separable = [goal for goal, verdict in verdicts.items() if verdict.verdict == "separable goal"]
    open_goals = [f"for {goal}: {v.reason}" for goal, v in verdicts.items() if v.verdict != "separable goal"]
    clauses = []
    if separable:
        clauses.append(
            f"the host that asks can set the goal of the predicted planner (to {join_words(separable)}, after streams "
            "of planners for food as well)"
        )
    if open_goals:
        clauses.append(f"a separable goal is not shown {'; '.join(open_goals)}")
    return f"Where planners with four labeled goals are predicted, {'; '.join(clauses)}."


def _sentences_on_objectives(results: PlanningResults) -> list[str]:
    """Whether the predictions pull the host's own choices towards the goal of the stream's agents."""
    runs = results.cells.get(PLANNER)
    pull = pull_over_runs(runs) if runs else None
    decided = decide_objectives(results.cells)
    sentences = []
    if pull is not None and not math.isnan(pull.low):
        slope = format_bounds(pull, 3)
        host = "The values of a host that plans for water with the links that the content predicts"
        bias = (
            "biased towards"
            if pull.low > 0
            else "biased away from"
            if pull.high < 0
            else "not detectably biased towards"
        )
        sentences.append(
            f"{host} are {bias} food, the goal of the stream's agents (slope {slope}; a slope of 1 would be a "
            "host that plans for both alike)."
        )
        texts = {
            "own objective": "By the rule that was fixed before the runs, the content has an objective of its own",
            "no own objective shown": "No objective of the content's own is shown",
            "undetermined": "Whether the content has an objective of its own is undetermined",
        }
        sentences.append(f"{texts[decided[PLANNER].verdict]}: {decided[PLANNER].reason}.")
    owners = [results.label(name) for name, verdict in decided.items() if verdict.verdict == "own objective"]
    if owners:
        sentences.append(f"Content with an objective of its own, a mesa-optimizer: {' | '.join(owners)}.")
    elif sentences:
        sentences.append("No content here is called a mesa-optimizer.")
    return sentences


def pull_over_runs(runs: Sequence[Record]) -> ShareOverRuns | None:
    """The pull on the host with its interval over runs; None where a run lacks it."""
    return share_over_runs(runs, PULL)
