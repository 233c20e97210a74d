"""Our scores beside the published tables of RL^2 (Duan et al. 2016), one JSON line per row and agent.

    python benchmarks/published.py --tables 2 --rows n=10 n=100 --agents psrl model_based
    python benchmarks/published.py --evolve runs/published --seeds 0 1 2 3 4   # evolves cells first, then scores all
    python benchmarks/published.py --agents none --run runs/published/mdp-10   # only what was developed before

Scores are means over unseen tasks of the stream "evaluation". A reference stands beside the printed line of the same
strategy (`peer`), any other agent beside the best printed line of its row; `ratio` is ours over theirs. Where a
reference lands outside 3 standard errors and 4 % of the print, `why` says what is known of the reason.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LOWEST_TASKS = 4000
EVOLVED = {  # folder -> (world to evolve in, settings of `evolution`), each within two minutes on two cores
    "bandit-10": ("bandit:arms=5,pulls=10", {"population": 256, "lives": 64, "generations": 150}),
    "bandit-100": ("bandit:arms=5,pulls=100", {"population": 256, "lives": 64, "generations": 100}),
    "mdp-10": ("random_mdp:episodes=10", {"population": 256, "lives": 64, "generations": 60}),
    "mdp-100": (
        "random_mdp:episodes=100",
        {"population": 256, "lives": 16, "generations": 40, "generations_per_dispatch": 2},
    ),
}


class Entry(NamedTuple):
    """An agent to be scored in a row."""

    agent: str  # as the command line takes it
    line: str | None = None  # the printed line of the same strategy
    run: Path | None = None  # a folder with its genome


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--rows", nargs="+", default=[], metavar="n=10[,k=5]", help="only these rows")
    parser.add_argument(
        "--agents", nargs="+", default=[], help="only these, by name or with settings; 'none' for no others"
    )
    parser.add_argument("--tasks", type=int, default=LOWEST_TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="folders of developed agents to score as well")
    parser.add_argument("--evolve", type=Path, help="a new folder in which recurrent_cells are evolved before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of evolution, a line of descent for each")
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count() or 1}")

    from ontogeny.study import published

    runs = [*chosen.run, *(evolve(chosen.evolve, chosen.seeds) if chosen.evolve else [])]
    for row in published.rows():
        if row.table in chosen.tables and is_chosen(row, chosen.rows):
            for entry in entries(row, chosen.agents, runs):
                print(json.dumps(score(row, entry, chosen.tasks, chosen.seed), ensure_ascii=False), flush=True)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


def is_chosen(row: Any, wanted: list[str]) -> bool:
    have = {"n": row.n, "k": row.k}
    return not wanted or any(
        all(have.get(key) == int(value) for key, value in (part.split("=") for part in text.split(",")))
        for text in wanted
    )


def entries(row: Any, wanted: list[str], runs: list[Path]) -> Iterator[Entry]:
    """The agents of a row: those that follow a printed line, then our own, then those that were developed."""
    from ontogeny import registry
    from ontogeny.lifecycle import saved
    from ontogeny.study import published

    listed = [Entry(agent, line) for line, agent in published.OURS[row.table].items()]
    others = ("psrl", "opsrl", "certainty_equivalence", "q_learning", "oracle", "model_based")
    listed += [Entry(agent) for agent in (others if row.table == 2 else ("q_learning", "oracle", "model_based"))]
    listed += [Entry(agent) for agent in wanted if agent != "none" and agent not in {e.agent for e in listed}]
    known = registry.names("agents")
    for entry in listed:
        name = registry.parse(entry.agent)[0]
        if (not wanted or entry.agent in wanted or (name in wanted and entry.line)) and name in known:
            yield entry
    for run in runs:
        spec = saved.read_spec(run)
        own = all(spec.world.settings.get(key) == value for key, value in row.settings.items())
        # One genome of `mdp-...` is scored on every length; one of a bandit on the bandit that it was evolved in.
        if spec.world.name == row.room and (own or row.table == 2):
            yield Entry(spec.agent.name, run=run)


def score(row: Any, entry: Entry, tasks: int, seed: int) -> dict[str, Any]:
    """One agent in one row, as a line of the benchmark."""
    import jax

    from ontogeny import registry, steering
    from ontogeny.lifecycle import saved, subject
    from ontogeny.lifecycle.evaluate import evaluate
    from ontogeny.study import published

    setting: dict[str, Any] = {"table": row.table, "n": row.n, "k": row.k, "agent": entry.agent, "seed": seed}
    if entry.run is not None:
        held = saved.read(entry.run, world=subject.Room(row.room, dict(row.settings)))
        built, genome = held.subject, held.genome
        developed = saved.read_spec(entry.run)
        setting["developed_in"] = {"world": developed.world.name, **developed.world.settings}
        setting["developed_from_seed"] = developed.seed
    else:
        world = registry.build("worlds", row.room, **row.settings)
        drives = steering.build(world.spec)
        name, given = registry.parse(entry.agent)
        built = subject.Subject(registry.build("agents", name, world.spec, drives, **given), world, drives)
        genome = built.agent.genome(jax.random.key(seed))
    case = "online" if built.agent.learns else "offline"
    found = evaluate(*built, genome, num_tasks=tasks, seed=seed, case=case)
    peer = entry.line or max(row.lines, key=lambda line: row.lines[line])
    printed = row.lines[peer]
    line = {
        "name": f"published table {row.table}: {entry.agent}",
        "value": round(found.mean, 3),
        "unit": "score per life",
        "se": round(found.standard_error, 4),
        "tasks": tasks,
        "peer": f"{peer}, {published.SOURCE}",
        "peer_value": printed,
        "ratio": round(found.mean / printed, 4),
        "seconds": round(found.seconds, 1),
        "setting": setting,
    }
    if entry.line and not published.agrees(found.mean, found.standard_error, printed):
        line["why"] = published.WHY.get((row.table, entry.line), "not known")
    return line


def evolve(folder: Path, seeds: list[int]) -> list[Path]:
    """Evolves recurrent_cells in the worlds of `EVOLVED` from each seed; finished runs are not done again."""
    from ontogeny.lifecycle import checkpoint, subject
    from ontogeny.lifecycle.train import train

    runs = []
    for seed in seeds:
        for name, (world, settings) in EVOLVED.items():
            run = folder / f"{name}-seed{seed}"
            runs.append(run)
            if checkpoint.exists(run, "genome"):
                continue
            development = {"name": "evolution", "settings": settings | {"spread": 0.05, "step_size": 0.02}}
            spec = {"world": world, "agent": "recurrent_cells", "development": development, "seed": seed}
            started = time.perf_counter()
            train(subject.parse(spec), run)
            print(f"{run}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return runs


if __name__ == "__main__":
    main()
