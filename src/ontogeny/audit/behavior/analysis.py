"""The whole analysis of logged choices: from a file to one record with stay probabilities, regressions and models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ontogeny.audit.behavior import bandit, two_step
from ontogeny.audit.behavior.base import INTERACTION, ChoiceData, ChoiceModel, model_label
from ontogeny.audit.behavior.better_choices import BetterChoices, analyze_better_choices
from ontogeny.audit.behavior.comparison import (
    MIN_BIC_DIFFERENCE,
    ModelComparison,
    best_models,
    bic_differences,
    compare_models,
)
from ontogeny.audit.behavior.model_selection import ModelFrequencies, estimate_frequencies
from ontogeny.audit.behavior.stay_analysis import (
    ParticipantMean,
    StayAnalysis,
    analyze_stays,
    mean_over_participants,
    replace_trials,
)
from ontogeny.audit.behavior.verdicts import MIN_PROBABILITY, Bounds, judge_learning, judge_planning
from ontogeny.runs.formats import FORMATS, JSON_REPORT
from ontogeny.seeds import check_seed
from ontogeny.stats import clopper_pearson

MIN_COEFFICIENT = 0.1  # log odds; in many simulations a smaller coefficient may be significant without being relevant
SUCCESSOR_NOTE = (
    "A successor representation with fixed transition probabilities chooses exactly as a model-based agent does, so in "
    "a two-step task the two are one model. The fitted successor representation keeps learning its transitions and "
    "differs by following the most recent ones; its row of the recovery matrix shows how well they are distinguished."
)


def analyze_choices(
    choices: ChoiceData,
    *,
    num_groups: int | None = None,
    num_starts: int | None = None,
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
    frequencies = estimate_frequencies(-np.stack([fit.bic for fit in comparison.fits], axis=1) / 2)
    stays = analyze_stays(choices)
    better_choices = _find_better_choices(choices)
    simulation_stays = {
        name: analyze_stays(replace_trials(choices, part.trials, part.participant))
        for name, part in comparison.simulations.items()
    }
    record = _record_without_models(choices, stays, better_choices) | {
        "verdicts": [
            judge_learning(models, comparison, choices, better_choices),
            judge_planning(models, comparison, choices, stays),
        ],
        "fitted_simulations": {name: _select_means(part) for name, part in simulation_stays.items()},
        "models": _models_to_record(models, comparison, frequencies, by_participant),
        "omnibus_risk": frequencies.omnibus_risk,
        "best_model": comparison.fits[best].model,
        "most_frequent_model": comparison.fits[int(frequencies.mean.argmax())].model,
        "best_models": best_models(comparison.fits),
        "not_fitted": two_step.NOT_FITTED if is_two_step else bandit.NOT_FITTED,
        "recovery": comparison.recovery,
    }
    record = _to_jsonable(record)
    return record | {"verdict_text": _write_verdicts(record, stays, simulation_stays)}


def analyze_stays_only(choices: ChoiceData) -> dict[str, Any]:
    """Analyzes stay probabilities and their regressions, without choice models and in a time linear in trials.

    Args:
        choices: The choices of all participants.

    Returns:
        The parts of the record of `analyze_choices` that need no choice model; it has no verdicts.
    """
    stays = analyze_stays(choices)
    better_choices = _find_better_choices(choices)
    record = _to_jsonable(_record_without_models(choices, stays, better_choices) | {"verdicts": []})
    sentences = [] if better_choices is None else [_better_choices_verdict(record["better_choices"])]
    return record | {"verdict_text": [*sentences, _contrast_verdict(stays, choices.task == "two_step")]}


def _find_better_choices(choices: ChoiceData) -> BetterChoices | None:
    """The better choices of a bandit; a two-step task has none."""
    return None if choices.task == "two_step" else analyze_better_choices(choices)


def _record_without_models(
    choices: ChoiceData, stays: StayAnalysis, better_choices: BetterChoices | None
) -> dict[str, Any]:
    """What the record states without a choice model."""
    return {
        "format": FORMATS[JSON_REPORT],
        "task": choices.task,
        "notes": choices.notes,
        "participants": choices.participants,
        "better_choices": better_choices,
        "better_choice_source": choices.better_choice_source,
        "stay_analysis": stays,
    }


def _models_to_record(
    models: Sequence[ChoiceModel],
    comparison: ModelComparison,
    frequencies: ModelFrequencies,
    bic_of_participants: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """What the record states about each model, in the order of `models`."""
    lowest, clear = (best_models(comparison.fits, min_difference) for min_difference in (-1.0, MIN_BIC_DIFFERENCE))
    return [
        {
            "name": model.name,
            "description": model.description,
            "learns": model.learns,
            "planning": model.planning,
            "parameters": fit.parameters,
            "log_likelihood": fit.log_likelihood,
            "bic": fit.bic,
            "summed_bic": float(fit.bic.sum()),
            "bic_difference": (
                mean_over_participants(bic_of_participants[model.name]) if model.name in bic_of_participants else None
            ),
            "num_best": lowest.count(model.name),
            "share_best": lowest.count(model.name) / len(lowest),
            "num_clearly_best": clear.count(model.name),
            "frequency": Bounds(*(float(part[i]) for part in frequencies[1:4])),
            "exceedance_prob": float(frequencies.exceedance_prob[i]),
            "protected_exceedance_prob": float(frequencies.protected_exceedance_prob[i]),
            "converged_share": float(fit.converged_share.mean()),
        }
        for i, (model, fit) in enumerate(zip(models, comparison.fits, strict=True))
    ]


def _write_verdicts(
    record: Mapping[str, Any], stays: StayAnalysis, simulation_stays: Mapping[str, StayAnalysis]
) -> list[str]:
    """Sentences about what the choices show and what they leave open."""
    is_two_step = record["task"] == "two_step"
    sentences = [
        f"{part['hypothesis'].capitalize()}: {part['verdict']}. {part['reason']}." for part in record["verdicts"]
    ]
    sentences += write_frequencies(record)
    sentences.append(f"Explanations that are not in the set: {'; '.join(record['not_fitted'])}.")
    sentences.append(_recovery_verdict(record["recovery"], record["most_frequent_model"]))
    if not is_two_step:
        return [*sentences, _better_choices_verdict(record["better_choices"]), _contrast_verdict(stays, is_two_step)]
    sentences.append(_contrast_verdict(stays, is_two_step))
    for kind, attribute in (("plain", "regression"), ("corrected", "corrected_regression")):
        coefficients = {name: getattr(part, attribute)[INTERACTION] for name, part in simulation_stays.items()}
        positive = [name for name, mean in coefficients.items() if mean.low > MIN_COEFFICIENT]
        if all(math.isnan(mean.low) for mean in coefficients.values()):
            continue  # a single simulated participant of each model has no interval
        names = ", ".join(map(model_label, positive)) or "none"
        sentences.append(
            f"The {kind} {INTERACTION} coefficient is positive in simulations of these fitted models: {names}."
        )
    return [*sentences, SUCCESSOR_NOTE]


def write_frequencies(record: Mapping[str, Any]) -> list[str]:
    """Writes sentences about how many participants each model explains best.

    Args:
        record: The result of `analyze_choices`, of which `participants`, `models`, `best_model` and
            `most_frequent_model` are used.
    """
    models = sorted(record["models"], key=lambda model: -model["num_best"])
    counts = ", ".join(
        f"{model_label(m['name'])} {m['num_best']} ({m['share_best']:.0%})" for m in models if m["num_best"]
    )
    number = len(record["participants"])
    sentences = [f"Participants with the lowest BIC under each model, of {number}: {counts}."]
    by_name = {model["name"]: model for model in models}
    frequent = by_name[record["most_frequent_model"]]
    prob, frequency = frequent["protected_exceedance_prob"], frequent["frequency"]
    certainty = "is the most frequent model" if prob >= MIN_PROBABILITY else "is not surely the most frequent model"
    sentences.append(
        f"By random-effects model selection {model_label(frequent['name'])} {certainty}: "
        f"expected frequency {frequency['mean']:.0%} ({frequency['low']:.0%} to {frequency['high']:.0%}), "
        f"protected exceedance probability {prob:.3f}."
    )
    best = by_name[record["best_model"]]
    if best["name"] != frequent["name"] or 2 * best["num_best"] <= number:
        sentences.append(
            f"The lowest summed BIC is that of {model_label(best['name'])}, which is best for {best['num_best']} of "
            f"{number} participants only: the sum does not speak for most participants."
        )
    return sentences


def _better_choices_verdict(better: Mapping[str, Any]) -> str:
    """A sentence about the share of better choices and its change."""
    share, gain = _format_percent(better["share"]), _format_points(better["gain"])
    return (
        f"The better arm ({better['source']}) is chosen in {share} of trials, by chance in {better['chance']:.0%}; "
        f"from the first to the second half of a session the share changes by {gain} percentage points."
    )


def _format_percent(mean: Mapping[str, Any]) -> str:
    """A mean share in percent with its interval, where it has one."""
    if mean["mean"] is None:
        return "an unknown share"
    ends = "" if mean["low"] is None else f" ({mean['low']:.1%} to {mean['high']:.1%})"
    return f"{mean['mean']:.1%}{ends}"


def _format_points(mean: Mapping[str, Any]) -> str:
    """A mean difference of shares in percentage points with its interval, where it has one."""
    if mean["mean"] is None:
        return "an unknown number of"
    points, *ends = (f"{100 * mean[name]:+z.1f}" for name in ("mean", "low", "high") if mean[name] is not None)
    return f"{points} ({' to '.join(ends)})" if ends else points


def _contrast_verdict(stays: StayAnalysis, is_two_step: bool) -> str:
    """A sentence about the main contrast of stay probabilities."""
    name = "interaction" if is_two_step else "reward"
    claim = "reward and transition interact in staying" if is_two_step else "reward makes staying more likely"
    contrast = stays.contrasts[name]
    if not contrast.num_participants:
        return (
            f"The {name} contrast of stay probabilities is unknown: no participant has pairs of trials in every cell."
        )
    if math.isnan(contrast.low):
        return (
            f"The {name} contrast of stay probabilities is {contrast.mean:+.3f}, without an interval, since only one "
            "participant has pairs of trials in every cell."
        )
    interval = f"{contrast.mean:+.3f} ({contrast.low:+.3f} to {contrast.high:+.3f})"
    if contrast.low > 0:
        return f"{claim.capitalize()}: contrast {interval} over {contrast.num_participants} participants."
    return f"It is undetermined whether {claim}: contrast {interval} over {contrast.num_participants} participants."


def _recovery_verdict(recovery: Mapping[str, Any], best: str) -> str:
    """A sentence about how reliably the best model is recognized."""
    names = recovery["models"]
    shares = dict(zip(names, recovery["by_participant"][names.index(best)], strict=True))
    confusion, confused_with = max((share, name) for name, share in shares.items() if name != best)
    number = recovery["num_simulations"]
    low, high = clopper_pearson(round(shares[best] * number), number)
    confusions = (
        f"most often taken for {model_label(confused_with)} ({confusion:.0%})" if confusion else "never confused"
    )
    return (
        f"With the parameters, trials and rewards of these participants, {model_label(best)} is recognized in "
        f"{shares[best]:.0%} ({low:.0%} to {high:.0%}) of {number} simulated participants; it is {confusions}."
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
