"""How a content is built for streams in `relay`, and trained to predict them by nothing but its own `update`.

Letters: U updates, B streams of an update, T steps of a stream.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ontogeny import plugins
from ontogeny.agents.relay_streams import Layout, StreamSteps, encode
from ontogeny.content.base import Predictor
from ontogeny.environments.relay import RelayParams
from ontogeny.errors import BadInput
from ontogeny.types import PyTree


class ContentSettings(NamedTuple):
    """One architecture."""

    content: str = "causal_transformer"
    width: int = 64  # or hidden units
    num_blocks: int = 3
    num_heads: int = 4
    learning_rate: float = 0.002
    optimizer: str = "muon"  # of contents that have a choice of optimizers


class TrainingState(NamedTuple):
    """Weights and scratch of a content, or of several with a leading axis."""

    weights: PyTree
    scratch: PyTree


def build_content(settings: ContentSettings, params: RelayParams, layout: Layout) -> Predictor:
    """Builds the predictor of an architecture for streams of an environment; a content takes the settings that it has.

    Raises:
        BadInput: If the content does not predict one categorical quantity.
    """
    options: dict[str, Any] = {
        "outputs": "categorical",
        "learning_rate": settings.learning_rate,
        "optimizer": settings.optimizer,
        "width": settings.width,
        "hidden_size": settings.width,
        "num_blocks": settings.num_blocks,
        "num_heads": settings.num_heads,
        "window_length": 2 * params.num_steps,
    }
    accepted = plugins.default_settings("content", settings.content)
    if "outputs" not in accepted:
        raise BadInput(f"content '{settings.content}' cannot predict a stream: it has no setting 'outputs'")
    chosen = {name: option for name, option in options.items() if name in accepted}
    return plugins.build("content", settings.content, layout.num_inputs, layout.num_classes, **chosen)


def train_on_streams(
    predictor: Predictor,
    layout: Layout,
    is_labeled: Bool[Array, ""],
    state: TrainingState,
    streams: StreamSteps,
    progress: Float[Array, "U"],
    precision: str = "float32",
) -> TrainingState:
    """Makes one update after another.

    Args:
        predictor: The content.
        layout: Sizes of the sequences.
        is_labeled: Whether the sequences show algorithm and goal of the member that chooses.
        state: Before the first update.
        streams: One batch for each update, leaves [U, B, T] of any integer type.
        progress: Share of the training that is done before each update.
        precision: Type of the numbers in which gradients are computed; weights are float32.
    """

    def update(state: TrainingState, batch: tuple[Array, PyTree]) -> tuple[TrainingState, None]:
        share, streams = batch
        streams = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), streams)
        sequences = jax.vmap(partial(encode, layout, is_labeled=is_labeled))(streams)
        sequences = sequences._replace(inputs=sequences.inputs.astype(precision))
        return TrainingState(*predictor.update(*state, sequences, share)), None

    return jax.lax.scan(update, state, (progress, streams))[0]
