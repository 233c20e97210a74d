"""What agents share: choosing among values, the parts of an agent that does not learn, checks of a world."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.types import Agent, BadInput, Genome, Key, Percept, Spec, State, Transition, Weights


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

    def birth(key: Key, genome: Genome) -> State:
        del key
        return State(Weights(genome), activations())

    def reset(state: State) -> State:
        return State(state.weights, activations())

    return Agent(genome, birth, reset, act, does_not_learn, privileged=privileged)


def no_genome(key: Key) -> Genome:
    """The genome of an agent that has no settings to be searched."""
    del key
    return ()


def needs_discrete(agent: str, spec: Spec) -> None:
    """Raises `BadInput` where a world's observations are vectors and an agent needs them numbered."""
    if spec.num_observations < 1:
        raise BadInput(f"agent '{agent}' needs numbered observations, those of world '{spec.name}' are vectors")


def needs_one_state(agent: str, spec: Spec) -> None:
    """Raises `BadInput` for a bandit's strategy in a world that is no bandit."""
    if spec.num_observations != 1 or spec.horizon != 1:
        raise BadInput(f"agent '{agent}' is for bandits, world '{spec.name}' has states")
