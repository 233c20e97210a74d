"""The contract of predictors, a kind of learned content, and how predictors learn by gradient descent.

Letters: B sequences, L steps, I inputs, K outputs.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny import plugins
from ontogeny.content.optimizers import build_optimizer, cosine_decay
from ontogeny.errors import BadInput, require_one_of
from ontogeny.types import Key, PyTree

OUTPUTS = ("binary", "categorical")
MUON_BETA2 = 0.99  # decay of the second moment of the weights that Adam trains beside Muon
MAX_GROUP_ELEMENTS = 2**18  # of one array of a group of sequences: 1 MB, which stays in the cache of a processor
# Level of a residual stream or of hidden units, from 0 on, and its vectors at all steps -> the vectors to go on with.
StreamEdit = Callable[[int, Float[Array, "L D"]], Float[Array, "L D"]]


class PredictionBatch(NamedTuple):
    """Sequences that a predictor learns from; row 0 is the newest."""

    inputs: Float[Array, "B L I"]
    target_index: Int32[Array, "B L"]  # binary: the output that predicts the target; categorical: the observed class
    target: Float[Array, "B L"]  # binary: 0 or 1; categorical: not read
    mask: Float[Array, "B L"]  # 1 where there is a target, 0 elsewhere


class Predictor(NamedTuple):
    """Learned content that predicts from all inputs so far; predictions are K logits.

    They are the logits of K binary quantities or, with categorical outputs, of the K classes of one quantity.

    `query` computes one step and carries `memory`, which belongs to the activations of an agent. `query_sequence`
    computes the same predictions of a whole sequence at once, for `update`. `query_edited` computes them with an edit
    of the residual stream or of the hidden units, for experiments, and also returns what the edits returned at every
    level; it is None for content without such vectors.
    """

    init: Callable[[Key], PyTree]  # -> weights
    init_scratch: Callable[[PyTree], PyTree]  # weights -> state of the optimizer, or counts; only `update` reads it
    init_memory: Callable[[], PyTree]
    query: Callable[[PyTree, PyTree, Float[Array, "I"]], tuple[Float[Array, "K"], PyTree]]  # weights, memory, inputs
    query_sequence: Callable[[PyTree, Float[Array, "L I"]], Float[Array, "L K"]]  # weights, inputs
    # weights, scratch, batch, share of the training that is done, from 0 to 1 -> weights, scratch
    update: Callable[[PyTree, PyTree, PredictionBatch, Array], tuple[PyTree, PyTree]]
    # weights, inputs, edit -> logits, vectors at every level
    query_edited: (
        Callable[[PyTree, Float[Array, "L I"], StreamEdit], tuple[Float[Array, "L K"], Float[Array, "num_levels L D"]]]
        | None
    ) = None


def starts_sequence(inputs: Float[Array, "*L I"]) -> Bool[Array, "*L"]:
    """Whether a step starts a new sequence, for which memory is cleared: the last input of the step says so."""
    return inputs[..., -1] > 0.5


def gradient_predictor(
    init: Callable[[Key], PyTree],
    init_memory: Callable[[], PyTree],
    query: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]],
    query_sequence: Callable[[PyTree, Array], Array],
    learning_rate: float,
    *,
    outputs: str = "binary",
    query_edited: Callable[[PyTree, Array, StreamEdit], tuple[Array, Array]] | None = None,
    query_batch: Callable[[PyTree, Array], Array] | None = None,
    largest_array: Callable[[int], int] | None = None,
    uses_muon: Callable[[PyTree], PyTree] | None = None,
) -> Predictor:
    """Builds a predictor whose update is one step of an optimizer on the mean log loss of a batch.

    Args:
        init: As in `Predictor`.
        init_memory: As in `Predictor`.
        query: As in `Predictor`.
        query_sequence: As in `Predictor`.
        learning_rate: Initial step size; it falls to zero along a cosine as `progress` goes from 0 to 1.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.
        query_edited: As in `Predictor`.
        query_batch: As `query_sequence`, for B sequences [B, L, I], where that is faster than `jax.vmap`.
        largest_array: Elements of the largest array that `query_sequence` computes for L steps. A CPU then computes
            the gradient of a batch by groups of sequences whose arrays stay in its cache, because reading them from
            memory takes longer than computing them; None for all sequences at once.
        uses_muon: Maps weights to a tree of Booleans: which of them Muon trains; Adam trains the others. None for Adam
            alone.

    Raises:
        BadInput: If there are no outputs of this name.
    """
    require_one_of(OUTPUTS, outputs=outputs)
    schedule = cosine_decay(learning_rate)  # `update` multiplies the step of the optimizer by the rate
    optimizer = build_optimizer(1.0)
    if uses_muon is not None:
        optimizer = build_optimizer(1.0, "muon", beta2=MUON_BETA2, uses_muon=uses_muon)

    def loss(weights: PyTree, batch: PredictionBatch, num_targets: Array) -> Array:
        query_all = query_batch or jax.vmap(query_sequence, (None, 0))
        losses = target_losses(query_all(weights, batch.inputs), batch, outputs)
        return jnp.sum(batch.mask * losses) / num_targets

    def gradient(weights: PyTree, batch: PredictionBatch) -> PyTree:
        num_targets = jnp.maximum(jnp.sum(batch.mask), 1)
        groups = _split_batch(batch, largest_array)
        if groups is None:
            return jax.grad(loss)(weights, batch, num_targets)

        # Under `vmap`, as over several runs, their arrays would not stay in the cache together: one after the other.
        @jax.custom_batching.sequential_vmap
        def sum_groups(weights: PyTree, groups: PredictionBatch, num_targets: Array) -> PyTree:
            def add_group(total: PyTree, group: PredictionBatch) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.add, total, jax.grad(loss)(weights, group, num_targets)), None

            return jax.lax.scan(add_group, jax.tree.map(jnp.zeros_like, weights), groups)[0]

        return sum_groups(weights, groups, num_targets)

    def update(weights: PyTree, scratch: PyTree, batch: PredictionBatch, progress: Array) -> tuple[PyTree, PyTree]:
        change, scratch = optimizer.update(gradient(weights, batch), scratch, weights)
        rate = schedule(progress)
        return jax.tree.map(lambda weight, step: weight + rate * step, weights, change), scratch

    return Predictor(init, optimizer.init, init_memory, query, query_sequence, update, query_edited)


def target_losses(logits: Float[Array, "B L K"], batch: PredictionBatch, outputs: str) -> Float[Array, "B L"]:
    """Returns the log loss of every step of a batch, in nats, targets or not.

    Args:
        logits: Predictions.
        batch: Its targets.
        outputs: One of `OUTPUTS`.
    """
    logits = logits.astype(jnp.float32)  # inputs may be in half precision
    if outputs == "categorical":
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.target_index)
    target_logits = jnp.take_along_axis(logits, batch.target_index[..., None], axis=-1)[..., 0]
    return optax.sigmoid_binary_cross_entropy(target_logits, batch.target)


def _split_batch(batch: PredictionBatch, largest_array: Callable[[int], int] | None) -> PredictionBatch | None:
    """The batch in groups [num_groups, size, ...] that fit into the cache of a CPU; None for one group."""
    B, L = batch.mask.shape
    if largest_array is None or jax.default_backend() != "cpu":
        return None
    num_groups = math.ceil(B / max(1, MAX_GROUP_ELEMENTS // largest_array(L)))
    if num_groups == 1:
        return None
    size = math.ceil(B / num_groups)

    def split(leaf: Array) -> Array:
        """Sequences of zeros, which the mask excludes, fill the last group."""
        padding = jnp.zeros((num_groups * size - B, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, padding]).reshape(num_groups, size, *leaf.shape[1:])

    return jax.tree.map(split, batch)


def feedforward_predictor(
    init: Callable[[Key], PyTree],
    apply: Callable[[PyTree, Float[Array, "I"]], Array],
    learning_rate: float,
    *,
    outputs: str = "binary",
) -> Predictor:
    """Builds a predictor without memory, which `apply(weights, inputs)` defines; the rest as `gradient_predictor`."""

    def query(weights: PyTree, memory: PyTree, inputs: Float[Array, "I"]) -> tuple[Float[Array, "K"], PyTree]:
        return apply(weights, inputs), memory

    def query_sequence(weights: PyTree, inputs: Float[Array, "L I"]) -> Float[Array, "L K"]:
        return jax.vmap(partial(apply, weights))(inputs)

    return gradient_predictor(init, tuple, query, query_sequence, learning_rate, outputs=outputs)


def init_dense(key: Key, num_inputs: int, num_outputs: int, scale: float = 1.0) -> Float[Array, "I O"]:
    """Draws Normal weights of a layer that multiply the standard deviation of its inputs by `scale`."""
    return scale * jax.random.normal(key, (num_inputs, num_outputs)) / jnp.sqrt(num_inputs)


def init_orthogonal(key: Key, size: int) -> Float[Array, "H H"]:
    """Draws an orthogonal matrix, uniformly over all of them.

    The columns of a matrix of Normal numbers are made orthonormal one after another (Gram-Schmidt, each twice). The
    values are those of `jax.nn.initializers.orthogonal` but for rounding. That function calls LAPACK, which on
    processors divides a batch among the threads of XLA and waits for them: where all threads call it at once, they
    wait forever.

    Args:
        key: Random key.
        size: H.
    """

    def add_column(index: Array, columns: Array) -> Array:
        column = columns[:, index]
        before = jnp.where(jnp.arange(size) < index, columns, 0.0)
        for _ in range(2):
            column = column - before @ (before.T @ column)
        return columns.at[:, index].set(column / jnp.linalg.norm(column))

    return jax.lax.fori_loop(0, size, add_column, jax.random.normal(key, (size, size)))


def build_predictor(content: str, num_inputs: int, num_outputs: int, size: int, input_index: int) -> Predictor:
    """Builds a predictor by name.

    Args:
        content: Name of a content plugin.
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step.
        size: Hidden units or width, for predictors that have them; 0 for their default.
        input_index: The input that a table of counts is indexed by; other predictors use all inputs.

    Raises:
        BadInput: If the content is no predictor.
    """
    if "num_inputs" not in inspect.signature(plugins.get_attribute("content", content, "build")).parameters:
        raise BadInput(f"content '{content}' is no predictor")
    options = {"hidden_size": size, "width": size} if size else {}
    options["input_index"] = input_index
    accepted = plugins.default_settings("content", content)
    settings = {name: value for name, value in options.items() if name in accepted}
    return plugins.build("content", content, num_inputs, num_outputs, **settings)
