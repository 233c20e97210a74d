"""Rollouts in environments that are Python objects: the driver beside `rollouts.rollout`.

Each step of a batch of lifetimes is one compiled call of `act`, one step of every task in Python, and one compiled call
of steering and `learn`. The agent's random numbers are those that `rollout` draws from the same key, so that an
environment written both ways gives the same trajectories. A lifetime does not depend on the others of its batch: every
lifetime has weights of its own, and the seed of its task is derived from its key alone.
Letters for shapes: N lifetimes, T steps.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import rng, trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rng import LifetimeKeys
from ontogeny.rollouts import begin_lifetime, blank_step, forget_past, perceive
from ontogeny.types import (
    Agent,
    Genome,
    HostEnvironment,
    Key,
    Percept,
    PyTree,
    State,
    Steering,
    TimeStep,
    Trajectory,
    Transition,
    Weights,
)

Recorded = TypeVar("Recorded")
Record = Callable[[HostEnvironment, Trajectory], Recorded]  # (env, one step of a trajectory) -> the part that is kept


class HostRollout:
    """A batch of lifetimes that are stepped together.

    Attributes:
        state: The agents' states before the next step, leading axis N. Where weights are learned, `step` overwrites
            their arrays in place.
        num_steps: Steps taken.
    """

    @property
    def is_over(self) -> np.ndarray:
        """Whether a lifetime has ended, [N] bool; its state stays the same in the remaining steps."""
        return self._tasks.is_over

    def __init__(
        self,
        keys: Key,
        agent: Agent,
        env: HostEnvironment,
        steering: Steering,
        start: Genome | State,
        *,
        start_axis: int | None = None,
        reset_each_episode: bool = False,
    ) -> None:
        """Begin the lifetimes.

        Args:
            keys: One for each lifetime, [N].
            agent: Built for the spec of the environment; not privileged.
            env: Its `score` is not called.
            steering: Maps the outcome features of a step to its reward.
            start: A genome, from which the lifetimes begin, or a state, at which they continue.
            start_axis: 0 where each lifetime has its own entry in `start`, None where all share it.
            reset_each_episode: Whether each episode begins as `rollouts.forget_past`.
        """
        self.agent, self.env, self.steering = agent, env, steering
        self.reset_each_episode = reset_each_episode
        self.num_steps = 0
        keys = jax.device_put(keys, jax.local_devices()[0])
        self._keys = _split_lifetime_keys(keys)
        self.state = begin_lifetimes(keys, start, agent, start_axis)
        self._tasks = env.begin([int(seed) for seed in np.asarray(task_seeds(keys, self._keys.task))])
        self._percept = _perceive_initial(self._tasks.reset(), agent, env, steering)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the tasks."""
        self._tasks.close()

    def step(self, learning: bool, record: Record[Recorded]) -> Recorded:
        """Take one step in every lifetime.

        Args:
            learning: Whether `learn` is called.
            record: Selects what is returned of the step; a function that is defined once, because it is compiled.

        Returns:
            What `record` selects, leading axis N.

        Raises:
            BadInput: An agent takes an action that the environment does not have, or the environment fails.
            ContractViolation: `act` changes weights.
        """
        t, is_over = jnp.uint32(self.num_steps), self.is_over
        action, activations, percept, has_same_weights = _act(
            self._keys, t, self.state, self._percept, self.agent, self.reset_each_episode
        )
        actions, weights_are_same = jax.device_get((action, has_same_weights))
        _check_actions(actions, self.env.spec.num_actions)
        if not weights_are_same.all():
            raise ContractViolation("the weights changed at an action: `act` may change activations only")
        time_step = self._tasks.step(actions)
        before, weights = self.state, self.state.weights
        if is_over.any() and learning:
            weights = _copy(weights)
        state, self._percept, recorded, blank = _observe(
            weights if learning else None, self.agent, self.env, self.steering, learning, record,
            keys=self._keys, t=t, activations=activations, percept=percept, action=action, time_step=time_step,
        )  # fmt: skip
        self.state = state if learning else State(weights, activations)
        if is_over.any():
            # A program of its own, so that the steps of the other lifetimes keep their bits.
            self.state, recorded = _select(is_over, (before, blank), (self.state, recorded))
        self.num_steps += 1
        return jax.device_get(recorded)


def rollout_on_host(
    keys: Key,
    agent: Agent,
    env: HostEnvironment,
    steering: Steering,
    start: Genome | State,
    num_steps: int,
    learning: bool,
    *,
    start_axis: int | None = None,
    reset_each_episode: bool = False,
    record: Record[PyTree] | None = None,
) -> tuple[State, PyTree]:
    """Steps an agent through one task for each key.

    Args:
        keys: [N]; each determines its task and all chance in its lifetime.
        start: A genome, from which the lifetimes begin, or a state, at which they continue.
        num_steps: T, at least 1.
        learning: Whether `learn` is called.
        start_axis: 0 where each lifetime has its own entry in `start`, None where all share it.
        reset_each_episode: Whether each episode begins as `rollouts.forget_past`.
        record: Selects what is kept of each step; by default the whole trajectory.

    Returns:
        The states after the last step, [N], and what was kept, leading axes N and T. Where a lifetime is over before
        its last step, the remaining steps are blank: all zeros, with a discount of 1 (`is_taken` is False).
    """
    options = {"start_axis": start_axis, "reset_each_episode": reset_each_episode}
    with HostRollout(keys, agent, env, steering, start, **options) as lifetimes:
        recorded = _collect(partial(lifetimes.step, learning, record or whole_step), lifetimes, num_steps)
        return lifetimes.state, recorded


def rollout_from_log_on_host(
    keys: Key,
    agent: Agent,
    env: HostEnvironment,
    steering: Steering,
    start: Genome | State,
    num_steps: int,
    record: Record[PyTree],
    record_logged: Record[PyTree],
) -> tuple[PyTree, PyTree]:
    """`rollouts.rollout_from_log` for a batch of lifetimes, [N].

    Args:
        record: Selects what is kept of each step.
        record_logged: Selects what is kept of each step of the logged rollout.

    Returns:
        What was kept of both, leading axes N and T.
    """
    logged = HostRollout(keys, agent, env, steering, start)
    replayed = HostRollout(keys, agent, env, steering, start, reset_each_episode=True)
    with logged, replayed:

        def step() -> tuple[PyTree, PyTree]:
            # The replayed step comes first, because the logged one overwrites the weights that it learns.
            replayed.state = State(logged.state.weights, replayed.state.activations)
            return replayed.step(False, record), logged.step(True, record_logged)

        return _collect(step, replayed, num_steps)


def whole_step(env: HostEnvironment, step: Trajectory) -> Trajectory:
    """Keeps a step as it is."""
    del env
    return step


def _collect(step: Callable[[], PyTree], lifetimes: HostRollout, num_steps: int) -> PyTree:
    """What is kept of so many steps, leading axes N and T."""
    steps = []
    while len(steps) < num_steps:
        is_last = bool(np.all(lifetimes.is_over))  # all further steps are like this one
        steps += [step()] * (num_steps - len(steps) if is_last else 1)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *steps)


def _check_actions(actions: np.ndarray, num_actions: int) -> None:
    """Raises `BadInput` for an action that the environment does not have."""
    if not np.all((actions >= 0) & (actions < num_actions)):
        raise BadInput(f"the agent took an action that its environment does not have: there are 0 to {num_actions - 1}")


def begin_lifetimes(keys: Key, start: Genome | State, agent: Agent, start_axis: int | None) -> State:
    """The initial states of lifetimes, [N]; the arrays belong to the caller alone.

    Two calls with equal arguments are bitwise equal; two compiled programs that draw the same weights need not be.

    Args:
        keys: [N].
        start: A genome, from which the lifetimes begin, or a state, at which they continue.
        start_axis: 0 where each lifetime has its own entry in `start`, None where all share it.
    """
    return _begin_lifetimes(jax.device_put(keys, jax.local_devices()[0]), start, agent, start_axis)


@partial(jax.jit, static_argnames=("agent", "start_axis"))
def _begin_lifetimes(keys: Key, start: Genome | State, agent: Agent, start_axis: int | None) -> State:
    """`begin_lifetimes` of keys on the first device."""

    def begin(key: Key, start: Genome | State) -> State:
        return jax.tree.map(jnp.copy, begin_lifetime(key, agent, start))

    return jax.vmap(begin, in_axes=(0, start_axis))(keys, start)


_split_lifetime_keys = jax.jit(jax.vmap(rng.split_lifetime_key))


@jax.jit
def task_seeds(keys: Key, task_keys: Key) -> Array:
    """The seeds of tasks, [N] uint32: those of two stages differ, because the two highest bits are those of the stage.

    Args:
        keys: Of the lifetimes, [N].
        task_keys: `LifetimeKeys.task` of the same lifetimes, [N].
    """
    stages = jax.random.key_data(keys)[:, 0] & jnp.uint32(0xC0000000)
    return stages | (jax.vmap(jax.random.bits)(task_keys) & jnp.uint32(0x3FFFFFFF))


@partial(jax.jit, static_argnames=("agent", "env", "steering"))
def _perceive_initial(time_step: TimeStep, agent: Agent, env: HostEnvironment, steering: Steering) -> Percept:
    """The percepts at the first step of lifetimes, [N]."""
    return jax.vmap(lambda time_step: perceive(agent, env, steering, (), time_step, None))(time_step)


@partial(jax.jit, static_argnames=("agent", "reset_each_episode"))
def _act(
    keys: LifetimeKeys, t: Array, state: State, percept: Percept, agent: Agent, reset_each_episode: bool
) -> tuple[Array, PyTree, Percept, Array]:
    """Actions, activations after them, the percepts on which they were chosen, and whether weights stayed, [N]."""

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, PyTree, Percept, Array]:
        if reset_each_episode:
            forgetful = forget_past(agent, state, percept)
            state, percept = jax.tree.map(partial(jnp.where, percept.first), forgetful, (state, percept))
        action, acted = agent.act(jax.random.fold_in(key, t), state, percept)
        return action, acted.activations, percept, trees.has_same_bits(state.weights, acted.weights)

    return jax.vmap(act)(keys.act, state, percept)


@partial(jax.jit, static_argnames=("agent", "env", "steering", "learning", "record"), donate_argnames=("weights",))
def _observe(
    weights: Weights | None,
    agent: Agent,
    env: HostEnvironment,
    steering: Steering,
    learning: bool,
    record: Record[PyTree],
    *,
    keys: LifetimeKeys,
    t: Array,
    activations: PyTree,
    percept: Percept,
    action: Array,
    time_step: TimeStep,
) -> tuple[State | None, Percept, PyTree, PyTree]:
    """States after learning, the next percepts, and what is kept of the step and of a blank one, [N].

    Weights are taken, and states returned, only where they are learned.
    """

    def observe(
        key: Key, weights: Weights | None, activations: PyTree, percept: Percept, action: Array, time_step: TimeStep
    ) -> tuple[State | None, Percept, PyTree, PyTree]:
        next_percept = perceive(agent, env, steering, (), time_step, action)
        state, info = None, ()
        if learning:
            assert weights is not None
            transition = Transition(percept, action, next_percept, time_step.final_observation)
            state, info = agent.learn(jax.random.fold_in(key, t), State(weights, activations), transition)
        step = Trajectory(
            percept.observation, percept.first, action, time_step.outcome, next_percept.reward, time_step.discount,
            info, jnp.bool_(True),
        )  # fmt: skip
        return state, next_percept, record(env, step), record(env, blank_step(step))

    return jax.vmap(observe)(keys.learn, weights, activations, percept, action, time_step)


@jax.jit
def _select(is_over: Array, if_over: PyTree, otherwise: PyTree) -> PyTree:
    """One of two trees of the same structure for each lifetime, [N]."""
    return jax.vmap(lambda is_over, *pair: jax.tree.map(partial(jnp.where, is_over), *pair))(
        is_over, if_over, otherwise
    )


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    """The same tree in new arrays."""
    return jax.tree.map(jnp.copy, tree)
