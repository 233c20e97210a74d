"""Learns a recurrent latent state-space model with categorical latents: what follows each action, and what it brings.

Hafner et al. 2023 (arXiv 2301.04104, section "World model learning"): straight-through samples of categorical latents,
which a small share of a uniform distribution keeps away from certainty, two-sided Kullback-Leibler losses with free
nats, two-hot outcomes. Three differences suit small environments: observations are normalized by running statistics and
decoded with a learned scale per dimension, whose likelihood is weighted as by Seitzer et al. 2022 (arXiv 2203.09168,
beta = 0.5); outcome features and discount are predicted from the state that follows the action, before the next
observation, so that the end of an episode needs no observation; and the first percept of an episode clears the state.

One dial, `width`, sizes every layer: `width` hidden units and `width / 8` latents of 8 classes.

Letters: L steps, N samples, I inputs, O observation, W width, G latents of C classes, Z = G C, D = W + Z, F outcome
features, K bins, A actions.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32, Shaped

from ontogeny.content.base import init_dense
from ontogeny.content.gru_cell import GRUWeights, init_gru, update_hidden
from ontogeny.content.optimizers import apply_scaled_gradient, build_flat_optimizer, with_optimizer_state
from ontogeny.content.perceptron import PerceptronWeights, apply_hidden, apply_perceptron, init_perceptron
from ontogeny.content.transformer_block import Linear
from ontogeny.content.two_hot import INITIAL_LOGITS, NUM_BINS, symlog, two_hot_loss, two_hot_mean
from ontogeny.errors import require_at_least, require_one_of
from ontogeny.types import EnvSpec, Key, Weights, WorldModel

LATENTS = ("sampled", "expected")
NUM_CLASSES = 8
UNIFORM_SHARE = 0.001  # of a uniform distribution in the distribution of every latent
DYNAMICS_WEIGHT, REPRESENTATION_WEIGHT = 1.0, 0.1  # of the two Kullback-Leibler losses
FREE_NATS = 0.1  # Kullback-Leibler divergence below which the representation is not pulled towards its prediction
MIN_LOG_SCALE = -3.0  # of decoded observations, in units of their standard deviation
MIN_STANDARD_DEVIATION = 1e-3
STATISTICS_DECAY = 0.99  # of the running mean and variance of observations, per update


class LatentState(NamedTuple):
    """What the model knows about the present step."""

    hidden: Float[Array, "*batch W"]  # determined by the past
    latent: Float[Array, "*batch Z"]  # in each group of C a sample, one-hot, or probabilities


class ExperienceSequence(NamedTuple):
    """Consecutive steps, leading axes [L] or [B, L]: what was perceived, the action, and what followed it."""

    observation: Shaped[Array, "..."]  # [*batch, *O]
    is_first: Bool[Array, "*batch"]
    outcome: Float[Array, "*batch F"]  # of the action before
    action: Int32[Array, "*batch"]
    next_outcome: Float[Array, "*batch F"]  # of the action
    next_discount: Float[Array, "*batch"]
    mask: Float[Array, "*batch"]  # 0 where there is no step


class LatentModelWeights(NamedTuple):
    """The weights, and the running statistics of the observations."""

    encoder: Linear  # percept [I, W]
    posterior: PerceptronWeights  # hidden units and encoded percept -> logits of the latents
    action: Linear  # latents and action [Z + A, W]
    cell: GRUWeights  # without a read-out
    prior: PerceptronWeights  # hidden units -> logits of the latents before the observation
    decoder: PerceptronWeights  # hidden units and latents -> observation
    log_scale: Float[Array, "O"]  # of decoded vectors
    outcome: PerceptronWeights  # hidden units after an action -> outcome features [F * K] and logit of the discount
    observation_mean: Float[Array, "O"]
    observation_variance: Float[Array, "O"]
    num_updates: Float[Array, ""]


class LatentPrediction(NamedTuple):
    """The predictive distribution after an action: N equally weighted samples of the next state."""

    observation: Float[Array, "N O"]  # probabilities of discrete observations; means of the Normals of vectors
    observation_scale: Float[Array, "O"]  # standard deviations of the Normals; zero for discrete observations
    outcome_probabilities: Float[Array, "F K"]  # of the bins `two_hot.BIN_VALUES`
    discount: Float[Array, ""]


class LatentModelShape(NamedTuple):
    """The sizes that the functions of a model share."""

    width: int
    num_actions: int
    num_observations: int  # 0 for vectors
    observation_size: int
    num_features: int
    samples_latents: bool = True

    @property
    def num_latents(self) -> int:
        """G."""
        return max(2, self.width // NUM_CLASSES)

    @property
    def latent_size(self) -> int:
        """G * C."""
        return self.num_latents * NUM_CLASSES

    @property
    def state_size(self) -> int:
        """Size of a state as inputs of a head."""
        return self.width + self.latent_size


def model_shape(spec: EnvSpec, width: int, latents: str = "sampled") -> LatentModelShape:
    """Returns the sizes of the model of an environment; arguments as of `build`."""
    require_at_least(NUM_CLASSES, width=width)
    require_one_of(LATENTS, latents=latents)
    size = spec.num_observations or math.prod(spec.observation_shape)
    num_features = len(spec.outcome_features)
    return LatentModelShape(width, spec.num_actions, spec.num_observations, size, num_features, latents == "sampled")


def build(spec: EnvSpec, *, width: int = 32, latents: str = "sampled") -> WorldModel:
    """Builds the model.

    Args:
        spec: Spec of any environment.
        width: Size of every layer, at least 8.
        latents: `sampled`: a state holds samples of categorical latents; `expected`: it holds their probabilities.
    """
    shape, optimizer = model_shape(spec, width, latents), build_flat_optimizer()

    def init(key: Key) -> Weights:
        """The content are the weights, the scratch is the state of the optimizer."""
        return with_optimizer_state(optimizer, init_weights(shape, key))

    def query(
        key: Key, weights: LatentModelWeights, state: LatentState, action: Int32[Array, ""], num_samples: int = 16
    ) -> LatentPrediction:
        """The predictive distribution of next observation, outcome features and discount after an action."""
        return predict(shape, key, weights, state, action, num_samples)

    def update(
        key: Key, weights: Weights, sequences: ExperienceSequence, learning_rate: Array
    ) -> tuple[Weights, LatentState, dict[str, Array]]:
        """One gradient step; returns the weights, the states [B, L] of the sequences, and the losses."""
        content: LatentModelWeights = update_statistics(shape, weights.content, sequences)
        noise = jax.random.uniform(key, (*sequences.mask.shape, shape.num_latents))

        def loss(content: LatentModelWeights) -> tuple[Array, tuple[LatentState, dict[str, Array]]]:
            losses, states = jax.vmap(partial(sequence_losses, shape, content))(sequences, noise)
            num_steps = jnp.maximum(jnp.sum(sequences.mask), 1)
            means = {name: jnp.sum(value) / num_steps for name, value in losses.items()}
            return sum(means.values(), jnp.float32(0)), (states, means)

        gradient, (states, losses) = jax.grad(loss, has_aux=True)(content)
        weights = apply_scaled_gradient(optimizer, gradient, Weights(content, weights.scratch), learning_rate)
        return weights, jax.lax.stop_gradient(states), losses

    return WorldModel(init, query, update)


def init_weights(shape: LatentModelShape, key: Key) -> LatentModelWeights:
    """Draws initial weights; an untrained model predicts outcomes of 0, and latents without preference."""
    keys = jax.random.split(key, 7)
    W, Z, size = shape.width, shape.latent_size, shape.observation_size
    num_inputs = size + 1 + shape.num_features
    outcome_bias = jnp.append(jnp.tile(jnp.asarray(INITIAL_LOGITS, jnp.float32), shape.num_features), 2.0)
    return LatentModelWeights(
        Linear(init_dense(keys[0], num_inputs, W), jnp.zeros(W)),
        init_perceptron(keys[1], 2 * W, W, Z, output_scale=1.0),
        Linear(init_dense(keys[2], Z + shape.num_actions, W), jnp.zeros(W)),
        init_gru(keys[3], W, W, 0, update_gate_bias=1.0),
        init_perceptron(keys[6], W, W, Z),
        init_perceptron(keys[4], W + Z, W, size),
        jnp.zeros(size),
        init_perceptron(keys[5], W, W, len(outcome_bias), output_bias=outcome_bias),
        jnp.zeros(size),
        jnp.ones(size),
        jnp.float32(0),
    )


def init_state(shape: LatentModelShape) -> LatentState:
    """Returns the state before the first percept."""
    return LatentState(jnp.zeros(shape.width), jnp.zeros(shape.latent_size))


def flatten_state(state: LatentState) -> Float[Array, "*batch D"]:
    """Returns a state as inputs of a head."""
    return jnp.concatenate(state, axis=-1)


def encode_percept(
    shape: LatentModelShape,
    weights: LatentModelWeights,
    observation: Shaped[Array, "*O"],
    is_first: Bool[Array, ""],
    outcome: Float[Array, "F"],
) -> Float[Array, "W"]:
    """Encodes what is perceived in one step; the outcome of an earlier episode is left out."""
    flat = _normalize(shape, weights, observation)
    outcome = jnp.where(is_first, 0.0, symlog(outcome))
    return apply_hidden(weights.encoder, jnp.concatenate([flat, is_first[None].astype(jnp.float32), outcome]))


def advance(
    shape: LatentModelShape, weights: LatentModelWeights, state: LatentState, action: Int32[Array, ""]
) -> Float[Array, "W"]:
    """Returns the hidden units after an action, before the next observation; an action of -1 marks none."""
    inputs = jnp.concatenate([state.latent, jax.nn.one_hot(action, shape.num_actions)])
    projected = apply_hidden(weights.action, inputs) @ weights.cell.input + weights.cell.bias
    return update_hidden(weights.cell, state.hidden, projected)


def observe(
    shape: LatentModelShape,
    weights: LatentModelWeights,
    hidden: Float[Array, "W"],
    encoded: Float[Array, "W"],
    noise: Float[Array, "G"],
) -> tuple[LatentState, Float[Array, "Z"]]:
    """Samples the latents of a step that was observed; returns the state and the logits of the latents."""
    logits = apply_perceptron(weights.posterior, jnp.concatenate([hidden, encoded]))
    return LatentState(hidden, _sample(shape, logits, noise)), logits


def decide(
    shape: LatentModelShape,
    weights: LatentModelWeights,
    hidden: Float[Array, "W"],
    encoded: Float[Array, "W"],
) -> LatentState:
    """Returns the state of a step that was observed, with the most likely class of every latent."""
    logits = apply_perceptron(weights.posterior, jnp.concatenate([hidden, encoded]))
    classes = jnp.argmax(logits.reshape(shape.num_latents, NUM_CLASSES), axis=-1)
    return LatentState(hidden, jax.nn.one_hot(classes, NUM_CLASSES).reshape(shape.latent_size))


def imagine(
    shape: LatentModelShape, weights: LatentModelWeights, hidden: Float[Array, "W"], noise: Float[Array, "G"]
) -> LatentState:
    """Samples the latents of a step that is imagined."""
    return LatentState(hidden, _sample(shape, _prior_logits(weights, hidden), noise))


def predict_outcome(
    shape: LatentModelShape, weights: LatentModelWeights, hidden: Float[Array, "*batch W"]
) -> tuple[Float[Array, "*batch F"], Float[Array, "*batch"]]:
    """Returns the expected outcome features and the expected discount of the action that led to the hidden units."""
    outcome_logits, discount_logit = _outcome_logits(shape, weights, hidden)
    return two_hot_mean(outcome_logits), jax.nn.sigmoid(discount_logit)


def predict(
    shape: LatentModelShape,
    key: Key,
    weights: LatentModelWeights,
    state: LatentState,
    action: Int32[Array, ""],
    num_samples: int,
) -> LatentPrediction:
    """Returns the predictive distribution after an action."""
    hidden = advance(shape, weights, state, action)
    noise = jax.random.uniform(key, (num_samples, shape.num_latents))
    next_state = jax.vmap(partial(imagine, shape, weights, hidden))(noise)
    decoded = apply_perceptron(weights.decoder, flatten_state(next_state))
    outcome_logits, discount_logit = _outcome_logits(shape, weights, hidden)
    probabilities, discount = jax.nn.softmax(outcome_logits), jax.nn.sigmoid(discount_logit)
    if shape.num_observations:
        no_scale = jnp.zeros(shape.observation_size)
        return LatentPrediction(jax.nn.softmax(decoded), no_scale, probabilities, discount)
    unit = _standard_deviation(weights)
    means, scale = weights.observation_mean + unit * decoded, unit * jnp.exp(_log_scale(weights))
    return LatentPrediction(means, scale, probabilities, discount)


def infer_states(
    shape: LatentModelShape, key: Key, weights: LatentModelWeights, sequences: ExperienceSequence
) -> LatentState:
    """Returns the states [B, L] of sequences."""
    noise = jax.random.uniform(key, (*sequences.mask.shape, shape.num_latents))
    return jax.vmap(partial(sequence_losses, shape, weights))(sequences, noise)[1]


def update_statistics(
    shape: LatentModelShape, weights: LatentModelWeights, sequences: ExperienceSequence
) -> LatentModelWeights:
    """Moves the running mean and variance of vector observations towards those of a batch of sequences."""
    if shape.num_observations:
        return weights
    num_updates = weights.num_updates + 1
    rate = jnp.maximum(1 / num_updates, 1 - STATISTICS_DECAY)
    observations = sequences.observation.reshape(-1, shape.observation_size).astype(jnp.float32)
    share = sequences.mask.reshape(-1, 1) / jnp.maximum(jnp.sum(sequences.mask), 1)
    mean = jnp.sum(share * observations, axis=0)
    variance = jnp.sum(share * jnp.square(observations - mean), axis=0)
    change = mean - weights.observation_mean
    return weights._replace(
        observation_mean=weights.observation_mean + rate * change,
        observation_variance=(1 - rate) * (weights.observation_variance + rate * jnp.square(change)) + rate * variance,
        num_updates=num_updates,
    )


def sequence_losses(
    shape: LatentModelShape,
    weights: LatentModelWeights,
    sequence: ExperienceSequence,
    noise: Float[Array, "L G"],
) -> tuple[dict[str, Float[Array, "L"]], LatentState]:
    """Computes the losses of every step of a sequence in nats, and its states [L]; the first step clears the state."""
    encoded = jax.vmap(partial(encode_percept, shape, weights))(
        sequence.observation, sequence.is_first, sequence.outcome
    )
    is_start = sequence.is_first.at[0].set(True)

    def step(hidden: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[LatentState, Array, Array]]:
        starts, encoded_step, action, noise_step = inputs
        state, logits = observe(shape, weights, jnp.where(starts, 0.0, hidden), encoded_step, noise_step)
        after = advance(shape, weights, state, action)
        return after, (state, logits, after)

    scanned = (is_start, encoded, sequence.action, noise)
    states, posterior_logits, after = jax.lax.scan(step, jnp.zeros(shape.width), scanned)[1]
    outcome_logits, discount_logit = _outcome_logits(shape, weights, after)
    # The state that a sequence starts from within an episode is unknown, so that nothing predicts its latents.
    is_predicted = sequence.mask * (sequence.is_first | ~is_start)
    dynamics, representation = _divergences(shape, posterior_logits, _prior_logits(weights, states.hidden))
    losses = {
        "observation_loss": sequence.mask * _observation_loss(shape, weights, states, sequence.observation),
        "outcome_loss": sequence.mask * jnp.sum(two_hot_loss(outcome_logits, sequence.next_outcome), axis=-1),
        "discount_loss": sequence.mask * _binary_loss(discount_logit, sequence.next_discount),
        "dynamics_loss": is_predicted * DYNAMICS_WEIGHT * dynamics,
        "representation_loss": is_predicted * REPRESENTATION_WEIGHT * jnp.maximum(representation, FREE_NATS),
    }
    return losses, states


def _prior_logits(weights: LatentModelWeights, hidden: Float[Array, "*batch W"]) -> Float[Array, "*batch Z"]:
    """The logits of the latents before the observation."""
    return apply_perceptron(weights.prior, hidden)


def _outcome_logits(
    shape: LatentModelShape, weights: LatentModelWeights, hidden: Float[Array, "*batch W"]
) -> tuple[Float[Array, "*batch F K"], Float[Array, "*batch"]]:
    """The logits of the bins of every outcome feature, and the logit of the discount."""
    outputs = apply_perceptron(weights.outcome, hidden)
    return outputs[..., :-1].reshape(*hidden.shape[:-1], shape.num_features, NUM_BINS), outputs[..., -1]


def _probabilities(shape: LatentModelShape, logits: Float[Array, "*batch Z"]) -> Float[Array, "*batch G C"]:
    """The distribution of every latent."""
    grouped = jax.nn.softmax(logits.reshape(*logits.shape[:-1], shape.num_latents, NUM_CLASSES))
    return (1 - UNIFORM_SHARE) * grouped + UNIFORM_SHARE / NUM_CLASSES


def _sample(shape: LatentModelShape, logits: Float[Array, "Z"], noise: Float[Array, "G"]) -> Float[Array, "Z"]:
    """Latents by inversion of their distribution functions, with the gradient of their probabilities; or the latter."""
    probabilities = _probabilities(shape, logits)
    if not shape.samples_latents:
        return probabilities.reshape(logits.shape)
    index = jnp.sum(jnp.cumsum(probabilities, axis=-1)[..., :-1] < noise[..., None], axis=-1)
    sample = jax.nn.one_hot(index, NUM_CLASSES)
    return (sample + probabilities - jax.lax.stop_gradient(probabilities)).reshape(logits.shape)


def _divergences(
    shape: LatentModelShape, posterior_logits: Float[Array, "L Z"], prior_logits: Float[Array, "L Z"]
) -> tuple[Float[Array, "L"], Float[Array, "L"]]:
    """The divergence of the posterior from the prior, twice: with the gradient of the prior, and of the posterior."""
    posterior, prior = _probabilities(shape, posterior_logits), _probabilities(shape, prior_logits)

    def divergence(posterior: Array, prior: Array) -> Array:
        return jnp.sum(posterior * (jnp.log(posterior) - jnp.log(prior)), axis=(-2, -1))

    stop = jax.lax.stop_gradient
    return divergence(stop(posterior), prior), divergence(posterior, stop(prior))


def _observation_loss(
    shape: LatentModelShape, weights: LatentModelWeights, states: LatentState, observations: Array
) -> Float[Array, "L"]:
    """The negative log-likelihood of the observations, which vectors weight by their scale."""
    decoded = apply_perceptron(weights.decoder, flatten_state(states))
    if shape.num_observations:
        return -jnp.take_along_axis(jax.nn.log_softmax(decoded), observations[..., None], axis=-1)[..., 0]
    target = _standardize(shape, weights, observations)
    log_scale = _log_scale(weights)
    losses = 0.5 * jnp.square((target - decoded) * jnp.exp(-log_scale)) + log_scale
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_scale)) * losses, axis=-1)


def _binary_loss(logit: Array, target: Array) -> Array:
    """The cross-entropy of a probability with a target between 0 and 1."""
    return jax.nn.softplus(logit) - target * logit


def _log_scale(weights: LatentModelWeights) -> Float[Array, "O"]:
    """The learned scale of decoded observations, bounded from below."""
    return MIN_LOG_SCALE + jax.nn.softplus(weights.log_scale - MIN_LOG_SCALE)


def _standard_deviation(weights: LatentModelWeights) -> Float[Array, "O"]:
    """The standard deviation of the observations so far."""
    deviation = jnp.sqrt(jnp.maximum(weights.observation_variance, MIN_STANDARD_DEVIATION**2))
    return jax.lax.stop_gradient(deviation)


def _standardize(shape: LatentModelShape, weights: LatentModelWeights, observations: Array) -> Array:
    """Vectors [*batch, *O] -> [*batch, O] by the running statistics; outliers are compressed by no more than a log."""
    flat = observations.reshape(*observations.shape[:1], shape.observation_size).astype(jnp.float32)
    return (flat - jax.lax.stop_gradient(weights.observation_mean)) / _standard_deviation(weights)


def _normalize(shape: LatentModelShape, weights: LatentModelWeights, observation: Array) -> Float[Array, "O"]:
    """One observation as inputs of the encoder: one-hot, or standardized and compressed."""
    if shape.num_observations:
        return jax.nn.one_hot(observation, shape.num_observations)
    return symlog(_standardize(shape, weights, observation[None])[0])
