"""Drawings of one recorded lifetime as SVG: strips of actions over time and paths through a grid.

The module reads the records `recorded_lifetime` and `environment`. The marks are drawn without a plotting library
because they are few and simple; colors are CSS classes of the page.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from ontogeny.report.formatting import format_total
from ontogeny.runs.records import Record

LABEL_WIDTH = 92  # px for the names of rows
CELL = 40  # px of a grid cell
GAP = 36  # px between two grids


class Drawing(NamedTuple):
    """A drawing of one lifetime with a sentence that explains its marks."""

    svg: Markup
    legend: str


class Mark(NamedTuple):
    """One mark of a strip."""

    row: int
    score: float
    fill: float  # opacity, 0 to 1
    ticked: bool = False  # whether a tick below the mark points out a rare transition


def draw(recorded: Record, env: Record) -> Drawing:
    """Draw a recorded lifetime in the way that suits its environment.

    Args:
        recorded: A record `recorded_lifetime`.
        env: The record `environment` of the same environment.
    """
    return DRAWINGS.get(env["plugin"], _draw_actions)(recorded, env)


def _draw_actions(recorded: Record, env: Record) -> Drawing:
    """Any environment with few actions."""
    trajectory = recorded["trajectory"]
    labels = [f"action {a}" for a in range(env["num_actions"])]
    scores = trajectory["score"]
    marks = [Mark(a, s, _relative(s, scores)) for a, s in zip(trajectory["action"], scores, strict=True)]
    legend = (
        "Each mark is one step, in the row of the action taken; the darker the mark, the higher the score of the step."
    )
    return Drawing(_strip(recorded, labels, marks, "step"), legend)


def _draw_bandit(recorded: Record, env: Record) -> Drawing:
    trajectory, probabilities = recorded["trajectory"], recorded.get("task", {}).get("probabilities")
    arms = list(range(env["num_actions"]))
    if probabilities:
        arms.sort(key=lambda arm: -probabilities[arm])
    labels = [f"pays {100 * probabilities[arm]:.0f} %" if probabilities else f"arm {arm}" for arm in arms]
    rows = {arm: row for row, arm in enumerate(arms)}
    steps = zip(trajectory["action"], trajectory["score"], strict=True)
    marks = [Mark(rows[action], score, float(score > 0)) for action, score in steps]
    legend = (
        "Each row is an arm, the best on top, with its probability of payout, which the agent does not observe; each "
        "mark is one pull, filled where it paid."
    )
    return Drawing(_strip(recorded, labels, marks, "pull"), legend)


def _draw_two_step(recorded: Record, env: Record) -> Drawing:
    """First choices by trial."""
    trajectory = recorded["trajectory"]
    common_places = recorded.get("task", {}).get("common_place", [0, 1])
    marks = []
    for trial in range(len(trajectory["action"]) // 2):
        choice, place = trajectory["action"][2 * trial], trajectory["observation"][2 * trial + 1] - 1
        score = trajectory["score"][2 * trial + 1]
        marks.append(Mark(choice, score, float(score > 0), place != common_places[choice]))
    legend = (
        "Each mark is one trial, in the row of the first choice: filled where the trial paid, with a tick below where "
        "the choice led to the other place by the rare transition."
    )
    if env["settings"].get("rewards") == "switching":
        legend += " The rewarded place changes from time to time."
    return Drawing(_strip(recorded, ["first choice A", "first choice B"], marks, "trial"), legend)


def _draw_random_mdp(recorded: Record, env: Record) -> Drawing:
    """Visited states by step, with the return of each episode above it."""
    trajectory, horizon = recorded["trajectory"], env["horizon"]
    num_steps = min(len(trajectory["action"]), 12 * horizon)
    mean_rewards = recorded.get("task", {}).get("means")
    scores = trajectory["score"]
    marks = []
    for t in range(num_steps):
        state, action = trajectory["observation"][t], trajectory["action"][t]
        if mean_rewards:
            ranking = sorted(mean_rewards[state])
            fill = ranking.index(mean_rewards[state][action]) / max(len(ranking) - 1, 1)
        else:
            fill = _relative(scores[t], scores)
        marks.append(Mark(state, scores[t], fill))
    returns = [sum(scores[start : start + horizon]) for start in range(0, num_steps, horizon)]
    labels = [f"state {s}" for s in range(env["num_observations"])]
    legend = (
        f"Each column of {horizon} steps is an episode, with its return above it; each mark is the state of the agent, "
        "the darker the higher the mean reward of the chosen action ranks among the actions of that state."
    )
    return Drawing(_strip(recorded, labels, marks, "step", [(horizon, f"{r:.1f}") for r in returns]), legend)


def _draw_foraging(recorded: Record, env: Record) -> Drawing:
    """The grid with the path of the first and of the last complete episode."""
    trajectory, size = recorded["trajectory"], env["settings"]["size"]
    episodes = _first_and_last_episode(trajectory, env["horizon"])
    side = CELL * size
    parts = []
    for i, (title, (start, end)) in enumerate(episodes):
        left = 2 + i * (side + GAP)
        caption = f"{end - start} steps, score {format_total(sum(trajectory['score'][start:end]))}"
        cells = [cell % (size * size) for cell in trajectory["observation"][start:end]]
        if trajectory["discount"][end - 1] == 0:
            cells.append(recorded["task"]["home"])
        parts.append(Markup('<text class="t" x="{}" y="14">{}</text>').format(left, title))
        parts.append(Markup('<text class="m" x="{}" y="{}">{}</text>').format(left, side + 40, caption))
        parts.append(
            Markup('<g transform="translate({} 22)">{}{}</g>').format(
                left, _grid(recorded["task"], size), _path(cells, size, recorded["approach"])
            )
        )
    width = len(episodes) * side + (len(episodes) - 1) * GAP + 4
    label = f"Path of {recorded['agent']} through the grid in its first and last episode"
    legend = (
        "The agent starts at S; F is food, W water, H home, which ends the episode; crosses are thorns, dark cells "
        "are walls. Food and water count once per episode and every step costs energy, so a good path collects both "
        "and goes home."
    )
    return Drawing(_svg(width, side + 44, label, Markup("").join(parts), scrolls=False), legend)


DRAWINGS: dict[str, Callable[[Record, Record], Drawing]] = {
    "bandit": _draw_bandit,
    "two_step": _draw_two_step,
    "random_mdp": _draw_random_mdp,
    "foraging": _draw_foraging,
}


def _first_and_last_episode(trajectory: Record, horizon: int) -> list[tuple[str, tuple[int, int]]]:
    """Title and range of steps of the first and of the last complete episode."""
    starts = [t for t, first in enumerate(trajectory["first"]) if first]
    ends = [*starts[1:], len(trajectory["action"])]
    complete = [
        (start, end)
        for start, end in zip(starts, ends, strict=True)
        if end < len(trajectory["action"]) or end - start == horizon
    ]
    titled = [("first episode", complete[0] if complete else (starts[0], ends[0]))]
    if len(complete) > 1:
        titled.append((f"episode {len(complete)}, the last complete one", complete[-1]))
    return titled


def _strip(
    recorded: Record,
    labels: Sequence[str],
    marks: Sequence[Mark],
    unit: str,
    groups: Sequence[tuple[int, str]] = (),  # number of steps and the text above them
) -> Markup:
    """Rows of marks over time."""
    column = max(7.0, min(20.0, 640 / max(len(marks), 1)))
    height = 16 if len(labels) > 5 else 19
    top = 22 if groups else 6
    bottom = top + height * len(labels)
    width = LABEL_WIDTH + column * len(marks) + 8
    parts = [*_rows(labels, top, height, width), *_group_titles(groups, column, len(marks), bottom)]
    for t, mark in enumerate(marks):
        parts += _circles(
            mark, LABEL_WIDTH + column * (t + 0.5), top + height * (mark.row + 0.5), min(column * 0.42, 5.2)
        )
    ticks = {0, len(marks) // 2 - 1, len(marks) - 1} if len(marks) > 2 else set(range(len(marks)))
    for t in sorted(ticks):
        text = f"{unit} {t + 1}" if t == 0 else str(t + 1)
        parts.append(_text(LABEL_WIDTH + column * (t + 0.5), bottom + 16, text, "middle"))
    total = format_total(sum(mark.score for mark in marks))
    label = f"One lifetime of {recorded['agent']}: {len(marks)} {unit}s, total score {total}"
    body = Markup('<g class="{}">{}</g>').format(recorded["approach"], Markup("").join(parts))
    return _svg(width, bottom + 24, label, body, scrolls=len(marks) > 30)


def _rows(labels: Sequence[str], top: float, height: float, width: float) -> list[Markup]:
    parts = []
    for row, label in enumerate(labels):
        y = top + height * (row + 0.5)
        parts += [_line("r", LABEL_WIDTH, y, width - 8, y), _text(LABEL_WIDTH - 10, y + 3.5, label, "end")]
    return parts


def _group_titles(groups: Sequence[tuple[int, str]], column: float, num_marks: int, bottom: float) -> list[Markup]:
    parts, start = [], 0
    for num_steps, text in groups:
        x = LABEL_WIDTH + column * start
        if start:
            parts.append(_line("r", x, 2, x, bottom))
        parts.append(_text(x + column * min(num_steps, num_marks - start) / 2, 12, text, "middle"))
        start += num_steps
    return parts


def _circles(mark: Mark, x: float, y: float, radius: float) -> list[Markup]:
    parts = [Markup(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')]
    if mark.fill > 0:
        opacity = "" if mark.fill >= 1 else f' fill-opacity="{0.12 + 0.88 * mark.fill:.2f}"'
        parts.append(Markup(f'<circle class="f" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{opacity}/>'))
    if mark.ticked:
        parts.append(_line("k", x, y + radius + 1, x, y + radius + 4))
    return parts


def _line(css_class: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup(f'<line class="{css_class}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="m" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _grid(task: Record, size: int) -> Markup:
    parts = []
    for cell in range(size * size):
        x, y = cell % size * CELL, cell // size * CELL
        css_class = "w" if task["walls"][cell] else "g"
        parts.append(f'<rect class="{css_class}" x="{x}" y="{y}" width="{CELL}" height="{CELL}"/>')
        if task["thorns"][cell]:
            a, b = CELL * 0.36, CELL * 0.64
            parts.append(
                f'<path class="x" d="M{x + a:.1f} {y + a:.1f} L{x + b:.1f} {y + b:.1f} '
                f'M{x + b:.1f} {y + a:.1f} L{x + a:.1f} {y + b:.1f}"/>'
            )
    for letter, place in (("F", "food"), ("W", "water"), ("H", "home"), ("S", "start")):
        x, y = task[place] % size * CELL + 5, task[place] // size * CELL + 14
        parts.append(f'<text class="t" x="{x}" y="{y}">{letter}</text>')
    return Markup("".join(parts))


def _path(cells: Sequence[int], size: int, approach: str) -> Markup:
    """The path from cell to cell; later visits of a cell are offset, so that a way there and back is two lines."""
    num_visits: dict[int, int] = {}
    points = []
    for cell in cells:
        offset = min(num_visits.get(cell, 0), 4) * 3.2
        num_visits[cell] = num_visits.get(cell, 0) + 1
        points.append(((cell % size + 0.5) * CELL + offset, (cell // size + 0.55) * CELL + offset))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (x0, y0), (x1, y1) = points[0], points[-1]
    return Markup(
        '<g class="{}"><polyline class="l" points="{}"/><circle class="p" cx="{:.1f}" cy="{:.1f}" r="4"/>'
        '<circle class="f" cx="{:.1f}" cy="{:.1f}" r="4.5"/></g>'
    ).format(approach, line, x0, y0, x1, y1)


def _relative(value: float, values: Sequence[float]) -> float:
    """Where a value lies between the lowest, 0, and the highest, 1."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0


def _svg(width: float, height: float, label: str, body: Markup, *, scrolls: bool) -> Markup:
    max_width = "" if scrolls else ";max-width:100%"
    return Markup(
        '<svg class="strip" viewBox="0 0 {:.1f} {:.1f}" style="width:{:.0f}px{}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width, max_width, label, body)
