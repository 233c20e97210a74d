"""Fits of choice models by maximum likelihood, for all participants at once.

The likelihood is maximized by scoring with the outer products of each trial's gradient (Berndt, Hall, Hall & Hausman
1974, Ann Econ Soc Meas 3:653), damped (Levenberg 1944), from several starting points. Letters: S participants,
T trials, K parameters, B starting points.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.behavior.base import ChoiceModel, ParticipantTrials, TaskStatistics
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
    model: ChoiceModel, trials: ParticipantTrials, task: TaskStatistics, num_starts: np.ndarray, seed: int = 0
) -> ModelFit:
    """Fits a model to each participant.

    Args:
        model: The model with K parameters.
        trials: NumPy arrays [S, T].
        task: Task statistics with the leading axis [S].
        num_starts: [S] int, starting points for each participant.
        seed: Determines the starting points.
    """
    S, K = len(trials.choice), len(model.parameters)
    participant = np.repeat(np.arange(S), num_starts)
    padding = np.zeros(-len(participant) % BATCH_SIZE, int)  # whole batches, so that one program is compiled
    participant = np.concatenate([participant, padding])
    starts = np.random.default_rng(seed).normal(0, START_SCALE, (len(participant), K)).astype(np.float32)
    # One start in four has parameters from the ranges of model organisms, which are typical of participants.
    is_typical = np.arange(len(participant)) % 4 == 0
    starts[is_typical] = sample_parameters(seed, model, int(is_typical.sum()))
    task_of_start = TaskStatistics(*(part[participant] for part in task))
    trials_of_start = ParticipantTrials(*(part[participant] for part in trials))
    maxima, max_log_likelihoods = map(np.asarray, _maximize_likelihood(model, starts, task_of_start, trials_of_start))
    order = np.lexsort((-max_log_likelihoods, participant))  # by participant, the highest likelihood first
    best = order[np.searchsorted(participant[order], np.arange(S))]
    log_likelihood = max_log_likelihoods[best].astype(np.float64)
    num_choices = trials.is_complete.sum(axis=1) * (1 if model.second_logits is None else 2)
    parameters = jax.vmap(partial(to_parameters, model))(jnp.asarray(maxima[best]))
    is_converged = max_log_likelihoods > log_likelihood[participant] - CONVERGENCE_TOLERANCE
    return ModelFit(
        model.name,
        maxima[best],
        {p.name: np.asarray(parameters[p.name], np.float64) for p in model.parameters},
        log_likelihood,
        K * np.log(num_choices) - 2 * log_likelihood,
        np.bincount(participant, is_converged, S) / np.bincount(participant),
    )


@partial(jax.jit, static_argnames=("model",))
def _maximize_likelihood(
    model: ChoiceModel, starts: Array, task: TaskStatistics, trials: ParticipantTrials
) -> tuple[Array, Array]:
    """Local maxima [B, K] and their log-likelihoods [B] from starting points [B, K], each with its own participant."""
    K = starts.shape[-1]

    def maximize(start: Array, task: TaskStatistics, trials: ParticipantTrials) -> tuple[Array, Array]:
        """The local maximum [K] that is reached from one starting point [K], and its log-likelihood."""

        def evaluate(x: Array) -> tuple[Array, Array, Array]:
            """The log-likelihood, its gradient [K], and the summed outer products of each trial's gradient [K, K]."""

            def derivative(direction: Array) -> tuple[Array, Array]:
                return jax.jvp(lambda x: log_likelihoods(model, x, task, trials), (x,), (direction,))

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

    return jax.lax.map(lambda inputs: maximize(*inputs), (starts, task, trials), batch_size=BATCH_SIZE)
