"""How often the audit is wrong: every test on every organism whose truth is known, many audits each.

False positives are counted per innocent organism and the worst one is told, not the pool; power likewise by the weakest
of the guilty. Thresholds may be chosen on one half of the organisms' families, and are then judged on the other half.
Intervals of rates are those of Clopper & Pearson 1934 (Biometrika 26:404). R audits of N lives each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import betaincinv

from ontogeny import registry
from ontogeny.audit.base import Subject, Test, organism, tests
from ontogeny.errors import BadInput
from ontogeny.streams import life_keys
from ontogeny.types import World

MOST_AT_ONCE = 40_000  # lives in one piece of work
MOST_FALSE, LEAST_POWER = 0.05, 0.95  # of the worst innocent, of the weakest guilty
OnProgress = Callable[[int, int, str], None]


class Known(NamedTuple):
    """A subject with its truth for one question."""

    subject: Subject
    question: str
    family: str
    guilty: bool


class Rate(NamedTuple):
    """A share of R audits with its 95 % interval."""

    count: int
    audits: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.count / self.audits


class Row(NamedTuple):
    """One test on one organism."""

    test: str
    organism: str
    family: str
    guilty: bool
    yes: Rate
    no: Rate
    pattern: str  # the most frequent one


def calibrate(
    *,
    audits: int = 1000,
    seed: int = 0,
    only: Sequence[str] = (),
    organisms: Sequence[str] = (),
    extra: Sequence[Known] = (),
    on_progress: OnProgress | None = None,
) -> list[Row]:
    """A row for every test (of `only`, or all) and organism that can be asked; `extra` subjects come on top."""
    rows = []
    asked = [(name, test) for name, test in tests().items() if not only or name in only]
    work = [(name, test, known) for name, test in asked for known in knowns(test, organisms)]
    work += [(name, test, known) for name, test in asked for known in extra if known.question == test.question]
    for number, (name, test, known) in enumerate(work):
        if on_progress is not None:
            on_progress(number, len(work), f"{name}: {known.subject.name}")
        try:
            found = measured(test, known.subject, audits, seed)
        except BadInput:
            continue  # it cannot live in the world of this test
        rows.append(row(name, test, known, found))
    return rows


def knowns(test: Test, names: Sequence[str] = ()) -> Iterator[Known]:
    """Every organism whose file says the truth about a test's question, frozen and, where it learns so, online."""
    home = registry.build("worlds", "bandit", arms=5, pulls=100)
    for name in registry.names("organisms"):
        if names and name not in names:
            continue
        family = registry.attribute("organisms", name, "FAMILY", name)
        for online, key in ((False, "TRUTH"), (True, "ONLINE")):
            truth = registry.attribute("organisms", name, key, {}).get(test.question)
            if truth is not None:
                subject = organism(name, home_of(name, home), online=online)
                yield Known(subject, test.question, family, truth == "yes")


def taught(name: str, pupil: Subject) -> Iterator[Known]:
    """A distilled organism, with the truth of its teacher for each question that a chain can ask."""
    for question, truth in registry.attribute("organisms", name, "TRUTH").items():
        if question in ("learns", "plans"):
            yield Known(pupil, question, f"{name}, distilled", truth == "yes")


def home_of(name: str, bandit: World) -> World:
    """The bandit for those who can live there; else any world that takes them."""
    for world in (bandit, *(registry.build("worlds", other) for other in ("chain", "beacon", "stream"))):
        try:
            organism(name, world).build(world)
        except BadInput:
            continue
        return world
    raise BadInput(f"organism '{name}' lives in none of the worlds that are tried")


def subjects_of(name: str) -> list[Subject]:
    """An organism frozen, and learning where it does so by weights."""
    if name not in registry.names("organisms"):
        raise registry.unknown("organism", name, registry.names("organisms"))
    home = home_of(name, registry.build("worlds", "bandit", arms=5, pulls=100))
    found = [organism(name, home)]
    if registry.attribute("organisms", name, "ONLINE"):
        found.append(organism(name, home, online=True)._replace(name=f"{name}, learning"))
    return found


def measured(test: Test, subject: Subject, audits: int, seed: int) -> list[dict[str, np.ndarray]]:
    """What R audits of a subject measured, each of N lives of its own."""
    N = test.lives
    keys = life_keys(jax.random.key(seed), audits * N, "validation")
    each = max(1, MOST_AT_ONCE // N) * N
    parts = [test.measure(subject, keys[i : i + each]) for i in range(0, audits * N, each)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return [{name: array[i * N : (i + 1) * N] for name, array in whole.items()} for i in range(audits)]


def row(name: str, test: Test, known: Known, found: Sequence[dict[str, np.ndarray]], thresholds: Any = None) -> Row:
    given = test.thresholds if thresholds is None else thresholds
    findings = [test.judge(one, given) for one in found]
    patterns = [finding.pattern for finding in findings]
    said = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("yes", "no")}
    often = max(set(patterns), key=lambda pattern: (patterns.count(pattern), pattern))
    return Row(
        name,
        known.subject.name + (" (online)" if known.subject.online else ""),
        known.family,
        known.guilty,
        rate(said["yes"], len(findings)),
        rate(said["no"], len(findings)),
        often,
    )


def rate(count: int, audits: int) -> Rate:
    low = 0.0 if count == 0 else float(betaincinv(count, audits - count + 1, 0.025))
    high = 1.0 if count == audits else float(betaincinv(count + 1, audits - count, 0.975))
    return Rate(count, audits, low, high)


def failures(rows: Sequence[Row]) -> list[str]:
    """What the calibration demands and a test does not reach, worst first; nothing where all is well."""
    found = []
    for row in sorted(rows, key=lambda row: row.yes.share if row.guilty else -row.yes.share):
        if not row.guilty and row.yes.share > MOST_FALSE:
            found.append(f"{row.test} calls the innocent {row.organism} guilty in {row.yes.share:.1%} of audits")
        if row.guilty and row.yes.share < LEAST_POWER:
            found.append(f"{row.test} finds the guilty {row.organism} in {row.yes.share:.1%} of audits")
    return found


def as_record(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    rates = {key: rate._asdict() | {"share": rate.share} for key, rate in (("yes", row.yes), ("no", row.no))}
    return row._asdict() | rates
