"""Writes `scores.json`: scores of developed agents by seed and task, from which tests of intervals resample.

`python tests/data/make_scores.py` develops the agents anew (a few minutes on two cores). The scores are payouts of a
bandit (few values), food of a forager (skewed to the right) and whether a goal is reached (0 or 1).
"""

import json
import tempfile
from pathlib import Path

import numpy as np

NUM_SEEDS, NUM_TASKS = 16, 64
ENTRIES = {  # name -> environment, agent, development
    "payouts": ("bandit:num_pulls=10", "recurrent_cells", "population_size=16,num_lifetimes=4,num_generations=12"),
    "food": (
        "foraging:size=4,num_episodes=5",
        "recurrent_cells",
        "population_size=16,num_lifetimes=4,num_generations=6",
    ),
    "arrivals": (
        "beacon:size=5,num_episodes=1",
        "recurrent:hidden_size=8",
        "strategy=Sep_CMA_ES,population_size=16,num_lifetimes=8,num_generations=20",
    ),
}


def _read_scores(folder: Path, name: str) -> list[list[float]]:
    """The scores of one entry, by seed and task; whole numbers where all are."""
    scores = [np.load(folder / f"{name}-agent-{seed}.npy").round(4) for seed in range(NUM_SEEDS)]
    is_whole = all((of_seed % 1 == 0).all() for of_seed in scores)
    return [(of_seed.astype(int) if is_whole else of_seed).tolist() for of_seed in scores]


def main() -> None:
    """Runs a study and writes the scores of its agents, by name [seed][task]."""
    from ontogeny.cli.jax_setup import configure_jax
    from ontogeny.studies.runner import run_study

    configure_jax(None)
    text = 'title = "Recorded scores"\nquestion = "What do real scores look like?"\n'
    for name, (env, agent, development) in ENTRIES.items():
        text += f'[[environments]]\nname = "{name}"\nenv = "{env}"\nnum_tasks = {NUM_TASKS}\nrecord_lifetime = false\n'
        text += f'[[agents]]\nname = "agent"\nagent = "{agent}"\napproach = "evolution"\n'
        text += f'development = "evolution:{development}"\n'
        text += f'environments = ["{name}"]\nseeds = {list(range(NUM_SEEDS))}\n'
    with tempfile.TemporaryDirectory() as folder:
        spec, out = Path(folder) / "scores.toml", Path(folder) / "study"
        spec.write_text(text)
        run_study(spec, out)
        scores = {name: _read_scores(out / "scores", name) for name in ENTRIES}
    scores["arrivals"] = [[int(score > 0) for score in of_seed] for of_seed in scores["arrivals"]]
    lines = ",\n".join(
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]" for name, rows in scores.items()
    )
    (Path(__file__).parent / "scores.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
