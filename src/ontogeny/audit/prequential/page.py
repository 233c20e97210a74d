"""The HTML page of a prequential audit, rendered from its record alone."""

from collections.abc import Mapping
from typing import Any

from ontogeny.report import page


def render(record: Mapping[str, Any]) -> str:
    """Renders the page of a certificate or of a calibration.

    Args:
        record: The record that `ontogeny audit prequential --out` writes.
    """
    macros = page.load_macros("ontogeny.audit.prequential", "prequential.html.j2", record=record)
    title = (
        f"Prequential audit of {record['predictor']}" if "checks" in record else "Calibration of the prequential audit"
    )
    sections = [
        page.Section("checks", "Checks", macros.checks()),
        page.Section("predictors", "Reference predictors", macros.predictors()),
        page.Section("failures", "Error rates that are surely too large", macros.sentences("failures")),
        page.Section("undetermined", "Error rates that are undetermined", macros.sentences("undetermined")),
    ]
    return page.document(title, macros.opening(), sections, "prequential audit")
