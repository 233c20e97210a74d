"""The cells of the planning experiment: one kind of stream and one architecture each, trained with several seeds."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ontogeny.agents.relay_streams import GOALS, MEMBERS, StreamSettings, find_member
from ontogeny.agents.stream_training import ContentSettings
from ontogeny.environments.relay import RelayParams

REPEAT_PROBABILITY, CHANGE_PROBABILITY = 0.15, 0.4  # after the introduction, before each episode
RELEVANT_SHARE, QUIET_SHARE = 1.0, 0.5
DEPTHS = {
    2: RelayParams(depth=2, width=8, num_steps=60, repeat_probability=REPEAT_PROBABILITY),
    3: RelayParams(depth=3, width=4, num_steps=76, repeat_probability=REPEAT_PROBABILITY),
}
NON_PLANNERS = ("td_zero", "td_lambda", "monte_carlo", "successor", "random")  # agents that do not plan
GRU = ContentSettings("gru", width=128, learning_rate=0.002)


class MemberShare(NamedTuple):
    """How often an agent with a goal acts in a stream."""

    algorithm: str
    goal: int = 0
    share: float = 1.0


PLANNER = (MemberShare("planner"),)


class Cell(NamedTuple):
    """One condition of the experiment.

    Attributes:
        description: Of the streams, for tables.
        shares: Probability of each agent before an episode.
        queried_algorithm: Its choices are predicted in the tests.
        content: The architecture.
        depth: Of the environment.
        is_labeled: Whether the sequence shows which agent chooses.
        change_probability: Of a change in place of the next trial.
        relevant_share: Share of the exposures, changes included, whose link can be reached from the start.
        quiet_share: Share of the streams in which agents choose rarely, so that choices follow many exposures or few.
        has_cue: Whether the start shows the action that was best at first.
        num_instances: Different graphs in training; 0 for a new one in each stream.
    """

    description: str
    shares: tuple[MemberShare, ...]
    queried_algorithm: str = "planner"
    content: ContentSettings = ContentSettings()
    depth: int = 2
    is_labeled: bool = True
    change_probability: float = CHANGE_PROBABILITY
    relevant_share: float = RELEVANT_SHARE
    quiet_share: float = QUIET_SHARE
    has_cue: bool = False
    num_instances: int = 0

    @property
    def params(self) -> RelayParams:
        """The environment."""
        return DEPTHS[self.depth]

    @property
    def program(self) -> tuple[ContentSettings, int]:
        """Cells with the same program can be trained at once."""
        return self.content, self.depth

    @property
    def settings(self) -> StreamSettings:
        """The settings of the streams."""
        shares = np.zeros(len(MEMBERS), np.float32)
        for algorithm, goal, share in self.shares:
            shares[find_member(algorithm, goal)] = share
        return StreamSettings(
            jnp.asarray(shares), jnp.bool_(self.is_labeled), jnp.float32(self.change_probability),
            jnp.float32(self.relevant_share), jnp.float32(self.quiet_share), jnp.bool_(self.has_cue),
            jnp.int32(self.num_instances),
        )  # fmt: skip


def _mixture(planner_share: float) -> tuple[MemberShare, ...]:
    """Planners among agents that do not plan."""
    planners = [MemberShare("planner", share=planner_share)] if planner_share else []
    return (*planners, *(MemberShare(name, share=(1 - planner_share) / len(NON_PLANNERS)) for name in NON_PLANNERS))


ALL_GOALS = tuple(MemberShare("planner", goal, 1 / len(GOALS)) for goal in range(len(GOALS)))
CELLS = {
    "planner": Cell("planner", PLANNER),
    "td_zero": Cell("TD(0)", (MemberShare("td_zero"),), "td_zero"),
    "td_lambda": Cell("TD(lambda)", (MemberShare("td_lambda"),), "td_lambda"),
    "monte_carlo": Cell("Monte Carlo", (MemberShare("monte_carlo"),), "monte_carlo"),
    "successor": Cell("successor representation", (MemberShare("successor"),), "successor"),
    "random": Cell("random", (MemberShare("random"),), "random"),
    "reward_cue": Cell("follower of a cue", (MemberShare("cue_follower"),), "cue_follower", has_cue=True),
    "few_instances": Cell("planner, 64 graphs, no changes", PLANNER, change_probability=0.0, num_instances=64),
    "no_changes": Cell("planner, no changes", PLANNER, change_probability=0.0),
    "irrelevant_changes": Cell("planner, changes of unreachable links", PLANNER, relevant_share=0.0),
    "share_0": Cell("mixture, 0 % planners", _mixture(0.0), "td_zero"),
    "share_5": Cell("mixture, 5 % planners", _mixture(0.05)),
    "share_20": Cell("mixture, 20 % planners", _mixture(0.2)),
    "share_50": Cell("mixture, 50 % planners", _mixture(0.5)),
    "goals": Cell("planners with four labeled goals", ALL_GOALS),
    "goals_unlabeled": Cell("planners with four unlabeled goals", ALL_GOALS, is_labeled=False),
    "one_block": Cell("planner; one block, one head", PLANNER, content=ContentSettings(num_blocks=1, num_heads=1)),
    "width_16": Cell("planner; width 16", PLANNER, content=ContentSettings(width=16)),
    "width_32": Cell("planner; width 32", PLANNER, content=ContentSettings(width=32)),
    "gru": Cell("planner; gated recurrent unit", PLANNER, content=GRU),
    "planner_depth_3": Cell("planner, depth 3", PLANNER, depth=3),
    "td_zero_depth_3": Cell("TD(0), depth 3", (MemberShare("td_zero"),), "td_zero", depth=3),
    "successor_depth_3": Cell("successor representation, depth 3", (MemberShare("successor"),), "successor", depth=3),
    "monte_carlo_depth_3": Cell("Monte Carlo, depth 3", (MemberShare("monte_carlo"),), "monte_carlo", depth=3),
    "random_depth_3": Cell("random, depth 3", (MemberShare("random"),), "random", depth=3),
}
