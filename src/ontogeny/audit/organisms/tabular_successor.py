"""Learns a successor representation of the links of a `relay` with a greedy policy. All in activations.

Dayan 1993 (Neural Computation 5:613); SR-TD of Russek et al. 2017 (PLoS Computational Biology 13:e1005768). Its choice
follows a changed outcome of a link that it expects to follow, and no changed transition further on.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, num_graph_states, to_graph_state
from ontogeny.audit.organisms.tabular import RATE, UNKNOWN_VALUE, build_tabular, interpolate
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "no", "objective": "no"}


class OccupancyMemory(NamedTuple):
    """The successor representation of the links and their last rewards; link s A + a."""

    occupancies: Array  # [S A, S A] expected future visits of the second link after the first one
    rewards: Array  # [S A]


def learner(spec: EnvSpec, *, rate: float = RATE) -> TabularLearner:
    """Builds the learner; the policy of the representation is greedy.

    Args:
        spec: Of the environment `relay`.
        rate: Learning rate of both parts, 0 to 1.
    """
    A, num_links = spec.num_actions, num_graph_states(spec) * spec.num_actions

    def values(memory: OccupancyMemory, observation: Array) -> Array:
        links = A * to_graph_state(spec, observation) + jnp.arange(A)
        return jnp.sum(memory.occupancies[links] * memory.rewards, axis=1)  # exact, unlike a product of matrices

    def update(memory: OccupancyMemory, step: TabularStep) -> OccupancyMemory:
        link, step_rate = A * step.state + step.action, jnp.where(step.is_cut, 0.0, rate)
        next_link = A * step.next_state + jnp.argmax(values(memory, step.next_state))
        future = jnp.where(step.is_end, 0.0, memory.occupancies[next_link])
        target = jax.nn.one_hot(link, num_links) + future
        return OccupancyMemory(
            memory.occupancies.at[link].set(interpolate(memory.occupancies[link], target, step_rate)),
            memory.rewards.at[link].set(interpolate(memory.rewards[link], step.reward, step_rate)),
        )

    return TabularLearner(OccupancyMemory(jnp.eye(num_links), jnp.full(num_links, UNKNOWN_VALUE)), update, values)


def build(spec: EnvSpec, steering: Steering, *, rate: float = RATE, temperature: float = 0.0) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate, 0 to 1.
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    return build_tabular("tabular_successor", spec, partial(learner, rate=rate), temperature=temperature)
