"""The section of a study's page about its sweep, and the choice of the agents that the other sections show."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_number, pluralize
from ontogeny.studies.comparison import AgentResult
from ontogeny.studies.records import Failure
from ontogeny.studies.sweep_figures import SettingLine, SettingPoint, draw_setting

MAX_CELLS_IN_SECTIONS = 6  # of an environment; of more cells, the other sections show the best one of each agent
MAX_LINES = 6  # of a chart
TEXTS = page.load_macros("ontogeny.studies", "sweep.html.j2")
CellRecord = Mapping[str, Any]  # a `SweepCell` as `spec.json` has it
Results = Mapping[str, Sequence[AgentResult]]


def main_results(cells: Sequence[CellRecord], results: Results) -> dict[str, list[AgentResult]]:
    """The agents that the sections about agents show: of many cells only the best one of each agent.

    Args:
        cells: Of the sweep.
        results: Of all agents by environment, the best agent first.
    """
    entries = {(cell["env"], cell["agent"]): cell["entry"] for cell in cells}
    visible: dict[str, list[AgentResult]] = {}
    for env, of_env in results.items():
        represented: set[str] = set()
        is_long = sum((env, scored.agent) in entries for scored in of_env) > MAX_CELLS_IN_SECTIONS
        for scored in of_env:
            entry = entries.get((env, scored.agent))
            if not is_long or entry is None or entry not in represented:
                visible.setdefault(env, []).append(scored)
                represented |= {entry} if entry else set()
    return visible


def best_cells(cells: Sequence[CellRecord], results: Results) -> list[str]:
    """One sentence for each agent and environment of which several cells were measured: which scores highest."""
    sentences = []
    for (env_entry, entry), group in _groups(cells).items():
        measured = _measured(group, results)
        if len(measured) > 1:
            best, scored = max(measured, key=lambda pair: pair[1].score.mean)
            interval = f"95 % interval {format_number(scored.score.low)} to {format_number(scored.score.high)}"
            sentences.append(
                f"Of {pluralize(len(measured), 'cell')} of {entry} in {env_entry}, that with "
                f"{_describe(best['settings'])} scores highest, {format_number(scored.score.mean)} ({interval}); the "
                "highest of many scores is too high on average."
            )
    return sentences


def render(cells: Sequence[CellRecord], results: Results, failures: Mapping[str, Failure]) -> Markup:
    """Render charts and a table of all cells; empty for a study without a sweep.

    Args:
        cells: Of the sweep.
        results: Of all agents by environment.
        failures: By the id of the measurement.
    """
    if not cells:
        return Markup()
    panels = []
    for number, ((env_entry, entry), group) in enumerate(_groups(cells).items()):
        setting, lines = _lines(_measured(group, results))
        if setting:
            chart = draw_setting(f"sweep{number}", setting, lines)
            panels.append(page.figure(chart, f"{entry} in {env_entry}", ""))
    settings = list(dict.fromkeys(key for cell in cells for key in cell["settings"]))
    by_cell = {(scored.env, scored.agent): scored for of_env in results.values() for scored in of_env}
    num_measured = sum((cell["env"], cell["agent"]) in by_cell for cell in cells)
    rows = [_row(cell, settings, by_cell.get((cell["env"], cell["agent"])), failures) for cell in cells]
    titles = ["agent", "environment", *settings, "seeds", "score", "95 % interval", "seeds from … to"]
    has_failures = any(row[-1] for row in rows)
    titles += ["failures"] if has_failures else []
    numeric = range(2, len(titles) - has_failures)
    caption = f"All {pluralize(len(cells), 'cell')} of the sweep, in the order of the study file"
    table = page.table(caption, titles, [row if has_failures else row[:-1] for row in rows], numeric=numeric)
    return TEXTS.cells(len(cells), num_measured, MAX_CELLS_IN_SECTIONS, page.panels(panels) if panels else "", table)


def _groups(cells: Sequence[CellRecord]) -> dict[tuple[str, str], list[CellRecord]]:
    """The cells by the names of environment and agent in the study file."""
    groups: dict[tuple[str, str], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault((cell["env_entry"], cell["entry"]), []).append(cell)
    return groups


def _measured(cells: Sequence[CellRecord], results: Results) -> list[tuple[CellRecord, AgentResult]]:
    """The cells that have a score, with it."""
    by_cell = {(scored.env, scored.agent): scored for of_env in results.values() for scored in of_env}
    names = [(cell, (cell["env"], cell["agent"])) for cell in cells]
    return [(cell, by_cell[name]) for cell, name in names if name in by_cell]


def _lines(measured: Sequence[tuple[CellRecord, AgentResult]]) -> tuple[str, list[SettingLine]]:
    """The numeric setting with the largest number of values, and the lines over it; empty where no chart fits."""
    counts: dict[str, int] = {}
    for key in dict.fromkeys(key for cell, _ in measured for key in cell["settings"]):
        values = [cell["settings"][key] for cell, _ in measured]
        if all(isinstance(number, int | float) and not isinstance(number, bool) for number in values):
            counts[key] = len(set(values))
    setting = max(counts, key=counts.__getitem__, default="")
    if counts.get(setting, 0) < 2:
        return "", []
    varied = {key for cell, _ in measured for key in cell["settings"]} - {setting}
    varied = {key for key in varied if len({str(cell["settings"][key]) for cell, _ in measured}) > 1}
    lines: dict[str, list[SettingPoint]] = {}
    for cell, scored in measured:
        rest = {key: choice for key, choice in cell["settings"].items() if key in varied}
        lines.setdefault(_describe(rest), []).append(SettingPoint(cell["settings"][setting], scored))
    if len(lines) > MAX_LINES:
        return "", []
    return setting, [SettingLine(label, sorted(points, key=lambda point: point.x)) for label, points in lines.items()]


def _describe(settings: Mapping[str, Any]) -> str:
    """The settings of a cell as text."""
    return ", ".join(f"{key}={choice}" for key, choice in settings.items())


def _row(
    cell: CellRecord, settings: Sequence[str], scored: AgentResult | None, failures: Mapping[str, Failure]
) -> list[str]:
    """The row of a cell; its last cell has the sentences of what failed."""
    num_seeds = len(scored.seed_means) if scored is not None else 0
    seeds = f"{num_seeds}" if num_seeds == len(cell["seeds"]) else f"{num_seeds} of {len(cell['seeds'])}"
    scores = ["–", "–", "–"]
    if scored is not None:
        score, means = scored.score, scored.seed_means
        interval = f"{format_number(score.low)} to {format_number(score.high)}"
        scores = [page.score(score), interval, f"{format_number(min(means))} to {format_number(max(means))}"]
        scores[2] = scores[2] if len(means) > 1 else "one seed"
    return [
        cell["entry"],
        cell["env_entry"],
        *(str(cell["settings"].get(key, "–")) for key in settings),
        seeds,
        *scores,
        " ".join(dict.fromkeys(_sentences(cell, failures))),
    ]


def _sentences(cell: CellRecord, failures: Mapping[str, Failure]) -> list[str]:
    """Why measurements of a cell failed."""
    sentences = []
    for kind in ("development", "evaluation", "recorded_lifetime", "attribution"):
        prefix = f"{kind}/{cell['env']}/{cell['agent']}"
        for failure in failures.values():
            if not failure.missing and (failure.id == prefix or failure.id.rpartition("/")[0] == prefix):
                sentences.append(f"{kind} of seed {failure.id.rpartition('/')[2]}: {failure.sentence.rstrip('.')}.")
    return sentences
