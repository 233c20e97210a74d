"""Remembers where each link of a `relay` led last, tries out random paths in its memory, and begins the best one.

All in activations. With few paths it sometimes misses the best one.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import plugins
from ontogeny.agents.tabular_learner import TabularLearner, to_graph_state, to_tabular_step
from ontogeny.audit.organisms.base import StepMemoryInput, build_stepwise, require_env
from ontogeny.audit.organisms.tabular import UNKNOWN_VALUE
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, PyTree, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, num_paths: int = 16) -> Agent:
    """Builds the organism.

    Args:
        num_paths: Random paths per choice, at least 1.
    """
    require_env("path_sampler", spec, "relay")
    require_at_least(1, num_paths=num_paths)
    unknown = plugins.get_attribute("organisms", "tabular_planner", "UNKNOWN")
    learner: TabularLearner = plugins.get_attribute("organisms", "tabular_planner", "learner")(spec)

    def update(memory: PyTree, step: StepMemoryInput) -> PyTree:
        return learner.update(memory, to_tabular_step(spec, step.last_observation, step.percept))

    def evaluate(memory: PyTree, start: Array, actions: Array) -> Array:
        """The reward of a path with these actions; what is unknown is worth `UNKNOWN_VALUE`."""
        state, total, is_open = start, jnp.float32(0), jnp.bool_(True)
        for action in actions:
            successor = memory.successors[state, action]
            is_unknown = successor == unknown
            reward = jnp.where(is_unknown, UNKNOWN_VALUE, memory.rewards[state, action])
            total = total + jnp.where(is_open, reward, 0.0)
            is_open = is_open & (successor >= 0)
            state = jnp.maximum(successor, 0)
        return total

    def choose(key: Key, memory: PyTree, percept: Percept) -> Array:
        paths = jax.random.randint(key, (num_paths, spec.horizon), 0, spec.num_actions)
        start = to_graph_state(spec, percept.observation)
        totals = jax.vmap(evaluate, (None, None, 0))(memory, start, paths)
        return paths[jnp.argmax(totals), 0]

    return build_stepwise("path_sampler", spec, ("relay",), learner.memory, update, choose)
