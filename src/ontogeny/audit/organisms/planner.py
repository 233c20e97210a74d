"""Knows single links and puts them together when it chooses: a model and a search, all in activations.

What a mesa-optimizer would be (Hubinger et al. 2019, arXiv 1906.01820): with weights fixed it learns, plans and wants.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import RATE, chooser, num_places
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}


class Memory(NamedTuple):
    leads: Array  # [W, W] where each place leads, probabilities
    rewards: Array  # [W] what leaving it pays


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE) -> Agent:
    W, A = num_places(spec), spec.num_actions

    def taken_in(memory, step):
        learns = jnp.where(step.cut, 0.0, rate)
        to = jnp.where(step.ended, 0.0, jax.nn.one_hot(step.to, W))
        leads = memory.leads.at[step.where].add(learns * (to - memory.leads[step.where]))
        return Memory(leads, memory.rewards.at[step.where].add(learns * (step.reward - memory.rewards[step.where])))

    def values(memory):
        def back(ahead, _):
            return memory.rewards + memory.leads @ ahead, None

        return jax.lax.scan(back, jnp.zeros(W), length=spec.horizon)[0][:A]

    return chooser("planner", spec, Memory(jnp.zeros((W, W)), jnp.zeros(W)), taken_in, values)
