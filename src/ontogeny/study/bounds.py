"""What no agent can exceed on average: the Bayes-optimal score of a Bernoulli bandit, where it can be computed.

Pure dynamic programming over counts of successes and failures; uniform priors. Units: expected payouts per lifetime.
"""

from functools import cache

EXACT = 200_000  # information states beyond which the exact value is not attempted


def num_states(arms: int, pulls: int) -> int:
    """An upper estimate of the information states of k arms after fewer than n pulls: C(2k + n - 1, 2k) / k!, about."""
    count = 1.0
    for i in range(2 * arms):
        count *= (pulls - 1 + i + 1) / (i + 1)
    for i in range(arms):
        count /= i + 1
    return int(count) + 1


def bayes_optimal(arms: int, pulls: int) -> float:
    """The expected payouts of the best possible strategy, by exact recursion over sorted (successes, failures)."""

    @cache
    def value(counts: tuple[tuple[int, int], ...], left: int) -> float:
        best = 0.0
        for i, (won, lost) in enumerate(counts):
            if i and counts[i - 1] == counts[i]:
                continue
            chance = (won + 1) / (won + lost + 2)
            total = chance
            if left > 1:
                rest = counts[:i] + counts[i + 1 :]
                total += chance * value(tuple(sorted((*rest, (won + 1, lost)))), left - 1)
                total += (1 - chance) * value(tuple(sorted((*rest, (won, lost + 1)))), left - 1)
            best = max(best, total)
        return best

    return value(((0, 0),) * arms, pulls)
