"""An audit of logged choices, from the file to one record: stays, regression, models, and what organisms would show."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ontogeny.audit.behavior import arranging, bandit, fitting, reading, two_step
from ontogeny.audit.behavior.base import Choices
from ontogeny.audit.behavior.stays import Mean, Stays, mean_of, simulated, stays

FORMAT = 1
SMALLEST = 0.1  # log odds: a smaller coefficient of many organisms may differ from nothing and still be none
SUCCESSOR = (
    "A successor representation whose map of transitions is at rest chooses exactly as a model-based agent does: in a "
    "two-step task the two are one model. What is fitted here goes on learning its map, and is told from the other by "
    "following the last transitions; its row of the recovery matrix says how well that works."
)


def read(path: Path, **how: Any) -> Choices:
    """A file's choices; settings as in `reading.read`. Raises `BadInput` for what cannot be read."""
    return arranging.arranged(reading.read(path, **how))


def measured(
    choices: Choices,
    *,
    groups: int | None = None,
    starts: tuple[int, int] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Everything that is found, as JSON takes it; `groups` and `starts` as in `fitting.compare`."""
    models = two_step.models(choices.has_second) if choices.task == "two_step" else bandit.models(choices.arms)
    found = fitting.compare(models, choices, groups=groups, starts=starts, seed=seed, on_progress=on_progress)
    best, behind = fitting.leads(found.fits)
    leads = {name: mean_of(values) for name, values in behind.items()}
    winners = fitting.winners(found.fits)
    own = stays(choices)
    drawn = {m.name: stays(simulated(choices, did)) for m, did in zip(models, found.organisms, strict=True)}
    repeated = {m.name: stays(simulated(choices, did)) for m, did in zip(models, found.repeated, strict=True)}
    record = {
        "format": FORMAT,
        "task": choices.task,
        "said": list(choices.said),
        "subjects": list(choices.subjects),
        "correct": "as the file says" if choices.correct is not None else "in hindsight",
        "stays": _as_record(own, own.cells),
        "organisms": {name: _as_record(part) for name, part in drawn.items()},
        "simulated": {name: _as_record(part) for name, part in repeated.items()},
        "models": [
            {
                "name": model.name,
                "told": model.told,
                "parameters": {name: value.tolist() for name, value in fit.values.items()},
                "log_likelihood": fit.log_likelihood.tolist(),
                "bic": fit.bic.tolist(),
                "summed_bic": float(fit.bic.sum()),
                "behind": _mean(leads[model.name]) if model.name in leads else None,
                "starts_that_agreed": float(fit.agreed.mean()),
            }
            for model, fit in zip(models, found.fits, strict=True)
        ],
        "best": found.fits[best].model,
        "winners": winners,
        "recovery": {
            "models": list(found.recovery.models),
            "by_subject": found.recovery.by_subject.tolist(),
            "by_group": found.recovery.by_group.tolist(),
            "organisms_each": found.recovery.subjects,
            "groups_each": found.recovery.groups,
        },
    }
    return record | {"in_words": _in_words(record, own, drawn, leads)}


def _in_words(record: dict[str, Any], own: Stays, drawn: dict[str, Stays], leads: dict[str, Mean]) -> list[str]:
    """What can be said, and what cannot."""
    said = []
    two = record["task"] == "two_step"
    main = "interaction" if two else "reward"
    shown = own.contrasts[main]
    what = "Reward and transition interact in staying" if two else "Reward makes staying more likely"
    if math.isnan(shown.low):
        said.append(f"{main} contrast of staying {shown.mean:+.3f}; one subject has no interval over subjects.")
    elif shown.low > 0:
        said.append(f"{what}: {_interval(shown)} over {shown.subjects} subjects.")
    else:
        said.append(f"Not shown: {what[0].lower() + what[1:]}; {_interval(shown)} over {shown.subjects} subjects.")
    if two:
        term = "reward x transition"
        for name in ("plain", "corrected"):
            found = {m: getattr(part, name)[term] for m, part in drawn.items()}
            positive = [m for m, mean in found.items() if mean.low > 0 and mean.mean > SMALLEST]
            told = ", ".join(m.replace("_", "-") for m in positive) or "none"
            said.append(f"The {name} {term} coefficient is positive in organisms of these models: {told}.")
    best = record["best"]
    close = [name for name, lead in leads.items() if not lead.low > 0]
    name = best.replace("_", "-")
    if close:
        others = ", ".join(other.replace("_", "-") for other in close)
        said.append(f"Lowest summed BIC: {name}; over subjects it is not clear of {others}.")
    else:
        said.append(f"Lowest summed BIC: {name}, clear of every other model over subjects.")
    names, matrix = record["recovery"]["models"], record["recovery"]["by_subject"]
    row = matrix[names.index(best)]
    taken = sorted(((share, n) for n, share in zip(names, row, strict=True) if n != best), reverse=True)[0]
    said.append(
        f"In a file of this size one organism of {name} is recognised in {row[names.index(best)]:.0%} of cases, and "
        f"most often taken for {taken[1].replace('_', '-')} otherwise ({taken[0]:.0%})."
    )
    if two:
        said.append(SUCCESSOR)
    return said


def _interval(mean: Mean) -> str:
    return f"{mean.mean:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"


def _as_record(found: Stays, cells: Any = None) -> dict[str, Any]:
    record: dict[str, Any] = {
        name: {key: _mean(mean) for key, mean in getattr(found, name).items()}
        for name in ("pooled", "contrasts", "plain", "corrected")
    }
    if cells is not None:
        record |= {"pairs": found.pairs, "cells": {n: [cell._asdict() for cell in part] for n, part in cells.items()}}
    return record


def _mean(mean: Mean) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in mean._asdict().items()}
