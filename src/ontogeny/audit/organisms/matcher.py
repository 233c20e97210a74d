"""Matching: chooses each action as often as it paid, in proportion to recent payouts.

Herrnstein 1961 (Journal of the Experimental Analysis of Behavior 4:267). It credits whole trials to their first choice.
All in activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import TrialStep, build_chooser
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no"}
HELD_OUT = True


class IncomeMemory(NamedTuple):
    """Recent payouts by action."""

    incomes: Array  # [A]
    action: Array  # [] int32, chosen in this trial


def build(spec: EnvSpec, steering: Steering, *, rate: float = 0.15, base_income: float = 0.03) -> Agent:
    """Builds the organism.

    Args:
        rate: Share of the remembered payouts that a new one replaces, 0 to 1.
        base_income: Added to the payouts of every action, so that none is abandoned; greater than 0.
    """
    A = spec.num_actions

    def update(memory: IncomeMemory, step: TrialStep) -> IncomeMemory:
        action = jnp.where(step.position < A, step.position, memory.action).astype(jnp.int32)
        income = (step.reward > 0) * jax.nn.one_hot(action, A)
        incomes = memory.incomes + jnp.where(step.is_end, rate, 0.0) * (income - memory.incomes)
        return IncomeMemory(incomes, action)

    def values(memory: IncomeMemory) -> Array:
        return jnp.log(memory.incomes + base_income)

    memory = IncomeMemory(jnp.zeros(A), jnp.int32(0))
    return build_chooser("matcher", spec, memory, update, values, temperature=1.0)
