"""Comparison of choice models by BIC, and recovery of models and parameters.

Recovery (Wilson & Collins 2019, eLife 8:e49547) answers for the participants at hand: every model is simulated with the
parameters that were fitted to them, in their tasks, and the simulated choices are fitted by all models, from the same
starting points and with the same procedure as those of the participants. Letters: S participants, T trials,
K parameters, M models, N simulated participants of each model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, ChoiceModel, ParticipantTrials
from ontogeny.audit.behavior.fitting import ModelFit, count_batches, fit_models
from ontogeny.audit.behavior.likelihood import estimate_transitions, simulate_participants, to_parameters
from ontogeny.audit.behavior.resampled_rewards import resample_rewards
from ontogeny.rng import key_from_seed
from ontogeny.seeds import nth_seed

MIN_SIMULATIONS = 40  # of each model
MIN_BIC_DIFFERENCE = 2.0  # a smaller difference is no evidence (Raftery 1995, Sociological Methodology 25:111)


class ParameterRecovery(NamedTuple):
    """How well one parameter is recovered by the model that simulated it."""

    rank_correlation: float  # Spearman's, of true and fitted values; NaN where the true values are all equal
    median_true: float
    median_fitted: float
    median_absolute_error: float


class ModelRecovery(NamedTuple):
    """Confusion matrices: rows are the simulated model, columns the model with the lowest BIC."""

    models: tuple[str, ...]
    by_participant: np.ndarray  # [M, M], shares of simulated participants
    by_group: np.ndarray  # [M, M], shares of simulated groups, by summed BIC
    parameters: dict[str, dict[str, ParameterRecovery]]  # by model and parameter
    num_simulations: int  # simulated participants of each model, N
    num_groups: int  # of as many simulated participants as there are participants


class ModelSimulations(NamedTuple):
    """Simulated participants of one model."""

    participant: np.ndarray  # [N], the participant whose parameters and task are simulated
    unbounded_parameters: np.ndarray  # [N, K]
    trials: ParticipantTrials  # [N, T]


class ModelComparison(NamedTuple):
    """All models fitted to all participants, and to simulated participants of every model."""

    fits: list[ModelFit]
    recovery: ModelRecovery
    simulations: dict[str, ModelSimulations]  # by model
    simulation_bic: np.ndarray  # [M, M, N]: simulated model, fitted model, simulated participant


def compare_models(
    models: Sequence[ChoiceModel],
    choices: ChoiceData,
    *,
    num_groups: int | None = None,
    num_starts: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> ModelComparison:
    """Fits every model to every participant and to simulated participants of every model.

    Args:
        models: M models.
        choices: The choices of S participants.
        num_groups: Groups of S simulated participants per model; by default as many as give 40.
        num_starts: Starting points of each fit, to participants and simulated ones alike; by default
            `fitting.NUM_STARTS`.
        seed: Determines starting points and simulations.
        on_progress: Called with the number of finished batches of fits, the number of all batches, and what is fitted.
    """
    S, M = len(choices.participants), len(models)
    num_groups = max(2, -(-MIN_SIMULATIONS // S)) if num_groups is None else num_groups
    N = S * num_groups
    progress = _BatchProgress(M * (count_batches(S) + count_batches(M * N)), on_progress)
    transition_probs = estimate_transitions(choices)
    fits = fit_models(
        models, choices.trials, transition_probs, num_starts=num_starts, seed=seed, on_batches=progress.for_text("")
    )
    simulations = {
        model.name: simulate_model(model, choices, fit.unbounded_parameters, num_groups, nth_seed(seed, 1 + i))
        for i, (model, fit) in enumerate(zip(models, fits, strict=True))
    }
    participant = np.concatenate([part.participant for part in simulations.values()])
    trials = jax.tree.map(lambda *parts: np.concatenate(parts), *(part.trials for part in simulations.values()))
    simulation_fits = fit_models(
        models,
        trials,
        transition_probs[participant],
        num_starts=num_starts,
        seed=seed,
        on_batches=progress.for_text(", recovery"),
    )
    simulation_bic = np.stack([fit.bic.reshape(M, N) for fit in simulation_fits], axis=1)
    recovery = _summarize_recovery(models, simulations, simulation_fits, simulation_bic, num_groups)
    return ModelComparison(fits, recovery, simulations, simulation_bic)


class _BatchProgress:
    """Counts finished batches of fits.

    Args:
        total: Number of all batches.
        on_progress: As in `compare_models`.
    """

    def __init__(self, total: int, on_progress: Callable[[int, int, str], None] | None) -> None:
        self.num_done, self.total, self.on_progress = 0, total, on_progress

    def for_text(self, text: str) -> Callable[[int, str], None]:
        """Returns a function that counts batches of a model, described by its name and `text`."""

        def count(number: int, model: str) -> None:
            self.num_done += number
            if self.on_progress is not None:
                self.on_progress(self.num_done, self.total, model + text)

        return count


def simulate_model(
    model: ChoiceModel, choices: ChoiceData, unbounded_parameters: np.ndarray, num_groups: int, seed: int
) -> ModelSimulations:
    """Simulates groups of participants with the parameters that were fitted to the real ones.

    Participants are resampled with their parameters, trials and rewards. The resampling is balanced: over all groups
    each participant is simulated equally often (Davison, Hinkley & Schechtman 1986, Biometrika 73:555).

    Args:
        model: The model with K parameters.
        choices: The choices of S participants.
        unbounded_parameters: [S, K], as `to_parameters` takes them.
        num_groups: Groups of S simulated participants.
        seed: Determines all randomness.
    """
    S = len(choices.participants)
    participant = np.random.default_rng(seed).permutation(np.tile(np.arange(S), num_groups))
    parameters = unbounded_parameters[participant]
    simulated = simulate_participants(
        jax.random.split(key_from_seed(seed), len(participant)),
        model,
        jnp.asarray(parameters),
        estimate_transitions(choices)[participant],
        ParticipantTrials(*(part[participant] for part in choices.trials)),
        resample_rewards(choices, participant, seed),
    )
    return ModelSimulations(participant, parameters, ParticipantTrials(*map(np.asarray, simulated)))


def _summarize_recovery(
    models: Sequence[ChoiceModel],
    simulations: Mapping[str, ModelSimulations],
    fits: Sequence[ModelFit],
    bic: np.ndarray,
    num_groups: int,
) -> ModelRecovery:
    """Confusion matrices and recovered parameters from fits to the simulated participants of all models in turn."""
    M, _, N = bic.shape
    of_group = bic.reshape(M, M, num_groups, -1).sum(axis=-1)  # simulated model, fitted model, group
    shares = [np.stack([(part.argmin(axis=1) == m).mean(axis=1) for m in range(M)], axis=1) for part in (bic, of_group)]
    parameters = {
        model.name: _recover_parameters(
            model, simulations[model.name].unbounded_parameters, fit, slice(i * N, i * N + N)
        )
        for i, (model, fit) in enumerate(zip(models, fits, strict=True))
    }
    by_participant, by_group = shares
    names = tuple(model.name for model in models)
    return ModelRecovery(names, by_participant, by_group, parameters, N, num_groups)


def _recover_parameters(
    model: ChoiceModel, unbounded_parameters: np.ndarray, fit: ModelFit, of_model: slice
) -> dict[str, ParameterRecovery]:
    """Compares simulated parameters [N, K] with those that the same model fits to its simulations."""
    from scipy.stats import rankdata  # takes a second to import

    true = jax.vmap(lambda x: to_parameters(model, x))(jnp.asarray(unbounded_parameters))
    recovered = {}
    for p in model.parameters:
        values, fitted = np.asarray(true[p.name], np.float64), fit.parameters[p.name][of_model]
        correlation = float("nan")
        if np.ptp(values) > 0 and np.ptp(fitted) > 0:
            correlation = float(np.corrcoef(rankdata(values), rankdata(fitted))[0, 1])
        error = float(np.median(np.abs(fitted - values)))
        recovered[p.name] = ParameterRecovery(correlation, float(np.median(values)), float(np.median(fitted)), error)
    return recovered


def bic_differences(fits: Sequence[ModelFit]) -> tuple[int, dict[str, np.ndarray]]:
    """Compares every model with the one of the lowest summed BIC.

    Returns:
        The index of that model, and for each other model how much larger its BIC is for each participant, [S].
    """
    totals = [fit.bic.sum() for fit in fits]
    best = int(np.argmin(totals))
    return best, {fit.model: fit.bic - fits[best].bic for i, fit in enumerate(fits) if i != best}


def best_models(fits: Sequence[ModelFit], min_difference: float = MIN_BIC_DIFFERENCE) -> list[str]:
    """Returns each participant's model of the lowest BIC.

    Args:
        fits: All models, fitted to the same participants.
        min_difference: Where the next BIC is not further away, the answer is "undetermined".
    """
    bic = np.stack([fit.bic for fit in fits])
    ordered = np.sort(bic, axis=0)
    is_clear = ordered[1] - ordered[0] > min_difference
    return [fits[i].model if clear else "undetermined" for i, clear in zip(bic.argmin(axis=0), is_clear, strict=True)]
