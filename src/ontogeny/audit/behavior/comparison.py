"""Comparison of choice models by BIC, and model recovery.

Recovery (Wilson & Collins 2019, eLife 8:e49547): model organisms of each model are simulated for as many trials as the
participants have and are fitted by all models; the confusion matrix shows how far the comparison can be trusted.
Letters: S participants, T trials, K parameters, M models.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.audit.behavior.base import ChoiceData, ChoiceModel, ParticipantTrials
from ontogeny.audit.behavior.fitting import ModelFit, fit_model
from ontogeny.audit.behavior.likelihood import estimate_task, sample_parameters, simulate_participants
from ontogeny.rng import key_from_seed

NUM_STARTS = (48, 12)  # starting points for each participant and for each organism
MIN_ORGANISMS = 40  # of each model
MIN_BIC_DIFFERENCE = 2.0  # a smaller difference is no evidence (Raftery 1995, Sociological Methodology 25:111)


class ModelRecovery(NamedTuple):
    """Confusion matrices: rows are the simulated model, columns the model with the lowest BIC."""

    models: tuple[str, ...]
    by_participant: np.ndarray  # [M, M], shares of simulated participants
    by_group: np.ndarray  # [M, M], shares of simulated groups, by summed BIC
    num_organisms: int  # simulated participants of each model
    num_groups: int  # of as many organisms as there are participants


class ModelComparison(NamedTuple):
    """All models fitted to all participants."""

    fits: list[ModelFit]
    recovery: ModelRecovery
    organisms: dict[str, ParticipantTrials]  # by model, with parameters drawn from their ranges, [groups S, T]
    fitted_simulations: dict[str, ParticipantTrials]  # by model, with the parameters fitted to the participants


def compare_models(
    models: Sequence[ChoiceModel],
    choices: ChoiceData,
    *,
    num_groups: int | None = None,
    num_starts: tuple[int, int] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> ModelComparison:
    """Fits every model to every participant and to model organisms of every model.

    Args:
        models: M models.
        choices: The choices of S participants.
        num_groups: Groups of S organisms per model; by default as many as give 40 organisms.
        num_starts: Starting points for each participant and each organism; by default `NUM_STARTS`.
        seed: Determines starting points and simulations.
        on_progress: Called with the number of fitted models, the number of models and the next model's name.
    """
    S, M = len(choices.participants), len(models)
    num_groups = max(2, -(-MIN_ORGANISMS // S)) if num_groups is None else num_groups
    task = estimate_task(choices)
    group_trials, group_task = jax.tree.map(partial(_repeat, times=num_groups), (choices.trials, task))

    def simulate(model: ChoiceModel, unbounded_parameters: np.ndarray, seed: int) -> ParticipantTrials:
        """The choices of `num_groups` groups of S organisms with the given parameters."""
        keys = jax.random.split(key_from_seed(seed), S * num_groups)
        simulated = simulate_participants(keys, model, jnp.asarray(unbounded_parameters), group_task, group_trials)
        return jax.tree.map(np.asarray, simulated)

    organisms = {
        model.name: simulate(model, sample_parameters(seed + 1 + i, model, S * num_groups), seed + i)
        for i, model in enumerate(models)
    }
    trials = jax.tree.map(lambda *parts: np.concatenate(parts), choices.trials, *organisms.values())
    all_tasks = jax.tree.map(lambda part, of_group: np.concatenate([part] + [of_group] * M), task, group_task)
    num_participant_starts, num_organism_starts = num_starts or NUM_STARTS
    starts = np.where(np.arange(len(trials.choice)) < S, num_participant_starts, num_organism_starts)
    all_fits = []
    for number, model in enumerate(models):
        if on_progress is not None:
            on_progress(number, M, model.name)
        all_fits.append(fit_model(model, trials, all_tasks, starts, seed))
    fits = [_first_participants(fit, S) for fit in all_fits]
    fitted_simulations = {
        model.name: simulate(model, _repeat(fit.unbounded_parameters, num_groups), seed + 100 + i)
        for i, (model, fit) in enumerate(zip(models, fits, strict=True))
    }
    return ModelComparison(fits, _summarize_recovery(all_fits, S, num_groups), organisms, fitted_simulations)


def _summarize_recovery(fits: Sequence[ModelFit], S: int, num_groups: int) -> ModelRecovery:
    """Confusion matrices from fits to S participants, followed by the organisms of each model."""
    M = len(fits)
    bic = np.stack([fit.bic[S:] for fit in fits]).reshape(M, M, num_groups, S)  # [fitted model, simulated model, ...]
    winners = bic.argmin(axis=0).reshape(M, -1), bic.sum(axis=-1).argmin(axis=0)
    shares = [np.stack([(winner == m).mean(axis=1) for m in range(M)], axis=1) for winner in winners]
    return ModelRecovery(tuple(fit.model for fit in fits), shares[0], shares[1], S * num_groups, num_groups)


def bic_differences(fits: Sequence[ModelFit]) -> tuple[int, dict[str, np.ndarray]]:
    """Compares every model with the one of the lowest summed BIC.

    Returns:
        The index of that model, and for each other model how much larger its BIC is for each participant, [S].
    """
    totals = [fit.bic.sum() for fit in fits]
    best = int(np.argmin(totals))
    return best, {fit.model: fit.bic - fits[best].bic for i, fit in enumerate(fits) if i != best}


def best_models(fits: Sequence[ModelFit]) -> list[str]:
    """Returns each participant's model of the lowest BIC, or "undetermined" where the difference is too small."""
    bic = np.stack([fit.bic for fit in fits])
    ordered = np.sort(bic, axis=0)
    is_clear = ordered[1] - ordered[0] > MIN_BIC_DIFFERENCE
    return [fits[i].model if clear else "undetermined" for i, clear in zip(bic.argmin(axis=0), is_clear, strict=True)]


def _first_participants(fit: ModelFit, number: int) -> ModelFit:
    """A fit restricted to the first participants."""
    parameters: dict[str, Any] = {name: array[:number] for name, array in fit.parameters.items()}
    statistics = (fit.log_likelihood, fit.bic, fit.converged_share)
    return ModelFit(fit.model, fit.unbounded_parameters[:number], parameters, *(array[:number] for array in statistics))


def _repeat(array: np.ndarray, times: int) -> np.ndarray:
    """Repeats an array along its first axis."""
    return np.tile(array, (times,) + (1,) * (array.ndim - 1))
