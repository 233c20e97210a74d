"""What no agent can exceed on average: the Bayes-optimal score of a Bernoulli bandit, where it can be computed.

Pure dynamic programming over counts of successes and failures; uniform priors. Units: expected payouts per lifetime.
"""

from functools import cache

import numpy as np

EXACT = 200_000  # information states beyond which the exact value is not attempted


def is_exact(arms: int, pulls: int) -> bool:
    """Whether a bandit has no more information states than `EXACT`.

    A state is a multiset of k pairs (successes, failures) that sum to fewer than n pulls. They are counted, as far as
    `EXACT`, by adding one kind of arm after the other: an arm of m pulls is of one of m + 1 kinds.
    """
    if pulls * (pulls + 1) // 2 > EXACT:  # a single arm has that many
        return False
    states = np.zeros((min(arms, pulls) + 1, pulls))  # [arms pulled so far, pulls so far]
    states[0, 0] = 1
    for m in range(1, pulls):
        for _ in range(m + 1):
            for used in range(1, len(states)):  # in this order an arm of the same kind may come again
                states[used, m:] += states[used - 1, :-m]
        if states.sum() > EXACT:
            return False
    return True


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
