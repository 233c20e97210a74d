"""Acts at random."""

import jax
from jax import Array

from ontogeny.audit.organisms.base import build_stepwise
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"objective": "no"}
GROUND_TRUTH_BY_ENV = {"relay": {"learns": "no", "plans": "no"}}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""

    def choose(key: Key, memory: tuple, percept: Percept) -> Array:
        return jax.random.randint(key, (), 0, spec.num_actions)

    return build_stepwise("random_walk", spec, ("beacon", "relay"), (), lambda memory, step: memory, choose)
