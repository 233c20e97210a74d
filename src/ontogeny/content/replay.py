"""Experience replay for predictors: a buffer of sequences, of which old ones are learned again with each new one.

Lin 1992 (Machine Learning 8:293). Letters: R sequences in the buffer, L steps of a sequence, I inputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int32

from ontogeny.content.base import PredictionBatch, Predictor
from ontogeny.types import Key, PyTree


class ReplayConfig(NamedTuple):
    """The settings of learning with replay."""

    capacity: int  # R
    sequence_length: int  # L
    num_updates: int  # after each sequence
    replay_batch: int  # old sequences in each update
    num_training_steps: int  # environment steps over which the learning rate of the predictor decays


class ReplayScratch(NamedTuple):
    """Scratch of an agent that learns with replay."""

    predictor: PyTree  # scratch of the predictor
    num_steps: Int32[Array, ""]
    buffer: PyTree  # defined by the agent
    key: Key


def buffer_position(config: ReplayConfig, scratch: ReplayScratch) -> tuple[Array, Array]:
    """Returns the row of the buffer and the step in the row at which the present step is stored."""
    return scratch.num_steps // config.sequence_length % config.capacity, scratch.num_steps % config.sequence_length


def learn_step(
    config: ReplayConfig,
    predictor: Predictor,
    weights: PyTree,
    scratch: ReplayScratch,
    make_batch: Callable[[PyTree, Int32[Array, "B"]], PredictionBatch],
) -> tuple[PyTree, ReplayScratch]:
    """Counts one step, and at the end of a sequence updates the predictor on it and on randomly drawn older ones.

    Args:
        config: Settings.
        predictor: The predictor.
        weights: Its weights.
        scratch: Scratch whose buffer holds the present step.
        make_batch: Makes a batch from the buffer and the indices of its rows.

    Returns:
        Weights and scratch after the step.
    """
    number, t = scratch.num_steps // config.sequence_length, scratch.num_steps % config.sequence_length
    scratch = scratch._replace(num_steps=scratch.num_steps + 1)
    progress = jnp.minimum(scratch.num_steps / config.num_training_steps, 1.0)
    step_key = jax.random.fold_in(scratch.key, scratch.num_steps)

    def update(carry: tuple[PyTree, PyTree], update_number: Array) -> tuple[tuple[PyTree, PyTree], None]:
        key = jax.random.fold_in(step_key, update_number)
        old_rows = jax.random.randint(key, (config.replay_batch,), 0, jnp.minimum(number + 1, config.capacity))
        batch = make_batch(scratch.buffer, jnp.append(number % config.capacity, old_rows))
        return predictor.update(*carry, batch, progress), None

    def train(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(update, carry, jnp.arange(config.num_updates))[0]

    # All lifetimes of a batch have taken equally many steps, so that under `vmap` this remains a branch.
    is_complete = t == config.sequence_length - 1
    weights, predictor_scratch = jax.lax.cond(is_complete, train, lambda carry: carry, (weights, scratch.predictor))
    return weights, scratch._replace(predictor=predictor_scratch)
