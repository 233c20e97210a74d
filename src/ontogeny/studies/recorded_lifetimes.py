"""One lifetime drawn so that a person can follow it: strips of choices over time, paths through a grid.

Draws SVG by hand: the marks are few and of our own kind. Reads replay and environment records only. Colours are CSS classes.
"""

from collections.abc import Callable, Sequence
from html import escape

from ontogeny.studies.comparison import total
from ontogeny.studies.records import Record

LEFT = 92  # px for the names of rows


def draw(replay: Record, env: Record) -> tuple[str, str]:
    """The figure (SVG) and, in a sentence, how to read it."""
    return DRAWN.get(env["room"], strip)(replay, env)


def strip(replay: Record, env: Record) -> tuple[str, str]:
    """Any environment of few actions: which action when, darker where it scored more."""
    trajectory = replay["trajectory"]
    rows = [f"action {a}" for a in range(env["num_actions"])]
    marks = [
        (t, a, s, _share(s, trajectory["score"]), "")
        for t, (a, s) in enumerate(zip(trajectory["action"], trajectory["score"], strict=True))
    ]
    told = "Each mark is one step, in the row of the action taken; the fuller the mark, the more that step scored."
    return _strip(replay, rows, marks, "step"), told


def bandit(replay: Record, env: Record) -> tuple[str, str]:
    """Arms by time, the best arm on top; a full mark paid, a hollow one did not."""
    trajectory, chances = replay["trajectory"], replay.get("task", {}).get("probabilities")
    arms = list(range(env["num_actions"]))
    if chances:
        arms.sort(key=lambda arm: -chances[arm])
    rows = [f"pays {100 * chances[arm]:.0f} %" if chances else f"arm {arm}" for arm in arms]
    place = {arm: row for row, arm in enumerate(arms)}
    marks = [
        (t, place[a], s, 1.0 if s > 0 else 0.0, "")
        for t, (a, s) in enumerate(zip(trajectory["action"], trajectory["score"], strict=True))
    ]
    told = (
        "Each row is an arm, the best on top, with the probability that the agent is never told; each mark is one "
        "pull, full where it paid and hollow where it did not."
    )
    return _strip(replay, rows, marks, "pull"), told


def two_step(replay: Record, env: Record) -> tuple[str, str]:
    """First choices by trial; full where the trial paid, ticked below where the rare path was taken."""
    trajectory = replay["trajectory"]
    leads = replay.get("task", {}).get("common_place", [0, 1])
    marks = []
    for trial in range(len(trajectory["action"]) // 2):
        choice, place = trajectory["action"][2 * trial], trajectory["observation"][2 * trial + 1] - 1
        rare = place != leads[choice]
        paid = trajectory["score"][2 * trial + 1]
        marks.append((trial, choice, paid, 1.0 if paid > 0 else 0.0, "rare" if rare else ""))
    told = (
        "Each mark is one trial, in the row of the first choice: full where it paid, hollow where not, with a tick "
        "below where the choice led by its rare path to the other place."
    )
    if env["settings"].get("rewards") == "switching":
        told += " Which place pays swaps now and then."
    return _strip(replay, ["first choice A", "first choice B"], marks, "trial"), told


def random_mdp(replay: Record, env: Record) -> tuple[str, str]:
    """Visited states by step, with the return of each episode above."""
    trajectory, horizon = replay["trajectory"], env["horizon"]
    steps = min(len(trajectory["action"]), 12 * horizon)
    means = replay.get("task", {}).get("means")
    worth = []
    for t in range(steps):
        s, a = trajectory["observation"][t], trajectory["action"][t]
        if means:
            known = sorted(means[s])
            worth.append(known.index(means[s][a]) / max(len(known) - 1, 1))
        else:
            worth.append(_share(trajectory["score"][t], trajectory["score"]))
    rows = [f"state {s}" for s in range(env["num_observations"])]
    marks = [(t, trajectory["observation"][t], trajectory["score"][t], worth[t], "") for t in range(steps)]
    returns = [sum(trajectory["score"][e : e + horizon]) for e in range(0, steps, horizon)]
    told = (
        f"Each column of {horizon} steps is an episode, its return above it; each mark is the state that the agent "
        "is in, the fuller the better the chosen action pays there on average, compared with the other actions."
    )
    return _strip(replay, rows, marks, "step", [(horizon, f"{value:.1f}") for value in returns]), told


def foraging(replay: Record, env: Record) -> tuple[str, str]:
    """The grid with the path of the first and of the last episode."""
    trajectory, task, size = replay["trajectory"], replay["task"], env["settings"]["size"]
    starts = [t for t, first in enumerate(trajectory["first"]) if first]
    ends = [*starts[1:], len(trajectory["action"])]
    whole = [
        (a, b) for a, b in zip(starts, ends, strict=True) if b < len(trajectory["action"]) or b - a == env["horizon"]
    ]
    shown = [("first episode", whole[0] if whole else (starts[0], ends[0]))]
    if len(whole) > 1:
        shown.append((f"episode {len(whole)}, the last whole one", whole[-1]))
    unit, gap = 40, 36
    side = unit * size
    width, height = len(shown) * side + (len(shown) - 1) * gap + 4, side + 44
    parts = []
    for i, (title, (begin, end)) in enumerate(shown):
        left = 2 + i * (side + gap)
        summed = sum(trajectory["score"][begin:end])
        parts.append(f'<text class="t" x="{left}" y="14">{escape(title)}</text>')
        parts.append(f'<text class="m" x="{left}" y="{side + 40}">{end - begin} steps, score {total(summed)}</text>')
        parts.append(f'<g transform="translate({left} 22)">{_grid(task, size, unit)}')
        cells = [cell % (size * size) for cell in trajectory["observation"][begin:end]]
        if trajectory["discount"][end - 1] == 0:
            cells.append(task["home"])
        parts.append(_path(cells, size, unit, replay["model"]) + "</g>")
    label = f"Path of {replay['agent']} through the grid in its first and last episode"
    told = (
        "The agent starts at S; F is food, W water, H home, which ends the episode; crosses hurt, dark cells "
        "are walls. Food and water count once per episode and every step costs a little, so a good path collects both "
        "and goes home."
    )
    return _svg(width, height, label, "".join(parts), wide=False), told


DRAWN: dict[str, Callable[[Record, Record], tuple[str, str]]] = {
    "bandit": bandit,
    "two_step": two_step,
    "random_mdp": random_mdp,
    "foraging": foraging,
}


def _strip(
    replay: Record,
    rows: Sequence[str],
    marks: Sequence[tuple[int, int, float, float, str]],  # step, row, score, fullness 0..1, "rare" or ""
    unit: str,
    groups: Sequence[tuple[int, str]] = (),  # steps per group, text above it
) -> str:
    count = len(marks)
    wide = max(7.0, min(20.0, 640 / max(count, 1)))
    tall = 16 if len(rows) > 5 else 19
    top = 22 if groups else 6
    width, height = LEFT + wide * count + 8, top + tall * len(rows) + 24
    parts = []
    for row, name in enumerate(rows):
        y = top + tall * (row + 0.5)
        parts.append(f'<line class="r" x1="{LEFT}" x2="{width - 8:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="m" x="{LEFT - 10}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
    at = 0
    for steps, text in groups:
        x = LEFT + wide * at
        middle = x + wide * min(steps, count - at) / 2
        if at:
            parts.append(f'<line class="r" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{top + tall * len(rows)}"/>')
        parts.append(f'<text class="m" x="{middle:.1f}" y="12" text-anchor="middle">{escape(text)}</text>')
        at += steps
    radius = min(wide * 0.42, 5.2)
    for t, row, _, full, rare in marks:
        x, y = LEFT + wide * (t + 0.5), top + tall * (row + 0.5)
        parts.append(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
        if full > 0:
            opacity = "" if full >= 1 else f' fill-opacity="{0.12 + 0.88 * full:.2f}"'
            parts.append(f'<circle class="f" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{opacity}/>')
        if rare:
            foot = y + radius + 1
            parts.append(f'<line class="k" x1="{x:.1f}" x2="{x:.1f}" y1="{foot:.1f}" y2="{foot + 3:.1f}"/>')
    bottom = top + tall * len(rows)
    for t in sorted({0, count // 2 - 1, count - 1} if count > 2 else set(range(count))):
        x = LEFT + wide * (t + 0.5)
        text = f"{unit} {t + 1}" if t == 0 else str(t + 1)
        parts.append(f'<text class="m" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    label = f"One lifetime of {replay['agent']}: {count} {unit}s, total score {total(sum(mark[2] for mark in marks))}"
    return _svg(width, height, label, f'<g class="{replay["model"]}">{"".join(parts)}</g>', wide=count > 30)


def _grid(task: dict, size: int, unit: int) -> str:
    parts = []
    for cell in range(size * size):
        x, y = cell % size * unit, cell // size * unit
        kind = "w" if task["walls"][cell] else "g"
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{unit}" height="{unit}"/>')
        if task["thorns"][cell]:
            a, b = unit * 0.36, unit * 0.64
            parts.append(
                f'<path class="x" d="M{x + a:.1f} {y + a:.1f} L{x + b:.1f} {y + b:.1f} '
                f'M{x + b:.1f} {y + a:.1f} L{x + a:.1f} {y + b:.1f}"/>'
            )
    for letter, name in (("F", "food"), ("W", "water"), ("H", "home"), ("S", "start")):
        x, y = task[name] % size * unit + 5, task[name] // size * unit + 14
        parts.append(f'<text class="t" x="{x}" y="{y}">{letter}</text>')
    return "".join(parts)


def _path(cells: Sequence[int], size: int, unit: int, model: str) -> str:
    """The way from cell to cell, each later visit a little aside, so that a way there and back shows as two lines."""
    seen: dict[int, int] = {}
    points = []
    for cell in cells:
        aside = min(seen.get(cell, 0), 4) * 3.2
        seen[cell] = seen.get(cell, 0) + 1
        points.append(((cell % size + 0.5) * unit + aside, (cell // size + 0.55) * unit + aside))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (x0, y0), (x1, y1) = points[0], points[-1]
    return (
        f'<g class="{model}"><polyline class="l" points="{line}"/><circle class="p" cx="{x0:.1f}" cy="{y0:.1f}" r="4"/>'
        f'<circle class="f" cx="{x1:.1f}" cy="{y1:.1f}" r="4.5"/></g>'
    )


def _share(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0


def _svg(width: float, height: float, label: str, body: str, *, wide: bool) -> str:
    most = "" if wide else ";max-width:100%"  # what is wide scrolls in its own box
    return (
        f'<svg class="strip" viewBox="0 0 {width:.1f} {height:.1f}" style="width:{width:.0f}px{most}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{body}</svg>'
    )
