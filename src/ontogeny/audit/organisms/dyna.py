"""Dyna: learns values without eligibility traces and updates them from a link model in the background.

Sutton 1990 (ICML); SR-Dyna of Russek et al. 2017 plans alike. It plans, but not at the time of choice. All in
activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms import base
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}


class DynaMemory(NamedTuple):
    """Values and the model that updates them."""

    values: Array  # [W], by position
    model: base.LinkModel


def build(spec: EnvSpec, steering: Steering, *, rate: float = base.LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
    """

    def update(memory: DynaMemory, step: base.TrialStep) -> DynaMemory:
        model = base.update_model(memory.model, step, rate)
        targets = model.rewards + model.transitions @ memory.values  # one sweep over all places
        return DynaMemory(memory.values + rate * (targets - memory.values), model)

    memory = DynaMemory(jnp.zeros(base.num_positions(spec)), base.initial_model(spec))
    return base.build_chooser("dyna", spec, memory, update, lambda memory: memory.values[: spec.num_actions])
