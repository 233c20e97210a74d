"""Estimates how uncertain the outcome of an action is that has rarely been tried: an ensemble with randomized priors.

Osband et al. 2018 (arXiv 1806.03335): each of K small perceptrons is the sum of a trained one and of a fixed random
one, its prior. All are trained on the same outcomes. Where there are many, they agree; elsewhere they disagree as
much as their priors do. Their disagreement shrinks with experience, and is no measure of the chance in an outcome.

Letters: K members, I inputs, W hidden units, F outcome features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from ontogeny.content.optimizers import apply_scaled_gradient, with_optimizer_state
from ontogeny.content.perceptron import PerceptronWeights, apply_perceptron, init_perceptron
from ontogeny.content.transformer_block import Linear
from ontogeny.content.two_hot import symlog
from ontogeny.types import Key, Weights

NUM_MEMBERS = 8
WIDTH = 32  # hidden units of a member


class MemberWeights(NamedTuple):
    """The weights of perceptrons, those of all members together."""

    hidden: Float[Array, "K I W"]
    hidden_bias: Float[Array, "K W"]
    readout: Float[Array, "K W F"]
    readout_bias: Float[Array, "K F"]


class OutcomeEnsembleWeights(NamedTuple):
    """The two perceptrons of every member, whose sum is its prediction."""

    trained: MemberWeights
    prior: MemberWeights


def init_ensemble(optimizer: optax.GradientTransformation, key: Key, num_inputs: int, num_features: int) -> Weights:
    """Draws the priors; the trained parts begin at zero, so that the members disagree everywhere by about 1.

    Args:
        optimizer: Of the trained parts, of learning rate 1.
        key: Random key.
        num_inputs: I.
        num_features: F.
    """
    prior_key, trained_key = jax.random.split(key)
    prior = _init_members(prior_key, num_inputs, num_features, output_scale=2.0)  # SiLU halves the scale
    trained = _init_members(trained_key, num_inputs, num_features, output_scale=0.0)
    return Weights(OutcomeEnsembleWeights(trained, prior), with_optimizer_state(optimizer, trained).scratch)


def query_disagreement(weights: OutcomeEnsembleWeights, inputs: Float[Array, "*batch I"]) -> Float[Array, "*batch"]:
    """Returns the standard deviation of the predicted outcome features over the members, averaged over the features."""
    return jnp.mean(jnp.std(_predict(weights.trained, weights.prior, inputs), axis=0), axis=-1)


def update_ensemble(
    optimizer: optax.GradientTransformation,
    weights: Weights,
    inputs: Float[Array, "*batch I"],
    outcomes: Float[Array, "*batch F"],
    mask: Float[Array, "*batch"],
    learning_rate: Array,
) -> tuple[Weights, Array]:
    """Takes one gradient step of all members towards observed outcome features; returns the loss as well."""
    content: OutcomeEnsembleWeights = weights.content

    def loss(trained: MemberWeights) -> Array:
        errors = _predict(trained, content.prior, inputs) - symlog(outcomes)
        return jnp.sum(mask * jnp.mean(jnp.square(errors), axis=(0, -1))) / jnp.maximum(jnp.sum(mask), 1)

    loss_before, gradient = jax.value_and_grad(loss)(content.trained)
    trained, scratch = apply_scaled_gradient(
        optimizer, gradient, Weights(content.trained, weights.scratch), learning_rate
    )
    return Weights(OutcomeEnsembleWeights(trained, content.prior), scratch), loss_before


def _init_members(key: Key, num_inputs: int, num_features: int, output_scale: float) -> MemberWeights:
    """Draws K perceptrons."""

    def init(key: Key) -> MemberWeights:
        layers = init_perceptron(key, num_inputs, WIDTH, num_features, output_scale=output_scale)
        (hidden, hidden_bias), (readout, readout_bias) = layers
        assert hidden_bias is not None and readout_bias is not None
        return MemberWeights(hidden, hidden_bias, readout, readout_bias)

    return jax.vmap(init)(jax.random.split(key, NUM_MEMBERS))


def _predict(
    trained: MemberWeights, prior: MemberWeights, inputs: Float[Array, "*batch I"]
) -> Float[Array, "K *batch F"]:
    """The predictions of the members."""

    def predict(member: MemberWeights) -> Array:
        hidden, readout = Linear(member.hidden, member.hidden_bias), Linear(member.readout, member.readout_bias)
        return apply_perceptron(PerceptronWeights(hidden, readout), inputs)

    return jax.vmap(predict)(trained) + jax.vmap(predict)(prior)
