"""Verdicts on logged choices: do the participants learn, and do they plan?

The models of the set form two groups, those with the ability and those without it. Four measurements decide, each by
the bound of its 95 % interval:

- the frequency, among participants, of being better explained with the ability (random-effects model selection);
- the share of participants that are better explained with it, against the same share among simulated participants whose
  model lacks it: a file in which models are confused allows no "yes";
- the gain: how much better the choices are predicted with the ability, in nats per choice, corrected for the number of
  parameters (Akaike 1974): only a gain below the smallest one that counts, or recovery of planners, allows a "no";
- for planning, the interaction of reward and transition in staying; for learning in a bandit, the growth of the share
  of better choices, which alone is enough for a "yes" where it exceeds that of simulated participants of every model
  without learning: win-stay-lose-shift raises this share too, in the first trials of each session.

With few participants their own posterior probabilities take the place of the frequency. Letters: S participants,
M models, N simulated participants of each model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv, softmax

from ontogeny.audit.behavior.base import ChoiceData, ChoiceModel, model_label
from ontogeny.audit.behavior.better_choices import BetterChoices, analyze_better_choices
from ontogeny.audit.behavior.comparison import ModelComparison
from ontogeny.audit.behavior.fitting import count_choices
from ontogeny.audit.behavior.likelihood import estimate_transitions, log_likelihoods
from ontogeny.audit.behavior.model_selection import estimate_frequencies, family_log_evidence
from ontogeny.audit.behavior.stay_analysis import ParticipantMean, StayAnalysis, mean_over_participants, replace_trials
from ontogeny.stats import Z95, Interval, clopper_pearson, confidence_interval, unpaired_difference

MIN_GAIN = 0.01  # nats per choice, the smallest gain of prediction that counts
MIN_GROWTH = 0.02  # smallest growth that counts of the share of better choices within a session
MIN_PARTICIPANTS = 5  # for a statement about the population that they come from
MIN_PROBABILITY = 0.95  # of a participant's group of models, for a statement about this participant
MAX_CONFUSION = 0.1  # of simulated participants that lack an ability, for a statement about few participants
MAJORITY = 0.5  # an ability is that of most participants


class Bounds(NamedTuple):
    """An estimate with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float


class BehaviorVerdict(NamedTuple):
    """The answer to one hypothesis about the participants."""

    hypothesis: str  # "learns" or "plans"
    verdict: str  # "yes", "no" or "undetermined"
    reason: str  # a sentence
    frequency: Bounds | None  # of participants that are better explained with the ability; None where nothing is tested
    gain: Bounds | None  # nats per choice
    by_participant: list[str]  # the same verdict for each participant, by its posterior probability


class GroupEvidence(NamedTuple):
    """What separates two groups of models, those with an ability and those without it."""

    probability: np.ndarray  # [S], of each participant's group with the ability
    frequency: Bounds  # of participants with the ability
    share: Bounds  # of participants that are better explained with the ability
    simulated_shares: dict[str, Bounds]  # the same share among simulated participants of each model


def judge_learning(
    models: Sequence[ChoiceModel],
    comparison: ModelComparison,
    choices: ChoiceData,
    better_choices: BetterChoices | None = None,
) -> BehaviorVerdict:
    """Answers whether choices depend on the rewards of more than the last trial.

    Args:
        models: All models.
        comparison: Their fits.
        choices: The choices of the participants.
        better_choices: Of a bandit. Where a single arm stays the best one, learning resembles a preference for it, but
            only learning lets the share of better choices grow for more than a few trials.
    """
    evidence = _compare_groups(models, comparison, lambda model: model.learns)
    gain = _estimate_gain(models, comparison, choices, lambda m: m.learns, lambda m: not m.learns)
    impostors = [model.name for model in models if not model.learns]
    claim = "better explained by a model that learns"
    verdict, reason = _decide_positive(evidence, impostors, claim)
    if verdict != "yes" and _is_below_majority(evidence):
        verdict, reason = _decide_negative(evidence, gain, claim)
        if verdict == "no" and choices.has_second_choice:
            verdict = "undetermined"
            reason = f"first choices do not depend on earlier rewards, but second choices are not tested; {reason}"
    growth = None if better_choices is None else better_choices.gain
    if verdict != "yes" and growth is not None and growth.low > MIN_GROWTH:
        impostor, excess = _compare_growth(comparison, choices, impostors)
        if excess.low > 0:
            verdict = "yes"
            reason = f"the share of better choices changes by {_format_change(growth)} from the first to the second "
            reason += "half of a session, which exceeds that of simulated participants of "
            reason += f"{model_label(impostor)} by {_format_change(excess)}"
    return _to_verdict("learns", verdict, reason, evidence, gain)


def judge_planning(
    models: Sequence[ChoiceModel], comparison: ModelComparison, choices: ChoiceData, stays: StayAnalysis
) -> BehaviorVerdict:
    """Answers whether the first choice follows from the rewards of states and the transitions to them."""
    if choices.task == "bandit":
        reason = "a bandit has a single step, so there is nothing to plan"
        return BehaviorVerdict(
            "plans", "undetermined", reason, None, None, ["undetermined"] * len(choices.participants)
        )
    evidence = _compare_groups(models, comparison, lambda model: model.planning == "plans")
    gain = _estimate_gain(models, comparison, choices, lambda m: m.planning == "plans", lambda m: m.planning == "none")
    impostors = [model.name for model in models if model.planning in ("none", "mimics")]
    claim = "better explained by a model that plans"
    verdict, reason = _decide_positive(evidence, impostors, claim)
    if verdict == "yes" and not _estimate_interaction(stays).low > 0:
        verdict, reason = "undetermined", f"{reason}, but reward and transition do not surely interact in staying"
    elif verdict == "yes":
        reason += "; a successor representation of fixed transitions would choose in the same way"
    if verdict != "yes" and _is_below_majority(evidence):
        planners = [model.name for model in models if model.planning == "plans"]
        verdict, reason = _decide_negative(evidence, gain, claim, planners)
    return _to_verdict("plans", verdict, reason, evidence, gain)


def _compare_groups(
    models: Sequence[ChoiceModel], comparison: ModelComparison, has_ability: Callable[[ChoiceModel], bool]
) -> GroupEvidence:
    """The evidence for the models with an ability against all others, for participants and simulated ones.

    Families of models that do not learn, that learn without planning, and that plan are equally likely beforehand, so
    that those who plan are always among those who learn.
    """
    families: dict[tuple[bool, bool], list[int]] = {}
    for i, model in enumerate(models):
        families.setdefault((model.learns, model.planning == "plans"), []).append(i)
    is_able = np.array([has_ability(models[family[0]]) for family in families.values()])

    def compare(bic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log evidence of families [..., families], and the probability of the ability [...]."""
        evidence = family_log_evidence(-bic / 2, list(families.values()))
        return evidence, softmax(evidence, axis=-1)[..., is_able].sum(axis=-1)

    evidence, probability = compare(np.stack([fit.bic for fit in comparison.fits], axis=1))
    posterior = estimate_frequencies(evidence)
    able, unable = posterior.concentration[is_able].sum(), posterior.concentration[~is_able].sum()
    frequency = Bounds(able / (able + unable), *betaincinv(able, unable, [0.025, 0.975]))
    _, simulated = compare(np.moveaxis(comparison.simulation_bic, 1, -1))  # [M, N]
    return GroupEvidence(
        probability,
        Bounds(*map(float, frequency)),
        _share(probability > 0.5),
        {model.name: _share(part > 0.5) for model, part in zip(models, simulated, strict=True)},
    )


def _estimate_gain(
    models: Sequence[ChoiceModel],
    comparison: ModelComparison,
    choices: ChoiceData,
    has_ability: Callable[[ChoiceModel], bool],
    is_baseline: Callable[[ChoiceModel], bool],
) -> Bounds:
    """How much better choices are predicted with the ability than by the baseline, in nats per choice.

    The interval is that of the mean over participants, or over the trials of few participants.
    """
    penalized = np.stack(
        [fit.log_likelihood - len(model.parameters) for model, fit in zip(models, comparison.fits, strict=True)]
    )
    number = count_choices(models[0], choices.trials)  # [S]
    best = [
        np.where([choose(model) for model in models], penalized.T, -np.inf).argmax(axis=1)  # [S]
        for choose in (has_ability, is_baseline)
    ]
    rows = np.arange(len(number))
    gain = (penalized[best[0], rows] - penalized[best[1], rows]) / number
    if len(number) >= MIN_PARTICIPANTS:
        mean = mean_over_participants(gain)
        return Bounds(mean.mean, mean.low, mean.high)
    differences = []
    for s in rows.tolist():
        first, second = (
            _trial_log_likelihoods(models[part[s]], comparison.fits[part[s]].unbounded_parameters[s], choices, s)
            for part in best
        )
        differences.append((first - second)[choices.trials.is_complete[s]])
    per_choice = np.concatenate(differences) * choices.trials.is_complete[rows].sum() / number.sum()
    mean = float((gain * number).sum() / number.sum())
    half_width = Z95 * float(per_choice.std(ddof=1)) / np.sqrt(len(per_choice))
    return Bounds(mean, mean - half_width, mean + half_width)


def _trial_log_likelihoods(
    model: ChoiceModel, unbounded_parameters: np.ndarray, choices: ChoiceData, participant: int
) -> np.ndarray:
    """The log-likelihood of each trial of a participant, [T]."""
    transition_probs = estimate_transitions(choices)[participant]
    trials = jax.tree.map(lambda part: part[participant], choices.trials)
    return np.asarray(log_likelihoods(model, jnp.asarray(unbounded_parameters), jnp.asarray(transition_probs), trials))


def _estimate_interaction(stays: StayAnalysis) -> Bounds:
    """The interaction of reward and transition in staying, a contrast of the four stay probabilities.

    The interval is that of the mean over participants, or over the trials of few participants: their stay probabilities
    then have beta distributions with a uniform prior.
    """
    cells = list(stays.by_participant.values())
    S = len(cells[0])
    if S >= MIN_PARTICIPANTS:
        contrast = stays.contrasts["interaction"]
        return Bounds(contrast.mean, contrast.low, contrast.high)
    num_stays, num_pairs = (np.array([[part[i] for part in cell] for cell in cells]) for i in (0, 1))  # [cells, S]
    shares = (num_stays + 1) / (num_pairs + 2)
    mean = float(np.mean(np.array([1, -1, -1, 1]) @ shares))
    half_width = Z95 * float(np.sqrt(np.sum(shares * (1 - shares) / (num_pairs + 3)))) / S
    return Bounds(mean, mean - half_width, mean + half_width)


def _decide_positive(evidence: GroupEvidence, impostors: Sequence[str], claim: str) -> tuple[str, str]:
    """Whether most participants have the ability: "yes" or "undetermined", with the reason."""
    text = _describe_frequency(evidence, claim)
    if not _is_above_majority(evidence):
        return "undetermined", text
    name, confused = max(((name, evidence.simulated_shares[name]) for name in impostors), key=lambda part: part[1].high)
    is_population = len(evidence.probability) >= MIN_PARTICIPANTS
    if confused.high >= (evidence.share.low if is_population else MAX_CONFUSION):
        return "undetermined", (
            f"{text}, but so are {_format_share(confused)} of simulated participants of {model_label(name)}"
        )
    return "yes", f"{text}, against {_format_share(confused)} of simulated participants of {model_label(name)}"


def _decide_negative(
    evidence: GroupEvidence, gain: Bounds, claim: str, recovered: Sequence[str] = ()
) -> tuple[str, str]:
    """Whether most participants lack the ability: "no" or "undetermined", with the reason.

    Args:
        evidence: In favor of the models without the ability.
        gain: Of prediction by the ability.
        claim: What the models with the ability do.
        recovered: Models with the ability; one that is recovered surely refutes that participants choose by it.
    """
    text = _describe_frequency(evidence, claim)
    of_gain = f"{gain.mean:+.3f} nats per choice ({gain.low:+.3f} to {gain.high:+.3f})"
    if gain.high < MIN_GAIN:
        return "no", f"{text}; it improves the prediction by {of_gain}, less than {MIN_GAIN:g}"
    shares = [(name, evidence.simulated_shares[name]) for name in recovered]
    if shares:
        name, recognized = min(shares, key=lambda part: part[1].low)
        of_planners = f"{_format_share(recognized)} of simulated participants of {model_label(name)}"
        if recognized.low > evidence.share.high:
            return "no", f"{text}, against {of_planners}"
        return "undetermined", f"{text}, but only {of_planners} are recognized"
    return "undetermined", f"{text}, but it may improve the prediction by {of_gain}"


def _compare_growth(comparison: ModelComparison, choices: ChoiceData, impostors: Sequence[str]) -> tuple[str, Interval]:
    """By how much the growth of the share of better choices exceeds that of models without learning.

    The better arm is estimated in hindsight on both sides, as no file states it for simulated choices.

    Returns:
        The model that comes nearest to the participants, and the difference to it.
    """

    def estimate_growth(choices: ChoiceData) -> Interval:
        """The growth with its interval over participants."""
        gain = analyze_better_choices(choices).gain
        return confidence_interval(gain.mean, gain.standard_error, gain.num_participants)

    growth = estimate_growth(choices._replace(is_correct=None))
    simulations = {name: comparison.simulations[name] for name in impostors}
    excesses = {
        name: unpaired_difference(growth, estimate_growth(replace_trials(choices, part.trials, part.participant)))
        for name, part in simulations.items()
    }
    return min(excesses.items(), key=lambda excess: excess[1].low)


def _is_above_majority(evidence: GroupEvidence) -> bool:
    """Whether surely most participants have the ability, or each of a few."""
    if len(evidence.probability) >= MIN_PARTICIPANTS:
        return evidence.frequency.low > MAJORITY
    return bool((evidence.probability >= MIN_PROBABILITY).all())


def _is_below_majority(evidence: GroupEvidence) -> bool:
    """Whether surely most participants lack the ability, or each of a few."""
    if len(evidence.probability) >= MIN_PARTICIPANTS:
        return evidence.frequency.high < MAJORITY
    return bool((evidence.probability <= 1 - MIN_PROBABILITY).all())


def _describe_frequency(evidence: GroupEvidence, claim: str) -> str:
    """The frequency of an ability in words, or the probabilities of few participants."""
    if len(evidence.probability) >= MIN_PARTICIPANTS:
        return f"{_format_share(evidence.frequency)} of participants are {claim}"
    probs = ", ".join(f"{prob:.0%}" for prob in evidence.probability)
    number = len(evidence.probability)
    of_whom = "for the only participant" if number == 1 else f"for the {number} participants"
    return f"the probability of being {claim} is {probs} {of_whom}"


def _to_verdict(hypothesis: str, verdict: str, reason: str, evidence: GroupEvidence, gain: Bounds) -> BehaviorVerdict:
    """The verdict with that of each participant."""
    by_participant = [
        "yes" if prob >= MIN_PROBABILITY else "no" if prob <= 1 - MIN_PROBABILITY else "undetermined"
        for prob in evidence.probability
    ]
    return BehaviorVerdict(hypothesis, verdict, reason, evidence.frequency, gain, by_participant)


def _format_change(change: ParticipantMean | Interval) -> str:
    """A change of a share with its interval, as signed percentages."""
    return f"{change.mean:+.1%} ({change.low:+.1%} to {change.high:+.1%})"


def _share(is_true: np.ndarray) -> Bounds:
    """A share with its exact interval."""
    return Bounds(float(is_true.mean()), *clopper_pearson(int(is_true.sum()), is_true.size))


def _format_share(share: Bounds) -> str:
    """A share with its interval in percent."""
    return f"{share.mean:.0%} ({share.low:.0%} to {share.high:.0%})"
