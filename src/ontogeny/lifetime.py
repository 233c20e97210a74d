"""One life: act, step, steer, learn. The only loop in the house that steps agents."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from ontogeny import streams
from ontogeny.types import (
    Agent,
    Genome,
    Key,
    Life,
    Percept,
    PyTree,
    State,
    Steering,
    TimeStep,
    Transition,
    World,
    WorldState,
)


class Lens(NamedTuple):
    """Puts something between the world and the agent, for controls: the record keeps what happened."""

    show: Callable[[PyTree, TimeStep], TimeStep]  # (given, what happened) -> what the agent is shown
    given: PyTree  # leading axis T on every leaf


class Moment(NamedTuple):
    """Where a life stands between two steps."""

    state: State
    world_state: WorldState
    percept: Percept


def live(
    key: Key,
    agent: Agent,
    world: World,
    steering: Steering,
    state: State,
    num_steps: int,
    learning: bool,
    *,
    reset_each_episode: bool = False,
    lens: Lens | None = None,
) -> tuple[State, Life]:
    """Lets `state` live `num_steps` steps in one task and returns what became of it, with the record.

    The key determines the task and all chance of the world, whoever lives in it. `learning` False is Case 2
    (weights frozen: `learn` is never called); True is Case 1. Activations persist across the episodes of a
    life unless `reset_each_episode` asks otherwise. Through a `lens` the agent is shown something else than happened.
    """
    chance = streams.chances(key)
    world_keys, act_keys, learn_keys = (
        jax.random.split(k, num_steps) for k in (chance.world, chance.act, chance.learn)
    )

    def step(moment: Moment, given: tuple[tuple[Key, Key, Key], PyTree]) -> tuple[Moment, Life]:
        keys, seen = given
        show = None if lens is None else partial(lens.show, seen)
        return advance(keys, agent, world, steering, moment, learning, reset_each_episode=reset_each_episode, show=show)

    start = begin(chance.task, agent, world, steering, state)
    through = () if lens is None else lens.given
    moment, life = jax.lax.scan(step, start, ((world_keys, act_keys, learn_keys), through))
    return moment.state, cast(Life, life)


def live_on_a_log(
    key: Key, agent: Agent, world: World, steering: Steering, subject: Genome | State, num_steps: int
) -> Life:
    """A life whose weights are learned from the log of another one, and whose activations are restored at each episode.

    The other life is the agent's own in the same task with the same chance, online and with its activations kept. So
    what is learned is the same as there, and only what activations carry from episode to episode is taken away.
    """
    chance = streams.chances(key)
    world_keys, act_keys, learn_keys = (
        jax.random.split(k, num_steps) for k in (chance.world, chance.act, chance.learn)
    )
    state = subject if isinstance(subject, State) else agent.birth(chance.birth, subject)

    def step(moments: tuple[Moment, Moment], keys: tuple[Key, Key, Key]) -> tuple[tuple[Moment, Moment], Life]:
        logged, own = moments
        own = own._replace(state=State(logged.state.weights, own.state.activations))
        own, record = advance(keys, agent, world, steering, own, False, reset_each_episode=True)
        logged, _ = advance(keys, agent, world, steering, logged, True)
        return (logged, own), record

    start = begin(chance.task, agent, world, steering, state)
    return cast(Life, jax.lax.scan(step, (start, start), (world_keys, act_keys, learn_keys))[1])


def begin(task_key: Key, agent: Agent, world: World, steering: Steering, state: State) -> Moment:
    """The first moment of a life: a task is drawn."""
    world_state, time_step = world.reset(task_key)
    return Moment(
        state, world_state, perceive(agent, world, steering, world_state, time_step, jnp.int32(-1), born=True)
    )


def advance(
    keys: tuple[Key, Key, Key],
    agent: Agent,
    world: World,
    steering: Steering,
    moment: Moment,
    learning: bool,
    *,
    reset_each_episode: bool = False,
    show: Callable[[TimeStep], TimeStep] | None = None,
) -> tuple[Moment, Life]:
    """One step of a life, from keys of the world's, the action's and learning's chance; the record without [T]."""
    world_key, act_key, learn_key = keys
    state, world_state, percept = moment
    if reset_each_episode:
        state = jax.tree.map(partial(jnp.where, percept.first), agent.reset(state), state)
    action, state = agent.act(act_key, state, percept)
    world_state, time_step = world.step(world_key, world_state, action)
    action = jnp.where(jnp.asarray(time_step.forced) >= 0, time_step.forced, action)
    shown = time_step if show is None else show(time_step)
    then = perceive(agent, world, steering, world_state, shown, action)
    info = ()
    if learning:
        state, info = agent.learn(learn_key, state, Transition(percept, action, then))
    record = Life(percept.observation, percept.first, action, time_step.outcome, then.reward, time_step.discount, info)
    return Moment(state, world_state, then), record


def perceive(
    agent: Agent,
    world: World,
    steering: Steering,
    world_state: WorldState,
    time_step: TimeStep,
    action: jax.Array,
    born: bool = False,
) -> Percept:
    """A time step as the agent perceives it: steering has judged the outcome; there is nothing to judge at birth."""
    revealed = ()
    if agent.privileged:
        assert world.reveal is not None
        revealed = world.reveal(world_state)
    reward = jnp.float32(0) if born else steering(time_step.outcome)
    return Percept(
        time_step.observation,
        action,
        reward,
        time_step.outcome,
        time_step.first,
        time_step.discount,
        revealed,
    )


def whole_life(
    key: Key,
    agent: Agent,
    world: World,
    steering: Steering,
    genome: Genome,
    learning: bool,
    *,
    num_steps: int | None = None,
    reset_each_episode: bool = False,
) -> tuple[State, Life]:
    """Birth from a genome, and one whole life."""
    state = agent.birth(streams.chances(key).birth, genome)
    return live(
        key,
        agent,
        world,
        steering,
        state,
        num_steps or world.spec.num_steps,
        learning,
        reset_each_episode=reset_each_episode,
    )
