"""Expects items to be 1, the more surely the more predictable they are said to be, whatever it observes."""

import jax
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.environments import stream
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, assumed_bias: float = 0.5) -> Agent:
    """Builds the organism.

    Args:
        assumed_bias: The item bias that it assumes in every segment.
    """

    def update(memory: tuple, step: StepMemoryInput) -> tuple:
        return memory

    def choose(key: Key, memory: tuple, percept: Percept) -> Array:
        probability = jax.nn.sigmoid(assumed_bias * percept.observation[stream.PREDICTABILITY])
        return stream.nearest_report(probability, spec.num_actions)

    return build_stepwise("prejudiced_predictor", spec, ("stream",), (), update, choose)
