"""Calibration of the audit: the error rates of every test on every organism whose ground truth is known.

Every test is calibrated in every environment in which it is used (`AuditTest.environments`). False positives are
counted per negative control, and the maximum over controls is reported instead of a pooled rate; power is likewise the
minimum over positive controls, and an `undetermined` counts against it. Every claim about a rate follows the bound of
its interval, which is exact (Clopper & Pearson 1934, Biometrika 26:404).

The unit of work is a chunk: some audits of one control. Chunks are recorded, so that an interrupted calibration
continues. Every control gets its first chunk before any gets its second; then all further chunks of a control are
measured one after another, so that its programs are compiled only once more. Each control has lifetimes of its own, so
that thresholds which are selected on one half of the families are evaluated on other lifetimes, too.
"""

import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import plugins
from ontogeny.audit.base import AuditTest, Subject, control_subject, list_organisms, select_tests
from ontogeny.audit.decisions import Measurements
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.stats import clopper_pearson
from ontogeny.types import Environment, Key

AUDITS_PER_CHUNK = 100
MAX_LIFETIMES_PER_BATCH = 40_000
MAX_FALSE_POSITIVE_RATE, MIN_POWER = 0.05, 0.95  # required of every negative and of every positive control
# Every control compiles programs of its own, and a process may hold about 65,000 mappings of memory; sixty controls of
# one calibration reached this number.
CONTROLS_BETWEEN_CLEARING = 15
TARGET_FALSE_POSITIVE_RATE = 0.01  # thresholds are selected for it, which leaves a margin for unknown organisms
Z_THRESHOLDS = (1.28, 1.64, 2.0, 2.33, 2.58, 3.09)  # candidates for `Thresholds.z`
OTHER_ENVIRONMENTS = ("chain", "beacon", "stream", "random_mdp", "relay")  # for organisms that cannot act in a bandit
OnProgress = Callable[[int, int, str], None]


class Control(NamedTuple):
    """A subject with its ground truth for one hypothesis in one environment."""

    subject: Subject
    hypothesis: str
    family: str  # variants of one organism have the same; a family is not divided between calibration splits
    positive: bool
    env: str = ""  # name of the environment, where a test is calibrated in several
    held_out: bool = False  # whether it was written after the thresholds had been fixed

    @property
    def name(self) -> str:
        """The name of the subject, and whether it learns by weights."""
        return self.subject.name + (" (online)" if self.subject.online else "")


class Chunk(NamedTuple):
    """Some audits of a control: their verdicts and everything that determines them."""

    test: str
    env: str
    organism: str
    family: str
    positive: bool
    held_out: bool
    seed: int
    number: int
    num_audits: int
    num_lifetimes: int  # per audit
    thresholds: dict[str, float]
    verdicts: dict[str, int]  # audits by verdict
    patterns: dict[str, int]  # audits by pattern
    yes_by_z: dict[str, int]  # audits that say yes with each of `Z_THRESHOLDS` in place of the test's own threshold
    seconds: float  # of processor time, compilation included

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What identifies the chunk."""
        return self.test, self.env, self.organism, self.seed, self.number


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
    env: str
    organism: str
    family: str
    positive: bool
    held_out: bool
    yes: Rate
    no: Rate
    pattern: str  # the most frequent pattern
    yes_by_z: dict[float, Rate]  # with each of `Z_THRESHOLDS` in place of the test's own threshold
    seconds_per_audit: float

    @property
    def claim(self) -> str:
        """Whether the required error rate is met, by the bounds of the interval: "yes", "no" or "undetermined"."""
        if self.positive:
            return "yes" if self.yes.low >= MIN_POWER else "no" if self.yes.high < MIN_POWER else "undetermined"
        maximum = MAX_FALSE_POSITIVE_RATE
        return "yes" if self.yes.high <= maximum else "no" if self.yes.low > maximum else "undetermined"


class CalibrationSplit(NamedTuple):
    """A threshold that was selected on one half of the families, and the error rates on the other half."""

    test: str
    env: str
    selected_on: tuple[str, ...]  # families
    z: float
    worst_negative: ControlResult | None  # the negative control with the maximal false-positive rate
    weakest_positive: ControlResult | None  # the positive control with the minimal power


class Selection(NamedTuple):
    """The part of a calibration that is measured."""

    tests: tuple[str, ...] = ()  # names, or paths of files; by default all primary tests
    organisms: tuple[str, ...] = ()  # names, or paths of files; by default all
    envs: tuple[str, ...] = ()  # names; by default all in which a test is used


def calibrate(
    selection: Selection,
    num_audits: int = 1000,
    seed: int = 0,
    *,
    extra: Sequence[Control] = (),
    recorded: Sequence[Chunk] = (),
    on_chunk: Callable[[Chunk], None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[ControlResult]:
    """Audits every control many times.

    Args:
        selection: Tests, organisms and environments.
        num_audits: Audits of each control by each test.
        seed: Determines all randomness.
        extra: Further controls, such as distilled networks.
        recorded: Chunks of an earlier calibration, which are not measured again.
        on_chunk: Called with each new chunk.
        on_progress: Called with the number of finished chunks, the number of chunks and a text.

    Returns:
        One result per test, environment and control; controls that cannot act there are left out.

    Raises:
        BadInput: If a recorded chunk was measured with other settings.
    """
    chunks = {chunk.key: chunk for chunk in recorded}
    planned = plan_selection(selection, num_audits, extra)
    unfit: set[tuple[str, str, str]] = set()
    last_measured = ("", "", "")
    num_controls = 0  # whose programs may be held by JAX
    for done, (number, size, test, control) in enumerate(planned):
        name = (test.name, control.env, control.name)
        key = (*name, seed, number)
        if on_progress is not None:
            on_progress(done, len(planned), f"{test.name} {control.env}: {control.name}")
        if key in chunks:
            _require_same_settings(chunks[key], test, size)
        elif name not in unfit:
            if name != last_measured and num_controls >= CONTROLS_BETWEEN_CLEARING:
                jax.clear_caches()
                num_controls = 0
            try:
                chunks[key] = measure_chunk(test, control, size, seed, number)
            except BadInput:
                unfit.add(name)
                continue
            if on_chunk is not None:
                on_chunk(chunks[key])
            num_controls += name != last_measured
            last_measured = name
    keys = [(test.name, control.env, control.name, seed, number) for number, _, test, control in planned]
    return combine_controls([chunks[key] for key in keys if key in chunks])


def plan_selection(
    selection: Selection, num_audits: int, extra: Sequence[Control] = ()
) -> list[tuple[int, int, AuditTest, Control]]:
    """Returns number, size, test and control of each chunk, in the order in which they are measured.

    Args:
        selection: Tests, organisms and environments.
        num_audits: Audits of each control by each test.
        extra: Further controls.
    """
    tests, organisms, envs = selection
    selected = select_tests(tests)
    pairs = [(test, control) for test in selected for control in controls_of(test, organisms, envs)]
    pairs += [(test, control) for test in selected for control in extra if control.hypothesis == test.hypothesis]
    sizes = [min(AUDITS_PER_CHUNK, num_audits - start) for start in range(0, num_audits, AUDITS_PER_CHUNK)]
    chunks = list(enumerate(sizes))
    first = [(*chunk, *pair) for chunk in chunks[:1] for pair in pairs]
    return first + [(*chunk, *pair) for pair in pairs for chunk in chunks[1:]]


def measure_chunk(test: AuditTest, control: Control, num_audits: int, seed: int, number: int) -> Chunk:
    """Audits a control some times; lifetimes differ by test, control, seed and number of the chunk."""
    start = time.process_time()
    words = f"{test.name}/{control.env}/{control.name}/{number}"
    key = jax.random.fold_in(key_from_seed(seed), zlib.crc32(words.encode()))
    audits = measure_audits(test, control.subject, num_audits, key)
    return evaluate_audits(test, control, audits)._replace(
        seed=seed, number=number, seconds=time.process_time() - start
    )


def measure_audits(test: AuditTest, subject: Subject, num_audits: int, key: Key) -> list[Measurements]:
    """Returns the measurements of independent audits of a subject."""
    N = test.num_lifetimes
    keys = sample_lifetime_keys(key, num_audits * N, "validation")
    batch_size = max(1, MAX_LIFETIMES_PER_BATCH // N) * N
    batches = [test.measure(subject, keys[i : i + batch_size]) for i in range(0, num_audits * N, batch_size)]
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return [{name: array[i * N : (i + 1) * N] for name, array in arrays.items()} for i in range(num_audits)]


def evaluate_audits(test: AuditTest, control: Control, audits: Sequence[Measurements]) -> Chunk:
    """Decides every audit of a control, with the test's own threshold and with each of `Z_THRESHOLDS`."""
    results = [test.decide(audit, test.thresholds) for audit in audits]

    def count_yes(z: float) -> int:
        thresholds = replace(test.thresholds, z=z)
        return sum(test.decide(audit, thresholds).verdict == "yes" for audit in audits)

    return Chunk(
        test.name,
        control.env,
        control.name,
        control.family,
        control.positive,
        control.held_out,
        seed=0,
        number=0,
        num_audits=len(audits),
        num_lifetimes=test.num_lifetimes,
        thresholds=asdict(test.thresholds),
        verdicts=dict(Counter(result.verdict for result in results)),
        patterns=dict(Counter(result.pattern for result in results)),
        yes_by_z={str(z): count_yes(z) for z in Z_THRESHOLDS},
        seconds=0.0,
    )


def combine_controls(chunks: Sequence[Chunk]) -> list[ControlResult]:
    """Combines chunks of several controls: one result per test, environment and control, in the order of the tests."""
    by_control: dict[tuple[str, ...], list[Chunk]] = {}
    for chunk in sorted(chunks, key=lambda chunk: chunk.test):
        by_control.setdefault((chunk.test, chunk.env, chunk.organism), []).append(chunk)
    return [combine_chunks(parts) for parts in by_control.values()]


def combine_chunks(chunks: Sequence[Chunk]) -> ControlResult:
    """Combines all chunks of one control."""
    first = chunks[0]
    num_audits = sum(chunk.num_audits for chunk in chunks)
    verdicts, patterns, yes_by_z = Counter[str](), Counter[str](), Counter[str]()
    for chunk in chunks:
        verdicts.update(chunk.verdicts)
        patterns.update(chunk.patterns)
        yes_by_z.update(chunk.yes_by_z)
    return ControlResult(
        first.test,
        first.env,
        first.organism,
        first.family,
        first.positive,
        first.held_out,
        estimate_rate(verdicts["yes"], num_audits),
        estimate_rate(verdicts["no"], num_audits),
        max(patterns, key=lambda pattern: (patterns[pattern], pattern)),
        {z: estimate_rate(yes_by_z[str(z)], num_audits) for z in Z_THRESHOLDS},
        sum(chunk.seconds for chunk in chunks) / num_audits,
    )


def controls_of(test: AuditTest, names: Sequence[str] = (), envs: Sequence[str] = ()) -> Iterator[Control]:
    """Yields the controls of a test in every environment, frozen and, where they learn by weights, online.

    Args:
        test: The test; one that is not primary lists its controls itself.
        names: Organisms and agents to which the controls are restricted; by default all.
        envs: Environments to which they are restricted; by default all of the test.
    """
    env_names = test.environments if test.primary else ("",)
    for env_name in [name for name in env_names if not envs or name in envs]:
        env = plugins.build("environments", env_name) if env_name else None
        for name, is_positive in test.expected.items():
            if (not names or name in names) and (subject := _fitting_subject(name, env)) is not None:
                online = name in plugins.list_names("agents") and subject.build(subject.train_env)[0].learning
                yield Control(subject._replace(online=online), test.hypothesis, name, is_positive, env_name)
        if env is not None:
            yield from _organism_controls(test, names, env)


def _organism_controls(test: AuditTest, names: Sequence[str], env: Environment) -> Iterator[Control]:
    """The organisms that can act in an environment and have a ground truth for the test there."""
    for name in list_organisms(names):
        if (names and name not in names) or (subject := _fitting_subject(name, env)) is None:
            continue
        get = partial(plugins.get_attribute, "organisms", name)
        for online, key in ((False, "GROUND_TRUTH"), (True, "ONLINE_GROUND_TRUTH")):
            truth = get(key, {}) | ({} if online else get("GROUND_TRUTH_BY_ENV", {}).get(env.spec.name, {}))
            verdict = truth.get(test.hypothesis)
            if verdict is not None:
                family, held_out = get("FAMILY", name), get("HELD_OUT", False)
                subject = subject._replace(online=online)
                yield Control(subject, test.hypothesis, family, verdict == "yes", env.spec.name, held_out)


def _fitting_subject(name: str, env: Environment | None) -> Subject | None:
    """The organism or agent in this environment, or in any that fits; None where it cannot act there."""
    if env is None:
        return control_subject(name, find_train_env(name, _default_bandit()))
    subject = control_subject(name, env)
    try:
        subject.build(env)
    except ContractViolation:  # of an organism in a file, which fits nowhere
        raise
    except BadInput:
        return None
    return subject


def _default_bandit() -> Environment:
    """The bandit in which organisms act unless they need another environment."""
    return plugins.build("environments", "bandit", num_arms=5, num_pulls=100)


def student_controls(name: str, student: Subject) -> Iterator[Control]:
    """Yields a distilled student with its teacher's ground truth for each hypothesis that a chain can test."""
    for hypothesis, verdict in plugins.get_attribute("organisms", name, "GROUND_TRUTH").items():
        if hypothesis in ("learns", "plans"):
            yield Control(student, hypothesis, f"{name}, distilled", verdict == "yes", "chain")


def find_train_env(name: str, bandit: Environment) -> Environment:
    """Returns the bandit where an organism or agent can act in it, else the first other environment that fits."""
    for env in (bandit, *(plugins.build("environments", env_name) for env_name in OTHER_ENVIRONMENTS)):
        try:
            control_subject(name, env).build(env)
        except ContractViolation:  # of an organism in a file, which fits nowhere
            raise
        except BadInput:
            continue
        return env
    raise BadInput(f"organism '{name}' fits none of the environments bandit, {', '.join(OTHER_ENVIRONMENTS)}")


def organism_subjects(name: str, train_env: Environment | None = None) -> list[Subject]:
    """Returns an organism as a frozen subject and, where it learns by weights, as an online one.

    Args:
        name: Of an organism, or the path of a file.
        train_env: By default the first environment in which it can act.
    """
    if name not in list_organisms([name]):
        raise plugins.unknown_name_error("organism", name, plugins.list_names("organisms"))
    if train_env is None:
        train_env = find_train_env(name, _default_bandit())
    subjects = [control_subject(name, train_env)]
    if plugins.get_attribute("organisms", name, "ONLINE_GROUND_TRUTH"):
        subjects.append(control_subject(name, train_env, online=True)._replace(name=f"{name}, online"))
    return subjects


def _require_same_settings(chunk: Chunk, test: AuditTest, num_audits: int) -> None:
    """Raises `BadInput` where a recorded chunk was measured with other settings than those of this version."""
    recorded = (chunk.num_audits, chunk.num_lifetimes, chunk.thresholds)
    if recorded != (num_audits, test.num_lifetimes, asdict(test.thresholds)):
        raise BadInput(
            f"the record of {chunk.organism} in {chunk.test} has {chunk.num_audits} audits of {chunk.num_lifetimes} "
            f"lifetimes with thresholds {chunk.thresholds}, unlike this calibration; write to another file"
        )


def cross_validate_thresholds(results: Sequence[ControlResult]) -> list[CalibrationSplit]:
    """Selects a threshold on each half of the families, and evaluates it on the other half, for every test.

    Families are assigned to the halves alternately, positive and negative controls apart. The smallest threshold is
    selected with which no negative control of the half exceeds `TARGET_FALSE_POSITIVE_RATE`; a larger one could only
    lower the power.
    """
    splits = []
    for test, env in dict.fromkeys((result.test, result.env) for result in results):
        of_test = [result for result in results if (result.test, result.env) == (test, env)]
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
            splits.append(CalibrationSplit(test, env, tuple(sorted(selection)), z, worst_negative, weakest_positive))
    return splits


def _is_specific(negatives: Sequence[ControlResult], z: float) -> bool:
    """Whether no negative control exceeds the target rate of false positives at the threshold `z`."""
    return all(result.yes_by_z[z].share <= TARGET_FALSE_POSITIVE_RATE for result in negatives)


def estimate_rate(num_verdicts: int, num_audits: int) -> Rate:
    """Returns a rate with its exact interval."""
    return Rate(num_verdicts, num_audits, *clopper_pearson(num_verdicts, num_audits))


def sort_worst_first(results: Sequence[ControlResult]) -> list[ControlResult]:
    """Sorts negative controls by falling false-positive rate, and after them positive controls by rising power.

    Of equal rates, the one with fewer audits, and therefore the worse bound, comes first.
    """

    def badness(control: ControlResult) -> tuple[bool, float, float]:
        share, low, high = control.yes.share, control.yes.low, control.yes.high
        return (True, share, low) if control.positive else (False, -share, -high)

    return sorted(results, key=badness)


def claim_error_rates(results: Sequence[ControlResult]) -> list[str]:
    """Returns what can be claimed about the required error rates, by the bounds of the intervals, as sentences."""
    claims = [sentence for control in sort_worst_first(results) if (sentence := _describe_miss(control))]
    missing = [
        f"{test} has no {kind} control"
        for test in dict.fromkeys(control.test for control in results)
        for positive, kind in ((False, "negative"), (True, "positive"))
        if not any(control.positive == positive for control in results if control.test == test)
    ]
    if not claims and not missing and results:
        claims = [
            f"every negative control is reported as positive in at most {MAX_FALSE_POSITIVE_RATE:.0%} of its audits, "
            f"every positive control is detected in at least {MIN_POWER:.0%}, by the bounds of 95 % intervals"
        ]
    return claims + missing


def _describe_miss(control: ControlResult) -> str:
    """The requirement that a control fails, or about which its audits are too few for a claim; empty if it is met."""
    rate = (
        f"{control.yes.share:.1%} ({control.yes.low:.1%} to {control.yes.high:.1%}) of {control.yes.num_audits} audits"
    )
    where = f" in {control.env}" if control.env else ""
    if control.positive:
        verb, required = "detects the positive control", f"at least {MIN_POWER:.0%}"
    else:
        verb, required = "reports as positive the negative control", f"at most {MAX_FALSE_POSITIVE_RATE:.0%}"
    sentence = f"{control.test} {verb} {control.organism}{where} in {rate}"
    return {
        "yes": "",
        "no": f"fails: {sentence}, where {required} is required",
        "undetermined": f"no claim: {sentence}, which neither shows nor excludes {required}",
    }[control.claim]


def to_record(result: ControlResult) -> dict[str, Any]:
    """Returns a result as values that JSON can hold."""
    rates = {name: rate._asdict() | {"share": rate.share} for name, rate in (("yes", result.yes), ("no", result.no))}
    return (
        result._asdict()
        | {"claim": result.claim}
        | rates
        | {"yes_by_z": {str(z): rate.share for z, rate in result.yes_by_z.items()}}
    )


def split_to_record(split: CalibrationSplit) -> dict[str, Any]:
    """Returns a split as values that JSON can hold: the extreme rates with the organism that has them."""
    extremes = (("max_false_positive_rate", split.worst_negative), ("min_power", split.weakest_positive))
    return {"test": split.test, "env": split.env, "selected_on": split.selected_on, "z": split.z} | {
        name: None if result is None else {"organism": result.organism, "share": result.yes.share}
        for name, result in extremes
    }
