"""The results of the mesa study, one JSON line each: `python benchmarks/mesa.py --out studies/mesa [--small]`.

Runs or resumes the study in the folder. Each line holds the effect of one hypothesis, content, training and condition
as the study's page shows it, the standard error over runs, and the verdict.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ontogeny.cli.jax_setup import configure_jax

UNITS = {"objective": "probability", "learns": "sd of a step's score", "plans": "share of choices"}


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a finished study."""
    from ontogeny.runs.folder import read_spec
    from ontogeny.stats import mean_interval
    from ontogeny.studies.mesa.comparison import SCHEMA, collect_groups
    from ontogeny.studies.records import read_records, read_seconds

    spec = read_spec(folder).spec
    budget = spec["budget"]
    seconds_by_id = read_seconds(folder)
    for group in collect_groups(read_records(folder, SCHEMA), spec["min_effects"]):
        part, counts = group.summary_effect, group.verdict_counts
        seconds = sum(seconds for record_id, seconds in seconds_by_id.items() if f"/{group.content}/" in record_id)
        error = mean_interval(part.run_means).standard_error if group.num_runs > 1 else None
        yield {
            "name": f"mesa/{group.hypothesis}/{group.content}/{group.training}/{group.condition}",
            "value": round(part.mean, 5),
            "unit": UNITS[group.hypothesis],
            "se": None if error is None else round(error, 5),
            "tasks": budget["num_lifetimes"],
            "peer": None,
            "peer_value": None,
            "ratio": None,
            "seconds": round(seconds, 1),
            "setting": f"{group.verdict}; {group.num_runs} runs, 95 % {part.low:.4f} to {part.high:.4f}, "
            f"runs alone {counts['yes']} yes {counts['no']} no; budget {budget['name']}",
        }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("studies/mesa"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    configure_jax(None)
    from ontogeny.studies.mesa.runner import run_mesa_study

    options.out.parent.mkdir(parents=True, exist_ok=True)
    run_mesa_study("small" if options.small else "full", options.out, options.seed, on_event=lambda event: None)
    for record in records(options.out):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
