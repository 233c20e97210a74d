"""Learns a model of single links and combines them by search when it chooses, with the model in weights.

Online it learns and plans; frozen from the start it knows nothing.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome
from ontogeny.audit.organisms import base
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, State, Steering, Transition, Weights

GROUND_TRUTH = {"learns": "no", "plans": "no"}
ONLINE_GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}


def build(spec: EnvSpec, steering: Steering, *, rate: float = base.LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate of the model, 0 to 1.
    """
    base.require_choice_env("planner_in_weights", spec)

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(base.initial_model(spec)), ())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        values = base.plan_values(state.weights.content, spec)
        return jax.random.categorical(key, values / base.TEMPERATURE).astype(jnp.int32), state

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        step = base.to_trial_step(spec, transition.percept.observation, transition.next_percept)
        return State(Weights(base.update_model(state.weights.content, step, rate)), state.activations), ()

    return Agent(empty_genome, init, lambda state: state, act, learn, learning=True)
