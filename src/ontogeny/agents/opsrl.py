"""Plans each episode in the best that several tasks drawn from its posterior promise (optimistic PSRL).

Osband and Van Roy 2017 (ICML, arXiv 1607.00215): every action is worth the most that it is worth in any of `samples`
tasks, ten of them in their experiments. The posterior is in weights, the episode's plan in activations.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import believing, episode_planner
from ontogeny.content import planning, tabular_draws
from ontogeny.content.tabular_model import Evidence
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Prior, Steering


def build(spec: EnvSpec, steering: Steering, *, samples: int = 10, told_mean: bool = True) -> Agent:
    prior = cast(Prior, believing("opsrl", spec, told_mean).prior)
    if samples < 1:
        raise BadInput(f"the setting 'samples' must be at least 1, not {samples}")

    def action_values(key: Key, evidence: Evidence) -> Array:
        def highest_with_one_more(highest: Array, key: Key) -> tuple[Array, None]:
            task = tabular_draws.draw(key, prior, evidence)
            values = planning.value_iteration(steering(task.outcome_features), task.successors, spec.horizon)
            return jnp.maximum(highest, values), None

        lowest = jnp.full((spec.horizon, spec.num_observations, spec.num_actions), -jnp.inf)
        return jax.lax.scan(highest_with_one_more, lowest, jax.random.split(key, samples))[0]

    return episode_planner(spec, action_values)
