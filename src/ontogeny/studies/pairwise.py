"""Pairwise differences between the agents of a study in each environment, as values and as sentences.

Agents that share a way of development are compared as well as those of the two approaches. The module reads records and
computes with plain numbers; it runs no agent.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from ontogeny.report.formatting import format_mean, format_number, pluralize
from ontogeny.runs.records import Record
from ontogeny.stats import Interval
from ontogeny.studies import comparison
from ontogeny.studies.comparison import AgentResult, collect_differences, score_difference

MAX_AGENTS_COMPARED = 20  # of an environment; of more agents, only pairs whose difference was measured are compared
MAX_MAIN_PAIRS = 10  # of an environment; of more pairs, those of developed agents are the main ones
MAX_DEVELOPED_PAIRS = 28  # of agents with an approach, that is of eight agents
MAX_CLAUSES = 6  # pairs that one sentence names
MAX_ENVIRONMENTS = 3  # with a sentence each in the answer of a study


class PairwiseDifference(NamedTuple):
    """Two agents in one environment, and the difference of their scores per lifetime."""

    env: str
    first: AgentResult
    second: AgentResult
    difference: Interval  # first minus second, not negative; paired by task where it was recorded

    @property
    def is_claimed(self) -> bool:
        """Whether the first agent is said to score higher."""
        return self.difference.mean > self.difference.min_claimed_difference


def compare_pairs(
    records: Sequence[Record], results: Mapping[str, Sequence[AgentResult]]
) -> dict[str, list[PairwiseDifference]]:
    """Compare all agents of each environment with one another.

    Args:
        records: All records of the study.
        results: As of `comparison.collect_results`.

    Returns:
        For each environment with two agents or more all its pairs, those of the best agent first.
    """
    differences = collect_differences(records)
    pairs: dict[str, list[PairwiseDifference]] = {}
    for env, rows in results.items():  # the best agent first
        for first, second in combinations(rows, 2):
            names = {(env, first.agent, second.agent), (env, second.agent, first.agent)}
            if len(rows) > MAX_AGENTS_COMPARED and not names & differences.keys():
                continue
            difference = score_difference(differences, first, second)
            if difference.mean < 0:  # on the tasks of both, the agent with the lower score may do better
                first, second, difference = second, first, score_difference(differences, second, first)
            pairs.setdefault(env, []).append(PairwiseDifference(env, first, second, difference))
    return pairs


def describe_unclaimed(difference: Interval) -> str:
    """Describe a difference that is not claimed in the cell of a table."""
    return "not claimed: less than three standard errors" if difference.excludes_zero else "no significant difference"


def main_pairs(pairs: Sequence[PairwiseDifference]) -> list[PairwiseDifference]:
    """The pairs of an environment that a table shows at once: all, or of many those of agents with an approach.

    Where there are very many of these, as in a sweep, it shows those of the best of these agents.
    """
    if len(pairs) <= MAX_MAIN_PAIRS:
        return list(pairs)
    developed = [pair for pair in pairs if "baseline" not in (pair.first.approach, pair.second.approach)]
    if len(developed) > MAX_DEVELOPED_PAIRS:
        best = max((side for pair in developed for side in pair[1:3]), key=lambda side: side.score.mean)
        developed = [pair for pair in developed if best in pair[1:3]]
    return developed or list(pairs[:MAX_MAIN_PAIRS])


def describe_environment(pairs: Sequence[PairwiseDifference]) -> str:
    """The sentence about the agents of one environment, from all its pairs."""
    clauses = [_clause(pair) for pair in pairs[:MAX_CLAUSES]]
    if len(pairs) > MAX_CLAUSES:
        num_claimed = sum(pair.is_claimed for pair in pairs)
        clauses = [clauses[0], f"of all {len(pairs)} pairs of agents, {num_claimed} differ significantly"]
    return f"In {pairs[0].env}, on the same held-out tasks, {'; '.join(clauses)}."


def describe_study(pairs: Mapping[str, Sequence[PairwiseDifference]]) -> list[str]:
    """The answer of a study about its agents: a sentence for each environment, or one sentence about many of them."""
    if not pairs:
        return []
    if len(pairs) <= MAX_ENVIRONMENTS:
        return [describe_environment(of_env) for of_env in pairs.values()]
    all_pairs = [pair for of_env in pairs.values() for pair in of_env]
    num_claimed = sum(pair.is_claimed for pair in all_pairs)
    sentence = f"Of {pluralize(len(all_pairs), 'pair')} of agents in {len(pairs)} environments, {num_claimed} differ "
    sentence += "significantly on the same held-out tasks"
    related = [pair for pair in all_pairs if pair.first.approach == pair.second.approach != "baseline"]
    if related:
        clearest = max(related, key=lambda pair: pair.difference.mean / max(pair.difference.standard_error, 1e-12))
        sentence += f"; the clearest difference within one approach is in {clearest.env}, where {_clause(clearest)}"
    return [sentence + "."]


def conclusions(records: Sequence[Record], results: Mapping[str, Sequence[AgentResult]]) -> list[str]:
    """The answer of a study: its agents, both approaches and published scores, as far as it compares them."""
    sentences = [
        *comparison.conclusions(records, results),
        *describe_study(compare_pairs(records, results)),
    ]
    return sentences or ["Each environment of this study has one agent, so there is no difference to report."]


def format_difference(difference: Interval) -> str:
    """A signed difference with its 95 % interval: `+1.95 (1.24 to 2.66)`."""
    mean = format_mean(difference.mean, difference.standard_error).partition(" ± ")[0]
    sign = "+" if difference.mean > 0 else ""
    return f"{sign}{mean} ({format_number(difference.low)} to {format_number(difference.high)})"


def _clause(pair: PairwiseDifference) -> str:
    """Which agent of a pair scores higher, with the 95 % interval of the difference."""
    first, second, difference = pair.first.agent, pair.second.agent, pair.difference
    interval = f"95 % interval {format_number(difference.low)} to {format_number(difference.high)}"
    if pair.is_claimed:
        mean = format_mean(difference.mean, difference.standard_error).partition(" ± ")[0]
        return f"{first} scores {mean} more per lifetime than {second} ({interval})"
    if difference.excludes_zero:
        return (
            f"{first} and {second} differ by less than three standard errors, so no difference is claimed ({interval})"
        )
    return f"{first} and {second} do not differ significantly ({interval} of the difference)"
