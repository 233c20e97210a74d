"""Fits of choice models by maximum likelihood, for all participants at once.

The likelihood is maximized by scoring with the outer products of each trial's gradient (Berndt, Hall, Hall & Hausman
1974, Ann Econ Soc Meas 3:653), damped (Levenberg 1944), from several starting points. Letters: S participants,
T trials, K parameters, B starting points.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.behavior.base import ChoiceModel, ParticipantTrials
from ontogeny.audit.behavior.likelihood import log_likelihoods, sample_parameters, to_parameters

NUM_ITERATIONS = 40
BATCH_SIZE = 64  # starting points at once: more exceed the processor's cache
MAX_UNBOUNDED = 8.0  # largest absolute value of a parameter before `to_parameters` maps it into its range
MAX_STEP = 2.0  # length of one step
START_SCALE = 2.0  # standard deviation of unbounded starting points; wide, as small learning rates lie far out
INITIAL_DAMPING = 3.0
CONVERGENCE_TOLERANCE = 0.1  # nats by which a converged start may lie below the best one


class ModelFit(NamedTuple):
    """One model fitted to each participant."""

    model: str
    unbounded_parameters: np.ndarray  # [S, K], as `to_parameters` takes them
    parameters: dict[str, np.ndarray]  # [S] each
    log_likelihood: np.ndarray  # [S]
    bic: np.ndarray  # [S], Bayesian information criterion
    converged_share: np.ndarray  # [S], share of starting points that reach the best likelihood


def fit_model(
    model: ChoiceModel,
    trials: ParticipantTrials,
    transition_probs: np.ndarray,
    *,
    num_starts: int,
    seed: int = 0,
    guesses: np.ndarray | None = None,
    on_batch: Callable[[], None] | None = None,
) -> ModelFit:
    """Fits a model to each participant, in time and memory that are linear in the number of trials.

    Args:
        model: The model with K parameters.
        trials: NumPy arrays [S, T].
        transition_probs: [S, 2, 2], of each state given the first choice.
        num_starts: Starting points for each participant.
        seed: Determines the starting points.
        guesses: [S, K], one further starting point for each participant.
        on_batch: Called after each batch of optimizations, of which there are `count_batches`.
    """
    S, K = len(trials.choice), len(model.parameters)
    starts = np.random.default_rng(seed).normal(0, START_SCALE, (S, num_starts, K)).astype(np.float32)
    # One start in four has parameters from the ranges that are typical of participants.
    typical = sample_parameters(seed, model, S * len(range(0, num_starts, 4)))
    starts[:, ::4] = typical.reshape(S, -1, K)
    if guesses is not None:
        starts = np.concatenate([starts, guesses[:, None].astype(np.float32)], axis=1)
    maxima, max_log_likelihoods = _maximize_in_batches(model, starts, transition_probs, trials, on_batch)
    best = max_log_likelihoods.argmax(axis=1)
    unbounded_parameters = maxima[np.arange(S), best]
    log_likelihood = max_log_likelihoods.max(axis=1).astype(np.float64)
    num_choices = count_choices(model, trials)
    parameters = jax.vmap(partial(to_parameters, model))(jnp.asarray(unbounded_parameters))
    is_converged = max_log_likelihoods > log_likelihood[:, None] - CONVERGENCE_TOLERANCE
    return ModelFit(
        model.name,
        unbounded_parameters,
        {p.name: np.asarray(parameters[p.name], np.float64) for p in model.parameters},
        log_likelihood,
        K * np.log(num_choices) - 2 * log_likelihood,
        is_converged.mean(axis=1),
    )


def count_choices(model: ChoiceModel, trials: ParticipantTrials) -> np.ndarray:
    """Returns how many choices of each participant a model explains, [S]."""
    return trials.is_complete.sum(axis=1) * (1 if model.second_logits is None else 2)


def count_batches(num_participants: int, num_starts: int) -> int:
    """Returns the number of batches in which `fit_model` optimizes; `num_starts` includes the guess."""
    return -(-num_participants * num_starts // BATCH_SIZE)


def _maximize_in_batches(
    model: ChoiceModel,
    starts: np.ndarray,
    transition_probs: np.ndarray,
    trials: ParticipantTrials,
    on_batch: Callable[[], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima [S, starts, K] and their log-likelihoods [S, starts].

    All batches have the same size, so that one program is compiled, and only one batch holds copies of trials.
    """
    S, num_starts, K = starts.shape
    participant = np.repeat(np.arange(S), num_starts)
    order = np.arange(-(-len(participant) // BATCH_SIZE) * BATCH_SIZE) % len(participant)
    results = []
    for batch in order.reshape(-1, BATCH_SIZE):
        of_start = participant[batch]
        trials_of_start = ParticipantTrials(*(part[of_start] for part in trials))
        maximized = _maximize_likelihood(
            model, starts.reshape(-1, K)[batch], transition_probs[of_start], trials_of_start
        )
        results.append(tuple(map(np.asarray, maximized)))
        if on_batch is not None:
            on_batch()
    maxima, values = (np.concatenate(parts)[: len(participant)] for parts in zip(*results, strict=True))
    return maxima.reshape(S, num_starts, K), values.reshape(S, num_starts)


@partial(jax.jit, static_argnames=("model",))
def _maximize_likelihood(
    model: ChoiceModel, starts: Array, transition_probs: Array, trials: ParticipantTrials
) -> tuple[Array, Array]:
    """Local maxima [B, K] and their log-likelihoods [B] from starting points [B, K], each with its own participant."""
    K = starts.shape[-1]

    def maximize(start: Array, transition_probs: Array, trials: ParticipantTrials) -> tuple[Array, Array]:
        """The local maximum [K] that is reached from one starting point [K], and its log-likelihood."""

        def evaluate(x: Array) -> tuple[Array, Array, Array]:
            """The log-likelihood, its gradient [K], and the summed outer products of each trial's gradient [K, K]."""

            def derivative(direction: Array) -> tuple[Array, Array]:
                return jax.jvp(lambda x: log_likelihoods(model, x, transition_probs, trials), (x,), (direction,))

            values, gradients = jax.vmap(derivative, out_axes=(None, 0))(jnp.eye(K))  # [T], [K, T]
            return jnp.sum(values), jnp.sum(gradients, axis=1), gradients @ gradients.T

        def step(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            """One damped step, which is kept only where it increases the likelihood."""
            x, value, gradient, curvature, damping = carry
            move = jnp.linalg.solve(curvature + damping * jnp.eye(K), gradient)
            move *= jnp.minimum(1.0, MAX_STEP / jnp.maximum(jnp.linalg.norm(move), 1e-9))
            candidate = jnp.clip(x + move, -MAX_UNBOUNDED, MAX_UNBOUNDED)
            evaluation = evaluate(candidate)
            is_better = evaluation[0] > value
            accepted = jax.tree.map(
                lambda a, b: jnp.where(is_better, a, b), (candidate, *evaluation), (x, value, gradient, curvature)
            )
            return (*accepted, jnp.clip(jnp.where(is_better, damping / 3, damping * 4), 1e-4, 1e6)), None

        # The first step has length zero and improves on minus infinity: it evaluates the start.
        init = (start, jnp.float32(-jnp.inf), jnp.zeros(K), jnp.zeros((K, K)), jnp.float32(INITIAL_DAMPING))
        (maximum, max_log_likelihood, *_), _ = jax.lax.scan(step, init, None, length=NUM_ITERATIONS + 1)
        return maximum, max_log_likelihood

    return jax.vmap(maximize)(starts, transition_probs, trials)
