"""Budgets of the neural study: environments, learners, and their environment steps."""

from functools import cache
from typing import NamedTuple

AGENT = "neural_model_based"
ABLATION = f"{AGENT}:ablation=no_imagination"
EVOLVED = "evolved:recurrent"


class EnvBudget(NamedTuple):
    """What is measured in one environment.

    Attributes:
        name: On the page.
        env: In the syntax of the command line, without `steps` and `episodes`.
        aim: Mean return per episode at which an environment counts as learned.
        num_recent: Episodes of the moving mean that has to reach it.
        num_steps: Of a lifetime of an agent that learns within it, and of `random`.
        num_baseline_steps: Of PPO and DQN.
        num_evolution_steps: Of evolution, those of all lifetimes of all members.
        agent_settings: Of `neural_model_based`, in the syntax of the command line.
    """

    name: str
    env: str
    aim: float
    num_recent: int
    num_steps: int
    num_baseline_steps: int
    num_evolution_steps: int
    agent_settings: str = ""


class NeuralBudget(NamedTuple):
    """The size of a neural study.

    Attributes:
        name: Of the size, as the command line takes it.
        num_seeds: Independent runs of each learner, at least 2.
        environments: The first one is that of the pictures.
        learners: As in `learners`.
        minutes: On two idle cores, about.
    """

    name: str
    num_seeds: int
    environments: tuple[EnvBudget, ...]
    learners: tuple[str, ...]
    minutes: float


@cache
def budgets() -> dict[str, NeuralBudget]:
    """All sizes by name."""
    catch = EnvBudget("Catch", "gymnax:Catch-bsuite", 0.9, 100, 10_000, 50_000, 1_000_000)
    cartpole = EnvBudget("CartPole", "gymnax:CartPole-v1", 450, 10, 20_000, 150_000, 5_000_000)
    memory = EnvBudget("MemoryChain", "gymnax:MemoryChain-bsuite", 0.9, 100, 12_000, 150_000, 5_000_000)
    learners = (AGENT, ABLATION, EVOLVED, "ppo", "dqn", "random")
    full = (catch._replace(num_steps=12_000, num_baseline_steps=100_000, num_evolution_steps=5_000_000),)
    return {
        "small": NeuralBudget("small", 3, (catch,), learners, 9),
        "full": NeuralBudget("full", 5, (*full, cartpole, memory), learners, 90),
    }


def with_settings(learner: str, settings: str) -> str:
    """A learner with the settings of an environment, where it is the agent or an ablation of it."""
    if not settings or not learner.startswith(AGENT):
        return learner
    return f"{learner}{',' if ':' in learner else ':'}{settings}"


def num_steps(budget: EnvBudget, learner: str) -> int:
    """The environment steps of a learner."""
    if learner.startswith("evolved"):
        return budget.num_evolution_steps
    return budget.num_baseline_steps if learner in ("ppo", "dqn") else budget.num_steps
