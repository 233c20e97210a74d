"""A recurrent latent state-space model as a predictor of sequences, which also learns to predict its own inputs.

The model is that of the agent `neural_model_based` (`content.latent_model`, after Hafner et al. 2023, arXiv
2301.04104): the inputs of a step are its observation, a new sequence clears its state, and nothing acts. A head of one
hidden layer reads the predicted quantities from the state. An update is one gradient step on the log loss of the
targets plus the losses of the model, with sampled latents; queries take the most likely class of every latent, so that
they are determined by weights and inputs.

Letters: B sequences, L steps, I inputs, K outputs, W width, G latents.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import latent_model
from ontogeny.content.base import OUTPUTS, PredictionBatch, Predictor, starts_sequence, target_losses
from ontogeny.content.latent_model import ExperienceSequence, LatentModelShape, LatentModelWeights
from ontogeny.content.optimizers import apply_scaled_gradient, build_flat_optimizer, cosine_decay
from ontogeny.content.perceptron import PerceptronWeights, apply_perceptron, init_perceptron
from ontogeny.errors import require_at_least, require_one_of
from ontogeny.rng import key_from_seed
from ontogeny.types import Key, PyTree, Weights

NO_ACTION = 0  # the only one: nothing acts in a sequence
NOISE_SEED = 0  # of the latents that updates sample; the number of the update is folded in


class LatentPredictorWeights(NamedTuple):
    """The model of the inputs, and the head that predicts."""

    model: LatentModelWeights
    head: PerceptronWeights  # state -> logits


class LatentPredictorScratch(NamedTuple):
    """What updates alone read."""

    optimizer_state: optax.OptState
    num_updates: Int32[Array, ""]


def sequence_predictor(num_inputs: int, num_outputs: int, width: int, learning_rate: float, outputs: str) -> Predictor:
    """Builds a predictor from a latent state-space model of its inputs; the arguments are as in `latent_predictor`."""
    require_one_of(OUTPUTS, outputs=outputs)
    require_at_least(latent_model.NUM_CLASSES, width=width)
    shape = LatentModelShape(width, NO_ACTION + 1, num_observations=0, observation_size=num_inputs, num_features=0)
    optimizer, schedule = build_flat_optimizer(), cosine_decay(learning_rate)

    def init(key: Key) -> LatentPredictorWeights:
        model_key, head_key = jax.random.split(key)
        head = init_perceptron(head_key, shape.state_size, width, num_outputs)
        # The read-out of the recurrent cell has no elements, and `jax.lax.map` over runs refuses such arrays.
        drop_empty = partial(jax.tree.map, lambda leaf: leaf if leaf.size else None)
        return LatentPredictorWeights(drop_empty(latent_model.init_weights(shape, model_key)), head)

    def init_scratch(weights: PyTree) -> LatentPredictorScratch:
        return LatentPredictorScratch(optimizer.init(weights), jnp.int32(0))

    def init_memory() -> Float[Array, "W"]:
        return jnp.zeros(width)

    def query(
        weights: LatentPredictorWeights, hidden: Float[Array, "W"], inputs: Float[Array, "I"]
    ) -> tuple[Float[Array, "K"], Float[Array, "W"]]:
        is_start = starts_sequence(inputs)
        encoded = latent_model.encode_percept(shape, weights.model, inputs, is_start, jnp.zeros(0))
        state = latent_model.decide(shape, weights.model, jnp.where(is_start, 0.0, hidden), encoded)
        logits = apply_perceptron(weights.head, latent_model.flatten_state(state))
        return logits, latent_model.advance(shape, weights.model, state, jnp.int32(NO_ACTION))

    def query_sequence(weights: LatentPredictorWeights, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        def step(hidden: Array, step_inputs: Array) -> tuple[Array, Array]:
            logits, hidden = query(weights, hidden, step_inputs)
            return hidden, logits

        return jax.lax.scan(step, init_memory(), inputs)[1]

    def update(
        weights: LatentPredictorWeights, scratch: LatentPredictorScratch, batch: PredictionBatch, progress: Array
    ) -> tuple[LatentPredictorWeights, LatentPredictorScratch]:
        key = jax.random.fold_in(key_from_seed(NOISE_SEED), scratch.num_updates)
        noise = jax.random.uniform(key, (*batch.mask.shape, shape.num_latents))
        sequences = jax.vmap(as_experience)(batch.inputs.astype(jnp.float32))  # inputs may be in half precision

        def loss(weights: LatentPredictorWeights) -> Array:
            losses_of = partial(latent_model.sequence_losses, shape, weights.model)
            model_losses, states = jax.vmap(losses_of)(sequences, noise)
            logits = apply_perceptron(weights.head, latent_model.flatten_state(states))
            prediction = jnp.sum(batch.mask * target_losses(logits, batch, outputs))
            means = [jnp.mean(step_losses) for step_losses in model_losses.values()]
            return prediction / jnp.maximum(jnp.sum(batch.mask), 1) + sum(means, jnp.float32(0))

        state = Weights(weights, scratch.optimizer_state)
        state = apply_scaled_gradient(optimizer, jax.grad(loss)(weights), state, jnp.asarray(schedule(progress)))
        return state.content, LatentPredictorScratch(state.scratch, scratch.num_updates + 1)

    return Predictor(init, init_scratch, init_memory, query, query_sequence, update)


def as_experience(inputs: Float[Array, "L I"]) -> ExperienceSequence:
    """Returns a sequence of inputs as the experience of the model: observations without actions and outcomes.

    The discount after a step is 0 where the next step starts a new sequence.
    """
    num_steps = len(inputs)
    is_start = starts_sequence(inputs)
    no_outcome = jnp.zeros((num_steps, 0))
    return ExperienceSequence(
        inputs,
        is_start,
        no_outcome,
        jnp.full(num_steps, NO_ACTION, jnp.int32),
        no_outcome,
        1.0 - jnp.append(is_start[1:], False),
        jnp.ones(num_steps),
    )
