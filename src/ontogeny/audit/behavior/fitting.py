"""Fits of choice models by maximum likelihood.

The likelihood is maximized by scoring with the outer products of each trial's gradient (Berndt, Hall, Hall & Hausman
1974, Ann Econ Soc Meas 3:653), damped (Levenberg 1944), from many starting points, which race: after a few steps on
the first trials only the best starting points go on, with more trials, and the last ones until they converge. From the
best maximum they start again, with each parameter in turn set to the ends and the middle of its range. A model also
starts from the maxima of the models that it contains, so it never fits worse than they do. Simulated participants are
fitted exactly as participants are. Letters: S participants, T trials, K parameters, N lanes, each of which is one
parameter set of one participant.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ontogeny.audit.behavior.base import ChoiceModel, ContainedModel, ParticipantTrials
from ontogeny.audit.behavior.gradients import Evaluation, PaddedTrials, evaluate_likelihood, pad_trials
from ontogeny.audit.behavior.likelihood import sample_parameters

NUM_STARTS = 48  # starting points
GROUP_SIZE = 64  # participants that are fitted at once
BATCH_SIZE = 16  # participants whose last lanes are evaluated by one call
MAX_UNBOUNDED = 12.0  # largest absolute value of a parameter before `to_parameters` maps it into its range
NUM_NEAR = 6  # starting points that share with the maximum of a contained model the parameters that it has
MAX_STEP = 2.0  # length of one step
START_SCALE = 2.0  # standard deviation of unbounded starting points; wide, as small learning rates lie far out
INITIAL_DAMPING = 3.0
MAX_DAMPING = 1e5  # beyond it no step improves the likelihood further
MIN_GAIN = 1e-3  # nats that a step without damping is expected to gain; below it a lane has converged
MIN_DISTANCE = 0.02  # share of the range of a parameter by which two lanes differ, or are taken for one
CONVERGENCE_TOLERANCE = 0.1  # nats by which a converged start may lie below the best one


class Round(NamedTuple):
    """A part of the race of starting points."""

    max_trials: int  # of each participant, that count
    num_steps: int
    num_selected: int  # starting points of each participant that go on


ROUNDS = (Round(max_trials=250, num_steps=20, num_selected=12), Round(max_trials=2000, num_steps=10, num_selected=2))
"""The rounds before the last one, in which all trials count, until convergence."""
MAX_STEPS = 100  # of the last round
RESTART_VALUES = (-4.0, 0.0, 4.0)  # unbounded values that each parameter of a maximum takes in turn
RESTART_ROUND = Round(max_trials=2000, num_steps=20, num_selected=4)
"""Restarts from a maximum: the largest likelihood may lie at the end of a range that no other start has come near."""
MAX_UNBOUNDED_AT_START = 3.0  # of a round: at the ends of a range the gradient vanishes, so that nothing moves away


class ModelFit(NamedTuple):
    """One model fitted to each participant."""

    model: str
    unbounded_parameters: np.ndarray  # [S, K], as `to_parameters` takes them
    parameters: dict[str, np.ndarray]  # [S] each
    log_likelihood: np.ndarray  # [S]
    bic: np.ndarray  # [S], Bayesian information criterion
    converged_share: np.ndarray  # [S], share of the starting points of the last round that reach the best likelihood


class Lanes(NamedTuple):
    """Parameter sets on their way to a maximum."""

    participant: np.ndarray  # [N]
    x: np.ndarray  # [N, K], unbounded parameters
    evaluation: Evaluation
    damping: np.ndarray  # [N]

    def select(self, index: np.ndarray) -> "Lanes":
        """Returns some of the lanes."""
        return Lanes(
            self.participant[index],
            self.x[index],
            Evaluation(*(part[index] for part in self.evaluation)),
            self.damping[index],
        )


def fit_models(
    models: Sequence[ChoiceModel],
    trials: ParticipantTrials,
    transition_probs: np.ndarray,
    *,
    num_starts: int | None = None,
    seed: int = 0,
    rounds: Sequence[Round] = ROUNDS,
    on_batches: Callable[[int, str], None] | None = None,
) -> list[ModelFit]:
    """Fits models to each participant, those that are contained in others first.

    Args:
        models: M models, in any order.
        trials: NumPy arrays [S, T].
        transition_probs: [S, 2, 2], of each state given the first choice.
        num_starts: As in `fit_model`.
        seed: As in `fit_model`.
        rounds: As in `fit_model`.
        on_batches: As in `fit_model`.
    """
    fits: dict[str, ModelFit] = {}
    for model in sorted(models, key=lambda model: len(model.contains)):
        fits[model.name] = fit_model(
            model,
            trials,
            transition_probs,
            num_starts=num_starts,
            seed=seed,
            rounds=rounds,
            fits=fits,
            on_batches=on_batches,
        )
    return [fits[model.name] for model in models]


def fit_model(
    model: ChoiceModel,
    trials: ParticipantTrials,
    transition_probs: np.ndarray,
    *,
    num_starts: int | None = None,
    seed: int = 0,
    rounds: Sequence[Round] = ROUNDS,
    fits: Mapping[str, ModelFit] | None = None,
    on_batches: Callable[[int, str], None] | None = None,
) -> ModelFit:
    """Fits a model to each participant, in a time that is linear in the number of trials.

    Args:
        model: The model with K parameters.
        trials: NumPy arrays [S, T].
        transition_probs: [S, 2, 2], of each state given the first choice.
        num_starts: Starting points, which are the same for all participants; by default `NUM_STARTS`.
        seed: Determines the starting points.
        rounds: Of the race of starting points; without one, all of them go on until they converge.
        fits: Of other models to the same participants, by name; those that the model contains are starting points too.
        on_batches: Called with a number of finished batches and the name of the model; their number for all
            participants is that of `count_batches`.
    """
    S, K = len(trials.choice), len(model.parameters)
    starts = draw_starts(model, NUM_STARTS if num_starts is None else num_starts, seed)
    contained = [(fits[part.name], part) for part in model.contains if part.name in fits] if fits else []
    unbounded_parameters = np.zeros((S, K), np.float32)
    log_likelihood, converged_share = np.zeros(S), np.zeros(S)
    for first in range(0, S, GROUP_SIZE):
        group = slice(first, first + GROUP_SIZE)
        padded = pad_trials(ParticipantTrials(*(part[group] for part in trials)), transition_probs[group])
        N = len(padded.num_trials)
        near = [embed_fit(model, part, fit, start)[group] for fit, part in contained for start in starts[:NUM_NEAR]]
        exact = [embed_fit(model, part, fit, zero_parameters(model, part))[group] for fit, part in contained]
        near, exact = (np.reshape(parts, (len(parts), N, K)) for parts in (near, exact))
        results = _fit_group(model, padded, starts, near, exact, rounds)
        for total, part in zip((unbounded_parameters, log_likelihood, converged_share), results, strict=True):
            total[group] = part
        if on_batches is not None:
            on_batches(count_batches(N), model.name)
    shares = _parameter_shares(model, unbounded_parameters)
    return ModelFit(
        model.name,
        unbounded_parameters,
        {p.name: p.scale * share for p, share in zip(model.parameters, shares.T, strict=True)},
        log_likelihood,
        K * np.log(count_choices(model, trials)) - 2 * log_likelihood,
        converged_share,
    )


def count_batches(num_participants: int) -> int:
    """Returns the number of batches of equal duration in which a model is fitted to participants."""
    groups = range(0, num_participants, GROUP_SIZE)
    return sum(-(-min(GROUP_SIZE, num_participants - first) // BATCH_SIZE) for first in groups)


def count_choices(model: ChoiceModel, trials: ParticipantTrials) -> np.ndarray:
    """Returns how many choices of each participant a model explains, [S]."""
    return trials.is_complete.sum(axis=1) * (1 if model.second_logits is None else 2)


def draw_starts(model: ChoiceModel, num_starts: int, seed: int) -> np.ndarray:
    """Draws starting points [starts, K]; one in four has parameters from the ranges typical of participants."""
    starts = np.random.default_rng(seed).normal(0, START_SCALE, (num_starts, len(model.parameters)))
    starts[::4] = sample_parameters(seed, model, len(starts[::4]))
    return starts


def embed_fit(model: ChoiceModel, contained: ContainedModel, fit: ModelFit, defaults: np.ndarray) -> np.ndarray:
    """Writes a fit of a contained model as unbounded parameters of the model that contains it, [S, K].

    Args:
        model: The larger model with K parameters.
        contained: One of its `contains`.
        fit: Of the smaller model.
        defaults: [K], of which those count that the smaller model lacks.
    """
    columns = dict(zip(fit.parameters, fit.unbounded_parameters.T, strict=True))
    names = dict(contained.renamed)
    embedded = np.tile(defaults, (len(fit.unbounded_parameters), 1))
    for k, p in enumerate(model.parameters):
        name = names.get(p.name, p.name)
        if p.name not in contained.zeros and name in columns:
            embedded[:, k] = columns[name]
    return embedded


def zero_parameters(model: ChoiceModel, contained: ContainedModel) -> np.ndarray:
    """Returns the parameters [K] with which `embed_fit` is exact: 0 where it must be; the others do not matter."""
    return np.array([-MAX_UNBOUNDED if p.name in contained.zeros else 0.0 for p in model.parameters])


def _fit_group(
    model: ChoiceModel,
    padded: PaddedTrials,
    starts: np.ndarray,
    near: np.ndarray,
    exact: np.ndarray,
    rounds: Sequence[Round],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits a model to a group of participants.

    Args:
        model: The model with K parameters.
        padded: The trials of the S participants of the group.
        starts: [starts, K], starting points of every participant.
        near: [further starts, S, K], near the maxima of contained models.
        exact: [contained models, S, K], at these maxima, which need no race.
        rounds: As in `fit_model`.

    Returns:
        The best parameters [S, K], their log-likelihood [S], and the share of converged lanes [S].
    """
    S = len(padded.num_trials)
    x = np.concatenate([np.repeat(starts[:, None], S, axis=1), near])
    participant, x = np.tile(np.arange(S), len(x)), x.reshape(-1, starts.shape[1])
    for max_trials, num_steps, num_selected in rounds:
        lanes = climb(model, evaluate_lanes(model, participant, x, padded, max_trials), padded, max_trials, num_steps)
        lanes = lanes.select(best_lanes(model, lanes, num_selected))
        participant, x = lanes.participant, np.clip(lanes.x, -MAX_UNBOUNDED_AT_START, MAX_UNBOUNDED_AT_START)
    max_trials = int(padded.num_trials.max())
    lanes = climb(model, evaluate_lanes(model, participant, x, padded, max_trials), padded, max_trials, MAX_STEPS)
    best_x = lanes.x[best_lanes(model, lanes, 1)]
    restarted = _restart(model, best_x, padded) if rounds else best_x[None]
    x = np.concatenate([restarted, exact])
    candidates = evaluate_lanes(model, np.tile(np.arange(S), len(x)), x.reshape(-1, x.shape[-1]), padded, max_trials)
    # Only where a contained model fits better than all lanes does this last climb begin at another point.
    best = candidates.select(best_lanes(model, candidates, 1))
    best = climb(model, best, padded, max_trials, MAX_STEPS)
    is_converged = (
        lanes.evaluation.log_likelihood > best.evaluation.log_likelihood[lanes.participant] - CONVERGENCE_TOLERANCE
    )
    share = np.bincount(lanes.participant, is_converged) / np.bincount(lanes.participant)
    return best.x, best.evaluation.log_likelihood, share


def _restart(model: ChoiceModel, x: np.ndarray, padded: PaddedTrials) -> np.ndarray:
    """Climbs from the neighborhood of a maximum of each participant, and returns what is best there.

    Args:
        model: The model with K parameters.
        x: [S, K], the maximum.
        padded: The trials of the S participants.

    Returns:
        [1 + further maxima, S, K], the maximum itself first.
    """
    S, K = x.shape
    starts = np.tile(np.clip(x, -MAX_UNBOUNDED_AT_START, MAX_UNBOUNDED_AT_START), (len(RESTART_VALUES) * K, 1, 1))
    for k in range(K):
        starts[k::K, :, k] = np.array(RESTART_VALUES)[:, None]
    participant = np.tile(np.arange(S), len(starts))
    max_trials, num_steps, num_selected = RESTART_ROUND
    lanes = evaluate_lanes(model, participant, starts.reshape(-1, K), padded, max_trials)
    lanes = climb(model, lanes, padded, max_trials, num_steps)
    lanes = lanes.select(best_lanes(model, lanes, num_selected))
    max_trials = int(padded.num_trials.max())
    lanes = climb(
        model, evaluate_lanes(model, lanes.participant, lanes.x, padded, max_trials), padded, max_trials, MAX_STEPS
    )
    return np.concatenate([x[None], lanes.x.reshape(S, -1, K).swapaxes(0, 1)])


def _parameter_shares(model: ChoiceModel, x: np.ndarray) -> np.ndarray:
    """Parameters [N, K] as shares of their ranges, 0 to 1, or -1 to 1 where they are signed."""
    is_signed = np.array([p.signed for p in model.parameters])
    return np.where(is_signed, np.tanh(x), expit(x)).astype(np.float64)


def evaluate_lanes(
    model: ChoiceModel, participant: np.ndarray, x: np.ndarray, padded: PaddedTrials, max_trials: int
) -> Lanes:
    """Evaluates starting points [N, K] of participants [N]."""
    evaluation = evaluate_likelihood(model, x, participant, padded, max_trials)
    return Lanes(participant, x, evaluation, np.full(len(x), INITIAL_DAMPING))


def climb(model: ChoiceModel, lanes: Lanes, padded: PaddedTrials, max_trials: int, num_steps: int) -> Lanes:
    """Takes damped steps with all lanes that have not converged; a step is kept only where it raises the likelihood."""
    for _ in range(num_steps):
        move, is_active = _propose(lanes)
        active = np.nonzero(is_active)[0]
        if not len(active):
            break
        old = lanes.select(active)
        candidate = np.clip(old.x + move[active], -MAX_UNBOUNDED, MAX_UNBOUNDED)
        evaluation = evaluate_likelihood(model, candidate, old.participant, padded, max_trials)
        is_better = evaluation.log_likelihood > old.evaluation.log_likelihood
        improved = active[is_better]
        lanes.x[improved] = candidate[is_better]
        for part, new in zip(lanes.evaluation, evaluation, strict=True):
            part[improved] = new[is_better]
        lanes.damping[active] = np.clip(np.where(is_better, old.damping / 3, old.damping * 4), 1e-4, 10 * MAX_DAMPING)
    return lanes


def _propose(lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
    """The next step of each lane [N, K], and whether it is worth taking [N]."""
    K = lanes.x.shape[1]
    is_at_limit = np.abs(lanes.x) >= MAX_UNBOUNDED  # at the end of its range, and the likelihood rises outward
    is_at_limit &= lanes.x * lanes.evaluation.gradient > 0
    gradient = np.where(is_at_limit, 0.0, lanes.evaluation.gradient)
    curvature = np.where(is_at_limit[:, :, None] | is_at_limit[:, None, :], 0.0, lanes.evaluation.curvature)
    scale = np.sqrt(np.einsum("nkk->nk", curvature)) + 1e-12
    scaled_gradient = gradient / scale
    scaled_curvature = curvature / (scale[:, :, None] * scale[:, None, :]) + 1e-4 * np.eye(K)
    gain = 0.5 * np.einsum("nk,nk->n", scaled_gradient, _solve(scaled_curvature, scaled_gradient))
    # Parameters far out hardly change the likelihood, whatever the curvature there promises.
    gain = np.minimum(gain, MAX_UNBOUNDED * np.abs(gradient).sum(axis=1))
    move = _solve(curvature + lanes.damping[:, None, None] * np.eye(K), gradient)
    move *= np.minimum(1.0, MAX_STEP / np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-9))
    return move, (gain > MIN_GAIN) & (lanes.damping < MAX_DAMPING)


def _solve(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Solves systems of equations with matrices [N, K, K] and right sides [N, K]."""
    return np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0]


def best_lanes(model: ChoiceModel, lanes: Lanes, num_selected: int) -> np.ndarray:
    """Returns the indices of each participant's lanes of the highest likelihood, if possible of different ones.

    Args:
        model: The model of all lanes.
        lanes: Equally many of each participant.
        num_selected: Lanes of each participant to return, fewer where there are not as many.

    Returns:
        By participant, and the best ones first.
    """
    S = len(np.unique(lanes.participant))
    order = np.lexsort((-lanes.evaluation.log_likelihood, lanes.participant)).reshape(
        S, -1
    )  # [S, n], the best ones first
    shares = _parameter_shares(model, lanes.x)[order]  # [S, n, K]
    is_similar = np.abs(shares[:, :, None] - shares[:, None]).max(axis=-1) < MIN_DISTANCE  # [S, n, n]
    is_new = np.ones(order.shape, bool)
    for i in range(1, order.shape[1]):
        is_new[:, i] = ~(is_similar[:, i, :i] & is_new[:, :i]).any(axis=1)
    selected = np.argsort(~is_new, axis=1, kind="stable")[:, :num_selected]
    return np.take_along_axis(order, selected, axis=1).ravel()
