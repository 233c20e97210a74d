"""The core types: records of pure functions, and the values that pass between them.

Letters for shapes: P population, T time, B batch (of lifetimes), A actions, S discrete observations, O observation,
F outcome features. Keys come first, states next, and the new state is returned.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32, Shaped

from ontogeny.errors import BadInput as BadInput

PyTree = Any
Key = Array
Genome = PyTree
EnvState = PyTree
Info = PyTree

HIDDEN_OBSERVATION = -1  # a discrete `final_observation` that the environment does not show


class Weights(NamedTuple):
    """The part of an agent's state that `Agent.reset` keeps."""

    content: PyTree  # read by `act`
    scratch: PyTree = ()  # optimizer state, replay and counts, read by `learn` only


class State(NamedTuple):
    """Everything that an agent carries from one step to the next."""

    weights: Weights
    activations: PyTree


class TimeStep(NamedTuple):
    """What an environment emits: outcome features, never a reward.

    Where an episode has ended, the same time step holds the first observation of the next episode: `first` is true, and
    `final_observation`, `outcome` and `discount` belong to the previous action.
    """

    observation: Shaped[Array, "*O"]  # [] int32 where observations are discrete
    # to which the previous action led: equal to `observation` except where an episode has ended; `HIDDEN_OBSERVATION`
    # where an environment with discrete observations truncates an episode without showing where the action led
    final_observation: Shaped[Array, "*O"]
    outcome: Float[Array, "F"]  # features of the previous transition
    first: Bool[Array, ""]  # whether an episode begins
    discount: Float[Array, ""]  # 0 at a termination, which includes the last step where the horizon is part of the
    # task; 1 at every other step and at a truncation by a time limit
    forced_action: Int32[Array, ""] | int = -1  # the action that replaced the agent's action, or -1


class Percept(NamedTuple):
    """The input of an agent at one step.

    At the first step of a lifetime, and where activations are reset, `action` is -1, `reward` and `outcome` are zero.
    """

    observation: Shaped[Array, "*O"]
    action: Int32[Array, ""]  # the last action carried out: the agent's own, or the one that the environment forced
    reward: Float[Array, ""]  # of steering, for the last action
    outcome: Float[Array, "F"]  # of the last action
    first: Bool[Array, ""]
    discount: Float[Array, ""]
    revealed_task: PyTree = ()  # `TabularTask` for a privileged agent, empty for all others


class Transition(NamedTuple):
    """The input of `Agent.learn`: a percept, the action taken there and the percept that followed.

    Where an episode was truncated, the return continues from `final_observation`, not from the next percept.
    """

    percept: Percept
    action: Int32[Array, ""]
    next_percept: Percept
    final_observation: Shaped[Array, "*O"]  # as in `TimeStep`


class FeaturePrior(NamedTuple):
    """The prior of one outcome feature at one (observation, action)."""

    kind: str  # "bernoulli": probability ~ Beta(a, b); "normal": mean ~ N(a, b^2), observed with `noise`
    a: float
    b: float
    noise: float = 0.0  # standard deviation of a "normal" feature around its mean


class Prior(NamedTuple):
    """The prior over the tasks of an environment, which designers may give to an agent."""

    transitions: float  # Dirichlet concentration per successor
    outcome_features: tuple[FeaturePrior, ...]
    outcome_forgetting_rate: float = 0.0  # share of the evidence on outcomes that expires per step, where tasks drift
    # share of the evidence on an (observation, action) that expires per visit to it, where single transitions of a task
    # change within a lifetime
    visit_forgetting_rate: float = 0.0


class EnvSpec(NamedTuple):
    """The properties that all tasks of an environment share; agents are built from it."""

    name: str
    num_actions: int  # A
    num_observations: int  # S where observations are discrete, 0 where they are vectors
    observation_shape: tuple[int, ...]  # () where observations are discrete
    outcome_features: tuple[str, ...]  # names of the F features
    num_steps: int  # length of one lifetime
    horizon: int  # largest number of steps in an episode
    drives: tuple[tuple[str, float], ...]  # the default steering
    prior: Prior | None = None  # only where tasks are tabular
    observation_bounds: tuple[float, float] = (float("-inf"), float("inf"))  # of every number of a vector


class TabularTask(NamedTuple):
    """The tables of a task, for an oracle."""

    transitions: Float[Array, "S A S"]  # probabilities of the successor, given that the episode continues
    outcomes: Float[Array, "S A F"]  # expected outcome features
    termination_probabilities: Float[Array, "S A"]  # that the action ends the episode, whatever steps remain
    remaining_steps: Int32[Array, ""]  # until the time limit of the present episode, the next one included


class Environment(NamedTuple):
    """A distribution over tasks. `reset` also samples the task: one lifetime is one task and many episodes."""

    spec: EnvSpec
    reset: Callable[[Key], tuple[EnvState, TimeStep]]
    step: Callable[[Key, EnvState, Array], tuple[EnvState, TimeStep]]
    score: Callable[[Float[Array, "F"]], Float[Array, ""]]  # the intended objective; only evaluation reads it
    reveal_task: Callable[[EnvState], TabularTask] | None = None
    # whether a lifetime has ended before its last step: in the remaining steps the agent neither acts nor learns
    is_over: Callable[[EnvState], Bool[Array, ""]] | None = None


class BeginTasks(Protocol):
    """Begins tasks that are Python objects."""

    def __call__(self, seeds: Sequence[int], *, strict: bool = False) -> "HostTasks":
        """One task for each seed, a number below 2**32; `strict` ones check each step against what they declare."""
        ...


class HostTasks(Protocol):
    """Tasks that are Python objects, one per lifetime, stepped together. Arrays are numpy's, with a leading axis N."""

    @property
    def is_over(self) -> np.ndarray:
        """Whether a lifetime has ended before its last step, [N] bool; it pays nothing in the remaining steps."""
        ...

    def reset(self) -> TimeStep:
        """Begin all lifetimes."""
        ...

    def step(self, actions: np.ndarray) -> TimeStep:
        """Carry out one action in each task, [N]; where an episode ends, the next one begins in the same step."""
        ...

    def close(self) -> None:
        """Release the tasks."""
        ...


class HostEnvironment(NamedTuple):
    """A distribution over tasks that are Python objects, such as Gymnasium environments, which JAX cannot trace.

    `host_rollouts` steps them. They reveal no task and force no action.
    """

    spec: EnvSpec
    begin: BeginTasks
    score: Callable[[Float[Array, "F"]], Float[Array, ""]]
    reveal_task: None = None


Steering = Callable[[Float[Array, "F"]], Float[Array, ""]]
"""outcome -> reward: hand-written, without weights of its own; see `ontogeny.steering`."""


AnyEnvironment = Environment | HostEnvironment


class Agent(NamedTuple):
    """An agent. The agent contract holds for every agent, bit for bit:

    1. `act` changes activations only, `learn` changes weights only, `reset` restores activations only. Frozen
       deployment never calls `learn`, online deployment does, and nothing else differs.
    2. `act` does not read `weights.scratch`.
    3. Rewards come from steering alone; no agent reads `Environment.score`.
    """

    genome: Callable[[Key], Genome]
    init: Callable[[Key, Genome], State]
    reset: Callable[[State], State]
    act: Callable[[Key, State, Percept], tuple[Array, State]]
    learn: Callable[[Key, State, Transition], tuple[State, Info]]
    learning: bool = False  # whether `learn` changes the weights; False for evolved networks
    privileged: bool = False  # whether percepts reveal the task; for upper bounds only


class WorldModel(NamedTuple):
    """Learned content that predicts: `query` returns a predictive distribution, `update` takes evidence."""

    init: Callable[..., PyTree]
    query: Callable[..., PyTree]
    update: Callable[..., PyTree]


class ValueFunction(NamedTuple):
    """Learned content that estimates returns."""

    init: Callable[..., PyTree]
    query: Callable[..., PyTree]
    update: Callable[..., PyTree]


class OuterLoop(NamedTuple):
    """A search over genomes that maximizes fitness.

    A generation is `ask`, then the fitness of all members, then `tell`. A proposal determines all members; where it
    holds random keys in their place, `members` draws a few at a time, and the population is never in memory.
    """

    init: Callable[[Key, Genome], PyTree]
    ask: Callable[[Key, PyTree], tuple[PyTree, PyTree]]  # -> proposal, state
    members: Callable[[PyTree, Int32[Array, ""], int], PyTree]  # proposal, index of the first, M -> genomes
    member_axes: PyTree  # the axis M of the leaves of `members`, for `jax.vmap`; None where all members share a leaf
    tell: Callable[[Key, PyTree, PyTree, Float[Array, "P"]], PyTree]  # state, proposal, fitness -> state
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now


class ShardedGeneration(NamedTuple):
    """A generation in parts that processes and machines can compute apart: `propose`, all shards, then `finish`.

    All three are compiled functions. A generation is bitwise reproducible wherever its shards are computed, as long as
    each is computed by the same compiled program on one thread.
    """

    num_shards: int
    propose: Callable[[PyTree], tuple[Key, PyTree]]  # state -> keys of the lifetimes [B], proposal
    evaluate_shard: Callable[[Key, PyTree, Array], tuple[Array, Array]]  # ..., index -> fitness and env steps, [S] each
    finish: Callable[
        [PyTree, Array, Array], tuple[PyTree, Info]
    ]  # state, fitness and env steps [P] -> next state, Info


class Development(NamedTuple):
    """A development whose state, a pytree of arrays, holds everything that a resumed run needs.

    `step` is a pure function of the state: everything random in generation g is drawn from the state's seed key and g,
    so a run that is resumed at any call is bitwise reproducible.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[PyTree], tuple[PyTree, Info]]  # one compiled call; Info: dict of arrays [G], one per generation
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now
    num_calls: int  # compiled calls in the whole development
    generations_per_call: int  # G
    # agent-environment steps at most, all members and lifetimes together; where lifetimes can be over early, Info holds
    # the steps that were taken as `env_steps`, [G] or, so that the sum cannot exceed int32, [G, ...]
    steps_per_generation: int
    shards: ShardedGeneration | None = None  # where a generation can be divided over processes
    # the function of `jax.jit` that `step` calls; where it calls several, the one with the most memory; or None
    program: Any = None
    extra_bytes: Callable[[PyTree], int] | None = None  # state or its shapes -> memory beside that of the program


class Trajectory(NamedTuple):
    """The record of a lifetime; leading axis T on every leaf."""

    observation: Shaped[Array, "T *O"]  # before the action
    first: Bool[Array, "T"]
    action: Int32[Array, "T"]  # carried out
    outcome: Float[Array, "T F"]  # of that action
    reward: Float[Array, "T"]  # of steering, for that action
    discount: Float[Array, "T"]
    info: Info
    is_taken: Bool[Array, "T"]  # False in the blank steps of a lifetime that is over before its last step
