"""An actor and a critic that learn from trajectories of latent states, imagined by a latent model or observed.

Hafner et al. 2023 (arXiv 2301.04104, section "Actor critic learning"): REINFORCE with lambda returns, divided by a
running range of the returns, and an entropy bonus. Rewards are never learned: steering computes them from predicted
outcome features.

Letters: T steps, N trajectories, M steps of all trajectories, A actions, D size of a state, F outcome features.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import latent_model
from ontogeny.content.distributional_value import lambda_returns
from ontogeny.content.latent_model import ExperienceSequence, LatentModelShape, LatentModelWeights, LatentState
from ontogeny.content.optimizers import apply_scaled_gradient
from ontogeny.content.perceptron import PerceptronWeights, apply_perceptron
from ontogeny.types import Key, PyTree, ValueFunction, Weights

TRACE_DECAY = 0.95  # lambda
UNIFORM_SHARE = 0.01  # of random actions in the policy
RETURN_SHARES = (0.05, 0.95)  # of the steps, by their weights, that have at most the lower and the upper return
RETURN_RANGE_DECAY = 0.99  # per update
MIN_RETURN_RANGE = 1.0  # advantages are not enlarged
LEARNING_RATE_SHARE = 1.0  # of the learning rate of the model
SLOW_CRITIC_RATE = 0.02  # share of the critic that the slow critic takes over per update


class LatentActorCritic(NamedTuple):
    """The weights and what their updates remember."""

    actor: Weights
    critic: Weights
    slow_critic: PyTree
    return_range: Float[Array, ""]  # running mean of the range between two percentiles of the returns, `RETURN_SHARES`


class LatentTrajectories(NamedTuple):
    """Steps in latent space, imagined or observed."""

    states: Float[Array, "T N D"]
    actions: Int32[Array, "T N"]  # that the policy chose
    effective_actions: Int32[Array, "T N"]  # of which these are the consequences; others in an ablation only
    outcomes: Float[Array, "T N F"]
    discounts: Float[Array, "T N"]  # of the environment: 0 where the episode ends
    next_states: Float[Array, "T N D"]
    log_probabilities: Float[Array, "T N"]  # with which the actions were chosen
    mask: Float[Array, "T N"]  # 0 for steps that do not count


class WeightedTrajectories(NamedTuple):
    """Trajectories of the present policy, or of older ones, for which importance weights correct."""

    trajectories: LatentTrajectories
    rewards: Float[Array, "T N"]  # of steering, for the outcomes
    share: float  # in the losses


class _EvaluatedSteps(NamedTuple):
    """All steps of several trajectories."""

    states: Float[Array, "M D"]
    actions: Int32[Array, "M"]
    values: Float[Array, "M"]  # of the slow critic
    returns: Float[Array, "M"]
    importance: Float[Array, "M"]


class ActorCriticSettings(NamedTuple):
    """What the updates of actor and critic share."""

    values: ValueFunction
    optimizer: optax.GradientTransformation  # of the actor, of learning rate 1
    discount: float  # of future rewards per step


def policy_logits(actor: PerceptronWeights, states: Float[Array, "*batch D"]) -> Float[Array, "*batch A"]:
    """Returns the log probabilities of the actions, a small share of which is uniform."""
    probabilities = jax.nn.softmax(apply_perceptron(actor, states))
    return jnp.log((1 - UNIFORM_SHARE) * probabilities + UNIFORM_SHARE / probabilities.shape[-1])


def imagine_trajectories(
    shape: LatentModelShape,
    key: Key,
    model: LatentModelWeights,
    actor: PerceptronWeights,
    starts: LatentState,
    mask: Float[Array, "N"],
    num_steps: int,
    shuffles_actions: bool = False,
) -> LatentTrajectories:
    """Imagines trajectories in which the actor acts.

    Args:
        starts: States [N] in which they start.
        mask: 0 for trajectories that do not count.
        num_steps: T.
        shuffles_actions: Whether the model imagines the consequences of the actions of other trajectories, for an
            ablation: the imagined states, outcomes and discounts are as before, but do not depend on the action.
    """
    N = starts.hidden.shape[0]

    def step(state: LatentState, step_key: Key) -> tuple[LatentState, tuple[Array, ...]]:
        action_key, latent_key, shuffle_key = jax.random.split(step_key, 3)
        flat = latent_model.flatten_state(state)
        logits = policy_logits(actor, flat)
        actions = jax.random.categorical(action_key, logits).astype(jnp.int32)
        effective = jax.random.permutation(shuffle_key, actions) if shuffles_actions else actions
        hidden = jax.vmap(partial(latent_model.advance, shape, model))(state, effective)
        noise = jax.random.uniform(latent_key, (N, shape.num_latents))
        next_state = jax.vmap(partial(latent_model.imagine, shape, model))(hidden, noise)
        log_probabilities = jnp.take_along_axis(logits, actions[:, None], axis=-1)[:, 0]
        return next_state, (flat, actions, effective, hidden, latent_model.flatten_state(next_state), log_probabilities)

    scanned = jax.lax.scan(step, starts, jax.random.split(key, num_steps))[1]
    states, actions, effective, hidden, next_states, log_probabilities = scanned
    outcomes, discounts = latent_model.predict_outcome(shape, model, hidden)
    # A step counts as much as it is likely that the episode has not ended before.
    alive = jnp.cumprod(jnp.concatenate([mask[None], discounts[:-1]]), axis=0)
    return LatentTrajectories(states, actions, effective, outcomes, discounts, next_states, log_probabilities, alive)


def replayed_trajectories(
    states: LatentState, sequences: ExperienceSequence, log_probabilities: Float[Array, "B L"]
) -> LatentTrajectories:
    """Returns replayed sequences [B, L] as trajectories of L - 1 steps in the states that were inferred there.

    Where a time limit ended an episode, the successor of the last step is not known, and the step does not count.
    """
    flat = latent_model.flatten_state(states).swapaxes(0, 1)
    sequences = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), sequences)
    is_truncated = sequences.is_first[1:] & (sequences.next_discount[:-1] > 0)
    return LatentTrajectories(
        flat[:-1],
        sequences.action[:-1],
        sequences.action[:-1],
        sequences.next_outcome[:-1],
        sequences.next_discount[:-1],
        flat[1:],
        log_probabilities.swapaxes(0, 1)[:-1],
        sequences.mask[1:] * ~is_truncated,
    )


def update_actor_critic(
    settings: ActorCriticSettings,
    weights: LatentActorCritic,
    sources: Sequence[WeightedTrajectories],
    entropy_weight: Array,
    learning_rate: Array,
) -> tuple[LatentActorCritic, dict[str, Array]]:
    """Takes one gradient step of actor and critic.

    Args:
        sources: What they learn from.
        entropy_weight: Weight of the entropy of the policy.
        learning_rate: Of the model, of which actor and critic take a share.

    Returns:
        The new weights, and the losses.
    """
    values, learning_rate = settings.values, LEARNING_RATE_SHARE * learning_rate
    evaluated = [_evaluate_steps(settings, weights, source) for source in sources]
    steps = jax.tree.map(lambda *parts: jnp.concatenate(parts), *evaluated)
    total = jnp.maximum(jnp.sum(steps.importance), 1e-6)
    new_range = _weighted_range(steps.returns, steps.importance / total)
    return_range = RETURN_RANGE_DECAY * weights.return_range + (1 - RETURN_RANGE_DECAY) * new_range
    advantages = (steps.returns - steps.values) / jnp.maximum(MIN_RETURN_RANGE, return_range)

    def actor_loss(actor: PerceptronWeights) -> tuple[Array, Array]:
        logits = policy_logits(actor, steps.states)
        entropy = -jnp.sum(jnp.exp(logits) * logits, axis=-1)
        objective = advantages * _at_actions(logits, steps.actions) + entropy_weight * entropy
        return -jnp.sum(steps.importance * objective) / total, jnp.sum(steps.importance * entropy) / total

    gradient, entropy = jax.grad(actor_loss, has_aux=True)(weights.actor.content)
    actor = apply_scaled_gradient(settings.optimizer, gradient, weights.actor, learning_rate)
    critic, critic_loss = values.update(weights.critic, steps.states, steps.returns, steps.importance, learning_rate)
    slow_critic = jax.tree.map(
        lambda slow, fast: slow + SLOW_CRITIC_RATE * (fast - slow), weights.slow_critic, critic.content
    )
    expected_return = jnp.sum(steps.importance * steps.returns) / total
    info = {"critic_loss": critic_loss, "policy_entropy": entropy, "expected_return": expected_return}
    return LatentActorCritic(actor, critic, slow_critic, return_range), info


def _weighted_range(returns: Float[Array, "M"], shares: Float[Array, "M"]) -> Float[Array, ""]:
    """The range of returns between two percentiles, where steps have different shares; 0 without any share."""
    ordered, ordered_shares = jax.lax.sort((returns, shares), num_keys=1)
    low, high = ordered[jnp.searchsorted(jnp.cumsum(ordered_shares), jnp.array(RETURN_SHARES))]
    return high - low


def _evaluate_steps(
    settings: ActorCriticSettings, weights: LatentActorCritic, source: WeightedTrajectories
) -> _EvaluatedSteps:
    """Computes the return of every step, with importance weights for the actions of older policies."""
    trajectories, values = source.trajectories, settings.values
    logits = policy_logits(weights.actor.content, trajectories.states)
    log_ratios = _at_actions(logits, trajectories.actions) - trajectories.log_probabilities
    ratios = jnp.exp(log_ratios) * (trajectories.mask > 0)
    slow_values = values.query(weights.slow_critic, trajectories.states)
    next_values = values.query(weights.slow_critic, trajectories.next_states)
    discounts = settings.discount * trajectories.discounts
    returns = lambda_returns(source.rewards, discounts, slow_values, next_values, TRACE_DECAY, ratios)
    importance = source.share * trajectories.mask / jnp.maximum(jnp.sum(trajectories.mask), 1e-6)
    steps = _EvaluatedSteps(trajectories.states, trajectories.actions, slow_values, returns, importance)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps)


def _at_actions(logits: Float[Array, "*batch A"], actions: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The entries of the actions."""
    return jnp.take_along_axis(logits, actions[..., None], axis=-1)[..., 0]
