"""Calibration of the audit: the error rates of every test on every organism whose ground truth is known.

False positives are counted per negative control, and the maximum over controls is reported instead of a pooled rate;
power is likewise the minimum over positive controls. Thresholds are also selected on one half of the families of
organisms and evaluated on the other half. Intervals of rates are exact (Clopper & Pearson 1934, Biometrika 26:404).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ontogeny import plugins
from ontogeny.audit.base import (
    AuditResult,
    AuditTest,
    Measurements,
    Subject,
    build_tests,
    control_subject,
    list_organisms,
)
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.stats import clopper_pearson
from ontogeny.types import Environment

MAX_LIFETIMES_PER_BATCH = 40_000
MAX_FALSE_POSITIVE_RATE, MIN_POWER = 0.05, 0.95  # required of every negative and of every positive control
TARGET_FALSE_POSITIVE_RATE = 0.01  # thresholds are selected for it, which leaves a margin for unknown organisms
Z_THRESHOLDS = (1.28, 1.64, 2.0, 2.33, 2.58, 3.09)  # candidates for `Thresholds.z`
OnProgress = Callable[[int, int, str], None]


class Control(NamedTuple):
    """A subject with its ground truth for one hypothesis."""

    subject: Subject
    hypothesis: str
    family: str  # variants of one organism have the same; a family is not divided between calibration splits
    positive: bool


class Rate(NamedTuple):
    """The share of audits with a certain verdict and its 95 % interval."""

    num_verdicts: int
    num_audits: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The rate itself, from 0 to 1."""
        return self.num_verdicts / self.num_audits


class ControlResult(NamedTuple):
    """The verdicts of one test on one control."""

    test: str
    organism: str
    family: str
    positive: bool
    yes: Rate
    no: Rate
    pattern: str  # the most frequent pattern
    yes_by_z: dict[float, Rate]  # with each of `Z_THRESHOLDS` in place of the test's own threshold


class CalibrationSplit(NamedTuple):
    """A threshold that was selected on one half of the families, and the error rates on the other half."""

    test: str
    selected_on: tuple[str, ...]  # families
    z: float
    worst_negative: ControlResult | None  # the negative control with the maximal false-positive rate
    weakest_positive: ControlResult | None  # the positive control with the minimal power


def calibrate(
    *,
    num_audits: int = 1000,
    seed: int = 0,
    tests: Sequence[str] = (),
    organisms: Sequence[str] = (),
    extra: Sequence[Control] = (),
    on_progress: OnProgress | None = None,
) -> list[ControlResult]:
    """Audits every control many times.

    Args:
        num_audits: Audits of each control by each test.
        seed: Determines all randomness.
        tests: Names of tests; by default all primary ones.
        organisms: Names of organisms; by default all.
        extra: Further controls, such as distilled networks.
        on_progress: Called with the number of finished controls, the number of controls and a text.

    Returns:
        One result per test and control; controls that cannot act in the test's environment are left out.
    """
    selected = [test for test in build_tests().values() if (test.name in tests if tests else test.primary)]
    pairs = [(test, control) for test in selected for control in controls_of(test, organisms)]
    pairs += [(test, control) for test in selected for control in extra if control.hypothesis == test.hypothesis]
    results = []
    for number, (test, control) in enumerate(pairs):
        if on_progress is not None:
            on_progress(number, len(pairs), f"{test.name}: {control.subject.name}")
        try:
            measurements = measure_audits(test, control.subject, num_audits, seed)
        except BadInput:
            continue
        results.append(evaluate_control(test, control, measurements))
    return results


def controls_of(test: AuditTest, names: Sequence[str] = ()) -> Iterator[Control]:
    """Yields the controls of a test, frozen and, where they learn by weights, online.

    Args:
        test: The test; a secondary test lists its controls itself.
        names: Organisms to which the controls are restricted; by default all.
    """
    bandit = plugins.build("environments", "bandit", num_arms=5, num_pulls=100)
    for name, is_positive in test.expected.items():
        if not names or name in names:
            subject = control_subject(name, find_train_env(name, bandit))
            online = name in plugins.list_names("agents") and subject.build(subject.train_env)[0].learning
            yield Control(subject._replace(online=online), test.hypothesis, name, is_positive)
    for name in list_organisms(names) if test.primary else ():
        if names and name not in names:
            continue
        family = plugins.get_attribute("organisms", name, "FAMILY", name)
        for online, key in ((False, "GROUND_TRUTH"), (True, "ONLINE_GROUND_TRUTH")):
            verdict = plugins.get_attribute("organisms", name, key, {}).get(test.hypothesis)
            if verdict is not None:
                subject = control_subject(name, find_train_env(name, bandit), online=online)
                yield Control(subject, test.hypothesis, family, verdict == "yes")


def student_controls(name: str, student: Subject) -> Iterator[Control]:
    """Yields a distilled student with its teacher's ground truth for each hypothesis that a chain can test."""
    for hypothesis, verdict in plugins.get_attribute("organisms", name, "GROUND_TRUTH").items():
        if hypothesis in ("learns", "plans"):
            yield Control(student, hypothesis, f"{name}, distilled", verdict == "yes")


def find_train_env(name: str, bandit: Environment) -> Environment:
    """Returns the bandit where an organism or agent can act in it, else the first other environment that fits."""
    for env in (bandit, *(plugins.build("environments", env_name) for env_name in ("chain", "beacon", "stream"))):
        try:
            control_subject(name, env).build(env)
        except ContractViolation:  # of an organism in a file, which fits nowhere
            raise
        except BadInput:
            continue
        return env
    raise BadInput(f"organism '{name}' fits none of the environments bandit, chain, beacon and stream")


def organism_subjects(name: str, train_env: Environment | None = None) -> list[Subject]:
    """Returns an organism as a frozen subject and, where it learns by weights, as an online one.

    Args:
        name: Of an organism, or the path of a file.
        train_env: By default the first environment in which it can act.
    """
    if name not in list_organisms([name]):
        raise plugins.unknown_name_error("organism", name, plugins.list_names("organisms"))
    if train_env is None:
        train_env = find_train_env(name, plugins.build("environments", "bandit", num_arms=5, num_pulls=100))
    subjects = [control_subject(name, train_env)]
    if plugins.get_attribute("organisms", name, "ONLINE_GROUND_TRUTH"):
        subjects.append(control_subject(name, train_env, online=True)._replace(name=f"{name}, online"))
    return subjects


def measure_audits(test: AuditTest, subject: Subject, num_audits: int, seed: int) -> list[Measurements]:
    """Returns the measurements of independent audits of a subject."""
    N = test.num_lifetimes
    keys = sample_lifetime_keys(key_from_seed(seed), num_audits * N, "validation")
    batch_size = max(1, MAX_LIFETIMES_PER_BATCH // N) * N
    batches = [test.measure(subject, keys[i : i + batch_size]) for i in range(0, num_audits * N, batch_size)]
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return [{name: array[i * N : (i + 1) * N] for name, array in arrays.items()} for i in range(num_audits)]


def evaluate_control(test: AuditTest, control: Control, measurements: Sequence[Measurements]) -> ControlResult:
    """Decides every audit of a control, with the test's own threshold and with each of `Z_THRESHOLDS`."""
    results = [test.decide(audit, test.thresholds) for audit in measurements]
    patterns = [result.pattern for result in results]

    def rate_of(verdict: str, results: Sequence[AuditResult]) -> Rate:
        return estimate_rate(sum(result.verdict == verdict for result in results), len(results))

    def decide_all(z: float) -> list[AuditResult]:
        return [test.decide(audit, replace(test.thresholds, z=z)) for audit in measurements]

    return ControlResult(
        test.name,
        control.subject.name + (" (online)" if control.subject.online else ""),
        control.family,
        control.positive,
        rate_of("yes", results),
        rate_of("no", results),
        max(set(patterns), key=lambda pattern: (patterns.count(pattern), pattern)),
        {z: rate_of("yes", decide_all(z)) for z in Z_THRESHOLDS},
    )


def cross_validate_thresholds(results: Sequence[ControlResult]) -> list[CalibrationSplit]:
    """Selects a threshold on each half of the families, and evaluates it on the other half, for every test.

    Families are assigned to the halves alternately, positive and negative controls apart. The smallest threshold is
    selected with which no negative control of the half exceeds `TARGET_FALSE_POSITIVE_RATE`; a larger one could only
    lower the power.
    """
    splits = []
    for test in dict.fromkeys(result.test for result in results):
        of_test = [result for result in results if result.test == test]
        halves: list[set[str]] = [set(), set()]
        for positive in (False, True):
            families = sorted({result.family for result in of_test if result.positive == positive})
            for half, start in zip(halves, (0, 1), strict=True):
                half.update(families[start::2])
        for selection, evaluation in (halves, halves[::-1]):
            negatives = [result for result in of_test if result.family in selection and not result.positive]
            z = min((z for z in Z_THRESHOLDS if _is_specific(negatives, z)), default=max(Z_THRESHOLDS))
            evaluated = [result._replace(yes=result.yes_by_z[z]) for result in of_test if result.family in evaluation]
            worst_negative = max((r for r in evaluated if not r.positive), key=lambda r: r.yes.share, default=None)
            weakest_positive = min((r for r in evaluated if r.positive), key=lambda r: r.yes.share, default=None)
            splits.append(CalibrationSplit(test, tuple(sorted(selection)), z, worst_negative, weakest_positive))
    return splits


def _is_specific(negatives: Sequence[ControlResult], z: float) -> bool:
    """Whether no negative control exceeds the target rate of false positives at the threshold `z`."""
    return all(result.yes_by_z[z].share <= TARGET_FALSE_POSITIVE_RATE for result in negatives)


def estimate_rate(num_verdicts: int, num_audits: int) -> Rate:
    """Returns a rate with its exact interval."""
    return Rate(num_verdicts, num_audits, *clopper_pearson(num_verdicts, num_audits))


def sort_worst_first(results: Sequence[ControlResult]) -> list[ControlResult]:
    """Sorts negative controls by falling false-positive rate, and after them positive controls by rising power."""
    return sorted(results, key=lambda r: (r.positive, r.yes.share if r.positive else -r.yes.share))


def find_failures(results: Sequence[ControlResult]) -> list[str]:
    """Returns a sentence for every control that misses the required error rates, worst first."""
    failures = []
    for result in sort_worst_first(results):
        rate = f"in {result.yes.share:.1%} of audits"
        if not result.positive and result.yes.share > MAX_FALSE_POSITIVE_RATE:
            failures.append(f"{result.test} reports the negative control {result.organism} as positive {rate}")
        if result.positive and result.yes.share < MIN_POWER:
            failures.append(f"{result.test} detects the positive control {result.organism} only {rate}")
    return failures


def to_record(result: ControlResult) -> dict[str, Any]:
    """Returns a result as values that JSON can hold."""
    rates = {name: rate._asdict() | {"share": rate.share} for name, rate in (("yes", result.yes), ("no", result.no))}
    return result._asdict() | rates | {"yes_by_z": {str(z): rate.share for z, rate in result.yes_by_z.items()}}


def split_to_record(split: CalibrationSplit) -> dict[str, Any]:
    """Returns a split as values that JSON can hold: the extreme rates with the organism that has them."""
    extremes = (("max_false_positive_rate", split.worst_negative), ("min_power", split.weakest_positive))
    return {"test": split.test, "selected_on": split.selected_on, "z": split.z} | {
        name: None if result is None else {"organism": result.organism, "share": result.yes.share}
        for name, result in extremes
    }
