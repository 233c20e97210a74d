"""Learns by temporal differences how good each cell is, and prefers neighbors with higher values.

It reads the walls and its cell, not the places of goal and beacon, and learns the rest from reward. All in activations.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise
from ontogeny.environments import beacon
from ontogeny.environments.base import next_cell
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, rate: float = 0.5, discount: float = 0.9) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
        discount: Of later rewards per step, 0 to 1.
    """
    num_cells = beacon.spec_size(spec) ** 2 if spec.name == "beacon" else 1

    def update(values: Array, step: StepMemoryInput) -> Array:
        percept, view = step.percept, beacon.parse_observation(step.last_observation)
        entered = next_cell(view.walls, view.cell, percept.action)
        is_at_goal = percept.first & (percept.discount == 0)
        reached = values.at[entered].add(jnp.where(is_at_goal, rate * (percept.reward - values[entered]), 0.0))
        target = percept.reward * ~is_at_goal + discount * reached[entered]
        return reached.at[view.cell].add(rate * (target - reached[view.cell]))

    def choose(key: Key, values: Array, percept: Percept) -> Array:
        view = beacon.parse_observation(percept.observation)
        cells = jax.vmap(lambda action: next_cell(view.walls, view.cell, action))(jnp.arange(spec.num_actions))
        preferences = values[cells] / 0.05 - 2.0 * (cells == view.cell)
        return jax.random.categorical(key, preferences)

    return build_stepwise("cell_value_learner", spec, ("beacon",), jnp.zeros(num_cells), update, choose)
