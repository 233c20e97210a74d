"""Drawings of one recorded lifetime as SVG: strips of actions over time and paths through a grid.

The module reads the records `recorded_lifetime` and `environment`. The marks are drawn by the template
`lifetime.svg.j2`, without a plotting library, because they are few and simple; colors are CSS classes of the page.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_total
from ontogeny.runs.records import Record

CELL_SIZE = 40  # px of a cell of the grid
MACROS = page.load_macros("ontogeny.studies", "lifetime.svg.j2", cell_size=CELL_SIZE)


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


class EpisodePath(NamedTuple):
    """The path of the agent through the grid in one episode."""

    title: str
    caption: str
    path: Sequence[tuple[float, float]]  # points (x, y) in px


def draw(recorded: Record, env: Record) -> Drawing:
    """Draw a recorded lifetime in the way that suits its environment.

    Args:
        recorded: A record `recorded_lifetime`.
        env: The record `environment` of the same environment.
    """
    return DRAWINGS.get(env["plugin"], _draw_actions)(recorded, env)


def _draw_actions(recorded: Record, env: Record) -> Drawing:
    """One mark per step in the row of its action, for any environment with few actions."""
    trajectory = recorded["trajectory"]
    labels = [f"action {a}" for a in range(env["num_actions"])]
    scores = trajectory["score"]
    marks = [Mark(a, s, _relative(s, scores)) for a, s in zip(trajectory["action"], scores, strict=True)]
    legend = (
        "Each mark is one step, in the row of the action taken; the darker the mark, the higher the score of the step."
    )
    return Drawing(_strip(recorded, labels, marks, "step"), legend)


def _draw_bandit(recorded: Record, env: Record) -> Drawing:
    """One mark per pull in the row of its arm, the best arm on top."""
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
    """One mark per trial in the row of its first choice."""
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
    return Drawing(_strip(recorded, labels, marks, "step", [f"{r:.1f}" for r in returns], horizon), legend)


def _draw_foraging(recorded: Record, env: Record) -> Drawing:
    """The grid with the path of the first and of the last complete episode."""
    trajectory, task, size = recorded["trajectory"], recorded["task"], env["settings"]["size"]
    episodes = []
    for title, (start, end) in _first_and_last_episode(trajectory, env["horizon"]):
        # An observation is a cell plus a multiple of the number of cells, which tells what was eaten and drunk.
        cells = [observation % (size * size) for observation in trajectory["observation"][start:end]]
        if trajectory["discount"][end - 1] == 0:
            cells.append(task["home"])
        caption = f"{end - start} steps, score {format_total(sum(trajectory['score'][start:end]))}"
        episodes.append(EpisodePath(title, caption, _path(cells, size)))
    label = f"Path of {recorded['agent']} through the grid in its first and last episode"
    legend = (
        "The agent starts at S; F is food, W water, H home, which ends the episode; crosses are thorns, dark cells "
        "are walls. Food and water count once per episode and every step costs energy, so a good path collects both "
        "and goes home."
    )
    return Drawing(MACROS.grids(label, recorded["approach"], task, size, episodes), legend)


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
    T, episodes = len(trajectory["action"]), zip(starts, ends, strict=True)
    complete = [(start, end) for start, end in episodes if end < T or end - start == horizon]
    titled = [("first episode", complete[0] if complete else (starts[0], ends[0]))]
    if len(complete) > 1:
        titled.append((f"episode {len(complete)}, the last complete one", complete[-1]))
    return titled


def _strip(
    recorded: Record,
    row_labels: Sequence[str],
    marks: Sequence[Mark],
    unit: str,
    episode_titles: Sequence[str] = (),
    horizon: int = 1,
) -> Markup:
    """Rows of marks over time, and above them a title for each episode of `horizon` steps."""
    column_width = max(7.0, min(20.0, 640 / max(len(marks), 1)))  # px, so that the strip fits the page
    steps = {0, len(marks) // 2 - 1, len(marks) - 1} if len(marks) > 2 else set(range(len(marks)))
    ticks = [(t, f"{unit} {t + 1}" if t == 0 else str(t + 1)) for t in sorted(steps)]
    total = format_total(sum(mark.score for mark in marks))
    label = f"One lifetime of {recorded['agent']}: {len(marks)} {unit}s, total score {total}"
    return MACROS.strip(label, recorded["approach"], row_labels, marks, ticks, column_width, episode_titles, horizon)


def _path(cells: Sequence[int], size: int) -> list[tuple[float, float]]:
    """The path from cell to cell; later visits of a cell are offset, so that a way there and back is two lines."""
    num_visits: dict[int, int] = {}
    points = []
    for cell in cells:
        offset = min(num_visits.get(cell, 0), 4) * 3.2
        num_visits[cell] = num_visits.get(cell, 0) + 1
        points.append(((cell % size + 0.5) * CELL_SIZE + offset, (cell // size + 0.55) * CELL_SIZE + offset))
    return points


def _relative(value: float, values: Sequence[float]) -> float:
    """Where a value lies between the lowest, 0, and the highest, 1."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0
