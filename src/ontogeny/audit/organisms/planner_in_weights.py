"""Knows single links and puts them together when it chooses, and all that it knows is in weights.

Online it learns and plans; frozen from birth it knows nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome
from ontogeny.audit.organisms.base import RATE, TEMPERATURE, needs_choice, num_places, step_of
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, State, Steering, Transition, Weights

GROUND_TRUTH = {"learns": "no", "plans": "no"}
ONLINE_GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}


class Model(NamedTuple):
    leads: Array  # [W, W]
    rewards: Array  # [W]


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    needs_choice("planner_in_weights", spec)
    W, A = num_places(spec), spec.num_actions

    def init(key: Key, genome: Genome) -> State:
        del key, genome
        return State(Weights(Model(jnp.zeros((W, W)), jnp.zeros(W))), ())

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        model = state.weights.content

        def back(ahead, _):
            return model.rewards + model.leads @ ahead, None

        values = jax.lax.scan(back, jnp.zeros(W), length=spec.horizon)[0][:A]
        return jax.random.categorical(key, values / TEMPERATURE).astype(jnp.int32), state

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, tuple]:
        del key
        model, step = state.weights.content, step_of(spec, transition.percept.observation, transition.next_percept)
        learns = jnp.where(step.cut, 0.0, rate)
        to = jnp.where(step.ended, 0.0, jax.nn.one_hot(step.to, W))
        leads = model.leads.at[step.where].add(learns * (to - model.leads[step.where]))
        rewards = model.rewards.at[step.where].add(learns * (step.reward - model.rewards[step.where]))
        return State(Weights(Model(leads, rewards)), state.activations), ()

    return Agent(empty_genome, init, lambda state: state, act, learn, learning=True)
