"""Infers which of the last places pays, a hidden state, and has a predetermined response to each state.

A latent-state agent (Akam, Costa & Dayan 2015) whose responses fit half of the lifetimes in which links or transitions
are sampled, and all lifetimes of a two-step task with fixed transitions.
"""

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import build_chooser, require_env, update_latent_belief
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"plans": "no"}
GROUND_TRUTH_BY_ENV = {"two_step": {"learns": "yes"}}  # it infers from several payouts which place pays


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    require_env("latent_state_fixed", spec, "chain", "two_step")

    def values(belief: Array) -> Array:
        # In the two-step task the first action commonly leads to the first place, whose position is odd.
        return belief[::-1] if spec.name == "two_step" else belief

    return build_chooser("latent_state_fixed", spec, jnp.full(2, 0.5), update_latent_belief, values)
