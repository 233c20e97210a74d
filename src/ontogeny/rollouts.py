"""Rollouts: the one loop that steps an agent in an environment.

Per step: `act`, then the environment's `step`, then steering, then `learn` where the agent is deployed online.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import rng
from ontogeny.errors import BadInput
from ontogeny.rng import StepKeys
from ontogeny.tracing import TracedFunction, build_once, holds_tracers
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Environment,
    EnvState,
    Genome,
    Key,
    Percept,
    PyTree,
    State,
    Steering,
    TimeStep,
    Trajectory,
    Transition,
)


class ObservationOverride(NamedTuple):
    """Replaces the time steps that the agent perceives, for controls; the trajectory records the true ones."""

    apply: Callable[[PyTree, TimeStep], TimeStep]  # (inputs of this step, true time step) -> perceived time step
    inputs: PyTree  # leading axis T on every leaf


class Carry(NamedTuple):
    """The state of a rollout between two steps."""

    state: State
    env_state: EnvState
    percept: Percept


def rollout(
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    state: State,
    num_steps: int,
    learning: bool,
    *,
    reset_each_episode: bool = False,
    observation_override: ObservationOverride | None = None,
) -> tuple[State, Trajectory]:
    """Steps an agent through one task.

    Args:
        key: Determines the task and all chance of the environment, whichever agent acts in it.
        agent: Built for the spec of the environment.
        env: Stepped with the agent's actions; its `score` is not called.
        steering: Maps the outcome features [F] of a step to its reward.
        state: The agent's state at the first step.
        num_steps: T, at least 1.
        learning: Whether `learn` is called: False for frozen deployment, True for online deployment.
        reset_each_episode: Whether each episode begins as `forget_past`; by default, activations persist.
        observation_override: Replaces what the agent perceives.

    Returns:
        The agent's state after the last step, and the trajectory. Where the environment says that the lifetime is over,
        the state stays the same, and the remaining steps are blank: all zeros (`is_taken` is False), with a discount of
        1.
    """
    apply, inputs = (None, ()) if observation_override is None else observation_override
    settings = (agent, env, steering, num_steps, learning, reset_each_episode, apply)
    if holds_tracers(key, state, inputs):
        return _rollout(*settings, key, state, inputs)
    return build_once(_bind_rollout, *settings)(key, state, inputs)


def rollout_from_log(
    key: Key, agent: Agent, env: Environment, steering: Steering, genome_or_state: Genome | State, num_steps: int
) -> Trajectory:
    """A rollout whose weights are copied from a logged rollout and whose episodes each begin as `forget_past`.

    The logged rollout is the agent's own, in the same task with the same random keys, online and with activations that
    persist. Both have the same weights at every step, so the difference between them is the part of the behavior that
    activations carry from episode to episode.

    Args:
        key: The key of the lifetime.
        genome_or_state: The genome from which the lifetime begins, or the agent's state at the first step.
        num_steps: T, at least 1.

    Returns:
        The trajectory, whose `info` is what `learn` reported in the logged rollout.
    """
    lifetime_keys = rng.split_lifetime_key(key)

    def step(carries: tuple[Carry, Carry], keys: StepKeys) -> tuple[tuple[Carry, Carry], Trajectory]:
        logged, replayed = carries
        replayed = replayed._replace(state=State(logged.state.weights, replayed.state.activations))
        replayed, trajectory = rollout_step(keys, agent, env, steering, replayed, False, reset_each_episode=True)
        logged, logged_step = rollout_step(keys, agent, env, steering, logged, True)
        return (logged, replayed), trajectory._replace(info=logged_step.info)

    state = begin_lifetime(key, agent, genome_or_state)
    carry = initial_carry(lifetime_keys.task, agent, env, steering, state)
    return jax.lax.scan(step, (carry, carry), rng.split_step_keys(lifetime_keys, num_steps))[1]


def initial_carry(task_key: Key, agent: Agent, env: Environment, steering: Steering, state: State) -> Carry:
    """The carry before the first step; samples a task."""
    env_state, time_step = env.reset(task_key)
    percept = perceive(agent, env, steering, env_state, time_step, None)
    return Carry(state, env_state, percept)


def rollout_step(
    keys: tuple[Key, Key, Key],
    agent: Agent,
    env: Environment,
    steering: Steering,
    carry: Carry,
    learning: bool,
    *,
    reset_each_episode: bool = False,
    override: Callable[[TimeStep], TimeStep] | None = None,
) -> tuple[Carry, Trajectory]:
    """One step of a rollout.

    Args:
        keys: `StepKeys` of this step.
        carry: The carry before the step.
        learning: Whether `learn` is called.
        reset_each_episode: Whether an episode begins as `forget_past`.
        override: Replaces the time step that the agent perceives.

    Returns:
        The carry after the step, and a trajectory without the axis T. Where the lifetime is over, the carry stays the
        same, and the step is blank: all zeros, with a discount of 1.
    """
    after, trajectory = _take_step(
        keys, agent, env, steering, carry, learning, reset_each_episode=reset_each_episode, override=override
    )
    if env.is_over is None:
        return after, trajectory
    select = partial(jnp.where, env.is_over(carry.env_state))
    blank = blank_step(trajectory)
    selected = jax.tree.map(select, carry, after)
    if not learning:  # the weights are those of the carry, and copies of them for each lifetime would cost time
        selected = selected._replace(state=State(carry.state.weights, selected.state.activations))
    return selected, jax.tree.map(select, blank, trajectory)


def blank_step(step: Trajectory) -> Trajectory:
    """A step of a lifetime that is over, with the shapes and types of another step."""

    def fill(leaf: Array) -> Array:
        return jax.lax.full_like(leaf, 0)

    return jax.tree.map(fill, step)._replace(discount=fill(step.discount) + 1)


def _take_step(
    keys: tuple[Key, Key, Key],
    agent: Agent,
    env: Environment,
    steering: Steering,
    carry: Carry,
    learning: bool,
    *,
    reset_each_episode: bool,
    override: Callable[[TimeStep], TimeStep] | None,
) -> tuple[Carry, Trajectory]:
    """`rollout_step` of a lifetime that is not over."""
    env_key, act_key, learn_key = keys
    state, env_state, percept = carry
    if reset_each_episode:
        forgetful, first = forget_past(agent, state, percept)
        select = partial(jnp.where, percept.first)
        state = State(state.weights, jax.tree.map(select, forgetful.activations, state.activations))
        percept = jax.tree.map(select, first, percept)
    action, state = agent.act(act_key, state, percept)
    env_state, time_step = env.step(env_key, env_state, action)
    action = jnp.where(jnp.greater_equal(time_step.forced_action, 0), time_step.forced_action, action)
    perceived = time_step if override is None else override(time_step)
    next_percept = perceive(agent, env, steering, env_state, perceived, action)
    info = ()
    if learning:
        transition = Transition(percept, action, next_percept, perceived.final_observation)
        state, info = agent.learn(learn_key, state, transition)
    trajectory = Trajectory(
        percept.observation, percept.first, action, time_step.outcome, next_percept.reward, time_step.discount,
        info, jnp.bool_(True),
    )  # fmt: skip
    return Carry(state, env_state, next_percept), trajectory


def forget_past(agent: Agent, state: State, percept: Percept) -> tuple[State, Percept]:
    """Restores the activations and hides the past in the percept, so that only weights carry anything over.

    The last action and what followed it belong to the past: an agent that reads them has a memory of one step.

    Args:
        percept: Its observation stays visible, and so does the task that a privileged agent is shown.

    Returns:
        The state, and the percept as at the first step of a lifetime.
    """
    return agent.reset(state), first_percept(percept.observation, len(percept.outcome), percept.revealed_task)


def first_percept(observation: Array, num_outcome_features: int, revealed_task: PyTree = ()) -> Percept:
    """The percept at the first step of a lifetime: an observation, and neither an action nor an outcome before it."""
    outcome = jnp.broadcast_to(jnp.float32(0), (num_outcome_features,))
    return Percept(observation, jnp.int32(-1), jnp.float32(0), outcome, jnp.bool_(True), jnp.float32(1), revealed_task)


def perceive(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    env_state: EnvState,
    time_step: TimeStep,
    action: Array | None,
) -> Percept:
    """The percept of a time step: steering computes the reward of its outcome, which is 0 at the initial time step.

    Args:
        agent: Only its field `privileged` is read.
        env: Reveals the task to a privileged agent.
        env_state: The state of the environment after the step.
        time_step: The time step to be perceived.
        action: The action carried out before it, None at the initial time step of a lifetime.
    """
    revealed_task = ()
    if agent.privileged:
        assert env.reveal_task is not None
        revealed_task = env.reveal_task(env_state)
    observation, _, outcome, first, discount, _ = time_step
    reward = jnp.float32(0) if action is None else steering(outcome)
    last_action: Array = jnp.int32(-1) if action is None else action
    return Percept(observation, last_action, reward, outcome, first, discount, revealed_task)


def begin_lifetime(key: Key, agent: Agent, genome_or_state: Genome | State) -> State:
    """The state with which a lifetime begins: `Agent.init` of a genome; a state is returned as it is."""
    if isinstance(genome_or_state, State):
        return genome_or_state
    return agent.init(rng.split_lifetime_key(key).init, genome_or_state)


def require_revealable_tasks(name: str, agent: Agent, env: AnyEnvironment) -> None:
    """Raises `BadInput` if an agent needs the task itself and the environment cannot reveal it."""
    if agent.privileged and env.reveal_task is None:
        raise BadInput(f"agent '{name}' needs to know the task, which environment '{env.spec.name}' cannot reveal")


def rollout_lifetime(
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome_or_state: Genome | State,
    learning: bool,
    *,
    num_steps: int | None = None,
    **options: Any,
) -> tuple[State, Trajectory]:
    """A rollout that begins as `begin_lifetime`, by default over a whole lifetime; arguments as of `rollout`."""
    state = begin_lifetime(key, agent, genome_or_state)
    return rollout(key, agent, env, steering, state, num_steps or env.spec.num_steps, learning, **options)


def rollout_in_chunks(
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome_or_state: Genome | State,
    learning: bool,
    *,
    max_steps: int,
    summarize: Callable[[Trajectory, Array], PyTree],
) -> PyTree:
    """The whole lifetime of `rollout_lifetime`, of which one chunk of the trajectory at a time is in memory.

    Args:
        max_steps: The most steps of a chunk.
        summarize: (trajectory of a chunk [C], whether each of its steps belongs to the lifetime [C]) -> what is kept.
            All chunks have the same length; only the last one may have steps after the lifetime.

    Returns:
        The summaries, leading axis K, the number of chunks.
    """
    num_chunks = -(-env.spec.num_steps // max_steps)
    length = -(-env.spec.num_steps // num_chunks)
    lifetime_keys = rng.split_lifetime_key(key)

    def step(carry: Carry, keys: StepKeys) -> tuple[Carry, Trajectory]:
        return rollout_step(keys, agent, env, steering, carry, learning)

    def run_chunk(carry: Carry, first: Array) -> tuple[Carry, PyTree]:
        numbers = first + jax.lax.iota(jnp.int32, length)
        carry, trajectory = jax.lax.scan(step, carry, rng.fold_step_keys(lifetime_keys, numbers))
        return carry, summarize(trajectory, numbers < env.spec.num_steps)

    state = begin_lifetime(key, agent, genome_or_state)
    carry = initial_carry(lifetime_keys.task, agent, env, steering, state)
    return jax.lax.scan(run_chunk, carry, jax.lax.iota(jnp.int32, num_chunks) * length)[1]


def _bind_rollout(*settings: Any) -> TracedFunction[tuple[State, Trajectory]]:
    """`_rollout` with its settings, as a function of key, state and inputs."""
    return TracedFunction(partial(_rollout, *settings))


def _rollout(
    agent: Agent,
    env: Environment,
    steering: Steering,
    num_steps: int,
    learning: bool,
    reset_each_episode: bool,
    apply: Callable[[PyTree, TimeStep], TimeStep] | None,
    key: Key,
    state: State,
    inputs: PyTree,
) -> tuple[State, Trajectory]:
    """See `rollout`; `apply` and `inputs` are the fields of an `ObservationOverride`."""
    lifetime_keys = rng.split_lifetime_key(key)

    def step(carry: Carry, xs: tuple[StepKeys, PyTree]) -> tuple[Carry, Trajectory]:
        keys, inputs = xs
        override = None if apply is None else partial(apply, inputs)
        return rollout_step(
            keys, agent, env, steering, carry, learning, reset_each_episode=reset_each_episode, override=override
        )

    carry = initial_carry(lifetime_keys.task, agent, env, steering, state)
    carry, trajectory = jax.lax.scan(step, carry, (rng.split_step_keys(lifetime_keys, num_steps), inputs))
    return carry.state, trajectory
