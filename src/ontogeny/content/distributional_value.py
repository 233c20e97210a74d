"""Estimates the return that follows a latent state, as a two-hot distribution; targets are lambda returns.

Hafner et al. 2023 (arXiv 2301.04104, section "Critic learning"). The targets bootstrap from a slow copy of the weights.

Letters: T steps, I inputs.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.content.optimizers import apply_scaled_gradient, build_flat_optimizer, with_optimizer_state
from ontogeny.content.perceptron import PerceptronWeights, apply_perceptron, init_perceptron
from ontogeny.content.two_hot import INITIAL_LOGITS, NUM_BINS, two_hot_loss, two_hot_mean
from ontogeny.types import Key, ValueFunction, Weights


def build(num_inputs: int, *, width: int = 32) -> ValueFunction:
    """Builds the value function.

    Args:
        num_inputs: I, the size of a latent state.
        width: Hidden units.
    """
    optimizer = build_flat_optimizer()

    def init(key: Key) -> Weights:
        """The content is the perceptron, the scratch the state of its optimizer."""
        weights = init_perceptron(key, num_inputs, width, NUM_BINS, output_bias=INITIAL_LOGITS)
        return with_optimizer_state(optimizer, weights)

    def query(weights: PerceptronWeights, inputs: Float[Array, "*batch I"]) -> Float[Array, "*batch"]:
        """The expected return."""
        return two_hot_mean(apply_perceptron(weights, inputs))

    def update(
        weights: Weights, inputs: Float[Array, "*batch I"], returns: Array, importance: Array, learning_rate: Array
    ) -> tuple[Weights, Array]:
        """One gradient step towards observed or imagined returns [*batch]; returns the loss as well."""

        def loss(content: PerceptronWeights) -> Array:
            losses = two_hot_loss(apply_perceptron(content, inputs), returns)
            return jnp.sum(importance * losses) / jnp.maximum(jnp.sum(importance), 1e-6)

        value, gradient = jax.value_and_grad(loss)(weights.content)
        return apply_scaled_gradient(optimizer, gradient, weights, learning_rate), value

    return ValueFunction(init, query, update)


def lambda_returns(
    rewards: Float[Array, "T *batch"],
    discounts: Float[Array, "T *batch"],
    values: Float[Array, "T *batch"],
    next_values: Float[Array, "T *batch"],
    trace_decay: float,
    ratios: Float[Array, "#T *#batch"] | None = None,
) -> Float[Array, "T *batch"]:
    """Computes lambda returns (Sutton and Barto 2018, section 12.1), or those of V-trace for actions of an old policy.

    V-trace: Espeholt et al. 2018 (arXiv 1802.01561, equation 1); with ratios of 1 it is the lambda return.

    Args:
        rewards: Reward of each step.
        discounts: Discount after each step, 0 where the episode ends.
        values: Estimated return before each step.
        next_values: Estimated return after each step; where a trace goes on, that before the next step.
        trace_decay: Lambda: 0 for one-step targets, 1 for returns without bootstrapping before the last step.
        ratios: Probability of each action under the present policy divided by that under the policy that chose it,
            truncated at 1; None for actions of the present policy, 0 for steps that do not count.
    """
    weights = jnp.ones_like(rewards) if ratios is None else jnp.minimum(ratios, 1.0)
    errors = weights * (rewards + discounts * next_values - values)

    def step(later_error: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        error, decay = inputs
        error = error + decay * later_error
        return error, error

    decays = trace_decay * discounts * weights
    return values + jax.lax.scan(step, jnp.zeros_like(errors[0]), (errors, decays), reverse=True)[1]
