"""What organisms share: scaffolds for those that choose at a start, that walk, and that hold a memory twice."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent, require_bandit
from ontogeny.content import beta_bernoulli
from ontogeny.content.beta_bernoulli import ArmCounts
from ontogeny.environments import beacon, stream
from ontogeny.environments.base import next_cell
from ontogeny.errors import BadInput
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, PyTree, State, Steering, Transition, Weights

TEMPERATURE = 0.2  # of choices among values
RATE = 0.3  # of learning, where a file does not say otherwise


class Step(NamedTuple):
    """What one step showed, as organisms take it in. Where: 0 ... A-1, the actions at the start, or A + p, place p."""

    where: Array  # [] int32
    to: Array  # [] int32, the place after it, as a where; meaningless if `ended`
    reward: Array  # []
    ended: Array  # [] bool, a true end: `reward` is the payout
    cut: Array  # [] bool, nothing was shown: neither a payout nor what comes after


class Seen(NamedTuple):
    """The activations of a chooser."""

    place: Array  # [] int32, the last observation
    memory: PyTree


def chooser(
    name: str,
    spec: EnvSpec,
    memory: PyTree,
    taken_in: Callable[[PyTree, Step], PyTree],
    values: Callable[[PyTree], Array],
    *,
    temperature: float = TEMPERATURE,
) -> Agent:
    """Chooses by softmax at the start of a trial, by `values(memory)` [A]; takes in every step it lives.

    Its draws come from the step's key alone, so that two lives on one tape choose alike until their memories differ.
    """
    needs_choice(name, spec)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        held = with_step(spec, state.activations, percept, taken_in)
        action = jax.random.categorical(key, values(held.memory) / temperature)
        action = jnp.where(percept.observation == 0, action, 0)  # elsewhere there is nothing to choose
        return action.astype(jnp.int32), State(state.weights, held)

    return fixed_weights_agent(empty_genome, lambda: Seen(jnp.int32(0), memory), act)


def with_step(spec: EnvSpec, seen: Seen, percept: Percept, taken_in: Callable[[PyTree, Step], PyTree]) -> Seen:
    """The memory after the step that led to `percept`; as it was at birth, where no step came before."""
    step = step_of(spec, seen.place, percept)
    later = taken_in(seen.memory, step)
    memory = jax.tree.map(lambda new, old: jnp.where(percept.action >= 0, new, old), later, seen.memory)
    return Seen(percept.observation, memory)


def step_of(spec: EnvSpec, place: Array, percept: Percept) -> Step:
    A = spec.num_actions
    where = jnp.where(place == 0, jnp.maximum(percept.action, 0), A + place)
    ended, cut = percept.first & (percept.discount == 0), percept.first & (percept.discount > 0)
    return Step(where, A + percept.observation, percept.reward, ended, cut)


def num_places(spec: EnvSpec) -> int:
    """W, how many values a `Step.where` may take."""
    return spec.num_actions + spec.num_observations


def mover(name: str, spec: EnvSpec, move: Callable[[Key, beacon.BeaconObservation], Array]) -> Agent:
    """Walks the grid of the environment `beacon` by what it sees; nothing is held."""
    if spec.name != "beacon":
        raise BadInput(f"organism '{name}' lives in the environment 'beacon', not in '{spec.name}'")

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        return move(key, beacon.parse_observation(percept.observation)).astype(jnp.int32), state

    return fixed_weights_agent(empty_genome, tuple, act)


def towards(key: Key, view: beacon.BeaconObservation, target: Array) -> Array:
    """The move on a shortest way to a cell, by search; ties by chance."""
    away = beacon.distances_to(view.walls, target)
    return random_argmax(key, -jnp.stack([away[next_cell(view.walls, view.cell, a)] for a in range(4)]).astype(jnp.float32))


def needs_choice(name: str, spec: EnvSpec) -> None:
    """Raises `BadInput` in an environment where more than the start asks for a choice."""
    if spec.name not in ("bandit", "chain", "two_step"):
        raise BadInput(f"organism '{name}' lives in 'bandit', 'chain' and 'two_step', not in '{spec.name}'")


class Memory(NamedTuple):
    """The activations."""

    counts: ArmCounts
    mine: Array  # [] bool, whether the last action was chosen by what activations hold


def hybrid(
    name: str,
    spec: EnvSpec,
    steering: Steering,
    by_activations: Callable[[Key, ArmCounts, ArmCounts], Array],
    shared: bool,
) -> Agent:
    """Thompson sampling from one of two memories; `by_activations(key, held, kept)` says whether from activations.

    `shared`: both memories take in every pull; otherwise each takes in only those that it chose.
    """
    require_bandit(name, spec)
    arms = beta_bernoulli.bandit_prior(spec, steering)

    def fresh() -> Memory:
        return Memory(beta_bernoulli.init_counts(arms), jnp.bool_(False))

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(beta_bernoulli.init_counts(arms)), fresh())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        who_key, draw_key, tie_key = jax.random.split(key, 3)
        kept, memory = state.weights.content, state.activations
        counted = beta_bernoulli.update_counts(arms, memory.counts, percept)
        takes = jnp.bool_(shared) | memory.mine
        held = jax.tree.map(lambda new, old: jnp.where(takes, new, old), counted, memory.counts)
        mine = by_activations(who_key, held, kept)
        source = jax.tree.map(lambda a, w: jnp.where(mine, a, w), held, kept)
        action = random_argmax(tie_key, beta_bernoulli.sample_posterior(draw_key, arms, source))
        return action, State(state.weights, Memory(held, mine))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        kept = state.weights.content
        counted = beta_bernoulli.update_counts(arms, kept, transition.next_percept)
        takes = jnp.bool_(shared) | ~state.activations.mine
        kept = jax.tree.map(lambda new, old: jnp.where(takes, new, old), counted, kept)
        return State(Weights(kept), state.activations), ()

    return Agent(empty_genome, init, lambda state: State(state.weights, fresh()), act, learn, learning=True)


class Filtered(NamedTuple):
    """The activations of a filter."""

    known: Array  # [K] logarithms of weights of the biases
    ease: Array  # [] of the last item that was reported on


def filterer(name: str, spec: EnvSpec, report: Callable[[Key, Array, Array], Array]) -> Agent:
    """Reports on the items of a `stream` by `report(key, exact probability, direction)`, [] from 0 to 1.

    The exact posterior predictive follows the items as they came and the eases as they were shown.
    """
    if spec.name != "stream":
        raise BadInput(f"organism '{name}' lives in the environment 'stream', not in '{spec.name}'")
    biases = jnp.asarray(stream.BIASES)

    def fresh() -> Filtered:
        return Filtered(stream.initial_log_weights(biases), jnp.float32(1))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        ease, direction, begins = percept.observation
        known, before = state.activations
        learned = stream.update_log_weights(known, biases, before, percept.outcome[stream.ITEM])
        known = jnp.where(begins > 0.5, stream.initial_log_weights(biases), learned)
        said = report(key, stream.predictive_probability(known, biases, ease), direction)
        return stream.nearest_report(said, spec.num_actions), State(state.weights, Filtered(known, ease))

    return fixed_weights_agent(empty_genome, fresh, act)


def sharpened(probability: Array, power: float) -> Array:
    """The odds of a probability to a power: above 1 more confident than it should be, below less."""
    return jax.nn.sigmoid(power * (jnp.log(probability) - jnp.log1p(-probability)))


def seeker(name: str, spec: EnvSpec, rate: float, worth: Callable[[Percept], Array]) -> Agent:
    """Takes the arm of a bandit that is worth most by a running mean of `worth(percept)`, held in activations."""
    require_bandit(name, spec)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        pulled = jax.nn.one_hot(percept.action, spec.num_actions)  # all zeros at birth
        held = state.activations + rate * pulled * (worth(percept) - state.activations)
        return jax.random.categorical(key, held / TEMPERATURE).astype(jnp.int32), State(state.weights, held)

    return fixed_weights_agent(empty_genome, lambda: jnp.zeros(spec.num_actions), act)
