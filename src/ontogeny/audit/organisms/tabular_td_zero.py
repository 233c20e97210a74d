"""Q-learning in every state of a `relay`: a value moves to the best one of the next state. All in activations.

Watkins & Dayan 1992 (Machine Learning 8:279). A change that is shown alone reaches the value of the changed link only,
so its choice follows a changed link where it leaves the state of the choice, and no link further on.
"""

from functools import partial

from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, build_tabular, initial_values, update_by_td
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}


def learner(spec: EnvSpec, *, rate: float = RATE) -> TabularLearner:
    """Builds the learner.

    Args:
        spec: Of the environment `relay`.
        rate: Learning rate, 0 to 1.
    """

    def values(memory: Array, observation: Array) -> Array:
        return memory[to_graph_state(spec, observation)]

    return TabularLearner(initial_values(spec), partial(update_by_td, rate=rate), values)


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE, temperature: float = 0.0) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    return build_tabular("tabular_td_zero", spec, partial(learner, rate=rate), temperature=temperature)
