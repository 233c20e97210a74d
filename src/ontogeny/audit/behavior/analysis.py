"""The whole analysis of logged choices: from a file to one record with stay probabilities, regressions and models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ontogeny.audit.behavior import bandit, two_step
from ontogeny.audit.behavior.base import INTERACTION, ChoiceData, ChoiceModel, model_label
from ontogeny.audit.behavior.comparison import ModelComparison, best_models, bic_differences, compare_models
from ontogeny.audit.behavior.stay_analysis import (
    ParticipantMean,
    StayAnalysis,
    analyze_stays,
    mean_over_participants,
    replace_trials,
)
from ontogeny.runs.formats import FORMATS, JSON_REPORT
from ontogeny.seeds import check_seed

MIN_COEFFICIENT = 0.1  # log odds; in many organisms a smaller coefficient may be significant without being relevant
SUCCESSOR_NOTE = (
    "A successor representation with fixed transition probabilities chooses exactly as a model-based agent does, so in "
    "a two-step task the two are one model. The fitted successor representation keeps learning its transitions and "
    "differs by following the most recent ones; its row of the recovery matrix shows how well they are distinguished."
)


def analyze_choices(
    choices: ChoiceData,
    *,
    num_groups: int | None = None,
    num_starts: tuple[int, int] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Analyzes choices: stay probabilities and their regressions, choice models, and model recovery.

    Args:
        choices: The choices of all participants.
        num_groups: As in `compare_models`.
        num_starts: As in `compare_models`.
        seed: Determines all randomness.
        on_progress: As in `compare_models`.

    Returns:
        A record of values that JSON can hold.
    """
    seed = check_seed(seed)
    is_two_step = choices.task == "two_step"
    models = two_step.build_models(choices.has_second_choice) if is_two_step else bandit.build_models(choices.num_arms)
    comparison = compare_models(
        models, choices, num_groups=num_groups, num_starts=num_starts, seed=seed, on_progress=on_progress
    )
    best, by_participant = bic_differences(comparison.fits)
    differences = {name: mean_over_participants(values) for name, values in by_participant.items()}
    stays = analyze_stays(choices)
    organism_stays, simulation_stays = (
        {name: analyze_stays(replace_trials(choices, trials)) for name, trials in simulations.items()}
        for simulations in (comparison.organisms, comparison.fitted_simulations)
    )
    record = {
        "format": FORMATS[JSON_REPORT],
        "task": choices.task,
        "notes": choices.notes,
        "participants": choices.participants,
        "better_choice_source": "stated in the file" if choices.is_correct is not None else "estimated in hindsight",
        "stay_analysis": stays,
        "organisms": {name: _select_means(part) for name, part in organism_stays.items()},
        "fitted_simulations": {name: _select_means(part) for name, part in simulation_stays.items()},
        "models": _models_to_record(models, comparison, differences),
        "best_model": comparison.fits[best].model,
        "best_models": best_models(comparison.fits),
        "recovery": comparison.recovery,
    }
    record = _to_jsonable(record)
    return record | {"verdict_text": _write_verdicts(record, stays, organism_stays, differences)}


def _models_to_record(
    models: Sequence[ChoiceModel], comparison: ModelComparison, differences: Mapping[str, ParticipantMean]
) -> list[dict[str, Any]]:
    """What the record states about each model, in the order of `models`."""
    return [
        {
            "name": model.name,
            "description": model.description,
            "parameters": fit.parameters,
            "log_likelihood": fit.log_likelihood,
            "bic": fit.bic,
            "summed_bic": float(fit.bic.sum()),
            "bic_difference": differences.get(model.name),
            "converged_share": float(fit.converged_share.mean()),
        }
        for model, fit in zip(models, comparison.fits, strict=True)
    ]


def _write_verdicts(
    record: Mapping[str, Any],
    stays: StayAnalysis,
    organism_stays: Mapping[str, StayAnalysis],
    differences: Mapping[str, ParticipantMean],
) -> list[str]:
    """Sentences about what the choices show and what they leave open."""
    is_two_step = record["task"] == "two_step"
    sentences = [_contrast_verdict(stays, is_two_step)]
    if is_two_step:
        for kind, attribute in (("plain", "regression"), ("corrected", "corrected_regression")):
            coefficients = {name: getattr(part, attribute)[INTERACTION] for name, part in organism_stays.items()}
            positive = [name for name, mean in coefficients.items() if mean.low > MIN_COEFFICIENT]
            names = ", ".join(map(model_label, positive)) or "none"
            sentences.append(
                f"The {kind} {INTERACTION} coefficient is positive in model organisms of these models: {names}."
            )
    best = record["best_model"]
    close = [model_label(name) for name, difference in differences.items() if not difference.low > 0]
    comparison = (
        f"not significantly better than {', '.join(close)}" if close else "significantly better than every other"
    )
    sentences.append(
        f"The model with the lowest summed BIC is {model_label(best)}; over participants it is {comparison}."
    )
    sentences.append(_recovery_verdict(record["recovery"], best))
    return [*sentences, SUCCESSOR_NOTE] if is_two_step else sentences


def _contrast_verdict(stays: StayAnalysis, is_two_step: bool) -> str:
    """A sentence about the main contrast of stay probabilities."""
    name = "interaction" if is_two_step else "reward"
    claim = "reward and transition interact in staying" if is_two_step else "reward makes staying more likely"
    contrast = stays.contrasts[name]
    if math.isnan(contrast.low):
        return f"The {name} contrast of stay probabilities is {contrast.mean:+.3f}; one participant gives no interval."
    interval = f"{contrast.mean:+.3f} ({contrast.low:+.3f} to {contrast.high:+.3f})"
    if contrast.low > 0:
        return f"{claim.capitalize()}: contrast {interval} over {contrast.num_participants} participants."
    return f"It is undetermined whether {claim}: contrast {interval} over {contrast.num_participants} participants."


def _recovery_verdict(recovery: Mapping[str, Any], best: str) -> str:
    """A sentence about how reliably the best model is recognized."""
    names = recovery["models"]
    shares = dict(zip(names, recovery["by_participant"][names.index(best)], strict=True))
    confusion, confused_with = max((share, name) for name, share in shares.items() if name != best)
    return (
        f"With as many trials as in this file, a single model organism of {model_label(best)} is recognized in "
        f"{shares[best]:.0%} of cases; the most frequent confusion is {model_label(confused_with)} ({confusion:.0%})."
    )


def _select_means(stays: StayAnalysis) -> dict[str, dict[str, ParticipantMean]]:
    """The means over participants, without the participants themselves."""
    return {name: getattr(stays, name) for name in ("cell_means", "contrasts", "regression", "corrected_regression")}


def _to_jsonable(record: Any) -> Any:
    """Converts a record for JSON: named tuples become objects, arrays become lists, and NaN becomes None."""
    if isinstance(record, np.ndarray):
        return record.tolist()
    if hasattr(record, "_asdict"):
        return _to_jsonable(record._asdict())
    if isinstance(record, Mapping):
        return {key: _to_jsonable(part) for key, part in record.items()}
    if isinstance(record, list | tuple):
        return [_to_jsonable(part) for part in record]
    return None if isinstance(record, float) and math.isnan(record) else record
