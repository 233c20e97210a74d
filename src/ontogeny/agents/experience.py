"""A ring buffer of steps, from which neural agents draw sequences to learn from (experience replay, Lin 1992).

Letters: M capacity, B sequences, L steps of a sequence, O observation, F outcome features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32, Shaped

from ontogeny.content.latent_model import ExperienceSequence
from ontogeny.types import EnvSpec, Key, Transition


class Experience(NamedTuple):
    """The steps of the agent, of which the latest M are kept."""

    observation: Shaped[Array, "M *O"]
    is_first: Bool[Array, "M"]
    outcome: Float[Array, "M F"]  # of the action before
    action: Int32[Array, "M"]  # that was carried out
    log_probability: Float[Array, "M"]  # with which the agent chose the action; 0 where the environment replaced it
    next_outcome: Float[Array, "M F"]
    next_discount: Float[Array, "M"]
    num_steps: Int32[Array, ""]  # in the whole lifetime


class SampledExperience(NamedTuple):
    """Sequences of experience; the last one is the newest."""

    sequences: ExperienceSequence  # [B, L]
    log_probability: Float[Array, "B L"]


def init_experience(spec: EnvSpec, capacity: int) -> Experience:
    """Returns an empty buffer.

    Args:
        capacity: M.
    """
    dtype, F = jnp.int32 if spec.num_observations else jnp.float32, len(spec.outcome_features)
    return Experience(
        jnp.zeros((capacity, *spec.observation_shape), dtype),
        jnp.zeros(capacity, bool),
        jnp.zeros((capacity, F)),
        jnp.zeros(capacity, jnp.int32),
        jnp.zeros(capacity),
        jnp.zeros((capacity, F)),
        jnp.zeros(capacity),
        jnp.int32(0),
    )


def add_step(
    experience: Experience,
    transition: Transition,
    chosen_action: Int32[Array, ""],
    log_probability: Float[Array, ""],
) -> Experience:
    """Stores a transition in place of the oldest one.

    Args:
        experience: The steps before.
        transition: Its action is the one that was carried out.
        chosen_action: The action of the agent. Where it differs, the environment determined the action, with
            probability 1.
        log_probability: That of the chosen action.
    """
    percept, action, next_percept, _ = transition
    log_probability = jnp.where(action == chosen_action, log_probability, 0.0)
    slot = experience.num_steps % experience.action.shape[0]
    return Experience(
        experience.observation.at[slot].set(percept.observation),
        experience.is_first.at[slot].set(percept.first),
        experience.outcome.at[slot].set(percept.outcome),
        experience.action.at[slot].set(action),
        experience.log_probability.at[slot].set(log_probability),
        experience.next_outcome.at[slot].set(next_percept.outcome),
        experience.next_discount.at[slot].set(next_percept.discount),
        experience.num_steps + 1,
    )


def sample_experience(key: Key, experience: Experience, num_sequences: int, sequence_length: int) -> SampledExperience:
    """Draws sequences of consecutive steps uniformly, but for the last one, which is the newest.

    Args:
        key: Random key.
        experience: At least one step.
        num_sequences: B.
        sequence_length: L, at most the capacity. While there are fewer steps, a mask excludes those that do not exist.
    """
    capacity = experience.action.shape[0]
    oldest = jnp.maximum(experience.num_steps - capacity, 0)
    newest_start = jnp.maximum(experience.num_steps - sequence_length, oldest)
    starts = jax.random.randint(key, (num_sequences,), oldest, newest_start + 1).at[-1].set(newest_start)
    positions = starts[:, None] + jnp.arange(sequence_length)
    mask = (positions < experience.num_steps).astype(jnp.float32)
    observation, is_first, outcome, action, log_probability, next_outcome, next_discount = (
        buffer[positions % capacity] for buffer in experience[:-1]
    )
    sequences = ExperienceSequence(observation, is_first, outcome, action, next_outcome, next_discount, mask)
    return SampledExperience(sequences, log_probability)
