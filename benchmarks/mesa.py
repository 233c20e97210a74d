"""The figures of the mesa study, one JSON line each: `python benchmarks/mesa.py --out studies/mesa [--small]`.

Runs the study in the folder, or goes on with the one that is there, and prints a line for each question, content, model
and condition: the part that the page draws, its standard error over runs, and how the group is judged.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ontogeny.cli.jax_setup import configure_jax


def lines(folder: Path):
    from ontogeny.studies import records
    from ontogeny.studies.mesa import comparison as mesa_comparison

    found = records.read(folder / records.RECORDS_FILE)
    seconds = records.read_times(folder / records.TIMES_FILE)
    for group in mesa_comparison.groups(found):
        part = group.shown
        spent = sum(time for name, time in seconds.items() if f"/{group.content}/" in name)
        error = float(np.std(part.runs, ddof=1) / np.sqrt(group.runs)) if group.runs > 1 else None
        yield {
            "name": f"mesa/{group.question}/{group.content}/{group.model}/{group.condition}",
            "value": round(part.mean, 5),
            "unit": {"objective": "probability", "learns": "sd of a step's score", "plans": "share of choices"}[
                group.question
            ],
            "se": None if error is None else round(error, 5),
            "tasks": found[0]["budget"]["num_lifetimes"],
            "peer": None,
            "peer_value": None,
            "ratio": None,
            "seconds": round(spent, 1),
            "setting": f"{group.verdict}; {group.runs} runs, 95 % {part.low:.4f} to {part.high:.4f}, "
            f"alone {group.alone['yes']} yes {group.alone['no']} no; budget {found[0]['budget']['name']}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("studies/mesa"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    configure_jax(None)
    from ontogeny.studies.mesa.runner import run_mesa_study

    given.out.parent.mkdir(parents=True, exist_ok=True)
    mesa.run_mesa_study(mesa.SMALL if given.small else mesa.FULL, given.out, given.seed, on_event=lambda event: None)
    for line in lines(given.out):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
