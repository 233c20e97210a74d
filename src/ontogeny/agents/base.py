"""What agents share: agents with fixed weights, bandit strategies, episode planners, and checks of the environment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import beta_bernoulli, episode_plan, tabular_model
from ontogeny.content.beta_bernoulli import ArmCounts, BanditPrior
from ontogeny.content.tabular_posterior import TabularEvidence
from ontogeny.errors import BadInput
from ontogeny.types import (
    HIDDEN_OBSERVATION,
    Agent,
    EnvSpec,
    Genome,
    Key,
    Percept,
    Prior,
    PyTree,
    State,
    Steering,
    Transition,
    Weights,
)


def fixed_weights_agent(
    genome: Callable[[Key], Genome],
    init_activations: Callable[[], PyTree],
    act: Callable[[Key, State, Percept], tuple[Array, State]],
    *,
    privileged: bool = False,
) -> Agent:
    """Builds an agent whose weights are its genome and never change.

    Args:
        genome: Draws an initial genome.
        init_activations: Returns the activations at the start of a lifetime and after every reset.
        act: As in `Agent`.
        privileged: As in `Agent`.
    """

    def init(key: Key, genome: Genome) -> State:
        del key
        return State(Weights(genome), init_activations())

    def reset(state: State) -> State:
        return State(state.weights, init_activations())

    return Agent(genome, init, reset, act, skip_learning, privileged=privileged)


def skip_learning(key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
    """The `learn` of an agent whose weights never change."""
    del key, transition
    return state, ()


def empty_genome(key: Key) -> Genome:
    """The genome of an agent without settings to be searched."""
    del key
    return ()


def bandit_agent(
    name: str, spec: EnvSpec, steering: Steering, choose: Callable[[Key, BanditPrior, ArmCounts], Array]
) -> Agent:
    """Builds a bandit strategy that acts on pulls and successes, which it counts in its activations.

    Args:
        name: Name of the agent, for error messages.
        steering: Reward function.
        choose: Returns the arm to pull.

    Raises:
        BadInput: If the environment is no Bernoulli bandit.
    """
    require_bandit(name, spec)
    prior = beta_bernoulli.bandit_prior(spec, steering)

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        counts = beta_bernoulli.update_counts(prior, state.activations, percept)
        return choose(key, prior, counts), State(state.weights, counts)

    return fixed_weights_agent(empty_genome, lambda: beta_bernoulli.init_counts(prior), act)


def explore(
    explore_key: Key, action_key: Key, exploration_rate: float, num_actions: int, greedy_action: Array
) -> Int32[Array, ""]:
    """Returns a uniformly random action with probability `exploration_rate`, else the greedy one."""
    random_action = jax.random.randint(action_key, (), 0, num_actions)
    return jnp.where(jax.random.uniform(explore_key) < exploration_rate, random_action, greedy_action)


def episode_planning_agent(
    spec: EnvSpec, action_values: Callable[[Key, TabularEvidence], Float[Array, "H S A"]]
) -> Agent:
    """Builds an agent that counts evidence in its weights and plans each episode where it begins.

    Args:
        spec: Spec of a tabular environment, with the prior that the agent assumes.
        action_values: Computes the values to plan by. The plan is kept in activations.
    """
    model = tabular_model.build(spec)

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(model.init()), episode_plan.init_plan(spec))

    def reset(state: State) -> State:
        return State(state.weights, episode_plan.init_plan(spec))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        action, plan = episode_plan.follow_plan(key, state.activations, percept, action_values, state.weights.content)
        return action, State(state.weights, plan)

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
        del key
        is_at_time_limit = episode_plan.is_at_time_limit(spec, state.activations)
        evidence = add_transition(model.update, state.weights.content, transition, is_at_time_limit)
        return State(Weights(evidence), state.activations), ()

    return Agent(empty_genome, init, reset, act, learn, learning=True)


def add_transition(
    update: Callable[..., TabularEvidence], evidence: TabularEvidence, transition: Transition, is_at_time_limit: Array
) -> TabularEvidence:
    """Adds a transition to the evidence of a tabular model.

    Args:
        update: The `update` of `content.tabular_model`.
        evidence: Evidence so far.
        transition: The step to add.
        is_at_time_limit: Whether, by the agent's own count, the horizon ends the episode here, so that an end says
            nothing about the task.
    """
    percept, action, after, successor = transition
    is_end = after.first & (after.discount == 0)
    is_observed = jnp.where(is_end, ~is_at_time_limit, successor != HIDDEN_OBSERVATION)
    return update(evidence, percept.observation, action, after.outcome, successor, is_end, is_observed)


def require_discrete_observations(agent: str, spec: EnvSpec) -> None:
    """Raises `BadInput` if observations are vectors and an agent needs them numbered."""
    if spec.num_observations < 1:
        raise BadInput(f"agent '{agent}' needs numbered observations, those of environment '{spec.name}' are vectors")


def require_bandit(agent: str, spec: EnvSpec) -> None:
    """Raises `BadInput` if the environment of a bandit strategy is no bandit."""
    if spec.num_observations != 1 or spec.horizon != 1:
        raise BadInput(f"agent '{agent}' is for bandits, environment '{spec.name}' has states")


def require_prior(agent: str, spec: EnvSpec) -> Prior:
    """Returns the prior over tasks of a tabular environment; raises `BadInput` if it has none."""
    require_discrete_observations(agent, spec)
    if spec.prior is None:
        raise BadInput(f"agent '{agent}' needs a prior over tasks, environment '{spec.name}' gives none")
    return spec.prior


def spec_with_assumed_prior(agent: str, spec: EnvSpec, known_reward_mean: bool) -> EnvSpec:
    """Returns the spec of a tabular environment with the prior that an agent assumes.

    Args:
        agent: Name of the agent, for error messages.
        known_reward_mean: Whether the agent knows the prior mean of Normal outcome features. Otherwise it assumes 0:
            it knows how much tasks differ, but not around which mean (the default of Osband's TabulaRL).

    Raises:
        BadInput: If the environment has no prior.
    """
    prior = require_prior(agent, spec)
    if known_reward_mean:
        return spec
    features = [feature._replace(a=0.0) if feature.kind == "normal" else feature for feature in prior.outcome_features]
    return spec._replace(prior=prior._replace(outcome_features=tuple(features)))
