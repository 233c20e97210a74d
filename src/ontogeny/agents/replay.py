"""The scaffold of agents that act on the predictions of a predictor and train it with experience replay."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import empty_genome
from ontogeny.content.base import PredictionBatch, Predictor
from ontogeny.content.replay import ReplayConfig, ReplayScratch, buffer_position, learn_step
from ontogeny.types import Agent, Genome, Key, Percept, PyTree, State, Transition, Weights


class PredictorActivations(NamedTuple):
    """The activations."""

    memory: PyTree  # of the predictor
    inputs: Float[Array, "I"]  # the last inputs of the predictor, which `learn` stores


class ReplayAgentParts(NamedTuple):
    """What distinguishes one agent that learns with replay from another."""

    encode: Callable[[Percept], Float[Array, "I"]]
    choose: Callable[[Key, Percept, Float[Array, "K"]], Int32[Array, ""]]  # from the logits of the predictor
    init_buffer: Callable[[], PyTree]
    store: Callable[[PyTree, tuple[Array, Array], Float[Array, "I"], Transition], PyTree]  # buffer, (row, step), inputs
    make_batch: Callable[[PyTree, Int32[Array, "B"]], PredictionBatch]  # buffer, rows


def init_activations(predictor: Predictor, num_inputs: int) -> PredictorActivations:
    """Returns the activations at the start of a lifetime."""
    return PredictorActivations(predictor.init_memory(), jnp.zeros(num_inputs))


def replay_agent(predictor: Predictor, num_inputs: int, config: ReplayConfig, parts: ReplayAgentParts) -> Agent:
    """Builds the agent.

    Args:
        predictor: The learned content.
        num_inputs: Inputs of the predictor per step.
        config: Settings of learning.
        parts: Functions that are specific to the agent.
    """

    def init(key: Key, genome: Genome) -> State:
        del genome
        init_key, replay_key = jax.random.split(key)
        content = predictor.init(init_key)
        scratch = ReplayScratch(predictor.init_scratch(content), jnp.int32(0), parts.init_buffer(), replay_key)
        return State(Weights(content, scratch), init_activations(predictor, num_inputs))

    def reset(state: State) -> State:
        return State(state.weights, init_activations(predictor, num_inputs))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        inputs = parts.encode(percept)
        logits, memory = predictor.query(state.weights.content, state.activations.memory, inputs)
        return parts.choose(key, percept, logits), State(state.weights, PredictorActivations(memory, inputs))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
        del key
        content, scratch = state.weights
        position = buffer_position(config, scratch)
        buffer = parts.store(scratch.buffer, position, state.activations.inputs, transition)
        weights = learn_step(config, predictor, content, scratch._replace(buffer=buffer), parts.make_batch)
        return State(Weights(*weights), state.activations), ()

    return Agent(empty_genome, init, reset, act, learn, learning=True)
