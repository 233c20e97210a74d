"""Remembers where each link of a `relay` led last and searches the whole graph when it chooses, all in activations."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny.agents.tabular_learner import TabularLearner, TabularStep, to_graph_state
from ontogeny.audit.organisms.tabular import UNKNOWN_VALUE, build_tabular, initial_values
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "objective": "no"}
UNKNOWN, END = -2, -1  # in place of a successor


class LinkMemory(NamedTuple):
    """The last observation of each link."""

    successors: Array  # [S, A] int32, a state, `END` or `UNKNOWN`
    rewards: Array  # [S, A]


def learner(spec: EnvSpec) -> TabularLearner:
    """Builds the learner: backward induction over the horizon; an unknown link has the value 0.5."""

    def update(memory: LinkMemory, step: TabularStep) -> LinkMemory:
        link = (step.state, step.action)
        successor = jnp.where(step.is_end, END, step.next_state)
        successor = jnp.where(step.is_cut, memory.successors[link], successor).astype(jnp.int32)
        reward = jnp.where(step.is_cut, memory.rewards[link], step.reward)
        return LinkMemory(memory.successors.at[link].set(successor), memory.rewards.at[link].set(reward))

    def values(memory: LinkMemory, observation: Array) -> Array:
        has_successor = memory.successors >= 0
        successors = jnp.maximum(memory.successors, 0)
        known_rewards = jnp.where(memory.successors == UNKNOWN, UNKNOWN_VALUE, memory.rewards)
        planned = known_rewards
        for _ in range(spec.horizon - 1):
            planned = known_rewards + jnp.where(has_successor, jnp.max(planned, axis=1)[successors], 0.0)
        return planned[to_graph_state(spec, observation)]

    shape = initial_values(spec).shape
    return TabularLearner(LinkMemory(jnp.full(shape, UNKNOWN, jnp.int32), jnp.zeros(shape)), update, values)


def build(spec: EnvSpec, steering: Steering, *, temperature: float = 0.0) -> Agent:
    """Builds the organism.

    Args:
        temperature: Of the softmax over values, at least 0; 0 for the first of the best actions.
    """
    return build_tabular("tabular_planner", spec, learner, temperature=temperature)
