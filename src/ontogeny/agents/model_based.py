"""Learns an exact Bayesian model of its environment within one lifetime and plans with an exploration bonus.

Its genome are the drives and one setting; the learned model starts empty. The bonus of an (observation, action) is that
of the finite-horizon Gittins index of its outcome features (`content.planning`), with as many pulls to go as the
remaining steps give each observation; bonuses of several features add in squares. Value iteration propagates the bonus
along an episode, as optimism does in UCRL2 (Jaksch et al. 2010); but here it is derived, and vanishes at the end of the
lifetime. An episode that ends early saves its remaining steps for later ones; the plan counts each with the value per
step of the present plan, the opportunity cost of time (average reward: Mahadevan 1996, Machine Learning 22:159; Niv et
al. 2007).

`learn` adds evidence and plans; `act` reads the planned values only.

Letters: S observations, A actions, F outcome features, H horizon of an episode.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import add_transition, require_prior
from ontogeny.content import action_values, planning, tabular_model
from ontogeny.content.tabular_posterior import TabularEvidence
from ontogeny.errors import require_at_least
from ontogeny.rng import random_argmax
from ontogeny.steering import compute_reward
from ontogeny.types import (
    Agent,
    EnvSpec,
    FeaturePrior,
    Key,
    Percept,
    State,
    Steering,
    Transition,
    ValueFunction,
    Weights,
    WorldModel,
)


class ModelBasedGenome(NamedTuple):
    """The settings that a search can change."""

    drives: Array  # [F] weight of each outcome feature in the reward that is planned for
    bonus_scale: Array  # [] factor on the bonus: 1 as derived, 0 for none


class ModelBasedContent(NamedTuple):
    """What the agent has learned."""

    evidence: TabularEvidence
    values: Array  # [H, S, A]


class ModelBasedScratch(NamedTuple):
    """What `learn` alone reads."""

    genome: ModelBasedGenome
    num_steps: Array  # [] int32, steps learned from
    step_value: Array  # [] planned reward per step


class ModelBasedParams(NamedTuple):
    """What all functions of the agent share."""

    spec: EnvSpec
    features: tuple[FeaturePrior, ...]
    model: WorldModel
    values: ValueFunction


def build(spec: EnvSpec, steering: Steering, *, bonus_scale: float = 1.0) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of a tabular environment with a prior.
        steering: Reward function; the drives of the initial genome are its rewards for one unit of each feature.
        bonus_scale: Factor on the exploration bonus in the initial genome, at least 0.
    """
    require_at_least(0, bonus_scale=bonus_scale)
    features = require_prior("model_based", spec).outcome_features
    params = ModelBasedParams(spec, features, tabular_model.build(spec), action_values.build(spec))
    steps_to_go = jnp.int32(spec.horizon)  # the activations

    def genome(key: Key) -> ModelBasedGenome:
        del key
        drives = jax.vmap(steering)(jnp.eye(len(features))) - steering(jnp.zeros(len(features)))
        return ModelBasedGenome(drives, jnp.float32(bonus_scale))

    def init(key: Key, genome: ModelBasedGenome) -> State:
        del key
        scratch = ModelBasedScratch(genome, jnp.int32(0), jnp.float32(0))
        evidence = params.model.init()
        values = _plan(params, evidence, params.values.init(), scratch)
        return State(Weights(ModelBasedContent(evidence, values), scratch), steps_to_go)

    def reset(state: State) -> State:
        return State(state.weights, steps_to_go)

    return Agent(genome, init, reset, partial(_act, params), partial(_learn, params), learning=True)


def _act(params: ModelBasedParams, key: Key, state: State, percept: Percept) -> tuple[Array, State]:
    """Takes the action with the highest planned value for the steps that remain in the episode."""
    steps_to_go = jnp.where(percept.first, params.spec.horizon, state.activations)
    values = params.values.query(state.weights.content.values, percept.observation, steps_to_go)
    return random_argmax(key, values), State(state.weights, steps_to_go - 1)


def _learn(params: ModelBasedParams, key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
    """Adds one transition to the evidence and plans again."""
    del key
    (evidence, values), scratch = state.weights
    evidence = add_transition(params.model.update, evidence, transition, state.activations <= 0)
    horizon = params.spec.horizon
    step_value = jnp.max(params.values.query(values, transition.percept.observation, horizon)) / horizon
    step_value = jnp.where(transition.percept.first, step_value, scratch.step_value)
    scratch = scratch._replace(num_steps=scratch.num_steps + 1, step_value=step_value)
    content = ModelBasedContent(evidence, _plan(params, evidence, values, scratch))
    return State(Weights(content, scratch), state.activations), ()


def _plan(params: ModelBasedParams, evidence: TabularEvidence, values: Array, scratch: ModelBasedScratch) -> Array:
    """Action values [H, S, A] of the optimistic plan."""
    spec, (drives, bonus_scale) = params.spec, scratch.genome
    prediction = params.model.query(evidence)
    # Each observation's share of the remaining steps: how often knowledge about it can be used.
    num_visits = jnp.maximum(1, (spec.num_steps - scratch.num_steps) / spec.num_observations)
    bonuses = []
    for f, feature in enumerate(params.features):
        mean, feature_evidence = prediction.outcome_features[..., f], prediction.feature_evidence[..., f]
        bonuses.append(drives[f] * _feature_bonus(feature, drives[f], mean, feature_evidence, num_visits))
    bonus = jnp.linalg.norm(jnp.stack(bonuses), axis=0)
    rewards = compute_reward(drives, prediction.outcome_features) + bonus_scale * bonus
    saved_step_values = scratch.step_value * evidence.end_counts / prediction.successor_evidence
    planned = planning.value_iteration(rewards, prediction.successors, spec.horizon, saved_step_values)
    return params.values.update(values, planned)


def _feature_bonus(feature: FeaturePrior, drive: Array, mean: Array, evidence: Array, pulls: Array) -> Array:
    """The bonus [S, A] of one outcome feature, in the direction that its drive seeks."""
    if feature.kind == "bernoulli":
        return planning.bernoulli_index_bonus(jnp.where(drive < 0, 1 - mean, mean), evidence, pulls)
    return feature.noise * planning.normal_index_bonus(evidence, pulls)
