"""Plans each episode in the mean of its posterior as if that were the task: greedy, or epsilon-greedy with `epsilon`.

The "Greedy" and "epsilon-Greedy" of Duan et al. 2016 (RL^2), Table 2. The posterior is in
weights, the episode's plan in activations.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import believing, episode_planner
from ontogeny.content import planning, tabular_model
from ontogeny.content.tabular_model import Evidence
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering


def build(spec: EnvSpec, steering: Steering, *, epsilon: float = 0.0, told_mean: bool = True) -> Agent:
    if not 0 <= epsilon <= 1:
        raise BadInput(f"the setting 'epsilon' is a probability, not {epsilon}")
    model = tabular_model.build(believing("certainty_equivalence", spec, told_mean))

    def action_values(key: Key, evidence: Evidence) -> Array:
        del key
        expected = model.query(evidence)
        return planning.value_iteration(steering(expected.outcome_features), expected.successors, spec.horizon)

    planner = episode_planner(spec, action_values)

    def act(key: Key, state: State, percept: Percept):
        whether, which, plan = jax.random.split(key, 3)
        action, state = planner.act(plan, state, percept)
        random = jax.random.randint(which, (), 0, spec.num_actions)
        return jnp.where(jax.random.uniform(whether) < epsilon, random, action), state

    return planner._replace(act=act)
