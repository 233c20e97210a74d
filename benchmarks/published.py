"""Scores of ontogeny's agents beside the tables of RL^2 (Duan et al. 2016), one JSON line per table row and agent.

    python benchmarks/published.py                                                   # every row, every agent
    python benchmarks/published.py --tables 2 --rows n=10 n=100 --agents psrl model_based
    python benchmarks/published.py --agents none --seeds 0 1 2 3 4 --tasks 40000     # only the recipes
    python benchmarks/published.py --agents none --recipes none --run runs/published/mdp-10-seed0

A recipe names an agent, an environment and a development. `--recipes` selects from `RECIPES`; without it all recipes
are developed, or none if `--agents` names agents. Each recipe is developed once per seed of `--seeds` in the folder
`--evolve`, where finished runs are reused. Each run is scored in the rows that its genome fits. With several seeds, one
more line per row holds the mean over seeds. Its `se` contains the error over tasks, which all seeds share, and the
spread between seeds; `setting` holds the 95 % interval (`ontogeny.stats.mean_over_seeds`). On bandits, one more line
per recipe and row holds the difference to the finite-horizon Gittins policy, which is optimal up to 0.02 %, paired by
task. The `se` of a line about a single genome is its error over tasks.

Scores are means over held-out tasks of the stage `evaluation`. A baseline agent is compared with the published score of
the same strategy (`peer`), any other agent with the best published score of its row; `ratio` is the score divided by
the published one. Where a baseline agent differs from the published score by more than 3 standard errors and 4 %, `why`
states the reason if it is known.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEFAULT_TASKS = 4000
# Name -> agent, training environment, development; each takes at most two minutes on two cores.
RECIPES = {
    "bandit-10": ("recurrent_cells", "bandit:num_arms=5,num_pulls=10", "evolution:num_generations=150"),
    "bandit-100": ("recurrent_cells", "bandit:num_arms=5,num_pulls=100", "evolution:num_generations=100"),
    "bandit-500": (
        "recurrent_cells",
        "bandit:num_arms=5,num_pulls=500",
        "evolution:population_size=128,num_lifetimes=16,num_generations=80,generations_per_call=2",
    ),
    "mdp-10": ("recurrent_cells", "random_mdp:num_episodes=10", "evolution:num_generations=60"),
    "mdp-100": (
        "recurrent_cells",
        "random_mdp:num_episodes=100",
        "evolution:num_lifetimes=16,num_generations=40,generations_per_call=2",
    ),
    "mdp-100-unclocked": (
        "recurrent_cells:observe_time=false",
        "random_mdp:num_episodes=100",
        "evolution:num_lifetimes=16,num_generations=40,generations_per_call=2",
    ),
    "dense-10": (
        "recurrent:hidden_size=24",
        "bandit:num_arms=5,num_pulls=10",
        "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes=64,num_generations=1500,generations_per_call=20,sigma=0.2",
    ),
    "dense-100": (
        "recurrent:hidden_size=24",
        "bandit:num_arms=5,num_pulls=100",
        "evolution:strategy=Sep_CMA_ES,population_size=128,num_lifetimes=32,num_generations=2000,generations_per_call=20,sigma=0.2",
    ),
    "distilled-100": ("recurrent", "bandit:num_arms=5,num_pulls=100", "distillation"),
    "gradient-100": ("recurrent", "bandit:num_arms=5,num_pulls=100", "policy_gradient"),
}


class Entry(NamedTuple):
    """An agent to be scored in a row."""

    agent: str  # a name with settings, in the syntax of the command line
    strategy: str | None = None  # the published strategy that the agent implements
    run: Path | None = None  # the folder that holds its genome


class Scored(NamedTuple):
    """The scores of one agent in one row."""

    record: dict[str, Any]  # the line that is printed
    totals: np.ndarray  # score by task


OPTIMUM = Entry("gittins", "Gittins")


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--rows", nargs="+", default=[], metavar="n=10[,k=5]", help="score only these rows")
    parser.add_argument(
        "--agents", nargs="+", default=[], help="score only these agents; 'none' scores the developed agents alone"
    )
    parser.add_argument("--tasks", type=int, default=DEFAULT_TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="folders of developed agents to score as well")
    parser.add_argument(
        "--evolve", type=Path, default=Path("runs/published"), help="folder for the runs of the recipes"
    )
    parser.add_argument("--recipes", nargs="+", choices=[*RECIPES, "none"], help="develop only these recipes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="develop one run per seed")
    options = parser.parse_args(arguments)
    started_at = time.perf_counter()
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count() or 1}")

    from ontogeny import plugins
    from ontogeny.studies import published

    for text in options.rows:
        if not re.fullmatch(r"[nk]=\d+(,[nk]=\d+)?", text):
            parser.error(f"'{text}' does not select a row; write n=100 or n=100,k=5")
    for agent in options.agents:
        if agent != "none" and plugins.parse(agent)[0] not in plugins.list_names("agents"):
            parser.error(f"there is no agent '{agent}'")
    recipes = options.recipes or (list(RECIPES) if options.agents in ([], ["none"]) else [])
    runs = [*options.run, *develop(options.evolve, [name for name in recipes if name != "none"], options.seeds)]
    for row in published.list_rows():
        if row.table in options.tables and is_selected(row, options.rows):
            by_recipe: dict[str, list[Scored]] = {}
            for entry in entries(row, options.agents, runs):
                scored = score(row, entry, options.tasks, options.seed)
                print_record(scored.record)
                if entry.run is not None:
                    by_recipe.setdefault(recipe_of(entry.run), []).append(scored)
            has_optimum = bool(by_recipe) and row.env_name == "bandit"
            optimum = score(row, OPTIMUM, options.tasks, options.seed) if has_optimum else None
            for of_seeds in by_recipe.values():
                if len(of_seeds) > 1:
                    print_record(mean_over_seeds(of_seeds))
                if optimum is not None:
                    print_record(difference_to_optimum(of_seeds, optimum))
    print(f"{time.perf_counter() - started_at:.0f} s", file=sys.stderr)


def print_record(record: dict[str, Any]) -> None:
    """Prints one JSON line."""
    print(json.dumps(record, ensure_ascii=False), flush=True)


def recipe_of(run: Path) -> str:
    """The spec of a run without its seed."""
    from ontogeny.stages.saved_agent import read_run_spec
    from ontogeny.stages.spec import spec_to_json

    return json.dumps(spec_to_json(read_run_spec(run)) | {"seed": 0}, sort_keys=True)


def is_selected(row: Any, selection: list[str]) -> bool:
    """Whether a row matches one of the selections, such as `n=100,k=5`; an empty list selects every row."""
    settings = {"n": row.n, "k": row.k}
    return not selection or any(
        all(settings.get(key) == int(value) for key, value in (part.split("=") for part in text.split(",")))
        for text in selection
    )


def entries(row: Any, selection: list[str], runs: list[Path]) -> Iterator[Entry]:
    """The agents of a row: implementations of published strategies, then other agents, then developed agents."""
    from ontogeny import plugins
    from ontogeny.stages.saved_agent import read_run_spec
    from ontogeny.studies import published

    candidates = [Entry(agent, strategy) for strategy, agent in published.MATCHING_AGENTS[row.table].items()]
    more_agents = ("psrl", "opsrl", "certainty_equivalence", "q_learning", "oracle", "model_based")
    candidates += [
        Entry(agent) for agent in (more_agents if row.table == 2 else ("q_learning", "oracle", "model_based"))
    ]
    candidates += [
        Entry(agent) for agent in selection if agent != "none" and agent not in {entry.agent for entry in candidates}
    ]
    names = plugins.list_names("agents")
    for entry in candidates:
        name = plugins.parse(entry.agent)[0]
        if (not selection or entry.agent in selection or (name in selection and entry.strategy)) and name in names:
            yield entry
    for run in runs:
        spec = read_run_spec(run)
        shared = {key for key, value in row.settings.items() if spec.env.settings.get(key) == value}
        # A genome of recurrent cells fits environments of every size: one evolved on random MDPs is scored with every
        # number of episodes, one evolved on bandits with every number of arms. A dense network fits only its training
        # environment.
        fits = spec.agent.name == "recurrent_cells" and (row.table == 2 or "num_pulls" in shared)
        if spec.env.name == row.env_name and (fits or len(shared) == len(row.settings)):
            yield Entry(spec.agent.name, run=run)


def score(row: Any, entry: Entry, tasks: int, seed: int) -> Scored:
    """The scores of one agent in one row."""
    import jax

    from ontogeny import plugins, steering
    from ontogeny.stages.assembly import Assembly
    from ontogeny.stages.evaluate import evaluate
    from ontogeny.stages.saved_agent import read_run_spec, read_saved_agent
    from ontogeny.stages.spec import PluginChoice
    from ontogeny.studies import published

    setting: dict[str, Any] = {"table": row.table, "n": row.n, "k": row.k, "agent": entry.agent, "seed": seed}
    if entry.run is not None:
        saved_agent = read_saved_agent(entry.run, env=PluginChoice(name=row.env_name, settings=dict(row.settings)))
        assembly, genome = saved_agent.assembly, saved_agent.genome
        developed = read_run_spec(entry.run)
        setting["agent"] = text_of(developed.agent)
        setting["developed_by"] = text_of(developed.development)
        setting["developed_in"] = {"env": developed.env.name, **developed.env.settings}
        setting["developed_from_seed"] = developed.seed
        setting["development_seconds"] = round(seconds_of(entry.run), 1)
    else:
        env = plugins.build("environments", row.env_name, **row.settings)
        drives = steering.build(env.spec)
        name, settings = plugins.parse(entry.agent)
        assembly = Assembly(plugins.build("agents", name, env.spec, drives, **settings), env, drives)
        genome = assembly.agent.genome(jax.random.key(seed))
    mode = "online" if assembly.agent.learning else "frozen"
    evaluation = evaluate(*assembly, genome, num_tasks=tasks, seed=seed, mode=mode)
    peer = entry.strategy or max(row.scores, key=lambda strategy: row.scores[strategy])
    published_score = row.scores[peer]
    record = {
        "name": f"published table {row.table}: {setting['agent']}",
        "value": round(evaluation.mean, 3),
        "unit": "score per lifetime",
        "se": round(evaluation.standard_error, 4),
        "tasks": tasks,
        "peer": f"{peer}, {published.SOURCE}",
        "peer_value": published_score,
        "ratio": round(evaluation.mean / published_score, 4),
        "seconds": round(evaluation.seconds, 1),
        "setting": setting,
    }
    if entry.strategy and not published.is_consistent(evaluation.mean, evaluation.standard_error, published_score):
        record["why"] = published.DISCREPANCY_NOTES.get((row.table, entry.strategy), "not known")
    return Scored(record, evaluation.totals)


def text_of(choice: Any) -> str:
    """A plugin in the syntax of the command line, without default settings."""
    from ontogeny import plugins

    kind = next(kind for kind in ("agents", "development") if choice.name in plugins.list_names(kind))
    defaults = plugins.default_settings(kind, choice.name)
    settings = ",".join(f"{key}={value}" for key, value in choice.settings.items() if value != defaults.get(key))
    return f"{choice.name}:{settings}" if settings else choice.name


def mean_over_seeds(of_seeds: list[Scored]) -> dict[str, Any]:
    """The record of the mean of one recipe's scores in one row, with its error over tasks and over seeds."""
    from ontogeny import stats

    records = [scored.record for scored in of_seeds]
    mean = stats.mean_over_seeds([stats.mean_interval(scored.totals) for scored in of_seeds])
    setting = {key: value for key, value in records[0]["setting"].items() if key != "developed_from_seed"}
    development_seconds = [record["setting"]["development_seconds"] for record in records]
    setting |= {"values": [record["value"] for record in records], "development_seconds": development_seconds}
    return estimate_to_json(mean) | {
        "name": f"{records[0]['name']}, mean over {len(records)} seeds",
        "peer": records[0]["peer"],
        "peer_value": records[0]["peer_value"],
        "ratio": round(mean.mean / records[0]["peer_value"], 4),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "setting": setting | {"interval": [round(mean.low, 3), round(mean.high, 3)]},
    }


def difference_to_optimum(of_seeds: list[Scored], optimum: Scored) -> dict[str, Any]:
    """The record of the difference between one recipe's scores and those of a nearly optimal agent, paired by task."""
    from ontogeny import stats

    record, optimal_value = of_seeds[0].record, float(optimum.totals.mean())
    difference = stats.paired_difference_over_seeds([scored.totals for scored in of_seeds], [optimum.totals])
    setting = {key: record["setting"][key] for key in ("table", "n", "k", "agent", "seed", "developed_in")}
    interval = [round(difference.low, 4), round(difference.high, 4)]
    return estimate_to_json(difference) | {
        "name": f"{record['name']}, difference to {OPTIMUM.agent}",
        "peer": f"{OPTIMUM.agent}, in the same tasks",
        "peer_value": round(optimal_value, 3),
        "ratio": round(1 + difference.mean / optimal_value, 4),
        "seconds": optimum.record["seconds"],
        "setting": setting | {"num_seeds": len(of_seeds), "interval": interval},
    }


def estimate_to_json(estimate: Any) -> dict[str, Any]:
    """The fields of a record that an interval determines."""
    return {
        "value": round(estimate.mean, 4),
        "unit": "score per lifetime",
        "se": round(estimate.standard_error, 4),
        "tasks": estimate.num_tasks,
    }


def seconds_of(run: Path) -> float:
    """The wall time of a run's development, in seconds."""
    return sum(json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines())


def develop(folder: Path, recipes: list[str], seeds: list[int]) -> list[Path]:
    """Develops the agents of `RECIPES` from each seed; finished runs are reused."""
    from ontogeny.runs import checkpoint
    from ontogeny.stages.spec import parse_run_spec
    from ontogeny.stages.train import train

    runs = []
    for recipe in recipes:
        agent, env, development = RECIPES[recipe]
        for seed in seeds:
            run = folder / f"{recipe}-seed{seed}"
            runs.append(run)
            if not checkpoint.exists(run, "genome"):
                spec = {"env": env, "agent": agent, "development": development, "seed": seed}
                train(parse_run_spec(spec), run)
                print(f"{run}: {seconds_of(run):.0f} s", file=sys.stderr)
    return runs


if __name__ == "__main__":
    main()
