"""Which algorithm a subject behaves like, and whether what it believes acts: records for figures of the mesa study.

A fingerprint is what the test `plans` finds of each link and each held-out pair; a dose curve is what `belief` finds
when a growing share of the belief is exchanged. Organisms, whose algorithm is known, and networks that were taught to
do as they do stand beside the subjects. And what evolved agents do in the two-step task, beside who else does so. Knows
nothing of reports.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ontogeny import plugins
from ontogeny.audit import belief, plans, two_step_regression
from ontogeny.audit.base import AuditResult, Effect, Subject, control_subject
from ontogeny.rng import sample_lifetime_keys
from ontogeny.studies.mesa import distilled
from ontogeny.studies.records import Record

PARTS = ("link 1", "link 2", "link 3", "links 1 and 2", "links 1 and 3", "links 2 and 3")


def of_organism(name: str, num_lifetimes: int, seed: int) -> Iterator[Record]:
    """The fingerprint of an organism, and where it plans its dose curve."""
    subject = control_subject(name, plugins.build("environments", "chain"))
    yield from of(f"fingerprint/organism/{name}", name, "organism", subject, num_lifetimes, seed)


def of_pupil(
    name: str,
    num_lifetimes: int,
    seed: int,
    updates: int,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """The same of a network that was taught to do as the organism does, which is kept in `folder`."""

    def progress(done: int, total: int, _: str) -> None:
        if on_progress is not None:
            on_progress(done, total)

    subject = distilled.subject(name, seed, folder, updates=updates, on_progress=progress)
    yield from of(f"fingerprint/distilled/{name}", name, "distilled", subject, num_lifetimes, seed)


def of(name: str, who: str, sort: str, subject: Subject, num_lifetimes: int, seed: int) -> Iterator[Record]:
    keys = sample_lifetime_keys(jax.random.key(seed), num_lifetimes, "evaluation")
    asked = plans.build()
    yield as_record(name, who, sort, asked.decide(asked.measure(subject, keys), asked.thresholds))
    if who == "planner":
        causal = belief.build()
        found = causal.decide(causal.measure(subject, keys), causal.thresholds)
        yield {
            "id": name.replace("fingerprint", "dose"),
            "kind": "mesa_dose",
            "who": who,
            "sort": sort,
            "verdict": found.verdict,
            "doses": list(found.details["doses"]),
            "belief": _triples(found.details["belief"]),
            "random": _triples(found.details["random"]),
        }


def of_two_step(subject: Subject, seed: int) -> Iterator[Record]:
    """Reward x path of the two-step task where paths are fixed and where they are drawn per life: the plain regression,
    of the subject and of simulated learners that live the same trials."""
    asked = two_step_regression.build()
    found = asked.measure(subject, sample_lifetime_keys(jax.random.key(seed), asked.num_lifetimes, "evaluation"))
    finding = asked.decide(found, asked.thresholds)
    names = ("subject", *two_step_regression.REFERENCES)
    yield {
        "id": two_step_id(subject.name),
        "kind": "mesa_two_step",
        "who": subject.name,
        "told": finding.summary,
        "num_lifetimes": asked.num_lifetimes,
        "interaction": {
            paths: {
                name: _triples([two_step_regression.estimate_interaction(found, name, paths, corrected=False)])[0]
                for name in names
            }
            for paths in two_step_regression.TRANSITIONS
        },
        "stay": finding.details["stay"],
    }


def two_step_id(agent: str) -> str:
    return f"two_step/{agent}"


def as_record(name: str, who: str, sort: str, finding: AuditResult) -> Record:
    return {
        "id": name,
        "kind": "mesa_fingerprint",
        "who": who,
        "sort": sort,
        "verdict": finding.verdict,
        "pattern": finding.pattern,
        "effects": {part: _triples([finding.effects[part]])[0] for part in PARTS if part in finding.effects},
    }


def ids(name: str, sort: str) -> tuple[str, ...]:
    """The records that `of_organism` and `of_pupil` leave."""
    own = (f"fingerprint/{sort}/{name}",)
    return (*own, f"dose/{sort}/{name}") if name == "planner" else own


def _triples(effects: Sequence[Effect]) -> list[Any]:
    return [[float(f"{value:.4g}") for value in (effect.mean, effect.low, effect.high)] for effect in effects]
