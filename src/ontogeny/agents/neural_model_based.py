"""Learns a neural model of its environment within one lifetime and trains its policy in imagined trajectories.

The learned content is a recurrent latent state-space model (`content.latent_model`), a policy and a value function
(`content.distributional_value`), after Hafner et al. 2023 (arXiv 2301.04104). The code is this file: replay, when to
update, imagination, and the actor. There is no training phase: every few steps `learn` trains the model on replayed
steps, and actor and critic in trajectories that the model imagines from there. The reward of an imagined step is what
steering computes from the predicted outcome features.

`act` reads the weights and updates the latent state, which is the activations; it begins anew with every episode.
"""

import math
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.actor_critic import ActorCriticSettings, policy_logits
from ontogeny.agents.experience import Experience, add_step, init_experience, sample_experience
from ontogeny.agents.latent_search import Search, build_search
from ontogeny.agents.neural_updates import (
    NUM_SEQUENCES,
    SEQUENCE_LENGTH,
    NeuralContent,
    NeuralGenome,
    NeuralParams,
    NeuralScratch,
    NeuralSettings,
    OptimizerStates,
    UpdatedWeights,
    update_content,
    update_policy,
)
from ontogeny.content import distributional_value, latent_model, outcome_ensemble
from ontogeny.content.latent_model import LatentState
from ontogeny.content.optimizers import build_flat_optimizer, with_optimizer_state
from ontogeny.content.perceptron import init_perceptron
from ontogeny.errors import require_at_least, require_between, require_one_of, require_positive, require_probability
from ontogeny.tracing import lazy_cond
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering, Transition, Weights

ABLATIONS = ("none", "no_imagination", "untrained_model", "shuffled_actions")
PLANNERS = ("imagination", "search")
NUM_WARM_UP_STEPS = 64  # before the first update, while the policy is uniform
MAX_CAPACITY = 2**16  # steps that are kept for replay
MAX_DENOMINATOR = 2**14  # of the number of updates per step, which is 2**-14 at least
INFO = (
    "observation_loss", "outcome_loss", "discount_loss", "dynamics_loss", "representation_loss", "critic_loss",
    "policy_entropy", "expected_return",
)  # fmt: skip


class NeuralActivations(NamedTuple):
    """The latent state after a percept, the action that was chosen there (-1 for none), and its log probability."""

    state: LatentState
    action: Int32[Array, ""]
    log_probability: Float[Array, ""]


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    width: int = 64,
    learning_rate: float = 1e-3,
    replay_ratio: float = 64.0,
    discount: float = 0.99,
    imagination_length: int = 15,
    imagination_share: float = 0.5,
    planner: str = "imagination",
    exploration_bonus: float = 1.0,
    entropy_weight: float = 3e-3,
    latents: str = "sampled",
    ablation: str = "none",
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of any environment.
        steering: Reward function.
        width: Size of every layer of the model, the actor and the critic, at least 8.
        learning_rate: Step size of Adam, greater than 0.
        replay_ratio: How many steps are replayed per step of the environment after the warm-up, on average, from 1/64
            to 1024. An update replays 256 steps, and step n of a lifetime ends with
            floor(n * replay_ratio / 256) - floor((n - 1) * replay_ratio / 256) updates.
        discount: Discount of future rewards per step, from 0 to 1.
        imagination_length: Steps of an imagined trajectory, at least 1.
        imagination_share: Share of imagined trajectories in the losses of actor and critic, from 0 to 1; the rest are
            replayed steps.
        planner: `imagination`: actions are samples of the policy; `search`: they are chosen by a tree search in the
            model that begins with the policy (needs the extra `search`).
        exploration_bonus: Weight of the uncertainty of the outcome of an action, beside its reward, in units of
            1 - `discount`, or of 1 / steps of the lifetime where that is more; 0 for none. With 1, the discounted
            bonuses of a lifetime in which everything stays as uncertain as before learning add up to about 1 unit of
            reward at most.
        entropy_weight: Weight of the entropy of the policy beside rewards in units of their range, greater than 0.
        latents: What a latent state of the model holds: `sampled`: samples of categorical variables; `expected`: their
            probabilities, which are exact where nothing is random and blur what is.
        ablation: For experiments: `none`; `untrained_model` infers states and imagines with the initial model;
            `shuffled_actions` imagines consequences that do not depend on the action; `no_imagination` learns from the
            replayed steps alone.
    """
    settings = NeuralSettings(
        width,
        learning_rate,
        replay_ratio,
        discount,
        imagination_length,
        imagination_share,
        planner,
        exploration_bonus,
        entropy_weight,
        latents,
        ablation,
    )
    params = make_params(spec, steering, settings)

    def genome(key: Key) -> NeuralGenome:
        del key
        return NeuralGenome(jnp.float32(math.log(learning_rate)), jnp.float32(math.log(entropy_weight)))

    act = partial(_act, params, build_search(params) if planner == "search" else _sample_policy)

    def reset(state: State) -> State:
        return State(state.weights, _init_activations(params))

    return Agent(genome, partial(_init, params), reset, act, partial(_learn, params), learning=True)


def make_params(spec: EnvSpec, steering: Steering, settings: NeuralSettings) -> NeuralParams:
    """Builds what all functions of the agent share.

    Raises:
        BadInput: A setting is out of its range.
    """
    require_positive(learning_rate=settings.learning_rate, entropy_weight=settings.entropy_weight)
    require_at_least(0, exploration_bonus=settings.exploration_bonus)
    require_at_least(1, imagination_length=settings.imagination_length)
    require_between(1 / 64, 1024, replay_ratio=settings.replay_ratio)
    require_probability(discount=settings.discount, imagination_share=settings.imagination_share)
    require_one_of(ABLATIONS, ablation=settings.ablation)
    require_one_of(PLANNERS, planner=settings.planner)
    shape = latent_model.model_shape(spec, settings.width, settings.latents)
    updates_per_step = Fraction(settings.replay_ratio) / (NUM_SEQUENCES * SEQUENCE_LENGTH)
    return NeuralParams(
        spec,
        steering,
        shape,
        latent_model.build(spec, width=settings.width, latents=settings.latents),
        ActorCriticSettings(
            distributional_value.build(shape.state_size, width=settings.width),
            build_flat_optimizer(),
            settings.discount,
        ),
        updates_per_step.limit_denominator(MAX_DENOMINATOR),
        settings,
    )


def count_updates(updates_per_step: Fraction, num_steps: Int32[Array, "*batch"]) -> Int32[Array, "*batch"]:
    """Returns the number of updates at the end of a step, whose sum over the first n steps is floor(n * rate).

    Args:
        updates_per_step: The rate, of a denominator of at most `MAX_DENOMINATOR`.
        num_steps: Number of the step, from 1.
    """
    numerator, denominator = updates_per_step.numerator, updates_per_step.denominator
    phase = num_steps % denominator  # the numbers have this period, and products of it fit into 32 bits
    return phase * numerator // denominator - (phase - 1) * numerator // denominator


def retrain_policy(params: NeuralParams, key: Key, state: State, num_updates: int) -> State:
    """Trains actor and critic in imagination alone, such as after a change of the drives.

    It takes no step in the environment, does not update the model, and learns from no replayed action. With the
    ablation `no_imagination` it learns from replayed steps alone.

    Args:
        params: With the steering that counts from now on.
        key: Random key.
        state: Its experience is where the imagined trajectories start.
        num_updates: Updates of actor and critic.
    """
    params = params._replace(settings=params.settings._replace(imagination_share=1.0))
    scratch: NeuralScratch = state.weights.scratch
    model = state.weights.content.model

    def step(updated: UpdatedWeights, key: Key) -> tuple[UpdatedWeights, None]:
        sample_key, state_key, policy_key = jax.random.split(key, 3)
        sampled = sample_experience(sample_key, scratch.experience, NUM_SEQUENCES, SEQUENCE_LENGTH)
        states = latent_model.infer_states(params.shape, state_key, model, sampled.sequences)
        return update_policy(params, policy_key, updated, scratch.genome, sampled, states)[0], None

    updated = jax.lax.scan(step, _updated_weights(state), jax.random.split(key, num_updates))[0]
    return _with_updated_weights(state, updated, scratch.experience)


def _init_activations(params: NeuralParams) -> NeuralActivations:
    """The activations before the first percept."""
    return NeuralActivations(latent_model.init_state(params.shape), jnp.int32(-1), jnp.float32(0))


def _init(params: NeuralParams, key: Key, genome: NeuralGenome) -> State:
    """Draws the initial weights; the policy is uniform."""
    model_key, actor_key, critic_key, ensemble_key = jax.random.split(key, 4)
    model, critic = params.model.init(model_key), params.actor_critic.values.init(critic_key)
    optimizer, shape = params.actor_critic.optimizer, params.shape
    num_inputs, num_features = shape.state_size + shape.num_actions, shape.num_features
    ensemble = outcome_ensemble.init_ensemble(optimizer, ensemble_key, num_inputs, num_features)
    actor = with_optimizer_state(
        optimizer, init_perceptron(actor_key, shape.state_size, shape.width, shape.num_actions)
    )
    capacity = max(SEQUENCE_LENGTH, min(MAX_CAPACITY, params.spec.num_steps))
    scratch = NeuralScratch(
        genome,
        OptimizerStates(model.scratch, actor.scratch, critic.scratch, ensemble.scratch),
        critic.content,
        jnp.float32(0),
        init_experience(params.spec, capacity),
    )
    content = NeuralContent(model.content, actor.content, critic.content, ensemble.content)
    return State(Weights(content, scratch), _init_activations(params))


def _sample_policy(key: Key, content: NeuralContent, state: LatentState) -> tuple[Int32[Array, ""], Float[Array, "A"]]:
    """An action of the policy, and the log probabilities of all actions."""
    logits = policy_logits(content.actor, latent_model.flatten_state(state))
    return jax.random.categorical(key, logits).astype(jnp.int32), logits


def _act(
    params: NeuralParams, choose_action: Search, key: Key, state: State, percept: Percept
) -> tuple[Int32[Array, ""], State]:
    """Infers the latent state and chooses an action."""
    latent_key, action_key = jax.random.split(key)
    model, shape = state.weights.content.model, params.shape
    hidden = latent_model.advance(shape, model, state.activations.state, percept.action)
    hidden = jnp.where(percept.first, 0.0, hidden)
    encoded = latent_model.encode_percept(shape, model, percept.observation, percept.first, percept.outcome)
    noise = jax.random.uniform(latent_key, (shape.num_latents,))
    latent_state, _ = latent_model.observe(shape, model, hidden, encoded, noise)
    action, logits = choose_action(action_key, state.weights.content, latent_state)
    return action, State(state.weights, NeuralActivations(latent_state, action, logits[action]))


def _learn(
    params: NeuralParams, key: Key, state: State, transition: Transition
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """Stores the transition, and every few steps updates model, actor and critic."""
    scratch: NeuralScratch = state.weights.scratch
    activations: NeuralActivations = state.activations
    experience = add_step(scratch.experience, transition, activations.action, activations.log_probability)
    rate = params.updates_per_step
    max_updates = math.ceil(rate)
    is_constant = rate < 1 or rate.denominator == 1  # whether there are `max_updates` wherever there are any

    def update(
        operand: tuple[Array, Array, UpdatedWeights, NeuralGenome, Experience],
    ) -> tuple[UpdatedWeights, dict[str, Array]]:
        key_data, num_updates, updated, genome, experience = operand
        keys = jax.random.split(jax.random.wrap_key_data(key_data), max_updates)

        def step(i: Array, carry: tuple[UpdatedWeights, dict[str, Array]]) -> tuple[UpdatedWeights, dict[str, Array]]:
            updated, total = carry
            updated, info = update_content(params, keys[i], updated, genome, experience)
            return updated, jax.tree.map(jnp.add, total, info)

        updated, total = jax.lax.fori_loop(0, max_updates if is_constant else num_updates, step, (updated, _no_info()))
        return updated, jax.tree.map(lambda term: term / jnp.maximum(num_updates, 1), total)

    num_updates = count_updates(rate, experience.num_steps)
    is_due = (num_updates > 0) & (experience.num_steps >= NUM_WARM_UP_STEPS)
    before = _updated_weights(state)
    operand = (jax.random.key_data(key), num_updates, before, scratch.genome, experience)
    updated, info = lazy_cond(is_due, update, operand, (before, _no_info()))
    return _with_updated_weights(state, updated, experience), info


def _no_info() -> dict[str, Array]:
    """The info of a step without an update."""
    return dict.fromkeys(INFO, jnp.float32(0))


def _updated_weights(state: State) -> UpdatedWeights:
    """The part of a state that an update changes."""
    scratch: NeuralScratch = state.weights.scratch
    return UpdatedWeights(state.weights.content, scratch.optimizers, scratch.slow_critic, scratch.return_range)


def _with_updated_weights(state: State, updated: UpdatedWeights, experience: Experience) -> State:
    """The state after an update."""
    genome = state.weights.scratch.genome
    scratch = NeuralScratch(genome, updated.optimizers, updated.slow_critic, updated.return_range, experience)
    return State(Weights(updated.content, scratch), state.activations)
