"""Reports how often items were 1 in this segment, and ignores predictabilities and directions."""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.environments import stream
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_counter("frequency_predictor", spec, bias=0.0)


def build_counter(name: str, spec: EnvSpec, bias: float) -> Agent:
    """Builds a predictor that counts items.

    Args:
        name: Of the organism.
        bias: Added to the share of ones in the direction of predictability.
    """
    prior = jnp.ones(2)  # pseudo-counts of 0 and 1

    def update(counts: Array, step: StepMemoryInput) -> Array:
        item = (step.percept.outcome[stream.ITEM] > 0.5).astype(jnp.int32)
        return jnp.where(step.percept.observation[stream.BEGINS] > 0.5, prior, counts.at[item].add(1.0))

    def choose(key: Key, counts: Array, percept: Percept) -> Array:
        probability = counts[1] / jnp.sum(counts) + bias * percept.observation[stream.DIRECTION]
        return stream.nearest_report(probability, spec.num_actions)

    return build_stepwise(name, spec, ("stream",), prior, update, choose)
