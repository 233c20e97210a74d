"""How often the audit is wrong: every test on every organism whose truth is known, many audits each.

False positives are counted per innocent organism and the worst one is told, not the pool; power likewise by the weakest
of the guilty. Thresholds are also chosen on one half of the organisms' families and judged on the other half.
Intervals of rates are those of Clopper & Pearson 1934 (Biometrika 26:404). R audits of N lives each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import plugins
from ontogeny.audit.base import Subject, Test, organism, tests
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.stats import clopper_pearson
from ontogeny.types import Environment

MOST_AT_ONCE = 40_000  # lives in one piece of work
MOST_FALSE, LEAST_POWER = 0.05, 0.95  # of the worst innocent, of the weakest guilty
AIMED_FALSE = 0.01  # what a threshold is chosen for, so that organisms which it has not seen stay below `MOST_FALSE`
TRIED = (1.28, 1.64, 2.0, 2.33, 2.58, 3.09)  # standard errors that a part of a rule must reach
OnProgress = Callable[[int, int, str], None]


class Known(NamedTuple):
    """A subject with its truth for one question."""

    subject: Subject
    question: str
    family: str
    guilty: bool


class Rate(NamedTuple):
    """A share of R audits with its 95 % interval."""

    times: int
    audits: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.times / self.audits


class Row(NamedTuple):
    """One test on one organism."""

    test: str
    organism: str
    family: str
    guilty: bool
    yes: Rate
    no: Rate
    pattern: str  # the most frequent one
    yes_at: dict[float, Rate]  # at each of `TRIED` in place of the test's own threshold


class Half(NamedTuple):
    """A threshold that was chosen on one half of the families, and what it does on the other."""

    test: str
    chosen_on: tuple[str, ...]
    z: float
    worst_innocent: Row | None  # of the other half
    weakest_guilty: Row | None


def calibrate(
    *,
    audits: int = 1000,
    seed: int = 0,
    only: Sequence[str] = (),
    organisms: Sequence[str] = (),
    extra: Sequence[Known] = (),
    on_progress: OnProgress | None = None,
) -> list[Row]:
    """A row for every test (of `only`, or all deciding ones) and organism; `extra` subjects come on top."""
    rows = []
    asked = [(name, test) for name, test in tests().items() if (name in only if only else test.deciding)]
    work = [(name, test, known) for name, test in asked for known in knowns(test, organisms)]
    work += [(name, test, known) for name, test in asked for known in extra if known.question == test.question]
    for number, (name, test, known) in enumerate(work):
        if on_progress is not None:
            on_progress(number, len(work), f"{name}: {known.subject.name}")
        try:
            found = measured(test, known.subject, audits, seed)
        except BadInput:
            continue  # it cannot live in the environment of this test
        rows.append(row(name, test, known, found))
    return rows


def knowns(test: Test, names: Sequence[str] = ()) -> Iterator[Known]:
    """Every organism whose file says the truth about a test's question, frozen and, where it learns so, online."""
    home = plugins.build("environments", "bandit", arms=5, pulls=100)
    for name, shows in test.predicted.items():  # a supporting test says itself who should show what it looks for
        if not names or name in names:
            subject = organism(name, home_of(name, home))
            learns = name in plugins.names("agents") and subject.build(subject.home)[0].learning
            yield Known(subject._replace(online=learns), test.question, name, shows)
    for name in plugins.names("organisms") if test.deciding else ():
        if names and name not in names:
            continue
        family = plugins.attribute("organisms", name, "FAMILY", name)
        for online, key in ((False, "TRUTH"), (True, "ONLINE")):
            truth = plugins.attribute("organisms", name, key, {}).get(test.question)
            if truth is not None:
                subject = organism(name, home_of(name, home), online=online)
                yield Known(subject, test.question, family, truth == "yes")


def taught(name: str, pupil: Subject) -> Iterator[Known]:
    """A distilled organism, with the truth of its teacher for each question that a chain can ask."""
    for question, truth in plugins.attribute("organisms", name, "TRUTH").items():
        if question in ("learns", "plans"):
            yield Known(pupil, question, f"{name}, distilled", truth == "yes")


def home_of(name: str, bandit: Environment) -> Environment:
    """The bandit for those who can live there; else any environment that takes them."""
    for env in (bandit, *(plugins.build("environments", other) for other in ("chain", "beacon", "stream"))):
        try:
            organism(name, env).build(env)
        except BadInput:
            continue
        return env
    raise BadInput(f"organism '{name}' lives in none of the environments that are tried")


def subjects_of(name: str) -> list[Subject]:
    """An organism frozen, and learning where it does so by weights."""
    if name not in plugins.names("organisms"):
        raise plugins.unknown("organism", name, plugins.names("organisms"))
    home = home_of(name, plugins.build("environments", "bandit", arms=5, pulls=100))
    found = [organism(name, home)]
    if plugins.attribute("organisms", name, "ONLINE"):
        found.append(organism(name, home, online=True)._replace(name=f"{name}, learning"))
    return found


def measured(test: Test, subject: Subject, audits: int, seed: int) -> list[dict[str, np.ndarray]]:
    """What R audits of a subject measured, each of N lives of its own."""
    N = test.num_lifetimes
    keys = sample_lifetime_keys(jax.random.key(seed), audits * N, "validation")
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
    tried = TRIED if "z" in given._fields else ()
    at = {z: sum(test.judge(one, given._replace(z=z)).verdict == "yes" for one in found) for z in tried}
    return Row(
        name,
        known.subject.name + (" (online)" if known.subject.online else ""),
        known.family,
        known.guilty,
        rate(said["yes"], len(findings)),
        rate(said["no"], len(findings)),
        often,
        {z: rate(count, len(findings)) for z, count in at.items()},
    )


def halves(rows: Sequence[Row]) -> list[Half]:
    """For every test, the threshold that each half of the families would choose, judged on the other half.

    Families are dealt out in turn, innocent and guilty apart. Chosen is the smallest threshold that calls no innocent
    of its half guilty in more than `AIMED_FALSE` of its audits; a higher one could only cost power.
    """
    found = []
    for test in dict.fromkeys(row.test for row in rows):
        mine = [row for row in rows if row.test == test and row.yes_at]
        dealt = [
            sorted({row.family for row in mine if row.guilty == guilty})[start::2]
            for start in (0, 1)
            for guilty in (False, True)
        ]
        parts = [{*dealt[0], *dealt[1]}, {*dealt[2], *dealt[3]}]
        for own, other in (parts, parts[::-1]):
            innocents = [row for row in mine if row.family in own and not row.guilty]
            kept = [z for z in TRIED if all(row.yes_at[z].share <= AIMED_FALSE for row in innocents)]
            z = min(kept, default=max(TRIED))
            judged = [row._replace(yes=row.yes_at[z]) for row in mine if row.family in other]
            worst = max((row for row in judged if not row.guilty), key=lambda row: row.yes.share, default=None)
            weakest = min((row for row in judged if row.guilty), key=lambda row: row.yes.share, default=None)
            found.append(Half(test, tuple(sorted(own)), z, worst, weakest))
    return found


def rate(count: int, audits: int) -> Rate:
    return Rate(count, audits, *clopper_pearson(count, audits))


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
    return row._asdict() | rates | {"yes_at": {str(z): rate.share for z, rate in row.yes_at.items()}}
