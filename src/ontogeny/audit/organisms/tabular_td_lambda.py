"""Q-learning with eligibility traces in every state of a `relay`. All in activations.

Watkins's Q(lambda), Sutton & Barto 2018, section 12.10. Within a trial an error reaches all links on the way; a link
that is shown alone has no way before it.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, build_tabular, initial_values, td_target, update_by_td
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}
TRACE_DECAY = 0.8


class TracedValues(NamedTuple):
    """Action values and the eligibility of each in this episode."""

    values: Array  # [S, A]
    traces: Array  # [S, A]


def learner(spec: EnvSpec, *, rate: float = RATE, trace_decay: float = TRACE_DECAY) -> TabularLearner:
    """Builds the learner.

    Args:
        spec: Of the environment `relay`.
        rate: Learning rate, 0 to 1.
        trace_decay: Lambda, 0 to 1.
    """

    def update(memory: TracedValues, step: TabularStep) -> TracedValues:
        link, earlier = (step.state, step.action), trace_decay * memory.traces
        error = td_target(memory.values, step) - memory.values[link]
        # No link occurs twice in an episode, so the trace of this one is 1.
        values = update_by_td(memory.values + rate * error * earlier, step, rate)
        return TracedValues(values, jnp.where(step.is_end | step.is_cut, 0.0, earlier.at[link].set(1.0)))

    def values(memory: TracedValues, observation: Array) -> Array:
        return memory.values[to_graph_state(spec, observation)]

    memory = TracedValues(initial_values(spec), initial_values(spec, 0.0))
    return TabularLearner(memory, update, values)


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    rate: float = RATE,
    trace_decay: float = TRACE_DECAY,
    temperature: float = 0.0,
) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
        trace_decay: Lambda, 0 to 1.
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    build_learner = partial(learner, rate=rate, trace_decay=trace_decay)
    return build_tabular("tabular_td_lambda", spec, build_learner, temperature=temperature)
