"""Temporal differences with eligibility traces, TD(lambda): prediction errors update earlier places too.

Sutton 1988 (Machine Learning 3:9); Sutton & Barto 2018, section 12.2. All in activations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import LEARNING_RATE, TrialStep, build_chooser, num_positions
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "pattern": "100"}


class TraceMemory(NamedTuple):
    """Values and eligibility traces."""

    values: Array  # [W], by position
    traces: Array  # [W], by position


def build(spec: EnvSpec, steering: Steering, *, trace_decay: float = 0.6, rate: float = LEARNING_RATE) -> Agent:
    """Builds the organism.

    Args:
        trace_decay: Decay of the traces per step (lambda), 0 to 1.
        rate: Learning rate, 0 to 1.
    """

    def update(memory: TraceMemory, step: TrialStep) -> TraceMemory:
        values, traces = memory
        target = jnp.where(step.is_end, step.reward, values[step.next_position])
        error = jnp.where(step.is_cut, 0.0, target - values[step.position])
        traces = (trace_decay * traces).at[step.position].set(1.0)
        return TraceMemory(values + rate * error * traces, jnp.where(step.is_end | step.is_cut, 0.0, traces))

    zeros = jnp.zeros(num_positions(spec))
    memory = TraceMemory(zeros, zeros)
    return build_chooser("td_lambda", spec, memory, update, lambda memory: memory.values[: spec.num_actions])
