"""Common parts of the model organisms: builders for agents that choose, move, predict or hold a memory twice.

Letters: A actions, W values of `TrialStep.position`, K item biases.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent, require_bandit
from ontogeny.content import beta_bernoulli
from ontogeny.content.beta_bernoulli import ArmCounts
from ontogeny.environments import beacon, stream
from ontogeny.environments.base import choose_tree, distances_to, next_cell
from ontogeny.errors import BadInput
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, PyTree, State, Steering, Transition, Weights

TEMPERATURE = 0.2  # of the softmax over values
LEARNING_RATE = 0.3  # where an organism does not state another
HAZARD = 0.02  # probability per payout that the other hidden state begins
LIKELIHOOD = 0.9  # of a payout in the hidden state that predicts it


class TrialStep(NamedTuple):
    """One step of a trial. A position is an action at the start, 0 ... A-1, or A + p at place p."""

    position: Array  # [] int32
    next_position: Array  # [] int32, of the place after the step; meaningless if `is_end`
    reward: Array  # []
    is_end: Array  # [] bool, the episode terminates and `reward` is the payout
    is_cut: Array  # [] bool, the episode is truncated: neither a payout nor the next place is observed


class StepMemoryInput(NamedTuple):
    """What an organism that chooses at every step remembers from: the last observation and the percept after it."""

    last_observation: Array
    percept: Percept  # its action is the last one


class ChooserActivations(NamedTuple):
    """The activations of an organism that chooses at the start of a trial."""

    place: Array  # [] int32, the last observation
    memory: PyTree


class LinkModel(NamedTuple):
    """A learned model of the single links of a chain."""

    transitions: Array  # [W, W] probabilities, by position and next position
    rewards: Array  # [W], by position


class HybridActivations(NamedTuple):
    """The activations of a hybrid organism."""

    counts: ArmCounts
    from_activations: Array  # [] bool, whether activations determined the last action


class FilterActivations(NamedTuple):
    """The activations of a filter."""

    belief: Array  # [K] log weights of the item biases
    predictability: Array  # [] of the last item


def build_chooser(
    name: str,
    spec: EnvSpec,
    memory: PyTree,
    update: Callable[[Any, TrialStep], PyTree],
    values: Callable[[Any], Array],
    *,
    temperature: float = TEMPERATURE,
) -> Agent:
    """Builds an organism that chooses by softmax at the start of a trial and updates a memory at every step.

    All its random draws come from the key of the step, so twin lifetimes choose alike until their memories differ.

    Args:
        memory: Initial memory, part of the activations.
        update: Maps the memory and a step to the next memory.
        values: Maps the memory to the values of the actions, [A].
        temperature: Of the softmax, greater than 0.
    """
    require_choice_env(name, spec)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        place, memory = state.activations
        has_acted = percept.action >= 0
        memory = choose_tree(has_acted, update(memory, to_trial_step(spec, place, percept)), memory)
        action = jax.random.categorical(key, values(memory) / temperature)
        action = jnp.where(percept.observation == 0, action, 0)  # only the start offers a choice
        return action.astype(jnp.int32), State(state.weights, ChooserActivations(percept.observation, memory))

    return fixed_weights_agent(empty_genome, lambda: ChooserActivations(jnp.int32(0), memory), act)


def build_stepwise(
    name: str,
    spec: EnvSpec,
    env_names: tuple[str, ...],
    memory: PyTree,
    update: Callable[[Any, StepMemoryInput], PyTree],
    choose: Callable[[Key, Any, Percept], Array],
) -> Agent:
    """Builds an organism that chooses at every step, with everything that it remembers in activations.

    Args:
        env_names: The environments in which it can act.
        memory: Initial memory.
        update: Maps the memory and the last step to the next memory; it is not called at the first step of a lifetime.
        choose: Maps a key, the memory and the percept to an action.
    """
    require_env(name, spec, *env_names)
    blank = jnp.zeros(spec.observation_shape, jnp.float32 if spec.observation_shape else jnp.int32)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        observation, memory = state.activations
        updated = update(memory, StepMemoryInput(observation, percept))
        memory = choose_tree(percept.action >= 0, updated, memory)
        return choose(key, memory, percept).astype(jnp.int32), State(state.weights, (percept.observation, memory))

    return fixed_weights_agent(empty_genome, lambda: (blank, memory), act)


def to_trial_step(spec: EnvSpec, place: Array, percept: Percept) -> TrialStep:
    """Returns the step from `place` that led to a percept."""
    A = spec.num_actions
    position = jnp.where(place == 0, jnp.maximum(percept.action, 0), A + place)
    is_end, is_cut = percept.first & (percept.discount == 0), percept.first & (percept.discount > 0)
    return TrialStep(position, A + percept.observation, percept.reward, is_end, is_cut)


def num_positions(spec: EnvSpec) -> int:
    """Returns W, the number of values of `TrialStep.position`."""
    return spec.num_actions + spec.num_observations


def initial_model(spec: EnvSpec) -> LinkModel:
    """Returns the link model before any experience."""
    W = num_positions(spec)
    return LinkModel(jnp.zeros((W, W)), jnp.zeros(W))


def update_model(model: LinkModel, step: TrialStep, rate: float) -> LinkModel:
    """Moves the model of one link towards its observed successor and reward."""
    step_rate = jnp.where(step.is_cut, 0.0, rate)
    successor = jnp.where(step.is_end, 0.0, jax.nn.one_hot(step.next_position, len(model.rewards)))
    transitions = model.transitions.at[step.position].add(step_rate * (successor - model.transitions[step.position]))
    rewards = model.rewards.at[step.position].add(step_rate * (step.reward - model.rewards[step.position]))
    return LinkModel(transitions, rewards)


def plan_values(model: LinkModel, spec: EnvSpec) -> Array:
    """Returns the action values [A] at the start of a trial, by backups over the horizon.

    Only the first step of a trial is a choice, so no backup takes a maximum.
    """

    def back_up(values: Array, _: None) -> tuple[Array, None]:
        return model.rewards + model.transitions @ values, None

    return jax.lax.scan(back_up, jnp.zeros(len(model.rewards)), length=spec.horizon)[0][: spec.num_actions]


def update_latent_belief(belief: Array, step: TrialStep) -> Array:
    """Updates the belief [2] about which of the two last places, or of two arms, pays at present."""
    parity = step.position % 2
    indicated = jnp.where(step.reward > 0, parity, 1 - parity)
    updated = belief * jnp.where(jnp.arange(2) == indicated, LIKELIHOOD, 1 - LIKELIHOOD)
    updated = updated / jnp.sum(updated)
    updated = (1 - HAZARD) * updated + HAZARD * updated[::-1]
    return jnp.where(step.is_end | (jnp.abs(step.reward) > 0), updated, belief)


def build_mover(name: str, spec: EnvSpec, move: Callable[[Key, beacon.BeaconObservation], Array]) -> Agent:
    """Builds an organism without memory that moves in the grid of `beacon` by `move(key, view)`."""
    require_env(name, spec, "beacon")

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        return move(key, beacon.parse_observation(percept.observation)).astype(jnp.int32), state

    return fixed_weights_agent(empty_genome, tuple, act)


def move_towards(key: Key, view: beacon.BeaconObservation, target: Array) -> Array:
    """Returns the move on a shortest way to a cell; ties are broken at random."""
    steps = distances_to(view.walls, target)
    lengths = jnp.stack([steps[next_cell(view.walls, view.cell, action)] for action in range(4)])
    return random_argmax(key, -lengths.astype(jnp.float32))


def require_env(name: str, spec: EnvSpec, *env_names: str) -> None:
    """Raises `BadInput` in any environment but the named ones."""
    if spec.name not in env_names:
        raise BadInput(f"organism '{name}' requires the environment {' or '.join(env_names)}, not '{spec.name}'")


def require_choice_env(name: str, spec: EnvSpec) -> None:
    """Raises `BadInput` in an environment where more than the start offers a choice."""
    require_env(name, spec, "bandit", "chain", "two_step")


def build_hybrid(
    name: str,
    spec: EnvSpec,
    steering: Steering,
    uses_activations: Callable[[Key, ArmCounts, ArmCounts], Array],
    *,
    is_shared: bool,
) -> Agent:
    """Builds Thompson sampling with two memories, one in activations and one in weights.

    Args:
        uses_activations: Maps a key, the counts in activations and those in weights to whether activations determine
            the next action, [] bool.
        is_shared: Whether both memories count every pull; otherwise each counts only the pulls that it determined.
    """
    require_bandit(name, spec)
    arms = beta_bernoulli.bandit_prior(spec, steering)

    def initial_activations() -> HybridActivations:
        return HybridActivations(beta_bernoulli.init_counts(arms), jnp.bool_(False))

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(beta_bernoulli.init_counts(arms)), initial_activations())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        source_key, draw_key, tie_key = jax.random.split(key, 3)
        in_weights, activations = state.weights.content, state.activations
        in_activations = count_pull(activations.counts, percept, activations.from_activations)
        from_activations = uses_activations(source_key, in_activations, in_weights)
        source = choose_tree(from_activations, in_activations, in_weights)
        action = random_argmax(tie_key, beta_bernoulli.sample_posterior(draw_key, arms, source))
        return action, State(state.weights, HybridActivations(in_activations, from_activations))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        in_weights = count_pull(state.weights.content, transition.next_percept, ~state.activations.from_activations)
        return State(Weights(in_weights), state.activations), ()

    def count_pull(counts: ArmCounts, percept: Percept, is_own: Array) -> ArmCounts:
        is_counted = jnp.bool_(is_shared) | is_own
        return choose_tree(is_counted, beta_bernoulli.update_counts(arms, counts, percept), counts)

    return Agent(
        empty_genome, init, lambda state: State(state.weights, initial_activations()), act, learn, learning=True
    )


def build_filter(name: str, spec: EnvSpec, report: Callable[[Key, Array, Array], Array]) -> Agent:
    """Builds an organism that predicts the items of a `stream` from the exact posterior predictive.

    Args:
        report: Maps a key, the exact probability and the direction to the reported probability, [].
    """
    require_env(name, spec, "stream")
    biases = jnp.asarray(stream.BIASES)

    def initial_activations() -> FilterActivations:
        return FilterActivations(stream.initial_log_weights(biases), jnp.float32(1))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        predictability, direction, _ = percept.observation
        belief, last_predictability = state.activations
        updated = stream.update_log_weights(belief, biases, last_predictability, percept.outcome[stream.ITEM])
        belief = jnp.where(stream.last_item(percept) == 0, stream.initial_log_weights(biases), updated)
        probability = report(key, stream.predictive_probability(belief, biases, predictability), direction)
        activations = FilterActivations(belief, predictability)
        return stream.nearest_report(probability, spec.num_actions), State(state.weights, activations)

    return fixed_weights_agent(empty_genome, initial_activations, act)


def build_counter(name: str, spec: EnvSpec, bias: float) -> Agent:
    """Builds a predictor that counts items.

    Args:
        name: Of the organism.
        bias: Added to the share of ones in the direction of predictability.
    """
    prior = jnp.ones(2)  # pseudo-counts of 0 and 1

    def update(counts: Array, step: StepMemoryInput) -> Array:
        item = (step.percept.outcome[stream.ITEM] > 0.5).astype(jnp.int32)
        return jnp.where(step.percept.observation[stream.BEGINS] > 0.5, prior, counts.at[item].add(1.0))

    def choose(key: Key, counts: Array, percept: Percept) -> Array:
        probability = counts[1] / jnp.sum(counts) + bias * percept.observation[stream.DIRECTION]
        return stream.nearest_report(probability, spec.num_actions)

    return build_stepwise(name, spec, ("stream",), prior, update, choose)


def scale_log_odds(probability: Array, factor: float) -> Array:
    """Multiplies the log odds of a probability: a factor above 1 makes it overconfident, below 1 underconfident."""
    return jax.nn.sigmoid(factor * (jnp.log(probability) - jnp.log1p(-probability)))


def build_seeker(name: str, spec: EnvSpec, rate: float, value: Callable[[Percept], Array]) -> Agent:
    """Builds an organism that pulls the arm with the highest running mean of `value(percept)`, by softmax."""
    require_bandit(name, spec)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        pulled = jax.nn.one_hot(percept.action, spec.num_actions)  # all zero before the first action
        means = state.activations + rate * pulled * (value(percept) - state.activations)
        return jax.random.categorical(key, means / TEMPERATURE).astype(jnp.int32), State(state.weights, means)

    return fixed_weights_agent(empty_genome, lambda: jnp.zeros(spec.num_actions), act)
