"""What agents share: choosing among values, the parts of an agent that does not learn, checks of an environment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.content import episode_plan, tabular_model
from ontogeny.content.tabular_model import Evidence
from ontogeny.errors import BadInput
from ontogeny.types import Agent, Environment, EnvSpec, Genome, Key, Percept, Prior, State, Transition, Weights


def choose(key: Key, values: Array) -> Array:
    """The action of the highest value, [A] -> []; ties are broken by chance."""
    best = values == jnp.max(values)
    return jnp.argmax(jnp.where(best, jax.random.uniform(key, values.shape), -1.0)).astype(jnp.int32)


def does_not_learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
    """The `learn` of an agent whose weights never change."""
    del key, transition
    return state, ()


def unchanging(
    genome: Callable[[Key], Genome],
    activations: Callable[[], object],
    act: Callable[[Key, State, Percept], tuple[Array, State]],
    *,
    privileged: bool = False,
) -> Agent:
    """An agent whose weights are its genome for life; `activations()` are those of birth and after every reset."""

    def init(key: Key, genome: Genome) -> State:
        del key
        return State(Weights(genome), activations())

    def reset(state: State) -> State:
        return State(state.weights, activations())

    return Agent(genome, init, reset, act, does_not_learn, privileged=privileged)


def no_genome(key: Key) -> Genome:
    """The genome of an agent that has no settings to be searched."""
    del key
    return ()


def needs_open_tasks(name: str, agent: Agent, env: Environment) -> None:
    """Raises `BadInput` where an agent must be shown the task and the environment cannot show it."""
    if agent.privileged and env.reveal_task is None:
        raise BadInput(f"agent '{name}' needs tasks laid open, which environment '{env.spec.name}' cannot do")


def needs_discrete(agent: str, spec: EnvSpec) -> None:
    """Raises `BadInput` where an environment's observations are vectors and an agent needs them numbered."""
    if spec.num_observations < 1:
        raise BadInput(f"agent '{agent}' needs numbered observations, those of environment '{spec.name}' are vectors")


def needs_one_state(agent: str, spec: EnvSpec) -> None:
    """Raises `BadInput` for a bandit's strategy in an environment that is no bandit."""
    if spec.num_observations != 1 or spec.horizon != 1:
        raise BadInput(f"agent '{agent}' is for bandits, environment '{spec.name}' has states")


def prior_of(agent: str, spec: EnvSpec) -> Prior:
    """What a tabular environment tells of its tasks beforehand; `BadInput` where it tells nothing."""
    needs_discrete(agent, spec)
    if spec.prior is None:
        raise BadInput(f"agent '{agent}' needs a prior over tasks, environment '{spec.name}' gives none")
    return spec.prior


def believing(agent: str, spec: EnvSpec, told_mean: bool) -> EnvSpec:
    """The spec of a tabular environment with the prior that an agent is to hold; `BadInput` where the environment gives none.

    `told_mean` False sets the prior mean of Normal facts to 0, which is what an agent may assume that knows the spread
    of its family of tasks but not where it lies (the default of Osband's TabulaRL).
    """
    prior = prior_of(agent, spec)
    if told_mean:
        return spec
    outcome_features = tuple(
        feature._replace(a=0.0) if feature.kind == "normal" else feature for feature in prior.outcome_features
    )
    return spec._replace(prior=prior._replace(outcome_features=outcome_features))


def episode_planner(spec: EnvSpec, action_values: Callable[[Key, Evidence], Array]) -> Agent:
    """An agent that counts its evidence by weights and plans an episode where it begins.

    `action_values(key, evidence)`, [H, S, A], is what tells one such agent from another. The plan is in activations.
    """
    model = tabular_model.build(spec)

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(model.init()), episode_plan.none_yet(spec))

    def reset(state: State) -> State:
        return State(state.weights, episode_plan.none_yet(spec))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        action, plan = episode_plan.follow(key, state.activations, percept, action_values, state.weights.content)
        return action, State(state.weights, plan)

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        percept, action, then = transition
        at_limit = then.first & episode_plan.at_time_limit(spec, state.activations)
        evidence = model.update(
            state.weights.content,
            percept.observation,
            action,
            then.outcome,
            then.observation,
            ended=then.first & (then.discount == 0),
            seen=~at_limit & ~(then.first & (then.discount > 0)),
        )
        return State(Weights(evidence), state.activations), ()

    return Agent(no_genome, init, reset, act, learn, learning=True)
