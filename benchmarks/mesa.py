"""The results of the mesa study, one JSON line each: `python benchmarks/mesa.py --out studies/mesa [--size small]`.

Runs or resumes the study in the folder; with `--read`, it prints what the folder holds and runs nothing. Each line
holds the effect of one hypothesis, content, training and condition, or one measure of one cell of the planning
experiment, as the study's page shows it, the standard error over runs, and the verdict. With `--extract CELL ...`, it
recovers links from the choices of the trained contents of these cells, whose weights lie in the folder, and prints one
record for each run; with `--extract-agents CELL ...`, from those of the agents of these cells themselves.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.errors import BadInput

UNITS = {"objective": "probability", "learns": "sd of a step's score", "plans": "share of choices"}


def collect_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a study, in part or complete."""
    from ontogeny.runs.folder import read_spec
    from ontogeny.runs.formats import MESA_STUDY
    from ontogeny.studies.mesa.comparison import SCHEMA
    from ontogeny.studies.records import read_records, read_seconds

    run = read_spec(folder)
    if run.kind != MESA_STUDY:
        raise BadInput(f"'{folder}' holds no mesa study")
    spec, records, seconds_by_id = run.spec, read_records(folder, SCHEMA), read_seconds(folder)
    yield from collect_cell_lines(records, spec["budget"].get("planning"), seconds_by_id)
    yield from collect_group_lines(records, spec, seconds_by_id)


def collect_cell_lines(
    records: Sequence[Mapping[str, Any]], budget: Mapping[str, Any] | None, seconds_by_id: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The lines of the planning experiment: abilities and indices (means over the timings) of each cell.

    Args:
        records: All records of the study.
        budget: Of the experiment, as `spec.json` has it.
        seconds_by_id: Wall time by id of the record.
    """
    from ontogeny.stats import mean_interval
    from ontogeny.studies.mesa.planning import results

    experiment = results.collect_results([dict(record) for record in records], budget)
    for cell, runs in experiment.cells.items():
        seconds = sum(seconds_by_id.get(run["id"], 0.0) for run in runs)
        verdict = "no verdict (brief)" if experiment.is_brief else experiment.verdicts[cell].verdict
        for name in ("look-up", "first choice", "own choices", *results.layer_names(runs)):
            values = [results.mean_over_timings(run["measures"], name) for run in runs]
            share = results.index_over_runs(runs, name)
            error = mean_interval(values).standard_error if len(values) > 1 else None
            yield {
                "name": f"mesa/planning/{cell}/{name.replace(' ', '_')}",
                "value": round(share.mean, 5),
                "unit": "share of test streams" if name in ("look-up", "first choice", "own choices") else "index",
                "se": None if error is None else round(error, 5),
                "tasks": len(runs),
                "peer": None,
                "peer_value": None,
                "ratio": None,
                "seconds": round(seconds, 1),
                "setting": f"{verdict}; {len(runs)} runs, {results.format_bounds(share, 4)}; "
                f"{runs[0]['num_updates']} updates of batch {runs[0]['batch_size']}, "
                f"{runs[0]['num_parameters']} parameters",
            }


def collect_group_lines(
    records: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], seconds_by_id: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The lines of content that predicts items and payouts; the arguments are as of `collect_cell_lines`."""
    from ontogeny.stats import mean_interval
    from ontogeny.studies.mesa.comparison import collect_groups

    budget = spec["budget"]
    for group in collect_groups([dict(record) for record in records], spec["min_effects"]):
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


def extract_links(folder: Path, cells: Sequence[str], num_runs: int, num_streams: int, seed: int) -> Iterator[Any]:
    """The records of links that are recovered from the choices of trained contents.

    Args:
        folder: Of the study, with the weights of its runs.
        cells: Names of the cells.
        num_runs: Runs of each cell.
        num_streams: Test streams of a run.
        seed: Of the study, for the streams of its own measures.
    """
    from ontogeny.studies.mesa.measurements import PLANNING, RUNS
    from ontogeny.studies.mesa.planning.cells import CELLS
    from ontogeny.studies.mesa.planning.experiment import MeasurementPlan, RunId, measure_runs
    from ontogeny.studies.mesa.planning.extraction import measure_extraction
    from ontogeny.studies.mesa.planning.schedule import planning_budgets

    plan = MeasurementPlan((), num_curve_streams=num_streams, num_streams=num_streams)
    training = planning_budgets()["full"].training
    for cell in cells:
        run_ids = [RunId(cell, run) for run in range(num_runs)]
        yield from measure_runs(CELLS, run_ids, training, plan, seed, folder / RUNS / PLANNING, (measure_extraction,))


def extract_from_agents(cells: Sequence[str], num_streams: int, seed: int) -> Iterator[dict[str, Any]]:
    """As `extract_links`, for the agents of the streams themselves, which a perfect prediction of them would equal."""
    from ontogeny.studies.mesa.planning.cells import CELLS
    from ontogeny.studies.mesa.planning.experiment import RunId, run_key
    from ontogeny.studies.mesa.planning.extraction import measure_extraction
    from ontogeny.studies.mesa.planning.stream_agents import measure_agent

    for cell in cells:
        keys = run_key(seed, RunId(cell, 0))[None]
        measured = measure_agent(CELLS[cell], keys, num_streams, (measure_extraction,))
        yield {"agent": cell, "measures": {name: round(share, 4) for name, (share, _) in measured.items()}}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("studies/mesa"))
    parser.add_argument("--size", default="full", help="of a study that is run: full, planning or small")
    parser.add_argument("--read", action="store_true", help="print the results of the folder and run nothing")
    parser.add_argument("--extract", nargs="+", default=[], metavar="CELL", help="recover links from trained contents")
    parser.add_argument("--extract-agents", nargs="+", default=[], metavar="CELL", help="and from agents of streams")
    parser.add_argument("--runs", type=int, default=10, help="of each cell from which links are recovered")
    parser.add_argument("--streams", type=int, default=64, help="of each run from which links are recovered")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        _print_lines(options)
    except BadInput as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _print_lines(options: argparse.Namespace) -> None:
    """Runs the study unless it is only read, or recovers links, and prints the lines."""
    if options.extract or options.extract_agents:
        configure_jax(None)
        for record in extract_links(options.out, options.extract, options.runs, options.streams, options.seed):
            print(json.dumps(record), flush=True)
        for record in extract_from_agents(options.extract_agents, options.streams, options.seed):
            print(json.dumps(record), flush=True)
        return
    if not options.read:
        configure_jax(None)
        from ontogeny.studies.mesa.runner import run_mesa_study

        options.out.parent.mkdir(parents=True, exist_ok=True)
        run_mesa_study(options.size, options.out, options.seed, on_event=lambda event: None)
    for line in collect_lines(options.out):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
