"""Published scores as data: the two tables of Duan et al. 2016.

Duan, Schulman, Chen, Bartlett, Sutskever and Abbeel 2016, "RL^2: Fast Reinforcement Learning via Slow Reinforcement
Learning", arXiv 1611.02779: Table 1 (bandits) and Table 2 (random tabular decision problems). A score is the sum of
rewards over a lifetime, the mean over tasks, rounded to one decimal place; the paper reports no standard errors.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

SOURCE = "Duan et al. 2016 (RL², arXiv 1611.02779)"


class PublishedRow(NamedTuple):
    """One row of a published table."""

    table: int
    env_name: str
    settings: Mapping[str, int]  # of the environment
    scores: Mapping[str, float]  # by published algorithm
    n: int  # pulls or episodes of a lifetime
    k: int | None  # arms

    @property
    def env(self) -> str:
        """The environment of the row as the command line takes it."""
        return self.env_name + ":" + ",".join(f"{name}={value}" for name, value in self.settings.items())


BANDIT_ALGORITHMS = ("Random", "Gittins", "TS", "OTS", "UCB1", "ε-Greedy", "Greedy", "RL²")
BANDIT_SCORES = {  # by (n, k)
    (10, 5): (5.0, 6.6, 5.7, 6.5, 6.7, 6.6, 6.6, 6.7),
    (10, 10): (5.0, 6.6, 5.5, 6.2, 6.7, 6.6, 6.6, 6.7),
    (10, 50): (5.1, 6.5, 5.2, 5.5, 6.6, 6.5, 6.5, 6.8),
    (100, 5): (49.9, 78.3, 74.7, 77.9, 78.0, 75.4, 74.8, 78.7),
    (100, 10): (49.9, 82.8, 76.7, 81.4, 82.4, 77.4, 77.1, 83.5),
    (100, 50): (49.8, 85.2, 64.5, 67.7, 84.3, 78.3, 78.0, 84.9),
    (500, 5): (249.8, 405.8, 402.0, 406.7, 405.8, 388.2, 380.6, 401.6),
    (500, 10): (249.0, 437.8, 429.5, 438.9, 437.1, 408.0, 395.0, 432.5),
    (500, 50): (249.6, 463.7, 427.2, 437.6, 457.6, 413.6, 402.8, 438.9),
}
MDP_ALGORITHMS = ("Random", "PSRL", "OPSRL", "UCRL2", "BEB", "ε-Greedy", "Greedy", "RL²")
MDP_SETTINGS = {"num_states": 10, "num_actions": 5, "horizon": 10}
MDP_SCORES = {  # by n
    10: (100.1, 138.1, 144.1, 146.6, 150.2, 132.8, 134.8, 156.2),
    25: (250.2, 408.8, 425.2, 424.1, 427.8, 377.3, 368.8, 445.7),
    50: (499.7, 904.4, 930.7, 918.9, 917.8, 823.3, 769.3, 936.1),
    75: (749.9, 1417.1, 1449.2, 1427.6, 1422.6, 1293.9, 1172.9, 1428.8),
    100: (999.4, 1939.5, 1973.9, 1942.1, 1935.1, 1778.2, 1578.5, 1913.7),
}

MATCHING_AGENTS = {  # table -> published algorithm -> our agent with the same strategy, as the command line takes it
    1: {
        "Random": "random",
        "Gittins": "gittins",
        "TS": "thompson",
        "OTS": "thompson:optimistic=true",
        "UCB1": "ucb1",
        "ε-Greedy": "epsilon_greedy",
        "Greedy": "greedy",
    },
    2: {
        "Random": "random",
        "PSRL": "psrl:known_reward_mean=false",
        "OPSRL": "opsrl:known_reward_mean=false",
        "ε-Greedy": "certainty_equivalence:epsilon=0.1,known_reward_mean=false",
        "Greedy": "certainty_equivalence:known_reward_mean=false",
    },
}

DISCREPANCY_NOTES = {  # why our score of a strategy differs from the published one
    (1, "OTS"): (
        "our agent replaces a sample below the posterior mean by the mean (May et al. 2012); neither this rule nor the "
        "highest of 2 to 20 samples reaches the scores that the paper reports for OTS"
    ),
    (2, "Greedy"): (
        "our agent has a prior mean reward of 0 with unit precision, the default of TabulaRL, and plans once per "
        "episode; the paper does not state its prior. With the true prior mean of 1, greedy planning scores far above "
        "the published value"
    ),
}


def list_rows() -> Iterator[PublishedRow]:
    """Every row of both tables, in the order of the paper."""
    for (n, k), scores in BANDIT_SCORES.items():
        settings = {"num_arms": k, "num_pulls": n}
        yield PublishedRow(1, "bandit", settings, dict(zip(BANDIT_ALGORITHMS, scores, strict=True)), n, k)
    for n, scores in MDP_SCORES.items():
        settings = {"num_episodes": n}
        yield PublishedRow(2, "random_mdp", settings, dict(zip(MDP_ALGORITHMS, scores, strict=True)), n, None)


def find_row(env_name: str, settings: Mapping[str, Any]) -> PublishedRow | None:
    """Find the table row of an environment.

    Args:
        env_name: Name of the environment, such as `bandit`.
        settings: All its settings, defaults included.

    Returns:
        None where no published table has this environment.
    """
    if env_name == "random_mdp" and not MDP_SETTINGS.items() <= settings.items():
        return None
    rows = (row for row in list_rows() if row.env_name == env_name)
    return next((row for row in rows if row.settings.items() <= settings.items()), None)


def find_published_scores(env_name: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """The scores of `find_row` by algorithm; empty where no published table has this environment."""
    row = find_row(env_name, settings)
    return dict(row.scores) if row else {}


def is_consistent(mean: float, standard_error: float, published_score: float) -> bool:
    """Whether a score is within 3 standard errors and the rounding of a published score, or within 4 % of it."""
    return abs(mean - published_score) <= max(3 * standard_error + 0.05, 0.04 * published_score)
