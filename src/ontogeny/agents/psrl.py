"""Plans each episode in one task drawn from its posterior (posterior sampling).

Strens 2000 (ICML); Osband, Russo and Van Roy 2013 (NeurIPS 26), PSRL. The posterior is in weights, the episode's plan
in activations.
"""

from typing import cast

from jax import Array

from ontogeny.agents.base import believing, episode_planner
from ontogeny.content import planning, tabular_draws
from ontogeny.content.tabular_model import Evidence
from ontogeny.types import Agent, EnvSpec, Key, Prior, Steering


def build(spec: EnvSpec, steering: Steering, *, told_mean: bool = True) -> Agent:
    prior = cast(Prior, believing("psrl", spec, told_mean).prior)

    def action_values(key: Key, evidence: Evidence) -> Array:
        task = tabular_draws.draw(key, prior, evidence)
        return planning.value_iteration(steering(task.outcome_features), task.successors, spec.horizon)

    return episode_planner(spec, action_values)
