"""The nouns of the laboratory: records of pure functions and the values that pass between them.

Letters for shapes: P population, T time, B batch (of lives), A actions, S discrete observations,
O observation, F facts of an outcome. Keys come first, states next, and the new state comes back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int32, Shaped

from ontogeny.errors import BadInput as BadInput

PyTree = Any
Key = Array
Genome = PyTree
EnvState = PyTree
Info = PyTree


class Weights(NamedTuple):
    """What survives `Agent.reset`.

    `content` is what `act` may read; `scratch` (optimizer moments, replay, counts) is for `learn` only.
    """

    content: PyTree
    scratch: PyTree = ()


class State(NamedTuple):
    """An agent in the midst of its life: all that it carries from one step to the next."""

    weights: Weights
    activations: PyTree


class TimeStep(NamedTuple):
    """What an environment emits: facts, never a reward.

    Where an episode has ended, the same time step already shows the first observation of the next one:
    `first` is then true, `outcome` and `discount` still belong to the action before, and that action's
    successor is not observed.
    """

    observation: Shaped[Array, "*O"]  # [] int32 where observations are discrete
    outcome: Float[Array, "F"]  # facts of this step, before anyone judges them
    first: Bool[Array, ""]  # an episode begins here
    discount: Float[Array, ""]  # 0 where nothing was to come: a true end, or the last step where the horizon is part of
    # the task; 1 everywhere else, and where a time limit merely cuts an episode off
    forced_action: (
        Int32[Array, ""] | int
    ) = -1  # the action that the environment carried out in place of the agent's own, or -1


class Percept(NamedTuple):
    """What an agent is given at one step; at birth `action` is -1, `reward` and `outcome` are zero."""

    observation: Shaped[Array, "*O"]
    action: Int32[
        Array, ""
    ]  # the last action that was carried out: the agent's own but where the environment forced another
    reward: Float[Array, ""]  # of steering, for the last action
    outcome: Float[Array, "F"]  # of the last action
    first: Bool[Array, ""]
    discount: Float[Array, ""]
    revealed_task: Any = ()  # `Tables` of the task for a privileged agent, empty for all others


class Transition(NamedTuple):
    """One step as `learn` sees it: where the agent was, what it did, what it perceived then."""

    percept: Percept
    action: Int32[Array, ""]
    next_percept: Percept


class FeaturePrior(NamedTuple):
    """What is known, before any life, of one fact's distribution at one (observation, action)."""

    kind: str  # "bernoulli": probability ~ Beta(a, b); "normal": mean ~ N(a, b^2), noise of standard deviation `noise`
    a: float
    b: float
    noise: float = 0.0


class Prior(NamedTuple):
    """What is known of a family of tasks before a task is met: the designers may tell an agent this much."""

    transitions: float  # Dirichlet concentration per successor
    outcome_features: tuple[FeaturePrior, ...]
    outcome_forgetting_rate: float = 0.0  # share of the evidence on outcomes that expires per step, where tasks drift
    visit_forgetting_rate: float = 0.0  # share of the evidence on an (observation, action) that expires per visit to it,
    # where single transitions of a task change within a lifetime


class EnvSpec(NamedTuple):
    """What is common to all tasks of an environment, and known to whoever builds an agent for it."""

    name: str
    num_actions: int
    num_observations: int  # S where observations are discrete, 0 where they are vectors
    observation_shape: tuple[int, ...]  # () where observations are discrete
    outcome_features: tuple[str, ...]  # names of the F facts in an outcome
    num_steps: int  # length of one life
    horizon: int  # the most steps that an episode takes
    drives: tuple[tuple[str, float], ...]  # the steering that the designers propose
    prior: Prior | None = None  # only where tasks are tabular


class TabularTask(NamedTuple):
    """A tabular task laid open, as an oracle needs it."""

    transitions: Float[Array, "S A S"]  # probabilities of the successor, given that the episode goes on
    outcomes: Float[Array, "S A F"]  # expected facts
    termination_probabilities: Float[Array, "S A"]  # probability that the action ends the episode, whatever steps remain
    remaining_steps: Int32[Array, ""]  # steps until the time limit of the present episode, this one included


class Environment(NamedTuple):
    """A distribution over tasks. `reset` samples a task as well: one lifetime is one task, many episodes."""

    spec: EnvSpec
    reset: Callable[[Key], tuple[EnvState, TimeStep]]
    step: Callable[[Key, EnvState, Array], tuple[EnvState, TimeStep]]
    score: Callable[[Float[Array, "F"]], Float[Array, ""]]  # what the designers meant; read by evaluation alone
    reveal_task: Callable[[EnvState], TabularTask] | None = None


Steering = Callable[[Float[Array, "F"]], Float[Array, ""]]
"""outcome -> reward: human-written, without weights of its own; see `ontogeny.steering`."""


class Agent(NamedTuple):
    """How a genome becomes a life. The three laws hold for every agent, bit for bit:

    1. `act` changes activations only, `learn` weights only, `reset` restores activations only;
    2. `act` does not read `weights.scratch`;
    3. reward comes from steering alone; `Environment.score` is never shown to an agent.
    """

    genome: Callable[[Key], Genome]
    init: Callable[[Key, Genome], State]
    reset: Callable[[State], State]
    act: Callable[[Key, State, Percept], tuple[Array, State]]
    learn: Callable[[Key, State, Transition], tuple[State, Info]]
    learning: bool = False  # whether `learn` changes anything: False for what evolution makes
    privileged: bool = False  # whether percepts lay the task open: for upper bounds only


class WorldModel(NamedTuple):
    """Learned content that predicts. `query` is a predictive distribution; `update` takes evidence in."""

    init: Callable[..., PyTree]
    query: Callable[..., PyTree]
    update: Callable[..., PyTree]


class ValueFunction(NamedTuple):
    """Learned content that says what is worth reaching."""

    init: Callable[..., PyTree]
    query: Callable[..., PyTree]
    update: Callable[..., PyTree]


class OuterLoop(NamedTuple):
    """A search over genomes. Fitness is maximised, whatever the library underneath does."""

    init: Callable[[Key, Genome], PyTree]
    ask: Callable[[Key, PyTree], tuple[PyTree, PyTree]]  # -> population (genomes, leading axis P), state
    tell: Callable[[Key, PyTree, PyTree, Float[Array, "P"]], PyTree]  # population, fitness -> state
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now


class Development(NamedTuple):
    """An outer loop with everything that a resumed run needs in its state, a pytree of arrays.

    `step` is a pure function of the state: everything random in generation g is drawn from the state's seed key and g,
    so a run that is resumed anywhere ends in the same bits.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[PyTree], tuple[PyTree, Info]]  # one compiled call; Info: dict of arrays [G], one per generation
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now
    num_calls: int  # compiled calls in the whole development
    generations_per_call: int  # G, generations per compiled call
    steps_per_generation: int  # agent-environment steps of one generation, all members and lifetimes together


class Trajectory(NamedTuple):
    """The record of a life; leading axis T on every leaf."""

    observation: Shaped[Array, "T *O"]  # before the action
    first: Bool[Array, "T"]
    action: Int32[Array, "T"]  # carried out
    outcome: Float[Array, "T F"]  # of that action
    reward: Float[Array, "T"]  # of steering, for that action
    discount: Float[Array, "T"]
    info: Info
