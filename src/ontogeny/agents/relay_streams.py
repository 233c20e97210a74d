"""Streams of what agents do in `relay`, as sequences that a predictor learns from.

A stream is one lifetime in `relay` in which several members take turns: before each episode a member is drawn, and it
makes the choices of that episode, while all members learn from everything that happens. Every step of the environment
becomes two positions of the sequence. The first shows the step before (its state, action and successor), the state and
who chooses there; its target is the action. The second shows the state and the action; its target is the successor,
which is the next state or an outcome. Exposures have no choice, so only their successors are targets. No reward enters
the sequence.

Letters: R runs, N streams, T steps, L = 2 T positions, I inputs, K classes, S states, A actions, M members.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny import plugins
from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.agents.tabular_learner import (
    TabularLearner,
    TabularStep,
    num_graph_states,
    to_graph_state,
    to_tabular_step,
)
from ontogeny.content.base import PredictionBatch
from ontogeny.environments import relay
from ontogeny.environments.base import choose_tree
from ontogeny.environments.relay import NUM_OUTCOMES, RelayParams
from ontogeny.errors import BadInput, require_one_of
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout
from ontogeny.types import Agent, Environment, EnvSpec, Key, Percept, PyTree, State, TimeStep, Transition

PREFIX = "tabular_"  # of the organisms that can act in a stream
TABULAR = sorted(name.removeprefix(PREFIX) for name in plugins.list_names("organisms") if name.startswith(PREFIX))
ALGORITHMS = ("planner", *(name for name in TABULAR if name != "planner"), "cue_follower", "random")
GOALS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))  # drives for food and water
GOAL_NAMES = ("food", "water", "no food", "no water")
TRIAL, EXPOSURE, CUT = range(3)  # kinds of step
RARITY_KEY = 1  # folded into the key of a lifetime, which draws whether agents choose rarely
NUM_ACTIONS = 2


class Member(NamedTuple):
    """One agent of a stream: an algorithm, and the goal that it pursues.

    An algorithm is an organism whose name begins with `tabular_` and whose file has a function `learner`; another one,
    of an installed package as well, is found by its name.
    """

    algorithm: int  # index into ALGORITHMS
    goal: int  # index into GOALS


# Planners with every goal, all others with the first goal.
MEMBERS = (
    *(Member(ALGORITHMS.index("planner"), goal) for goal in range(len(GOALS))),
    *(Member(ALGORITHMS.index(name), 0) for name in ALGORITHMS[1:]),
)
MEMBER_ALGORITHMS = tuple(member.algorithm for member in MEMBERS)
MEMBER_GOALS = tuple(member.goal for member in MEMBERS)


class StreamSettings(NamedTuple):
    """The settings of a stream that may differ between the runs of one compiled program; scalars or arrays [R]."""

    member_shares: Float[Array, "M"]  # probability of each member before an episode
    is_labeled: Bool[Array, ""]  # whether the sequence shows algorithm and goal of the member that chooses
    change_probability: Float[Array, ""]
    relevant_share: Float[Array, ""]  # of the exposures after the introduction
    quiet_share: Float[Array, ""]  # probability that agents choose rarely in a stream
    has_cue: Bool[Array, ""]
    num_instances: Int32[Array, ""]  # 0: a new graph in every stream


class StreamSteps(NamedTuple):
    """The steps of a stream, leading axis T; or one step, without it."""

    kind: Int32[Array, "*T"]  # TRIAL, EXPOSURE or CUT
    member: Int32[Array, "*T"]  # index into MEMBERS of the agent that chooses
    observation: Int32[Array, "*T"]  # a state, or the start with its cue
    action: Int32[Array, "*T"]
    successor: Int32[Array, "*T"]  # the next state, or S + an outcome; -1 where the step is cut


class MixtureActivations(NamedTuple):
    """The activations of a mixture of agents."""

    observation: Int32[Array, ""]  # the last one
    memories: tuple[PyTree, ...]  # of each learner
    member: Int32[Array, ""]  # that acts in this episode


def find_member(algorithm: str, goal: int = 0) -> int:
    """The index of a member in `MEMBERS`.

    Raises:
        BadInput: If there is no such algorithm, or none with this goal.
    """
    require_one_of(ALGORITHMS, algorithm=algorithm)
    member = Member(ALGORITHMS.index(algorithm), goal)
    if member not in MEMBERS:
        raise BadInput(f"the agent '{algorithm}' has no goal of number {goal}")
    return MEMBERS.index(member)


def mixture_agent(env: Environment, member_shares: Float[Array, "M"]) -> Agent:
    """Builds an agent in which members take turns, one for each episode, and all learn from every step.

    Args:
        env: A `relay`.
        member_shares: Probability of each member of `MEMBERS`.
    """
    learners = build_learners(env)
    goals = jnp.asarray(GOALS)[jnp.asarray(MEMBER_GOALS)]
    is_random = jnp.asarray(MEMBER_ALGORITHMS) == ALGORITHMS.index("random")

    def init_activations() -> MixtureActivations:
        return MixtureActivations(jnp.int32(0), tuple(learner.memory for learner in learners), jnp.int32(0))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        observation, memories, member = state.activations
        memories = learn_all(learners, memories, to_tabular_step(env.spec, observation, percept), goals, percept)
        member_key, action_key = jax.random.split(key)
        next_member = jax.random.categorical(member_key, jnp.log(member_shares)).astype(jnp.int32)
        member = jnp.where(percept.first, next_member, member)
        actions = chosen_actions(learners, memories, percept.observation)
        random_action = jax.random.randint(action_key, (), 0, NUM_ACTIONS)
        action = jnp.where(is_random[member], random_action, actions[member])
        return action, State(state.weights, MixtureActivations(percept.observation, memories, member))

    return fixed_weights_agent(empty_genome, init_activations, act)


def build_learners(env: Environment) -> tuple[TabularLearner, ...]:
    """The learner of each member, in the order of `MEMBERS`."""
    return tuple(_build_learner(env, ALGORITHMS[index]) for index in MEMBER_ALGORITHMS)


def _build_learner(env: Environment, algorithm: str) -> TabularLearner:
    """The learner of an organism; a random member has none and remembers nothing."""
    if algorithm == "random":
        return TabularLearner((), lambda memory, step: memory, lambda memory, observation: jnp.zeros(NUM_ACTIONS))
    name = algorithm if algorithm == "cue_follower" else f"{PREFIX}{algorithm}"
    return plugins.get_attribute("organisms", name, "learner")(env.spec)


def learn_all(
    learners: Sequence[TabularLearner], memories: Sequence[PyTree], step: TabularStep, goals: Array, percept: Percept
) -> tuple[PyTree, ...]:
    """The memories after a step, each with the reward that its own goal makes of the outcome."""
    updated = [
        learner.update(memory, step._replace(reward=jnp.dot(goal, percept.outcome[:2])))
        for learner, memory, goal in zip(learners, memories, goals, strict=True)
    ]
    return choose_tree(percept.action >= 0, tuple(updated), tuple(memories))


def chosen_actions(learners: Sequence[TabularLearner], memories: Sequence[PyTree], observation: Array) -> Array:
    """The action of each member [M]."""
    action_values = [learner.values(memory, observation) for learner, memory in zip(learners, memories, strict=True)]
    return jnp.argmax(jnp.stack(action_values), axis=1).astype(jnp.int32)


def sample_stream(key: Key, params: RelayParams, settings: StreamSettings) -> StreamSteps:
    """Samples one stream.

    Args:
        key: Key of a lifetime.
        params: Settings of the environment that all runs share.
        settings: The others.
    """
    chooses_rarely = jax.random.uniform(jax.random.fold_in(key, RARITY_KEY)) < settings.quiet_share
    choosing_share = 1 - settings.change_probability - params.repeat_probability
    params = params._replace(
        change_probability=settings.change_probability,
        repeat_probability=params.repeat_probability + jnp.where(chooses_rarely, choosing_share / 2, 0.0),
        glance_probability=jnp.asarray(params.glance_probability) / (1 + chooses_rarely),
        relevant_share=settings.relevant_share,
        cue=settings.has_cue,
        num_instances=settings.num_instances,
    )
    env = with_step_kinds(relay.make_relay(params))
    agent = mixture_agent(env, settings.member_shares)

    def record(_: Key, state: State, transition: Transition) -> tuple[State, Array]:
        del transition
        return state, state.activations.member

    agent = agent._replace(learn=record, learning=True)
    state = agent.init(key, ())
    _, trajectory = rollout(key, agent, env, lambda outcome: outcome[0], state, params.num_steps, True)
    kind = trajectory.outcome[:, 2].astype(jnp.int32)
    successor = trajectory.outcome[:, 3].astype(jnp.int32)
    return StreamSteps(kind, trajectory.info, trajectory.observation, trajectory.action, successor)


def with_step_kinds(env: Environment) -> Environment:
    """The environment whose outcomes also hold kind and successor of each step, which steering does not read."""

    def reset(key: Key) -> tuple[PyTree, TimeStep]:
        state, time_step = env.reset(key)
        return state, time_step._replace(outcome=jnp.append(time_step.outcome, jnp.zeros(2)))

    def step(key: Key, state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        kind = jnp.where(state.is_cut, CUT, jnp.where(state.is_exposure, EXPOSURE, TRIAL))
        state, time_step = env.step(key, state, action)
        added = jnp.stack([kind, read_successor(env.spec, time_step)]).astype(jnp.float32)
        return state, time_step._replace(outcome=jnp.append(time_step.outcome, added))

    return env._replace(reset=reset, step=step)


def read_successor(spec: EnvSpec, after: TimeStep | Percept) -> Int32[Array, ""]:
    """The successor of a step as in `StreamSteps`, from what follows it; -1 where the step is cut."""
    is_end = after.first & (after.discount == 0)
    outcome = jnp.round(after.outcome[0] * (NUM_OUTCOMES - 1)).astype(jnp.int32)
    next_state = to_graph_state(spec, after.observation)
    successor = jnp.where(is_end, num_graph_states(spec) + outcome, jnp.where(after.first, -1, next_state))
    return successor.astype(jnp.int32)


class Layout(NamedTuple):
    """The sizes of inputs and outputs of a predictor of streams."""

    num_states: int

    @property
    def input_sizes(self) -> dict[str, int]:
        """The sizes of the parts of the inputs, in their order."""
        observation = self.num_states + 2
        return {
            "position": 2,  # the first or the second of the step
            "kind": 2,  # a trial, or not
            "algorithm": len(ALGORITHMS),
            "goal": len(GOALS),
            "observation": observation,
            "action": NUM_ACTIONS,
            "observation_before": observation,
            "action_before": NUM_ACTIONS,
            "successor_before": self.num_results,
            "start": 1,
        }

    @property
    def num_inputs(self) -> int:
        """I."""
        return sum(self.input_sizes.values())

    @property
    def num_results(self) -> int:
        """States and outcomes."""
        return self.num_states + NUM_OUTCOMES

    @property
    def num_classes(self) -> int:
        """K: actions first, results next."""
        return NUM_ACTIONS + self.num_results


def encode(layout: Layout, steps: StreamSteps, is_labeled: Bool[Array, ""]) -> PredictionBatch:
    """Encodes one stream as a sequence of inputs and targets.

    Args:
        layout: Sizes.
        steps: Leading axis T.
        is_labeled: Whether algorithm and goal of the member that chooses are inputs.

    Returns:
        Leading axis L = 2 T on every leaf: for each step its choice, then its successor.
    """
    T = steps.kind.shape[0]
    is_trial, is_cut = steps.kind == TRIAL, steps.kind == CUT
    shows_member = (is_trial & is_labeled)[:, None]
    algorithm = one_hot(jnp.asarray(MEMBER_ALGORITHMS)[steps.member], len(ALGORITHMS)) * shows_member
    goal = one_hot(jnp.asarray(MEMBER_GOALS)[steps.member], len(GOALS)) * shows_member
    kind = jnp.stack([is_trial, ~is_trial], axis=1).astype(jnp.float32)
    observation = one_hot(steps.observation, layout.num_states + 2)
    action = one_hot(steps.action, NUM_ACTIONS)
    parts = [observation, action, one_hot(steps.successor, layout.num_results)]
    observed_step = jnp.concatenate(parts, axis=1) * (~is_cut)[:, None]
    step_before = jnp.concatenate([jnp.zeros((1, observed_step.shape[1])), observed_step[:-1]])
    start = (jnp.arange(T) == 0).astype(jnp.float32)[:, None]
    first, second = jnp.tile(jnp.eye(2)[:, None], (1, T, 1))
    choice = [first, kind, algorithm, goal, observation, 0 * action, step_before, start]
    successor = [second, kind, algorithm, goal, observation, action, 0 * step_before, 0 * start]
    inputs = _interleave(jnp.concatenate(choice, axis=1), jnp.concatenate(successor, axis=1))
    target_index = _interleave(steps.action, NUM_ACTIONS + jnp.maximum(steps.successor, 0))
    mask = _interleave(is_trial.astype(jnp.float32), (~is_cut).astype(jnp.float32))
    return PredictionBatch(inputs, target_index.astype(jnp.int32), jnp.ones(2 * T), mask)


def one_hot(indices: Array, size: int) -> Array:
    """One-hot vectors, all zero for negative indices."""
    return jax.nn.one_hot(indices, size, dtype=jnp.float32)


def sample_batch(key: Key, params: RelayParams, settings: StreamSettings, num_streams: int, stage: str) -> StreamSteps:
    """Samples streams of one run.

    Args:
        key: Of all streams.
        params: Settings of the environment that all runs share.
        settings: Of this run.
        num_streams: N.
        stage: `training`, or a stage of held-out lifetimes.

    Returns:
        Leading axes N, T.
    """
    keys = sample_lifetime_keys(key, num_streams, stage)
    return jax.vmap(partial(sample_stream, params=params, settings=settings))(keys)


def _interleave(first: Array, second: Array) -> Array:
    """Two arrays [T, ...] in turn, [2 T, ...]."""
    return jnp.stack([first, second], axis=1).reshape(2 * first.shape[0], *first.shape[1:])
