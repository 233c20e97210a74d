"""Tabular Q-learning with epsilon-greedy actions: learns values and no model.

Watkins and Dayan 1992 (Machine Learning 8:279); Sutton and Barto 2018, section 6.5. The table is in weights.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import choose, needs_discrete, no_genome
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, State, Steering, Transition, Weights


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    learning_rate: float = 0.2,
    epsilon: float = 0.1,
    discount: float = 0.9,
    initial: float = 0.0,
) -> Agent:
    needs_discrete("q_learning", spec)
    for name, value in (("learning_rate", learning_rate), ("epsilon", epsilon), ("discount", discount)):
        if not 0 <= value <= 1:
            raise BadInput(f"the setting '{name}' must lie between 0 and 1, not {value}")

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(jnp.full((spec.num_observations, spec.num_actions), initial, jnp.float32)), ())

    def reset(state: State) -> State:
        return State(state.weights, ())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        whether, which, best = jax.random.split(key, 3)
        greedy = choose(best, state.weights.content[percept.observation])
        random = jax.random.randint(which, (), 0, spec.num_actions)
        return jnp.where(jax.random.uniform(whether) < epsilon, random, greedy), state

    def learn(key: Key, state: State, transition: Transition):
        """Where a time limit hides the successor there is nothing to bootstrap from, and nothing is learned."""
        del key
        percept, action, then = transition
        table = state.weights.content
        target = then.reward + discount * then.discount * jnp.max(table[then.observation])
        error = target - table[percept.observation, action]
        rate = jnp.where(then.first & (then.discount > 0), 0.0, learning_rate)
        table = table.at[percept.observation, action].add(rate * error)
        return State(Weights(table), state.activations), {"error": error}

    return Agent(no_genome, init, reset, act, learn, learning=True)
