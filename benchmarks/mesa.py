"""The results of the mesa study, one JSON line each: `python benchmarks/mesa.py --out studies/mesa [--small]`.

Runs the study in the folder, or resumes it, and prints a line for each hypothesis, content, training and condition: the
effect that the page draws, its standard error over runs, and the verdict.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.cli.jax_setup import configure_jax

UNITS = {"objective": "probability", "learns": "sd of a step's score", "plans": "share of choices"}


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    from ontogeny.runs.folder import read_spec
    from ontogeny.studies.mesa.comparison import SCHEMA, collect_groups
    from ontogeny.studies.records import read_records, read_seconds

    spec = read_spec(folder).spec
    budget = spec["budget"]
    seconds_by_id = read_seconds(folder)
    for group in collect_groups(read_records(folder, SCHEMA), spec["min_effects"]):
        part, counts = group.main_part, group.verdict_counts
        seconds = sum(seconds for record_id, seconds in seconds_by_id.items() if f"/{group.content}/" in record_id)
        error = float(np.std(part.run_means, ddof=1) / np.sqrt(group.num_runs)) if group.num_runs > 1 else None
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("studies/mesa"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    configure_jax(None)
    from ontogeny.studies.mesa.runner import run_mesa_study

    options.out.parent.mkdir(parents=True, exist_ok=True)
    run_mesa_study("small" if options.small else "full", options.out, options.seed, on_event=lambda event: None)
    for line in lines(options.out):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
