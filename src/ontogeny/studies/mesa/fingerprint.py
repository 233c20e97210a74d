"""Behavioral fingerprints: which algorithm a subject behaves like, and whether its beliefs cause its choices.

A fingerprint is the effect of each link and of each held-out pair of links in the test `plans`; a dose curve is the
effect of the test `belief` as a growing share of the belief is exchanged. Organisms with a known algorithm, and
networks distilled from them, serve as references. The third measurement is the interaction of reward and transition
in the two-step task, of evolved agents and of simulated reference learners.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ontogeny import plugins
from ontogeny.audit import belief, plans, two_step_regression
from ontogeny.audit.base import Subject, control_subject
from ontogeny.audit.decisions import Effect
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.runs.records import Record
from ontogeny.studies.mesa import comparison, distilled
from ontogeny.studies.mesa.distilled import OnWork

EFFECTS = comparison.EFFECTS["plans"]


def measure_organism(name: str, num_lifetimes: int, seed: int) -> Iterator[Record]:
    """The fingerprint of an organism, and of the planner its dose curve."""
    subject = control_subject(name, plugins.build("environments", "chain"))
    yield from _measure(name, "organism", subject, num_lifetimes, seed)


def measure_student(
    name: str, num_lifetimes: int, seed: int, num_updates: int, folder: Path, on_progress: OnWork | None = None
) -> Iterator[Record]:
    """The same of a network that is distilled from the organism and saved in `folder`."""
    student = distilled.load_or_train(name, seed, folder, num_updates=num_updates, on_progress=on_progress)
    yield from _measure(name, "distilled", student, num_lifetimes, seed)


def record_ids(name: str, group: str) -> tuple[str, ...]:
    """The ids of the records that `measure_organism` and `measure_student` yield."""
    ids = (f"fingerprint/{group}/{name}",)
    return (*ids, f"dose_curve/{group}/{name}") if name == "planner" else ids


def _measure(name: str, group: str, subject: Subject, num_lifetimes: int, seed: int) -> Iterator[Record]:
    """The fingerprint of a subject, and its dose curve if it is or imitates the planner."""
    keys = sample_lifetime_keys(key_from_seed(seed), num_lifetimes, "evaluation")
    fingerprint_id, *dose_ids = record_ids(name, group)
    test = plans.build()
    result = test.decide(test.measure(subject, keys), test.thresholds)
    effects = {name: round_interval(result.effects[name]) for name in EFFECTS if name in result.effects}
    yield _record(fingerprint_id, result.verdict, pattern=result.pattern, effects=effects)
    for dose_id in dose_ids:
        belief_test = belief.build()
        result = belief_test.decide(belief_test.measure(subject, keys), belief_test.thresholds)
        curves = {part: [round_interval(effect) for effect in result.details[part]] for part in ("belief", "random")}
        yield _record(dose_id, result.verdict, doses=list(result.details["doses"]), **curves)


def _record(record_id: str, verdict: str, **fields: Any) -> Record:
    """A record with the kind, the group and the agent that its id names."""
    kind, group, agent = record_id.split("/")
    return {"id": record_id, "kind": kind, "agent": agent, "group": group, "verdict": verdict} | fields


def measure_two_step(subject: Subject, seed: int) -> Iterator[Record]:
    """The interaction of reward and transition, with fixed transitions and with transitions sampled per lifetime.

    The regression is the plain one; the references learn in the same trials.
    """
    test = two_step_regression.build()
    measurements = test.measure(subject, sample_lifetime_keys(key_from_seed(seed), test.num_lifetimes, "evaluation"))
    result = test.decide(measurements, test.thresholds)

    def interaction(name: str, paths: str) -> list[float]:
        return round_interval(two_step_regression.estimate_interaction(measurements, name, paths, corrected=False))

    names = ("subject", *two_step_regression.REFERENCES)
    yield {
        "id": two_step_id(subject.name),
        "kind": "two_step",
        "agent": subject.name,
        "summary": result.summary,
        "num_lifetimes": test.num_lifetimes,
        "interaction": {
            paths: {name: interaction(name, paths) for name in names} for paths in two_step_regression.TRANSITIONS
        },
        "stay": result.details["stay"],
    }


def two_step_id(agent: str) -> str:
    """The id of the record that `measure_two_step` yields."""
    return f"two_step/{agent}"


def round_interval(effect: Effect) -> list[float]:
    """Mean and ends of an effect with four significant digits."""
    return [float(f"{value:.4g}") for value in (effect.mean, effect.low, effect.high)]
