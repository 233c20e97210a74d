"""Comparison of the agents of a study: scores by environment, published baselines, upper bounds, paired differences.

The module reads records and computes with plain numbers; it runs no agent. Standard errors are over tasks, and over
the seeds of development where there are several. A 95 % interval, and a difference that is claimed, follow Student's t
with the degrees of freedom that few seeds leave (`ontogeny.stats`). The published tables report no errors, so a
difference from a published score is compared with our standard error alone, and a difference within the rounding of
the published number is never claimed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ontogeny.report.formatting import format_count, format_mean, format_number
from ontogeny.runs.records import Record
from ontogeny.stats import Interval, confidence_interval, mean_over_seeds, unpaired_difference
from ontogeny.studies import published

APPROACH_PHRASES = {"ml_code": "ML code", "evolution": "evolution from scratch"}
VERDICT_PHRASES = {
    "above": "above every published score in",
    "level": "not significantly different from the best in",
    "below": "below the best in",
}


class LearningCurve(NamedTuple):
    """Mean score by position in the lifetime, at K points."""

    unit: str  # "episode" or "step"
    position: tuple[int, ...]  # [K] the last episode or step of each point, from 1
    mean: tuple[float, ...]  # [K] score per unit, the mean over seeds
    low: tuple[float, ...]  # [K] lower ends of the 95 % intervals
    high: tuple[float, ...]  # [K] upper ends


@dataclass(frozen=True)
class AgentResult:
    """What one agent scored in one environment and what its development cost, over all seeds of development."""

    env: str
    agent: str
    agent_spec: str  # the agent with its settings, as the command line takes it
    approach: str
    score: Interval  # per lifetime
    seed_means: tuple[float, ...]
    train_env: str
    num_parameters: int  # of the genome
    num_training_env_steps: int  # of one development
    training_seconds: float | None  # wall time of one development, the mean over seeds; None where it is not recorded
    curve: LearningCurve
    privileged: bool  # whether the task was revealed to the agent


class PublishedComparison(NamedTuple):
    """A score compared with a published one."""

    baseline: str  # name of the published algorithm
    published_score: float
    difference: float
    num_standard_errors: float  # the difference in our standard errors
    verdict: str  # "above", "level" or "below"


class ApproachComparison(NamedTuple):
    """The best agent of each approach in one environment, and the difference ML code minus evolution."""

    env: str
    ml_code: AgentResult
    evolution: AgentResult
    difference: Interval
    verdict: str  # "ml_code", "level" or "evolution"


def collect_results(
    records: Iterable[Record], seconds_by_id: Mapping[str, float] | None = None
) -> dict[str, list[AgentResult]]:
    """Collect the evaluations of a study by environment.

    Args:
        records: All records of the study.
        seconds_by_id: Wall time by id of the record, where it is known.

    Returns:
        For each environment its agents, the highest score first.
    """
    records = list(records)
    developments = {record["id"]: record for record in records if record["kind"] == "development"}
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["kind"] == "evaluation":
            groups.setdefault((record["env"], record["agent"]), []).append(record)
    results: dict[str, list[AgentResult]] = {}
    for (env, _), evaluations in groups.items():
        results.setdefault(env, []).append(_agent_result(evaluations, developments, seconds_by_id or {}))
    return {env: sorted(rows, key=lambda row: (-row.score.mean, row.agent)) for env, rows in results.items()}


def _agent_result(
    evaluations: Sequence[Record], developments: Mapping[str, Record], seconds_by_id: Mapping[str, float]
) -> AgentResult:
    """The evaluations of one agent in one environment, one per seed of development."""
    first = evaluations[0]
    costs = [developments[e["development_id"]] for e in evaluations if e.get("development_id") in developments]
    seconds = [seconds_by_id[cost["id"]] for cost in costs if cost["id"] in seconds_by_id]
    scores = [confidence_interval(e["mean"], e["standard_error"], e["num_tasks"]) for e in evaluations]
    return AgentResult(
        env=first["env"],
        agent=first["agent"],
        agent_spec=first["agent_spec"],
        approach=first["approach"],
        score=mean_over_seeds(scores),
        seed_means=tuple(e["mean"] for e in evaluations),
        train_env=first["train_env"],
        num_parameters=costs[0]["num_parameters"] if costs else 0,
        num_training_env_steps=costs[0]["num_training_env_steps"] if costs else 0,
        training_seconds=sum(seconds) / len(seconds) if seconds else None,
        curve=_mean_curve(evaluations),
        privileged=bool(first.get("privileged", False)),
    )


def _mean_curve(evaluations: Sequence[Record]) -> LearningCurve:
    """The mean over seeds of learning curves with the same points."""
    curves, num_tasks = [e["curve"] for e in evaluations], evaluations[0]["num_tasks"]
    points = []
    for k in range(len(curves[0]["mean"])):
        parts = [confidence_interval(curve["mean"][k], curve["standard_error"][k], num_tasks) for curve in curves]
        points.append(mean_over_seeds(parts))
    means, lows, highs = (tuple(getattr(point, part) for point in points) for part in ("mean", "low", "high"))
    return LearningCurve(curves[0]["unit"], tuple(curves[0]["position"]), means, lows, highs)


def published_scores(env: Record) -> dict[str, float]:
    """The published scores for an environment record by algorithm; empty where no published table has it."""
    return published.find_published_scores(env["plugin"], env["settings"])


def published_row(env: Record) -> published.PublishedRow:
    """The table row with the scores of `published_scores`, for an environment that has them."""
    row = published.find_row(env["plugin"], env["settings"])
    assert row is not None
    return row


def matching_agent(env: Record, baseline: str) -> str | None:
    """Our agent, with its settings, that implements a published algorithm; None where there is none."""
    return published.MATCHING_AGENTS[published_row(env).table].get(baseline)


def compare_with_published(
    score: Interval, baseline: str, published_score: float, num_digits: int = 1
) -> PublishedComparison:
    """Compare a score with a published one.

    Args:
        score: Our score per lifetime.
        baseline: Name of the published algorithm.
        published_score: As printed.
        num_digits: Decimal places of the printed number.

    Returns:
        A comparison whose verdict is "level" unless the difference exceeds three standard errors (more where the error
        comes from few seeds) and half a unit of the last printed digit.
    """
    difference = score.mean - published_score
    if score.standard_error > 0:
        num_standard_errors = difference / score.standard_error
    else:
        num_standard_errors = math.copysign(math.inf, difference) if difference else 0.0
    rounding = 0.5 * 10**-num_digits * (1 + 1e-9)
    if abs(difference) <= max(score.min_claimed_difference, rounding):
        verdict = "level"
    else:
        verdict = "above" if difference > 0 else "below"
    return PublishedComparison(baseline, published_score, difference, num_standard_errors, verdict)


def compare_with_best_published(
    score: Interval, scores: Mapping[str, float], upper_bound: float = math.inf
) -> PublishedComparison | None:
    """Compare a score with the best of several published ones.

    Args:
        score: Our score per lifetime.
        scores: Published scores by algorithm.
        upper_bound: The exact mean score that no strategy exceeds. A published score above it is due to chance or
            rounding, so the bound takes its place.

    Returns:
        None where there is no published score.
    """
    if not scores:
        return None
    best = max(scores, key=lambda name: (scores[name], name == "RL²"))
    if scores[best] > upper_bound:
        return compare_with_published(score, "the upper bound", upper_bound, num_digits=9)
    return compare_with_published(score, best, scores[best])


def collect_upper_bounds(records: Iterable[Record]) -> dict[str, tuple[str, float]]:
    """Name and value of the mean score that no strategy exceeds, for each environment where it is known exactly."""
    return {r["env"]: (r["name"], r["value"]) for r in records if r["kind"] == "upper_bound"}


def upper_bound_value(upper_bounds: Mapping[str, tuple[str, float]], env: str) -> float:
    """The mean score that no strategy exceeds in an environment; infinite where it is not known."""
    return upper_bounds[env][1] if env in upper_bounds else math.inf


def best_of_approach(results: Iterable[AgentResult], approach: str) -> AgentResult | None:
    """The agent of an approach with the highest score in an environment."""
    return max((r for r in results if r.approach == approach), key=lambda r: r.score.mean, default=None)


def compare_approaches(
    records: Iterable[Record], results: Mapping[str, Sequence[AgentResult]]
) -> list[ApproachComparison]:
    """Compare the best agents of the two approaches, in each environment in which both were evaluated."""
    differences = collect_differences(records)
    comparisons = []
    for env, rows in results.items():
        ml_code, evolution = best_of_approach(rows, "ml_code"), best_of_approach(rows, "evolution")
        if ml_code is not None and evolution is not None:
            difference = score_difference(differences, ml_code, evolution)
            verdict = "ml_code" if difference.mean > 0 else "evolution"
            if abs(difference.mean) <= difference.min_claimed_difference:
                verdict = "level"
            comparisons.append(ApproachComparison(env, ml_code, evolution, difference, verdict))
    return comparisons


def collect_differences(records: Iterable[Record]) -> dict[tuple[str, str, str], Record]:
    """The recorded paired differences by environment, agent and other agent."""
    return {(r["env"], r["agent"], r["other_agent"]): r for r in records if r["kind"] == "difference"}


def score_difference(
    differences: Mapping[tuple[str, str, str], Record], first: AgentResult, second: AgentResult
) -> Interval:
    """The difference first minus second: paired by task where it was recorded, else of the two means."""
    for sign, agents in ((1, (first.agent, second.agent)), (-1, (second.agent, first.agent))):
        record = differences.get((first.env, *agents))
        if record is not None:
            mean, degrees_of_freedom = sign * record["mean"], record.get("degrees_of_freedom")
            return confidence_interval(mean, record["standard_error"], record["num_tasks"], degrees_of_freedom)
    return unpaired_difference(first.score, second.score)


def headroom(
    differences: Mapping[tuple[str, str, str], Record], best: AgentResult, oracle: AgentResult | None, bound: float
) -> Interval:
    """How far an agent stays below an upper bound that is known exactly, else below the oracle, paired by task.

    Args:
        differences: As of `collect_differences`.
        best: The agent whose distance is measured.
        oracle: The agent that is told the task; None only where the bound is finite.
        bound: The mean score that no strategy exceeds; infinite where it is not known.
    """
    if math.isinf(bound):
        assert oracle is not None
        return score_difference(differences, oracle, best)
    score = best.score
    return confidence_interval(bound - score.mean, score.standard_error, score.num_tasks, score.degrees_of_freedom)


def conclusions(records: Sequence[Record], results: Mapping[str, Sequence[AgentResult]]) -> list[str]:
    """The answer of the study about its approaches, computed from its records; empty where it compares none."""
    approaches = {row.approach for rows in results.values() for row in rows}
    sentences = [_conclusion_on_published(records, results)] if approaches & APPROACH_PHRASES.keys() else []
    return [sentence for sentence in (*sentences, _conclusion_on_approaches(records, results)) if sentence]


def _conclusion_on_published(records: Sequence[Record], results: Mapping[str, Sequence[AgentResult]]) -> str:
    """The sentence that compares both approaches with the published scores; empty where there are none."""
    envs = [r for r in records if r["kind"] == "environment" and published_scores(r) and r["env"] in results]
    if not envs:
        return ""
    upper_bounds = collect_upper_bounds(records)
    clauses = []
    for approach, phrase in APPROACH_PHRASES.items():
        pairs: list[tuple[AgentResult, PublishedComparison]] = []
        for env in envs:
            best = best_of_approach(results[env["env"]], approach)
            if best is not None:
                bound = upper_bound_value(upper_bounds, env["env"])
                comparison = compare_with_best_published(best.score, published_scores(env), bound)
                assert comparison is not None
                pairs.append((best, comparison))
        clauses.append(_clause_on_published(approach, phrase, pairs))
    rows = "the one row" if len(envs) == 1 else f"the {len(envs)} rows"
    return f"In {rows} of the published tables that this study measures, {'; '.join(clauses)}."


def _clause_on_published(approach: str, phrase: str, pairs: Sequence[tuple[AgentResult, PublishedComparison]]) -> str:
    """The clause about one approach, from its best agent in each environment with the comparison."""
    if not pairs:
        return f"{phrase} was not evaluated"
    if approach == "evolution" and min(len(best.seed_means) for best, _ in pairs) == 1:
        phrase += " (in some of them from a single seed)"
    counts = {verdict: sum(comparison.verdict == verdict for _, comparison in pairs) for verdict in VERDICT_PHRASES}
    verdicts = join_words([f"{VERDICT_PHRASES[verdict]} {count}" for verdict, count in counts.items() if count])
    best, clearest = max(pairs, key=lambda pair: abs(pair[1].num_standard_errors))
    score = format_mean(best.score.mean, best.score.standard_error)
    return (
        f"{phrase} is {verdicts} (clearest case: {best.agent} scores {score} in {best.env}, "
        f"{clearest.baseline} {format_number(clearest.published_score)})"
    )


def join_words(words: Sequence[str]) -> str:
    """Join words as English does: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _conclusion_on_approaches(records: Sequence[Record], results: Mapping[str, Sequence[AgentResult]]) -> str:
    """The sentence that compares the approaches with each other; empty where no environment has both."""
    comparisons = compare_approaches(records, results)
    if not comparisons:
        return ""
    counts = {side: sum(c.verdict == side for c in comparisons) for side in ("ml_code", "evolution", "level")}
    clearest = max(comparisons, key=lambda c: abs(c.difference.mean) / max(c.difference.standard_error, 1e-12))
    leader = "ML code" if clearest.difference.mean > 0 else "evolution"
    margin = format_mean(abs(clearest.difference.mean), clearest.difference.standard_error)
    evolution_steps = max(c.evolution.num_training_env_steps for c in comparisons)
    code_steps = max(c.ml_code.num_training_env_steps for c in comparisons)
    code_cost = format_count(code_steps) if code_steps else "none"
    noun = "environment" if len(comparisons) == 1 else "environments"
    return (
        f"On the same held-out tasks, ML code scores higher in {counts['ml_code']} of {len(comparisons)} {noun}, "
        f"evolution in {counts['evolution']}, and in {counts['level']} no difference is claimed (clearest case: "
        f"{clearest.env}, where {leader} scores {margin} more per lifetime). Evolution was trained for up to "
        f"{format_count(evolution_steps)} environment steps, ML code for {code_cost}."
    )
