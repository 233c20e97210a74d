"""One life: act, step, steer, learn. The only loop in the house that steps agents."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from ontogeny import rng
from ontogeny.types import (
    Agent,
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
    """Puts something between the environment and the agent, for controls: the record keeps what happened."""

    show: Callable[[PyTree, TimeStep], TimeStep]  # (given, what happened) -> what the agent is shown
    given: PyTree  # leading axis T on every leaf


class Carry(NamedTuple):
    """Where a life stands between two steps."""

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
    """Lets `state` live `num_steps` steps in one task and returns what became of it, with the record.

    The key determines the task and all chance of the environment, whoever lives in it. `learning` False is Case 2
    (weights frozen: `learn` is never called); True is Case 1. Activations persist across the episodes of a
    life unless `reset_each_episode` asks otherwise. Through a `lens` the agent is shown something else than happened.
    """
    lifetime_keys = rng.split_lifetime_key(key)
    env_keys, act_keys, learn_keys = (
        jax.random.split(k, num_steps) for k in (lifetime_keys.env, lifetime_keys.act, lifetime_keys.learn)
    )

    def step(carry: Carry, given: tuple[tuple[Key, Key, Key], PyTree]) -> tuple[Carry, Trajectory]:
        keys, seen = given
        show = None if observation_override is None else partial(observation_override.show, seen)
        return rollout_step(
            keys, agent, env, steering, carry, learning, reset_each_episode=reset_each_episode, show=show
        )

    start = initial_carry(lifetime_keys.task, agent, env, steering, state)
    through = () if observation_override is None else observation_override.given
    carry, trajectory = jax.lax.scan(step, start, ((env_keys, act_keys, learn_keys), through))
    return carry.state, cast(Trajectory, trajectory)


def rollout_from_log(
    key: Key, agent: Agent, env: Environment, steering: Steering, subject: Genome | State, num_steps: int
) -> Trajectory:
    """A life whose weights are learned from the log of another one, and whose activations are restored at each episode.

    The other life is the agent's own in the same task with the same chance, online and with its activations kept. So
    what is learned is the same as there, and only what activations carry from episode to episode is taken away.
    """
    lifetime_keys = rng.split_lifetime_key(key)
    env_keys, act_keys, learn_keys = (
        jax.random.split(k, num_steps) for k in (lifetime_keys.env, lifetime_keys.act, lifetime_keys.learn)
    )
    state = subject if isinstance(subject, State) else agent.init(lifetime_keys.init, subject)

    def step(moments: tuple[Carry, Carry], keys: tuple[Key, Key, Key]) -> tuple[tuple[Carry, Carry], Trajectory]:
        logged, own = moments
        own = own._replace(state=State(logged.state.weights, own.state.activations))
        own, record = rollout_step(keys, agent, env, steering, own, False, reset_each_episode=True)
        logged, _ = rollout_step(keys, agent, env, steering, logged, True)
        return (logged, own), record

    start = initial_carry(lifetime_keys.task, agent, env, steering, state)
    return cast(Trajectory, jax.lax.scan(step, (start, start), (env_keys, act_keys, learn_keys))[1])


def initial_carry(task_key: Key, agent: Agent, env: Environment, steering: Steering, state: State) -> Carry:
    """The first moment of a life: a task is drawn."""
    env_state, time_step = env.reset(task_key)
    return Carry(state, env_state, perceive(agent, env, steering, env_state, time_step, jnp.int32(-1), born=True))


def rollout_step(
    keys: tuple[Key, Key, Key],
    agent: Agent,
    env: Environment,
    steering: Steering,
    carry: Carry,
    learning: bool,
    *,
    reset_each_episode: bool = False,
    show: Callable[[TimeStep], TimeStep] | None = None,
) -> tuple[Carry, Trajectory]:
    """One step of a life, from keys of the environment's, the action's and learning's chance; the record without [T]."""
    env_key, act_key, learn_key = keys
    state, env_state, percept = carry
    if reset_each_episode:
        state = jax.tree.map(partial(jnp.where, percept.first), agent.reset(state), state)
    action, state = agent.act(act_key, state, percept)
    env_state, time_step = env.step(env_key, env_state, action)
    action = jnp.where(jnp.asarray(time_step.forced_action) >= 0, time_step.forced_action, action)
    shown = time_step if show is None else show(time_step)
    then = perceive(agent, env, steering, env_state, shown, action)
    info = ()
    if learning:
        state, info = agent.learn(learn_key, state, Transition(percept, action, then))
    record = Trajectory(
        percept.observation, percept.first, action, time_step.outcome, then.reward, time_step.discount, info
    )
    return Carry(state, env_state, then), record


def perceive(
    agent: Agent,
    env: Environment,
    steering: Steering,
    env_state: EnvState,
    time_step: TimeStep,
    action: jax.Array,
    born: bool = False,
) -> Percept:
    """A time step as the agent perceives it: steering has judged the outcome; there is nothing to judge at birth."""
    revealed_task = ()
    if agent.privileged:
        assert env.reveal_task is not None
        revealed_task = env.reveal_task(env_state)
    reward = jnp.float32(0) if born else steering(time_step.outcome)
    return Percept(
        time_step.observation,
        action,
        reward,
        time_step.outcome,
        time_step.first,
        time_step.discount,
        revealed_task,
    )


def rollout_lifetime(
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    genome: Genome,
    learning: bool,
    *,
    num_steps: int | None = None,
    reset_each_episode: bool = False,
) -> tuple[State, Trajectory]:
    """Birth from a genome, and one whole life."""
    state = agent.init(rng.split_lifetime_key(key).init, genome)
    return rollout(
        key,
        agent,
        env,
        steering,
        state,
        num_steps or env.spec.num_steps,
        learning,
        reset_each_episode=reset_each_episode,
    )
