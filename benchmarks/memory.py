"""Peak memory of runs that evolve, predicted before the run and measured after it, one JSON line per setting.

    python benchmarks/memory.py --draw 12 --seed 0 --out memory.jsonl

Settings are drawn at random: a large population, long lifetimes, wide networks, many lifetimes, or a strategy that
holds its population in memory. Each runs in a process of its own; the same command resumes after an interrupt.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT = 0.2  # of the measured peak, the largest error of a prediction
KINDS = ("population", "lifetime", "width", "lifetimes", "Sep_CMA_ES")
RUN = """
import json, sys
from ontogeny.cli.jax_setup import configure_jax
configure_jax("cpu", 1)
from ontogeny import memory
from ontogeny.stages.train import train
predictions = []
train(json.loads(sys.argv[1]), sys.argv[2], on_memory=predictions.append)
predicted = predictions[0]
figures = {"predicted": predicted.peak, "program": predicted.program, "present": predicted.present}
print(json.dumps(figures | {"measured": memory.read_memory("VmHWM")}))
"""


def main() -> None:
    """Draws the settings, runs those that are not yet in the file, and prints one line for each and a summary."""
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of evolution.")
    parser.add_argument("--draw", type=int, default=12, help="number of settings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the settings")
    parser.add_argument("--out", type=Path, help="JSON lines; finished settings in it are not run again")
    options = parser.parse_args()
    lines = []
    if options.out is not None and options.out.exists():
        lines = [json.loads(text) for text in options.out.read_text().splitlines()]
    for setting in draw_settings(options.draw, options.seed):
        line = next((line for line in lines if line["setting"] == setting), None)
        if line is None:
            line = measure(setting)
            lines.append(line)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    errors = [abs(line["ratio"] - 1) for line in lines]
    print(
        f"{len(lines)} settings, {sum(error <= LIMIT for error in errors)} within {LIMIT:.0%} of the measured peak, "
        f"largest error {max(errors):.1%}",
        file=sys.stderr,
    )


def draw_settings(count: int, seed: int) -> list[dict[str, str]]:
    """Specs of runs; the kinds take turns, and everything else is drawn."""
    generator = random.Random(seed)
    settings = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        population, lifetimes, pulls, agent, strategy = 16, 1, 10, "recurrent_cells", "Open_ES"
        if kind == "population":
            population = 65_536
            agent = generator.choice(["recurrent_cells", "recurrent:hidden_size=32", "recurrent:hidden_size=64"])
        elif kind == "lifetime":
            pulls, lifetimes = 100_000, generator.choice([1, 8, 32])
        elif kind == "width":
            agent = f"recurrent:hidden_size={generator.choice([1024, 1536, 2048, 3072])}"
            population = generator.choice([4, 16, 32])
        elif kind == "lifetimes":
            lifetimes, agent = (
                2 ** generator.randint(12, 16),
                f"recurrent:hidden_size={generator.choice([32, 64, 128])}",
            )
        else:
            strategy, population = kind, 2 ** generator.randint(13, 16)
            agent = f"recurrent:hidden_size={generator.choice([16, 32, 48])}"
        development = (
            f"evolution:strategy={strategy},population_size={population},num_lifetimes={lifetimes},num_generations=2,"
            "generations_per_call=1"
        )
        settings.append({"agent": agent, "env": f"bandit:num_pulls={pulls}", "development": development})
    return settings


def measure(setting: dict[str, str]) -> dict[str, object]:
    """Trains with one setting in a process of its own."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RUN, json.dumps(setting), str(Path(folder) / "run")]
        process = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if process.returncode:
        raise SystemExit(f"{setting} failed: {process.stderr[-2000:]}")
    figures = json.loads(process.stdout.splitlines()[-1])
    return {
        "name": "peak memory",
        "value": figures["predicted"],
        "unit": "bytes",
        "se": None,
        "peer": "measured",
        "peer_value": figures["measured"],
        "ratio": round(figures["predicted"] / figures["measured"], 4),
        "seconds": round(time.perf_counter() - start, 1),
        "setting": setting,
        "program": figures["program"],
        "present": figures["present"],
    }


if __name__ == "__main__":
    main()
