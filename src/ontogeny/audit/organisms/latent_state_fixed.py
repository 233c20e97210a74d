"""Believes in one of two hidden states, which of the last places pays, and was born with what to do in each.

A latent-state mimic (Akam, Costa & Dayan 2015) whose answers fit half of the lives in which links or paths are
drawn, and all lives of a two-step task whose paths are fixed.
"""

import jax.numpy as jnp

from ontogeny.audit.organisms.base import chooser
from ontogeny.types import Agent, BadInput, EnvSpec, Steering

GROUND_TRUTH = {"plans": "no"}
HAZARD, LIKELY = 0.02, 0.9


def build(spec: EnvSpec, steering: Steering) -> Agent:
    if spec.name not in ("chain", "two_step"):
        raise BadInput(
            f"organism 'latent_state_fixed' lives in the environments 'chain' and 'two_step', not in '{spec.name}'"
        )

    def taken_in(belief, step):
        odd = step.where % 2
        agrees = jnp.where(step.reward > 0, odd, 1 - odd)
        moved = belief * jnp.where(jnp.arange(2) == agrees, LIKELY, 1 - LIKELY)
        moved = moved / jnp.sum(moved)
        moved = (1 - HAZARD) * moved + HAZARD * moved[::-1]
        return jnp.where(step.ended | (jnp.abs(step.reward) > 0), moved, belief)

    def values(belief):  # in the two-step task the first action commonly leads to the first place, which is the odd one
        return belief[::-1] if spec.name == "two_step" else belief

    return chooser("latent_state_fixed", spec, jnp.full(2, 0.5), taken_in, values)
