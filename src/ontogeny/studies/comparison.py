"""Comparison: intervals, differences paired by task, published lines beside ours, and what each score cost.

Works on records and plain numbers; knows nothing of agents, environments or how anything is run.
Standard errors are over tasks, and over the seeds of development where there are several; a 95 % interval, and what a
claim needs, follow Student's t with the degrees of freedom that few seeds leave. The published tables give no errors:
a distance from a published line is counted in ours alone, and never claimed inside the digits that were printed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ontogeny.errors import BadInput
from ontogeny.stats import Z95, critical_value, effective_degrees_of_freedom, mean_and_standard_error
from ontogeny.studies import published
from ontogeny.studies.records import Record

CLAIM = 3.0  # normal standard errors that a claim of "above" or "below" needs


class Interval(NamedTuple):
    """A mean over tasks with its standard error and 95 % interval, all in units of score per lifetime."""

    mean: float
    se: float
    low: float
    high: float
    num_tasks: int
    df: float = math.inf  # degrees of freedom of `se`

    @property
    def claim(self) -> float:
        """The distance from which on a difference is claimed."""
        return critical_value(CLAIM, self.df) * self.se


def interval(mean: float, se: float, num_tasks: int = 0, df: float = math.inf) -> Interval:
    half = critical_value(Z95, df) * se
    return Interval(mean, se, mean - half, mean + half, num_tasks, df)


def summary(scores: Sequence[float] | np.ndarray) -> Interval:
    """One score per task, [N] with N >= 2 -> their mean with its interval. Raises `BadInput` for fewer."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise BadInput(f"an interval needs the scores of at least two tasks, not an array of shape {values.shape}")
    mean, error = mean_and_standard_error(values)
    return interval(float(mean), float(error), int(values.size))


def paired(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Interval:
    """The mean of `one - other` task by task, [N] and [M]: over the first min(N, M) tasks, which both have lived."""
    shared = min(len(one), len(other))
    return summary(np.asarray(one, np.float64)[:shared] - np.asarray(other, np.float64)[:shared])


def paired_over_seeds(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Interval:
    """`paired` for agents with one row of scores per seed of their development: the spread between seeds is added."""
    apart = paired(np.mean(one, axis=0), np.mean(other, axis=0))
    seeds = [np.mean(side, axis=1) for side in (one, other) if len(side) > 1]
    return _with_seeds(apart, seeds)


def over_seeds(parts: Sequence[Interval]) -> Interval:
    """The mean over developments that differ in their seed only.

    All were measured on the same tasks, so their errors over tasks do not average out; the spread between seeds is
    added to it. One seed says nothing of that spread.
    """
    means = np.array([part.mean for part in parts])
    over_tasks = math.sqrt(float(np.mean([part.se**2 for part in parts])))
    whole = interval(float(np.mean(means)), over_tasks, min(part.num_tasks for part in parts))
    return _with_seeds(whole, [means] if len(parts) > 1 else [])


def _with_seeds(apart: Interval, seeds: Sequence[np.ndarray]) -> Interval:
    """An interval over tasks, widened by the spread of means [n] over the seeds of each side."""
    spreads = [float(np.var(means, ddof=1)) / len(means) for means in seeds]
    df = effective_degrees_of_freedom([apart.se**2, *spreads], [math.inf, *(len(means) - 1 for means in seeds)])
    return interval(apart.mean, math.sqrt(apart.se**2 + sum(spreads)), apart.num_tasks, df)


class Curve(NamedTuple):
    """Mean score by position in the life; K points."""

    unit: str  # "episode" or "step"
    position: tuple[int, ...]  # [K] the last unit of each point, from 1
    mean: tuple[float, ...]  # [K] per unit, the mean over seeds
    low: tuple[float, ...]  # [K] the ends of its 95 % interval
    high: tuple[float, ...]  # [K]


@dataclass(frozen=True)
class Standing:
    """An agent in an environment: what it scored and what it had cost before birth, over all seeds of its development."""

    env: str
    agent: str
    text: str  # the agent with its settings, as the command line takes it
    model: str
    score: Interval
    seeds: tuple[float, ...]  # the mean of each seed
    case: str
    developed_on: str
    genome_size: int
    development_steps: int  # agent-environment steps before birth, of one development
    seconds: float | None  # wall time of one development, the mean over seeds; None where it was not noted
    curve: Curve
    privileged: bool  # whether the task was laid open to it


def standings(records: Iterable[Record], times: Mapping[str, float]) -> dict[str, list[Standing]]:
    """Environment -> its agents, the best first."""
    records = list(records)
    developments = {r["id"]: r for r in records if r["kind"] == "development"}
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["kind"] == "evaluation":
            groups.setdefault((record["env"], record["agent"]), []).append(record)
    found: dict[str, list[Standing]] = {}
    for (env, agent), rows in groups.items():
        costs = [developments[row["development"]] for row in rows if row.get("development") in developments]
        noted = [times[cost["id"]] for cost in costs if cost["id"] in times]
        first = rows[0]
        found.setdefault(env, []).append(
            Standing(
                env=env,
                agent=agent,
                text=first["text"],
                model=first["model"],
                score=over_seeds([interval(row["mean"], row["se"], row["num_tasks"]) for row in rows]),
                seeds=tuple(row["mean"] for row in rows),
                case=first["case"],
                developed_on=first["developed_on"],
                genome_size=costs[0]["genome_size"] if costs else 0,
                development_steps=costs[0]["development_steps"] if costs else 0,
                seconds=sum(noted) / len(noted) if noted else None,
                curve=_curve([row["curve"] for row in rows]),
                privileged=bool(first.get("privileged", False)),
            )
        )
    return {env: sorted(rows, key=lambda row: (-row.score.mean, row.agent)) for env, rows in found.items()}


def _curve(curves: Sequence[Mapping]) -> Curve:
    points = [over_seeds([interval(c["mean"][k], c["se"][k]) for c in curves]) for k in range(len(curves[0]["mean"]))]
    return Curve(
        curves[0]["unit"],
        tuple(curves[0]["position"]),
        tuple(point.mean for point in points),
        tuple(point.low for point in points),
        tuple(point.high for point in points),
    )


class Distance(NamedTuple):
    """How far a score is from a published line."""

    line: str  # the published algorithm
    value: float
    difference: float
    in_errors: float  # the difference in our standard errors
    verdict: str  # "above", "level" or "below"


def distance(score: Interval, line: str, value: float, digits: int = 1) -> Distance:
    """A verdict needs more than three normal standard errors, and more than what the printed digits leave open."""
    difference = score.mean - value
    errors = difference / score.se if score.se > 0 else math.copysign(math.inf, difference) if difference else 0.0
    open_digits = 0.5 * 10**-digits
    if abs(difference) <= score.claim or abs(difference) <= open_digits * (1 + 1e-9):
        verdict = "level"
    else:
        verdict = "above" if difference > 0 else "below"
    return Distance(line, value, difference, errors, verdict)


def published_lines(env: Record) -> dict[str, float]:
    """The printed scores for an environment's record, by algorithm; empty where the environment is in no published table."""
    return published.lines_for(env["room"], env["settings"])


def published_row(env: Record) -> published.Row:
    """The row of print in which `published_lines` finds an environment; raises `StopIteration` where there is none."""
    found = (row for row in published.rows() if row.room == env["room"])
    return next(row for row in found if row.settings.items() <= env["settings"].items())


def ours_for(env: Record, line: str) -> str | None:
    """Our agent, with its settings, that follows a printed strategy; None where we have none."""
    return published.OURS[published_row(env).table].get(line)


def against_best(score: Interval, lines: Mapping[str, float], ceiling: float = math.inf) -> Distance | None:
    """The distance from the best of the printed lines: above it is above every line.

    A line printed above the exact ceiling, which no strategy exceeds on average, owes that to luck or rounding: there
    the ceiling takes its place.
    """
    if not lines:
        return None
    line = max(lines, key=lambda name: (lines[name], name == "RL²"))
    if lines[line] > ceiling:
        return distance(score, "the ceiling", ceiling, digits=9)
    return distance(score, line, lines[line])


def ceilings(records: Iterable[Record]) -> dict[str, tuple[str, float]]:
    """Environment -> what no strategy exceeds on average, with its name, where that is known exactly."""
    return {r["env"]: (r["name"], r["value"]) for r in records if r["kind"] == "bound"}


def best_of(rows: Iterable[Standing], model: str) -> Standing | None:
    """The agent of a model of development that scored highest in an environment."""
    return max((row for row in rows if row.model == model), key=lambda row: row.score.mean, default=None)


class HeadToHead(NamedTuple):
    """The better agent of each model in one environment, on the same tasks: code minus evolution."""

    env: str
    code: Standing
    evolution: Standing
    difference: Interval
    is_paired: bool
    verdict: str  # "code", "level" or "evolution"


def head_to_head(records: Iterable[Record], table: Mapping[str, list[Standing]]) -> list[HeadToHead]:
    """One entry per environment in which both models were measured."""
    differences = {(r["env"], r["agent"], r["other"]): r for r in records if r["kind"] == "difference"}
    found = []
    for env, rows in table.items():
        code, evolution = best_of(rows, "code"), best_of(rows, "evolution")
        if code is None or evolution is None:
            continue
        apart = find_difference(differences, env, code.agent, evolution.agent)
        if apart is None:
            unpaired = apart_by(code.score, evolution.score)
            found.append(HeadToHead(env, code, evolution, unpaired, False, _side(unpaired)))
        else:
            found.append(HeadToHead(env, code, evolution, apart, True, _side(apart)))
    return found


def apart_by(one: Interval, other: Interval) -> Interval:
    """The difference `one - other` of means whose tasks are not paired."""
    parts = [one.se**2, other.se**2]
    return interval(one.mean - other.mean, math.sqrt(sum(parts)), 0, effective_degrees_of_freedom(parts, [one.df, other.df]))


def find_difference(differences: Mapping[tuple[str, str, str], Record], env: str, one: str, other: str):
    """The paired difference `one - other` as an `Interval`, whichever way round it was recorded, or None."""
    for sign, key in ((1, (env, one, other)), (-1, (env, other, one))):
        if key in differences:
            row = differences[key]
            return interval(sign * row["mean"], row["se"], row["num_tasks"], row.get("df") or math.inf)
    return None


def _side(difference: Interval) -> str:
    if abs(difference.mean) <= difference.claim:
        return "level"
    return "code" if difference.mean > 0 else "evolution"


def missing(records: Sequence[Record]) -> list[str]:
    """The ids of measurements that the study planned and the records lack."""
    there = {record["id"] for record in records}
    return [name for record in records if record["kind"] == "study" for name in record["planned"] if name not in there]


def answer(records: Sequence[Record], table: Mapping[str, list[Standing]]) -> tuple[str, str]:
    """The study's answer in two sentences, computed from the records, whichever way they fall."""
    return _against_published(records, table), _against_each_other(records, table)


def _against_published(records: Sequence[Record], table: Mapping[str, list[Standing]]) -> str:
    environments = [r for r in records if r["kind"] == "env" and published_lines(r) and r["env"] in table]
    if not environments:
        return "None of the environments measured here stands in a published table."
    parts = []
    exact = ceilings(records)
    for model, noun in (("code", "a genome that is code"), ("evolution", "evolution from scratch")):
        found: list[tuple[Standing, Distance]] = []
        for env in environments:
            best = best_of(table[env["env"]], model)
            if best is not None:
                ceiling = exact.get(env["env"], ("", math.inf))[1]
                far = against_best(best.score, published_lines(env), ceiling)
                assert far is not None
                found.append((best, far))
        if not found:
            parts.append(f"{noun} was not measured in them")
            continue
        words = {
            "above": "above every printed line in",
            "level": "level with the best in",
            "below": "below the best in",
        }
        fewest = min(len(best.seeds) for best, _ in found)
        if model == "evolution" and fewest == 1:
            noun += ", from one search in some of them,"
        counts = [(words[word], sum(far.verdict == word for _, far in found)) for word in words]
        told = _listed([f"{word} {count}" for word, count in counts if count])
        best, far = max(found, key=lambda item: abs(item[1].in_errors))
        parts.append(
            f"{noun} is {told} (clearest: {best.agent} with {plus_minus(best.score)} against {far.line}’s "
            f"{number(far.value)} in {best.env})"
        )
    rows = (
        "row of the published tables" if len(environments) == 1 else f"{len(environments)} rows of the published tables"
    )
    return f"Over the {rows} measured here, {'; '.join(parts)}."


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _against_each_other(records: Sequence[Record], table: Mapping[str, list[Standing]]) -> str:
    duels = head_to_head(records, table)
    if not duels:
        return "The two models of development were not measured in a common environment, so nothing is said of which is ahead."
    count = {side: sum(duel.verdict == side for duel in duels) for side in ("code", "evolution", "level")}
    clearest = max(duels, key=lambda duel: abs(duel.difference.mean) / max(duel.difference.se, 1e-12))
    ahead = "code" if clearest.difference.mean > 0 else "evolution"
    by = plus_minus(clearest.difference._replace(mean=abs(clearest.difference.mean)))
    steps = max(duel.evolution.development_steps for duel in duels)
    before = max(duel.code.development_steps for duel in duels)
    environments = "env" if len(duels) == 1 else "environments"
    return (
        f"On the same unseen tasks, code is ahead in {count['code']} of {len(duels)} {environments}, evolution in "
        f"{count['evolution']}, and they cannot be told apart in {count['level']} (clearest: {clearest.env}, {ahead} "
        f"ahead by {by} per lifetime); to get there, "
        f"evolution lived up to {amount(steps)} steps before birth and code {amount(before) if before else 'none'}."
    )


def plus_minus(score: Interval) -> str:
    """A mean and one standard error, to the same decimal place."""
    if score.se <= 0 or not math.isfinite(score.se):
        return number(score.mean)
    places = max(1 - math.floor(math.log10(score.se)), 0)
    return f"{_fixed(score.mean, places)} ± {_fixed(score.se, places)}"


def total(value: float) -> str:
    """A sum of one life: two decimals at most, none where it is whole."""
    return _fixed(value, 0 if abs(value - round(value)) < 0.005 else 2)


def _fixed(value: float, places: int) -> str:
    text = f"{value:,.{places}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("−")


def number(value: float, digits: int | None = None) -> str:
    """A score for people: about four figures, or `digits` significant ones."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞" if value > 0 else "−∞"
    if digits is None:
        places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    else:
        places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return _fixed(value, places)


def amount(steps: float) -> str:
    """A count for people: 1,080; 26.2 million."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if steps >= size:
            return f"{steps / size:.3g}{word}"
    return f"{steps:,.0f}"
