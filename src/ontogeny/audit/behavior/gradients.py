"""The likelihood of many parameter sets at once with its gradients, in blocks of trials.

One compiled program per model evaluates a block of trials for a fixed number of lanes; a lane is one parameter set with
the trials of one participant. Memory and compilation therefore do not depend on the number of trials or participants.
Gradients of the memory are propagated forward, for the parameters that change the memory only; the choice of each trial
is differentiated backward from its memory. Letters: S participants, T trials, K parameters, N parameter sets, C trials
of a block, L lanes.
"""

from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.behavior.base import ChoiceModel, Parameters, ParticipantTrials
from ontogeny.audit.behavior.likelihood import scan_memory, to_parameters, trial_log_likelihood
from ontogeny.types import PyTree

NUM_LANES = (32, 128)  # parameter sets of one call: few of them, or many
BLOCK_SIZES = (250, 50)  # trials of one call with few and with many lanes, which the processor's cache holds


class Evaluation(NamedTuple):
    """The log-likelihood of N parameter sets with its derivatives."""

    log_likelihood: np.ndarray  # [N], in nats
    gradient: np.ndarray  # [N, K]
    curvature: np.ndarray  # [N, K, K], the summed outer products of each trial's gradient


class PaddedTrials(NamedTuple):
    """Trials of participants as blocks read them: trials first, and padded to whole blocks."""

    trials: ParticipantTrials  # NumPy arrays [T, S]
    previous_choice: np.ndarray  # [T, S]
    num_trials: np.ndarray  # [S], up to the last complete one
    transition_probs: np.ndarray  # [2, 2, S]


def pad_trials(trials: ParticipantTrials, transition_probs: np.ndarray) -> PaddedTrials:
    """Arranges trials for `evaluate_likelihood`.

    Args:
        trials: NumPy arrays [S, T].
        transition_probs: [S, 2, 2], of each state given the first choice.
    """
    T = trials.choice.shape[1]
    padding = -T % max(BLOCK_SIZES)
    padded = ParticipantTrials(*(np.pad(part, {1: (0, padding)}).T for part in trials))
    padded.starts_session[0], padded.is_consecutive[0] = True, False
    previous_choice = np.roll(padded.choice, 1, axis=0)
    num_trials = (np.arange(1, T + 1) * trials.is_complete).max(axis=1)
    return PaddedTrials(padded, previous_choice, num_trials, np.moveaxis(transition_probs, 0, -1))


def evaluate_likelihood(
    model: ChoiceModel,
    unbounded_parameters: np.ndarray,
    participant: np.ndarray,
    padded: PaddedTrials,
    max_trials: int,
) -> Evaluation:
    """Evaluates the log-likelihood of parameter sets and its derivatives.

    Args:
        model: The model with K parameters.
        unbounded_parameters: [N, K], as `to_parameters` takes them.
        participant: [N], whose trials each set explains.
        padded: The trials of all participants.
        max_trials: Later trials do not count, except for those of the same block.
    """
    N, K = unbounded_parameters.shape
    evaluation = Evaluation(np.zeros(N), np.zeros((N, K)), np.zeros((N, K, K)))
    remaining = np.argsort(padded.num_trials[participant], kind="stable")
    while len(remaining):
        size, block_size = list(zip(NUM_LANES, BLOCK_SIZES, strict=True))[2 * len(remaining) > max(NUM_LANES)]
        lanes, remaining = remaining[:size], remaining[size:]
        filled = np.resize(lanes, size)
        sums = _evaluate_lanes(model, unbounded_parameters[filled], participant[filled], padded, max_trials, block_size)
        for total, part in zip(evaluation, sums, strict=True):
            total[lanes] = part[: len(lanes)]
    return evaluation


def _evaluate_lanes(
    model: ChoiceModel,
    unbounded_parameters: np.ndarray,
    participant: np.ndarray,
    padded: PaddedTrials,
    max_trials: int,
    block_size: int,
) -> Evaluation:
    """`evaluate_likelihood` for L parameter sets [L, K]."""
    x = np.ascontiguousarray(unbounded_parameters.T, np.float32)
    transition_probs = padded.transition_probs[:, :, participant]
    state = _init_block_state(model, x.shape[1])
    sums = []
    for first in range(0, min(max_trials, int(padded.num_trials[participant].max())), block_size):
        block = slice(first, first + block_size)
        trials = ParticipantTrials(*(part[block][:, participant] for part in padded.trials))
        *parts, state = _evaluate_block(
            model, x, transition_probs, trials, padded.previous_choice[block][:, participant], state
        )
        sums.append(parts)
    # Sums over blocks in double precision, as rounding would hide the progress of the last steps.
    log_likelihood, gradient, curvature = (
        np.asarray(np.sum(part, axis=0, dtype=np.float64)) for part in zip(*sums, strict=True)
    )
    return Evaluation(log_likelihood, gradient.T, np.moveaxis(curvature, -1, 0))


class _BlockState(NamedTuple):
    """What a block of trials takes over from the one before: the memory, and its derivatives by some parameters."""

    memory: PyTree
    derivatives: PyTree  # with a leading axis of the parameters in `_memory_parameters`


class _RecordedParameters(dict[str, Any]):
    """Parameters that record which of them are used."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a parameter, or the default of one that the model lacks."""
        self.used.add(name)
        return super().get(name, default)


@cache
def _memory_parameters(model: ChoiceModel) -> tuple[str, ...]:
    """The names of the parameters that change the memory; all others change the choice only."""
    used: set[str] = set()

    def update(x: Array, transition_probs: Array, trial: ParticipantTrials) -> PyTree:
        p = _RecordedParameters(to_parameters(model, x))
        memory = model.update(p, model.init(p, transition_probs), trial)
        used.update(p.used)
        return memory

    integer, real, truth = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.float32, jnp.bool_))
    trial = ParticipantTrials(integer, integer, integer, real, truth, truth, truth)
    x, transition_probs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((len(model.parameters),), (2, 2)))
    jax.eval_shape(update, x, transition_probs, trial)
    return tuple(p.name for p in model.parameters if p.name in used)


def _init_block_state(model: ChoiceModel, num_lanes: int) -> _BlockState:
    """The state before the first trial, which starts a session, so that values do not matter."""
    memory = _memory_shapes(model, num_lanes)
    num_derivatives = len(_memory_parameters(model))
    return _BlockState(
        jax.tree.map(lambda part: np.zeros(part.shape, np.float32), memory),
        jax.tree.map(lambda part: np.zeros((num_derivatives, *part.shape), np.float32), memory),
    )


@cache
def _memory_shapes(model: ChoiceModel, num_lanes: int) -> PyTree:
    """The memory of a model, with a `jax.ShapeDtypeStruct` in place of each array."""
    shapes = ((len(model.parameters), num_lanes), (2, 2, num_lanes))
    x, transition_probs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return jax.eval_shape(lambda x, probs: model.init(to_parameters(model, x), probs), x, transition_probs)


@partial(jax.jit, static_argnames=("model",))
def _evaluate_block(
    model: ChoiceModel,
    x: Array,
    transition_probs: Array,
    trials: ParticipantTrials,
    previous_choice: Array,
    state: _BlockState,
) -> tuple[Array, Array, Array, _BlockState]:
    """The log-likelihood [L] of a block, its gradient [K, L], outer products [K, K, L], and the state after it."""
    p, slopes = jax.jvp(partial(to_parameters, model), (x,), (jnp.ones_like(x),))  # slopes of parameters by x
    memories, derivatives, state = _follow_memory(model, p, slopes, transition_probs, trials, state)

    def log_likelihoods(p: Parameters, memories: PyTree) -> Array:
        """The log-likelihood of each trial [C, L], from parameters and memories [C, ...] of each trial."""
        evaluate = partial(trial_log_likelihood, model)
        return jax.vmap(evaluate, in_axes=(0, None, 0, 0, 0))(p, transition_probs, memories, trials, previous_choice)

    p_of_trials = {name: jnp.broadcast_to(of_lanes, trials.choice.shape) for name, of_lanes in p.items()}
    values, pull_back = jax.vjp(log_likelihoods, p_of_trials, memories)
    by_parameter, by_memory = pull_back(jnp.ones_like(values))
    gradients = {name: by_parameter[name] * slope for name, slope in slopes.items()}
    for name, derivative in derivatives.items():
        gradients[name] += _sum_products(derivative, by_memory)
    gradient = jnp.stack([gradients[p.name] for p in model.parameters])  # [K, C, L]
    outer = jnp.sum(gradient[:, None] * gradient[None], axis=2)
    return values.sum(axis=0), gradient.sum(axis=1), outer, state


def _follow_memory(
    model: ChoiceModel,
    p: Parameters,
    slopes: Parameters,
    transition_probs: Array,
    trials: ParticipantTrials,
    state: _BlockState,
) -> tuple[PyTree, dict[str, PyTree], _BlockState]:
    """The memory before each trial, its derivatives by each parameter that changes it, and the state after the block.

    `slopes` are the derivatives of the parameters by their unbounded form.
    """
    names = _memory_parameters(model)

    def follow(p: Parameters, memory: PyTree) -> tuple[PyTree, PyTree]:
        return scan_memory(model, p, transition_probs, trials, memory)

    if not names:
        memories, memory = follow(p, state.memory)
        return memories, {}, _BlockState(memory, state.derivatives)

    def differentiate(direction: Parameters, derivatives: PyTree) -> tuple[tuple[PyTree, PyTree], ...]:
        return jax.jvp(follow, (p, state.memory), (direction, derivatives))

    # One direction for each of these parameters, in which all others keep their values.
    directions = {name: jnp.stack([slope * (name == varied) for varied in names]) for name, slope in slopes.items()}
    (memories, memory), (of_trials, derivatives) = jax.vmap(differentiate, out_axes=(None, 0))(
        directions, state.derivatives
    )
    by_name = {name: jax.tree.map(itemgetter(i), of_trials) for i, name in enumerate(names)}
    return memories, by_name, _BlockState(memory, derivatives)


def _sum_products(first: PyTree, second: PyTree) -> Array:
    """Sums the products of two trees of arrays [C, ..., L] over all axes but the first and the last one.

    The sum is written out, as XLA fuses it into one loop over lanes.
    """
    total = jnp.zeros(())
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        for index in np.ndindex(a.shape[1:-1]):
            total += a[(slice(None), *index)] * b[(slice(None), *index)]
    return total
