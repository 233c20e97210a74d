"""Trains contents to predict streams, several runs at once, and keeps the weights of several times of the training.

R runs share one architecture and one compiled program; they differ in their key and in the settings of their streams.
Nothing but `Predictor.update` changes the weights, and its loss is that of prediction.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.relay_streams import Layout, StreamSettings, sample_batch
from ontogeny.agents.stream_training import TrainingState, train_on_streams
from ontogeny.content.base import Predictor
from ontogeny.environments.relay import RelayParams
from ontogeny.types import Key, PyTree

INIT_KEY, STREAMS_KEY = range(2)  # numbers of keys of a run


class TrainingPlan(NamedTuple):
    """How long a content is trained, and on what.

    Attributes:
        num_updates: Updates in all; the learning rate falls to zero along a cosine until the last.
        batch_size: Streams in each update; no stream is used twice.
        updates_per_call: Updates in one call of the compiled program, whose streams are sampled at once.
        precision: Type of the numbers in which gradients are computed, `float32` or `bfloat16`; weights are float32.
    """

    num_updates: int
    batch_size: int = 16
    updates_per_call: int = 100
    precision: str = "float32"


TrainCall = Callable[[Key, StreamSettings, TrainingState, Array, Array], TrainingState]


def init_state(predictor: Predictor, keys: Key) -> TrainingState:
    """Draws the initial weights of R contents."""

    def init(key: Key) -> TrainingState:
        weights = predictor.init(jax.random.fold_in(key, INIT_KEY))
        return TrainingState(weights, predictor.init_scratch(weights))

    return jax.jit(jax.vmap(init))(keys)


def build_train_call(plan: TrainingPlan, predictor: Predictor, params: RelayParams, layout: Layout) -> TrainCall:
    """Compiles one call of the training: keys, settings and state [R], number of the call, updates in all -> state."""

    def train_run(
        key: Key, settings: StreamSettings, state: TrainingState, call: Array, num_updates: Array
    ) -> TrainingState:
        streams_key = jax.random.fold_in(jax.random.fold_in(key, STREAMS_KEY), call)
        shape = (plan.updates_per_call, plan.batch_size)
        streams = sample_batch(streams_key, params, settings, shape[0] * shape[1], "training")
        streams = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]).astype(jnp.int8), streams)

        progress = (call * plan.updates_per_call + jnp.arange(plan.updates_per_call)) / num_updates
        return train_on_streams(predictor, layout, settings.is_labeled, state, streams, progress, plan.precision)

    return jax.jit(jax.vmap(train_run, in_axes=(0, 0, 0, None, None)), donate_argnums=2)


def train(
    plan: TrainingPlan,
    predictor: Predictor,
    train_call: TrainCall,
    keys: Key,
    settings: StreamSettings,
    on_updates: Callable[[int, PyTree], None],
) -> PyTree:
    """Trains R contents.

    Args:
        plan: Length of the training.
        predictor: The content.
        train_call: Of `build_train_call` for this plan and content.
        keys: [R].
        settings: Leaves [R, ...].
        on_updates: Receives the number of updates and the weights, before the first call and after every call.

    Returns:
        The weights, leaves [R, ...].
    """
    state = init_state(predictor, keys)
    on_updates(0, state.weights)
    for call in range(plan.num_updates // plan.updates_per_call):
        state = train_call(keys, settings, state, jnp.int32(call), jnp.int32(plan.num_updates))
        on_updates((call + 1) * plan.updates_per_call, state.weights)
    return state.weights
