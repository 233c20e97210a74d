"""Updates of the learned content of `neural_model_based`: the model, the ensemble, the actor and the critic.

Letters: T steps, N trajectories, D size of a latent state, A actions, I = D + A inputs of the ensemble.
"""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.actor_critic import (
    ActorCriticSettings,
    LatentActorCritic,
    LatentTrajectories,
    WeightedTrajectories,
    imagine_trajectories,
    replayed_trajectories,
    update_actor_critic,
)
from ontogeny.agents.experience import Experience, SampledExperience, sample_experience
from ontogeny.content import latent_model, outcome_ensemble
from ontogeny.content.latent_model import LatentModelShape, LatentModelWeights, LatentState
from ontogeny.content.outcome_ensemble import OutcomeEnsembleWeights
from ontogeny.content.perceptron import PerceptronWeights
from ontogeny.types import EnvSpec, Key, PyTree, Steering, Weights, WorldModel

NUM_SEQUENCES, SEQUENCE_LENGTH = 16, 16  # of one update
NUM_IMAGINED = 128  # trajectories of one update


class NeuralGenome(NamedTuple):
    """The settings that a search can change, as logarithms, so that no perturbation makes them negative."""

    log_learning_rate: Float[Array, ""]
    log_entropy_weight: Float[Array, ""]

    @property
    def learning_rate(self) -> Float[Array, ""]:
        """Step size of Adam."""
        return jnp.exp(self.log_learning_rate)

    @property
    def entropy_weight(self) -> Float[Array, ""]:
        """Weight of the entropy of the policy."""
        return jnp.exp(self.log_entropy_weight)


class NeuralContent(NamedTuple):
    """What the agent has learned; `act` reads model and actor, and for a search critic and ensemble as well."""

    model: LatentModelWeights
    actor: PerceptronWeights
    critic: PerceptronWeights
    ensemble: OutcomeEnsembleWeights


class OptimizerStates(NamedTuple):
    """The state of the optimizer of each part of the content."""

    model: PyTree
    actor: PyTree
    critic: PyTree
    ensemble: PyTree


class NeuralScratch(NamedTuple):
    """What `learn` alone reads."""

    genome: NeuralGenome
    optimizers: OptimizerStates
    slow_critic: PerceptronWeights
    return_range: Float[Array, ""]
    experience: Experience


class UpdatedWeights(NamedTuple):
    """The part of the weights of the agent that an update changes."""

    content: NeuralContent
    optimizers: OptimizerStates
    slow_critic: PerceptronWeights
    return_range: Float[Array, ""]


class NeuralSettings(NamedTuple):
    """The settings of `build`, which explains them."""

    width: int
    learning_rate: float
    replay_ratio: float
    discount: float
    imagination_length: int
    imagination_share: float
    planner: str
    exploration_bonus: float
    entropy_weight: float
    latents: str
    ablation: str


class NeuralParams(NamedTuple):
    """What all functions of the agent share."""

    spec: EnvSpec
    steering: Steering
    shape: LatentModelShape
    model: WorldModel
    actor_critic: ActorCriticSettings
    updates_per_step: Fraction  # on average
    settings: NeuralSettings

    @property
    def bonus_weight(self) -> float:
        """Weight of the uncertainty of an outcome, in units of reward."""
        return self.settings.exploration_bonus * max(1 - self.settings.discount, 1 / self.spec.num_steps)


def update_content(
    params: NeuralParams, key: Key, updated: UpdatedWeights, genome: NeuralGenome, experience: Experience
) -> tuple[UpdatedWeights, dict[str, Array]]:
    """One update of the model on replayed steps, then one of actor and critic."""
    sample_key, model_key, policy_key = jax.random.split(key, 3)
    sampled = sample_experience(sample_key, experience, NUM_SEQUENCES, SEQUENCE_LENGTH)
    model = Weights(updated.content.model, updated.optimizers.model)
    trained, states, losses = params.model.update(model_key, model, sampled.sequences, genome.learning_rate)
    if params.settings.ablation == "untrained_model":
        # The states of `update` are those under new statistics of the observations, which `act` does not use.
        states = latent_model.infer_states(params.shape, model_key, model.content, sampled.sequences)
    else:
        optimizers = updated.optimizers._replace(model=trained.scratch)
        updated = updated._replace(content=updated.content._replace(model=trained.content), optimizers=optimizers)
    if params.settings.exploration_bonus > 0:
        updated = _update_ensemble(params, updated, genome, sampled, states)
    updated, info = update_policy(params, policy_key, updated, genome, sampled, states)
    return updated, losses | info


def _update_ensemble(
    params: NeuralParams,
    updated: UpdatedWeights,
    genome: NeuralGenome,
    sampled: SampledExperience,
    states: LatentState,
) -> UpdatedWeights:
    """One update of the ensemble on replayed steps."""
    content, optimizers = updated.content, updated.optimizers
    inputs = _ensemble_inputs(params, latent_model.flatten_state(states), sampled.sequences.action)
    ensemble, _ = outcome_ensemble.update_ensemble(
        params.actor_critic.optimizer,
        Weights(content.ensemble, optimizers.ensemble),
        inputs,
        sampled.sequences.next_outcome,
        sampled.sequences.mask,
        genome.learning_rate,
    )
    return updated._replace(
        content=content._replace(ensemble=ensemble.content), optimizers=optimizers._replace(ensemble=ensemble.scratch)
    )


def update_policy(
    params: NeuralParams,
    key: Key,
    updated: UpdatedWeights,
    genome: NeuralGenome,
    sampled: SampledExperience,
    states: LatentState,
) -> tuple[UpdatedWeights, dict[str, Array]]:
    """One update of actor and critic, in trajectories that start in the states of replayed sequences."""
    content, optimizers = updated.content, updated.optimizers

    def with_rewards(trajectories: LatentTrajectories, share: float) -> WeightedTrajectories:
        rewards = add_exploration_bonus(
            params,
            content.ensemble,
            params.steering(trajectories.outcomes),
            trajectories.states,
            trajectories.effective_actions,
        )
        return WeightedTrajectories(trajectories, rewards, share)

    parts = _trajectories(params, key, content.model, content.actor, sampled, states)
    sources = [with_rewards(*part) for part in parts]
    weights = LatentActorCritic(
        Weights(content.actor, optimizers.actor),
        Weights(content.critic, optimizers.critic),
        updated.slow_critic,
        updated.return_range,
    )
    weights, info = update_actor_critic(
        params.actor_critic, weights, sources, genome.entropy_weight, genome.learning_rate
    )
    content = content._replace(actor=weights.actor.content, critic=weights.critic.content)
    optimizers = optimizers._replace(actor=weights.actor.scratch, critic=weights.critic.scratch)
    return UpdatedWeights(content, optimizers, weights.slow_critic, weights.return_range), info


def add_exploration_bonus(
    params: NeuralParams,
    ensemble: OutcomeEnsembleWeights,
    rewards: Float[Array, "*batch"],
    states: Float[Array, "*batch D"],
    actions: Int32[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Returns the rewards of steering, and a bonus for actions of which the outcome is uncertain."""
    if params.settings.exploration_bonus == 0:
        return rewards
    disagreement = outcome_ensemble.query_disagreement(ensemble, _ensemble_inputs(params, states, actions))
    return rewards + params.bonus_weight * disagreement


def _ensemble_inputs(
    params: NeuralParams, states: Float[Array, "*batch D"], actions: Int32[Array, "*batch"]
) -> Float[Array, "*batch I"]:
    """What the ensemble predicts outcomes from."""
    return jnp.concatenate([states, jax.nn.one_hot(actions, params.shape.num_actions)], axis=-1)


def _trajectories(
    params: NeuralParams,
    key: Key,
    model: LatentModelWeights,
    actor: PerceptronWeights,
    sampled: SampledExperience,
    states: LatentState,
) -> list[tuple[LatentTrajectories, float]]:
    """What actor and critic learn from, with shares: replayed steps, and trajectories that the model imagines."""
    share = 0.0 if params.settings.ablation == "no_imagination" else params.settings.imagination_share
    replayed = replayed_trajectories(states, sampled.sequences, sampled.log_probability), 1 - share
    if share == 0:
        return [replayed]
    start_key, imagine_key = jax.random.split(key)
    mask = sampled.sequences.mask.reshape(-1)
    chosen = jax.random.randint(start_key, (NUM_IMAGINED,), 0, mask.shape[0])
    starts = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1])[chosen], states)
    imagined = imagine_trajectories(
        params.shape,
        imagine_key,
        model,
        actor,
        starts,
        mask[chosen],
        params.settings.imagination_length,
        shuffles_actions=params.settings.ablation == "shuffled_actions",
    )
    return [(imagined, share)] if share == 1 else [replayed, (imagined, share)]
