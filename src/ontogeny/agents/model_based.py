"""Learns an exact Bayesian model of its environment within one life and plans by it, with a derived bonus for the unknown.

Its genome is ML code: the drives and one setting; content is empty at birth. The bonus of an (observation, action) is
that of the finite-horizon Gittins index of its facts (`content.planning`), with as many pulls to go as the steps that
remain give each observation; independent doubts add in squares. Value iteration carries the bonus along an episode,
as optimism does in UCRL2 (Jaksch et al. 2010), but here it is derived, and gone when nothing is left to use it on.
An episode that ends early saves the steps that it had left for others: each is worth what the plan makes of a step, the
opportunity cost of time (average reward: Mahadevan 1996, Machine Learning 22:159; Niv et al. 2007).

`learn` takes evidence in and plans anew; `act` reads the values alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import choose, prior_of
from ontogeny.content import action_values, planning, tabular_model
from ontogeny.errors import require_at_least
from ontogeny.steering import judge
from ontogeny.types import Agent, EnvSpec, FeaturePrior, Key, Percept, State, Steering, Transition, Weights


class Genome(NamedTuple):
    drives: Array  # [F] weight of each fact in the reward that is planned for; at birth those of steering
    curiosity: Array  # [] multiplies the bonus: 1 as derived, 0 for none


class Content(NamedTuple):
    model: tabular_model.Evidence
    values: Array  # [H, S, A]


class Scratch(NamedTuple):
    genome: Genome
    lived: Array  # [] int32, steps learned from so far
    rate: Array  # [] what a step of life is worth


def build(spec: EnvSpec, steering: Steering, *, curiosity: float = 1.0) -> Agent:
    require_at_least(0, curiosity=curiosity)
    outcome_features = prior_of("model_based", spec).outcome_features
    H = spec.horizon
    model, values = tabular_model.build(spec), action_values.build(spec)

    def genome(key: Key) -> Genome:
        """The drives of a linear steering are what it makes of one unit of each fact."""
        del key
        no_facts = jnp.zeros(len(outcome_features))
        drives = jax.vmap(steering)(jnp.eye(len(outcome_features))) - steering(no_facts)
        return Genome(drives, jnp.float32(curiosity))

    def init(key: Key, genome: Genome) -> State:
        del key
        scratch = Scratch(genome, jnp.int32(0), jnp.float32(0))
        evidence = model.init()
        return State(Weights(Content(evidence, plan(evidence, values.init(), scratch)), scratch), fresh())

    def fresh() -> Array:
        """The activations: steps that remain of the episode, [] int32."""
        return jnp.int32(H)

    def reset(state: State) -> State:
        return State(state.weights, fresh())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        remaining = jnp.where(percept.first, H, state.activations)
        action = choose(key, values.query(state.weights.content.values, percept.observation, remaining))
        return action, State(state.weights, remaining - 1)

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        (held, table), scratch = state.weights
        then = transition.next
        # Where an episode is cut off, at its last step or before, what the action leads to is not seen.
        cut = then.first & ((state.activations <= 0) | (then.discount > 0))
        evidence = model.update(
            held,
            transition.percept.observation,
            transition.action,
            then.outcome,
            then.observation,
            ended=then.first & (then.discount == 0),
            seen=~cut,
        )
        began = jnp.max(values.query(table, transition.percept.observation, H)) / H
        rate = jnp.where(transition.percept.first, began, scratch.rate)
        scratch = scratch._replace(lived=scratch.lived + 1, rate=rate)
        content = Content(evidence, plan(evidence, table, scratch))
        return State(Weights(content, scratch), state.activations), ()

    def plan(evidence: tabular_model.Evidence, table: Array, scratch: Scratch) -> Array:
        predicted = model.query(evidence)
        # Each observation's share of the steps to come: how often what is learned there can be used.
        visits = jnp.maximum(1, (spec.num_steps - scratch.lived) / spec.num_observations)
        drives, curiosity = scratch.genome
        doubts = [
            drives[f]
            * feature_bonus(
                feature, drives[f], predicted.outcome_features[..., f], predicted.feature_evidence[..., f], visits
            )
            for f, feature in enumerate(outcome_features)
        ]
        bonus = jnp.linalg.norm(jnp.stack(doubts), axis=0)
        rewards = judge(drives, predicted.outcome_features) + curiosity * bonus
        saved = scratch.rate * evidence.ends / predicted.successor_evidence
        return values.update(table, planning.value_iteration(rewards, predicted.successors, H, saved))

    return Agent(genome, init, reset, act, learn, learning=True)


def feature_bonus(feature: FeaturePrior, drive: Array, mean: Array, evidence: Array, pulls: Array) -> Array:
    """The bonus of one fact, [S, A], in the direction that its drive seeks."""
    if feature.kind == "bernoulli":
        return planning.bernoulli_bonus(jnp.where(drive < 0, 1 - mean, mean), evidence, pulls)
    return feature.noise * planning.index_bonus(evidence, pulls)
