"""Calibration of the prequential audit: its error rates on every reference predictor."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ontogeny.audit.prequential.base import CHECKS, VERDICTS
from ontogeny.audit.prequential.certificate import certify
from ontogeny.audit.prequential.passes import passes_by_instance
from ontogeny.audit.prequential.reference_predictors import REFERENCE_PREDICTORS, VALID_VERDICTS
from ontogeny.seeds import nth_seed

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


def find_failures(
    results: Sequence[PredictorCalibration],
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    min_power: float = MIN_POWER,
) -> list[str]:
    """Returns a sentence for every error rate that is too large.

    Args:
        results: The result of `calibrate`.
        max_false_positive_rate: Largest share of audits in which a valid predictor, or a check that it passes, may
            be reported as invalid.
        min_power: Smallest share of audits in which an invalid predictor, and the check that it fails, must be
            detected.
    """
    failures = []
    for result in results:
        share = result.num_certified / result.num_audits
        if result.is_valid and share < 1 - max_false_positive_rate:
            failures.append(f"the valid predictor {result.predictor} is rejected in {1 - share:.1%} of audits")
        if not result.is_valid and share > 1 - min_power:
            failures.append(f"the invalid predictor {result.predictor} is certified in {share:.1%} of audits")
        for check, verdict in result.ground_truth.items():
            rate = result.verdicts[check][verdict] / result.num_audits
            if rate < (1 - max_false_positive_rate if verdict == "pass" else min_power):
                failures.append(f"{check} reports {verdict} for {result.predictor} in only {rate:.1%} of audits")
    return failures
