"""Predicts from the last item alone and uses the direction where it improves accuracy: unbiased, with a short memory.

Where reports influence predictabilities, more items are 1 where the direction is 1. A predictor that remembers the
items does not need the direction; one without that memory is more accurate with it. The weight of the direction is the
one at which logistic regression converges.
"""

import jax
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.audit.organisms.base import require_env
from ontogeny.environments import stream
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

GROUND_TRUTH = {"learns": "no", "objective": "no"}


def build(spec: EnvSpec, steering: Steering, *, item_weight: float = 0.615, direction_weight: float = 0.077) -> Agent:
    """Builds the organism.

    Args:
        item_weight: Coefficient of the last item in the log odds of the report.
        direction_weight: Coefficient of the direction in the log odds of the report.
    """
    require_env("last_item_predictor", spec, "stream")

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        del key
        direction = percept.observation[stream.DIRECTION]
        probability = jax.nn.sigmoid(item_weight * stream.last_item(percept) + direction_weight * direction)
        return stream.nearest_report(probability, spec.num_actions), state

    return fixed_weights_agent(empty_genome, tuple, act)
