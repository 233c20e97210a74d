"""Calibration of the prequential audit: its error rates on every reference predictor."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ontogeny.audit.prequential.base import CHECKS, VERDICTS
from ontogeny.audit.prequential.certificate import certify
from ontogeny.audit.prequential.passes import passes_by_instance
from ontogeny.audit.prequential.reference_predictors import REFERENCE_PREDICTORS, VALID_VERDICTS
from ontogeny.seeds import nth_seed
from ontogeny.stats import clopper_pearson

MAX_FALSE_POSITIVE_RATE, MIN_POWER = 0.01, 0.95


class PredictorCalibration(NamedTuple):
    """The outcome of many audits of one reference predictor."""

    predictor: str
    is_valid: bool
    num_audits: int
    num_certified: int
    verdicts: dict[str, dict[str, int]]  # number of audits by check and verdict
    ground_truth: Mapping[str, str]


def calibrate(
    num_audits: int, *, seed: int = 0, on_progress: Callable[[int, int, str], None] | None = None
) -> list[PredictorCalibration]:
    """Audits every reference predictor many times, with a new instance for each pass.

    Args:
        num_audits: Audits of each predictor, at least 1.
        seed: Seed of the first audit; the others follow it.
        on_progress: Called with the number of finished audits, the number of audits and the predictor's name.
    """
    results = []
    for number, (name, reference) in enumerate(REFERENCE_PREDICTORS.items()):
        num_certified, verdicts = 0, {check: dict.fromkeys(VERDICTS, 0) for check in CHECKS}
        for i in range(num_audits):
            certificate = certify(passes_by_instance(name, reference.build), seed=nth_seed(seed, i))
            num_certified += certificate.certified
            for check in certificate.checks:
                verdicts[check.name][check.verdict] += 1
            if on_progress is not None:
                on_progress(number * num_audits + i + 1, len(REFERENCE_PREDICTORS) * num_audits, name)
        is_valid = reference.ground_truth == VALID_VERDICTS
        results.append(
            PredictorCalibration(name, is_valid, num_audits, num_certified, verdicts, reference.ground_truth)
        )
    return results


def claim_error_rates(
    results: Sequence[PredictorCalibration],
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    min_power: float = MIN_POWER,
) -> tuple[list[str], list[str]]:
    """Compares every error rate with the required one, by the bounds of its exact 95 % interval.

    Args:
        results: The result of `calibrate`.
        max_false_positive_rate: Largest share of audits in which a valid predictor, or a check that it passes, may
            be reported as invalid.
        min_power: Smallest share of audits in which an invalid predictor, and the check that it fails, must be
            detected.

    Returns:
        A sentence for every requirement that is surely missed, and one for every requirement about which the audits
        are too few for a claim.
    """
    missed, undetermined = [], []
    for result in results:
        verb, count = "certified", result.num_certified
        if not result.is_valid:
            verb, count = "rejected", result.num_audits - result.num_certified
        kind = "valid" if result.is_valid else "invalid"
        rates = [(f"the {kind} predictor {result.predictor} is {verb}", count, result.is_valid)]
        rates += [
            (f"{check} reports {verdict} for {result.predictor}", result.verdicts[check][verdict], verdict == "pass")
            for check, verdict in result.ground_truth.items()
        ]
        for statement, num_right, is_negative in rates:
            required = 1 - max_false_positive_rate if is_negative else min_power
            low, high = clopper_pearson(num_right, result.num_audits)
            share = num_right / result.num_audits
            sentence = f"{statement} in {share:.1%} ({low:.1%} to {high:.1%}) of {result.num_audits} audits"
            if high < required:
                missed.append(f"{sentence}, where at least {required:.0%} is required")
            elif low < required:
                undetermined.append(f"{sentence}, which neither shows nor excludes {required:.0%}")
    return missed, undetermined
