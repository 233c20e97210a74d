"""The scaffold of agents that act on the predictions of a predictor and train it with experience replay.

Lin 1992 (Machine Learning 8:293): old sequences are learned again together with each new one. Every sequence is a row
of a buffer; its examples are pairs of inputs and a target that arrives in the same step or later.

Letters: R sequences in the buffer, L steps of a sequence, I inputs, K outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.base import empty_genome
from ontogeny.content.base import PredictionBatch, Predictor
from ontogeny.types import Agent, Genome, Key, Percept, PyTree, State, Transition, Weights


class ReplayConfig(NamedTuple):
    """The settings of learning with replay."""

    capacity: int  # R
    sequence_length: int  # L
    num_updates: int  # after each sequence
    replay_batch: int  # old sequences in each update
    num_training_steps: int  # environment steps over which the learning rate of the predictor decays


class Example(NamedTuple):
    """What one transition adds to the training examples."""

    is_start: Bool[Array, ""]  # whether the step starts a new example
    target_index: Int32[Array, ""]  # of the example that it starts
    target: Float[Array, ""]  # 0 or 1, of the latest example
    has_target: Float[Array, ""]  # 1 if the target of the latest example arrives with this transition, else 0


class PredictorActivations(NamedTuple):
    """The activations."""

    memory: PyTree  # of the predictor
    inputs: Float[Array, "I"]  # the last inputs of the predictor, which `learn` stores


class ReplayScratch(NamedTuple):
    """What `learn` alone reads."""

    predictor: PyTree  # scratch of the predictor
    num_steps: Int32[Array, ""]
    start: Int32[Array, ""]  # the step of the sequence at which the latest example started
    buffer: PredictionBatch  # leaves [R, L, ...]
    key: Key


def init_activations(predictor: Predictor, num_inputs: int) -> PredictorActivations:
    """Returns the activations at the start of a lifetime."""
    return PredictorActivations(predictor.init_memory(), jnp.zeros(num_inputs))


def replay_agent(
    predictor: Predictor,
    num_inputs: int,
    config: ReplayConfig,
    encode: Callable[[Percept], Float[Array, "I"]],
    choose: Callable[[Key, Percept, Float[Array, "K"]], Int32[Array, ""]],
    extract_example: Callable[[Transition], Example],
) -> Agent:
    """Builds the agent.

    Args:
        predictor: The learned content.
        num_inputs: Inputs of the predictor per step.
        config: Settings of learning.
        encode: Computes the inputs of the predictor.
        choose: Computes the action from the logits of the predictor.
        extract_example: Extracts what a transition adds to the training examples.
    """

    def init(key: Key, genome: Genome) -> State:
        del genome
        init_key, replay_key = jax.random.split(key)
        content, shape = predictor.init(init_key), (config.capacity, config.sequence_length)
        buffer = PredictionBatch(
            jnp.zeros((*shape, num_inputs)), jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape)
        )
        scratch = ReplayScratch(predictor.init_scratch(content), jnp.int32(0), jnp.int32(0), buffer, replay_key)
        return State(Weights(content, scratch), init_activations(predictor, num_inputs))

    def reset(state: State) -> State:
        return State(state.weights, init_activations(predictor, num_inputs))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        inputs = encode(percept)
        logits, memory = predictor.query(state.weights.content, state.activations.memory, inputs)
        return choose(key, percept, logits), State(state.weights, PredictorActivations(memory, inputs))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
        del key
        example = extract_example(transition)
        weights = _learn_step(config, predictor, state.weights, state.activations.inputs, example)
        return State(weights, state.activations), ()

    return Agent(empty_genome, init, reset, act, learn, learning=True)


def _learn_step(
    config: ReplayConfig, predictor: Predictor, weights: Weights, inputs: Float[Array, "I"], example: Example
) -> Weights:
    """Stores one step, and at the end of a sequence trains the predictor on it and on random older ones."""
    scratch: ReplayScratch = weights.scratch
    number, t = scratch.num_steps // config.sequence_length, scratch.num_steps % config.sequence_length
    row = number % config.capacity
    start = jnp.where(example.is_start, t, scratch.start)
    buffer = PredictionBatch(
        scratch.buffer.inputs.at[row, t].set(inputs),
        scratch.buffer.target_index.at[row, t].set(example.target_index),
        scratch.buffer.target.at[row, t].set(0.0).at[row, start].add(example.target * example.has_target),
        scratch.buffer.mask.at[row, t].set(0.0).at[row, start].add(example.has_target),
    )
    num_steps = scratch.num_steps + 1
    progress = jnp.minimum(num_steps / config.num_training_steps, 1.0)
    step_key = jax.random.fold_in(scratch.key, num_steps)

    def update(carry: tuple[PyTree, PyTree], update_number: Array) -> tuple[tuple[PyTree, PyTree], None]:
        key = jax.random.fold_in(step_key, update_number)
        old_rows = jax.random.randint(key, (config.replay_batch,), 0, jnp.minimum(number + 1, config.capacity))
        rows = jnp.append(row, old_rows)
        return predictor.update(*carry, jax.tree.map(lambda leaf: leaf[rows], buffer), progress), None

    def train(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(update, carry, jnp.arange(config.num_updates))[0]

    # All lifetimes of a batch have taken equally many steps, so that under `vmap` this remains a branch.
    is_complete = t == config.sequence_length - 1
    carry = weights.content, scratch.predictor
    content, predictor_scratch = jax.lax.cond(is_complete, train, lambda carry: carry, carry)
    return Weights(content, ReplayScratch(predictor_scratch, num_steps, start, buffer, scratch.key))
