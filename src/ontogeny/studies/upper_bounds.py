"""The Bayes-optimal score of a Bernoulli bandit: the mean score that no strategy exceeds, where it can be computed.

Exact dynamic programming over counts of successes and failures, with uniform priors (Gittins 1979, JRSS B 41:148,
states the problem). Unit: expected payouts per lifetime.
"""

from functools import cache

import numpy as np

MAX_STATES = 200_000  # information states beyond which the exact value is not computed


def is_tractable(num_arms: int, num_pulls: int) -> bool:
    """Whether a bandit has at most `MAX_STATES` information states.

    A state is a multiset of k pairs (successes, failures) whose sum is less than n pulls. The states are counted by
    adding one kind of arm after the other: an arm of m pulls is of one of m + 1 kinds.
    """
    if num_pulls * (num_pulls + 1) // 2 > MAX_STATES:  # a single arm has that many
        return False
    num_states = np.zeros((min(num_arms, num_pulls) + 1, num_pulls))  # [arms pulled so far, pulls so far]
    num_states[0, 0] = 1
    for m in range(1, num_pulls):
        for _ in range(m + 1):
            for pulled in range(1, len(num_states)):  # ascending, so that several arms may be of the same kind
                num_states[pulled, m:] += num_states[pulled - 1, :-m]
        if num_states.sum() > MAX_STATES:
            return False
    return True


def bayes_optimal(num_arms: int, num_pulls: int) -> float:
    """Expected payouts of the optimal strategy, by recursion over sorted pairs (successes, failures)."""

    @cache
    def optimal_value(counts: tuple[tuple[int, int], ...], pulls_left: int) -> float:
        best = 0.0
        for i, (successes, failures) in enumerate(counts):
            if i and counts[i - 1] == counts[i]:
                continue  # an arm with equal counts, which stands beside it, has the same value
            probability = (successes + 1) / (successes + failures + 2)
            expected = probability
            if pulls_left > 1:
                rest = counts[:i] + counts[i + 1 :]
                success = tuple(sorted((*rest, (successes + 1, failures))))
                failure = tuple(sorted((*rest, (successes, failures + 1))))
                expected += probability * optimal_value(success, pulls_left - 1)
                expected += (1 - probability) * optimal_value(failure, pulls_left - 1)
            best = max(best, expected)
        return best

    return optimal_value(((0, 0),) * num_arms, num_pulls)
