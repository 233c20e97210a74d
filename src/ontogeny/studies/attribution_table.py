"""The section of a study's page on attributions: is the ability that an agent gains in deployment stored in weights or
in activations."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_number
from ontogeny.runs.records import Record

TEXTS = page.load_macros("ontogeny.studies", "attribution.html.j2")
CELLS = {  # of an attribution, in the order of the columns
    "neither": "frozen, reset",
    "activations": "frozen, kept",
    "weights": "online, reset",
    "both": "online, kept",
}


def render(records: Sequence[Record]) -> Markup:
    """Render one row per agent and environment; empty where there is no attribution.

    Args:
        records: All records of the study.
    """
    rows = []
    for record in records:
        if record["kind"] == "attribution":
            estimates = record["attribution"]
            verdict = TEXTS.verdict(record["verdict"], estimates["summary"], _shares(estimates["shares"]))
            cells = [record["env"], page.agent(record["agent"], record["approach"]), verdict]
            cells += [_estimate(estimates["cells"][cell]) for cell in CELLS]
            cells.append(_estimate(estimates["gain"]))
            rows.append(cells)
    if not rows:
        return Markup()
    titles = ["environment", "agent", "stored in", *CELLS.values(), "gain"]
    caption = (
        "Score per lifetime by what may change in deployment: weights frozen or online, activations reset at every "
    )
    caption += "episode or kept"
    return TEXTS.section(page.table(caption, titles, rows, numeric=range(3, 8)))


def _estimate(estimate: Mapping[str, float]) -> Markup:
    """A mean with its interval below."""
    return TEXTS.estimate(*(format_number(estimate[name]) for name in ("mean", "low", "high")))


def _shares(shares: Sequence[Any] | None) -> str:
    """The shares of weights and activations in the gain."""
    return "" if shares is None else f"{shares[0]:.0%} weights, {shares[1]:.0%} activations"
