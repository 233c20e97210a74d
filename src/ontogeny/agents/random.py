"""Chooses every action with equal chance: the lower bound."""

import jax

from ontogeny.agents.base import no_genome, unchanging
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering) -> Agent:
    def act(key: Key, state: State, percept: Percept):
        return jax.random.randint(key, (), 0, spec.num_actions), state

    return unchanging(no_genome, tuple, act)
