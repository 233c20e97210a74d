"""Learns action values without a model by tabular Q-learning, with epsilon-greedy actions.

Watkins and Dayan 1992 (Machine Learning 8:279); Sutton and Barto 2018, section 6.5. The table is in weights.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, explore, require_discrete_observations
from ontogeny.errors import require_probability
from ontogeny.rng import random_argmax
from ontogeny.types import (
    HIDDEN_OBSERVATION,
    Agent,
    EnvSpec,
    Genome,
    Key,
    Percept,
    State,
    Steering,
    Transition,
    Weights,
)


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    learning_rate: float = 0.2,
    epsilon: float = 0.1,
    discount: float = 0.9,
    initial_value: float = 0.0,
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of an environment with numbered observations.
        steering: Reward function.
        learning_rate: Step towards the target, from 0 to 1.
        epsilon: Probability, from 0 to 1, of a random action.
        discount: Discount of future rewards per step, from 0 to 1.
        initial_value: Value of every action at the start; high values make the agent explore.
    """
    del steering
    require_discrete_observations("q_learning", spec)
    require_probability(learning_rate=learning_rate, epsilon=epsilon, discount=discount)

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(jnp.full((spec.num_observations, spec.num_actions), initial_value, jnp.float32)), ())

    def reset(state: State) -> State:
        return State(state.weights, ())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        explore_key, action_key, tie_key = jax.random.split(key, 3)
        greedy_action = random_argmax(tie_key, state.weights.content[percept.observation])
        return explore(explore_key, action_key, epsilon, spec.num_actions, greedy_action), state

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, dict[str, Array]]:
        """Learns nothing where a hidden successor has a value, because there is nothing to bootstrap from."""
        del key
        percept, action, next_percept, final_observation = transition
        table = state.weights.content
        target = next_percept.reward + discount * next_percept.discount * jnp.max(table[final_observation])
        error = target - table[percept.observation, action]
        is_unknown = (final_observation == HIDDEN_OBSERVATION) & (next_percept.discount > 0)
        rate = jnp.where(is_unknown, 0.0, learning_rate)
        table = table.at[percept.observation, action].add(rate * error)
        return State(Weights(table), state.activations), {"error": error}

    return Agent(empty_genome, init, reset, act, learn, learning=True)
