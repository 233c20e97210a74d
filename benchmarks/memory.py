"""Peak memory of runs that evolve, predicted before the run and measured after it, one JSON line per setting.

    python benchmarks/memory.py --draw 12 --seed 20261128 --out docs/results/memory.jsonl

Settings are drawn at random: a large population, long lifetimes, wide networks, many lifetimes, or a strategy that
holds its population in memory, on one or two devices of the CPU. Each runs in a process of its own, which compiles its
program as on a new machine. Settings whose prediction is below 500 MB are dropped and others drawn in their place. The
same command resumes after an interrupt.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT = 0.2  # of the measured peak, the largest error of a prediction
MIN_BYTES = 500 * 10**6  # predicted; smaller runs are not measured
KINDS = ("population", "lifetime", "width", "lifetimes", "strategy")
ENVIRONMENTS = {"bandit": "bandit:num_pulls={}", "random_mdp": "random_mdp:num_episodes={},horizon=1"}
RUN = """
import json, sys
from ontogeny.cli.jax_setup import configure_jax
configure_jax("cpu", int(sys.argv[3]))
from ontogeny import memory
from ontogeny.stages.train import train
predictions = []
def on_memory(prediction):
    predictions.append(prediction)
    if prediction.peak < int(sys.argv[4]):
        print("{}")
        sys.exit(0)
train(json.loads(sys.argv[1]), sys.argv[2], on_memory=on_memory)
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
    measured = []
    for setting in draw_settings(options.seed):
        line = next((line for line in lines if line["setting"] == setting), None)
        if line is None:
            line = measure(setting)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        if line["value"] is not None:
            measured.append(line)
        if len(measured) == options.draw:
            break
    errors = [abs(line["ratio"] - 1) for line in measured]
    print(
        f"{len(measured)} settings, {sum(error <= LIMIT for error in errors)} within {LIMIT:.0%} of the measured peak, "
        f"largest error {max(errors):.1%}",
        file=sys.stderr,
    )


def draw_settings(seed: int) -> Iterator[dict[str, str | int]]:
    """Specs of runs and numbers of devices; the kinds take turns, and everything else is drawn."""
    generator = random.Random(seed)
    for kind in itertools.cycle(KINDS):
        population, lifetimes, steps, strategy = 16, generator.choice([1, 2, 4]), generator.randint(5, 20), "Open_ES"
        hidden_size = generator.choice([16, 24, 32, 48])
        agent = generator.choice(["recurrent_cells", f"recurrent:hidden_size={hidden_size}"])
        if kind == "population":
            population, lifetimes = 65_536, 1
        elif kind == "lifetime":
            steps, lifetimes = 100_000, generator.choice([1, 8, 32])
        elif kind == "width":
            agent = f"recurrent:hidden_size={generator.randint(800, 2500)}"
            population = generator.choice([4, 16, 32])
        elif kind == "lifetimes":
            lifetimes = generator.randint(4_000, 40_000)
            agent = f"recurrent:hidden_size={generator.choice([32, 64, 128])}"
        else:
            strategy, population = generator.choice(["Sep_CMA_ES", "SNES"]), 2 ** generator.randint(13, 15)
            agent = f"recurrent:hidden_size={hidden_size}"
        development = (
            f"evolution:strategy={strategy},population_size={population},num_lifetimes={lifetimes},num_generations=2,"
            "generations_per_call=1"
        )
        env = ENVIRONMENTS[generator.choice(sorted(ENVIRONMENTS))].format(steps)
        num_devices = generator.choice([1, 2])
        yield {"agent": agent, "env": env, "development": development, "num_host_devices": num_devices}


def measure(setting: dict[str, str | int]) -> dict[str, object]:
    """Trains with one setting in a process of its own; without a figure where the prediction is below the limit."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        spec = {name: choice for name, choice in setting.items() if name != "num_host_devices"}
        arguments = [json.dumps(spec), str(Path(folder) / "run"), str(setting["num_host_devices"]), str(MIN_BYTES)]
        process = subprocess.run(
            [sys.executable, "-c", RUN, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        )
    if process.returncode:
        raise SystemExit(f"{setting} failed: {process.stderr[-2000:]}")
    figures = json.loads(process.stdout.splitlines()[-1])
    return {
        "name": "peak memory",
        "value": figures.get("predicted"),
        "unit": "bytes",
        "se": None,
        "peer": "measured",
        "peer_value": figures.get("measured"),
        "ratio": round(figures["predicted"] / figures["measured"], 4) if figures else None,
        "seconds": round(time.perf_counter() - start, 1),
        "setting": setting,
        "within_limit": abs(figures["predicted"] / figures["measured"] - 1) <= LIMIT if figures else None,
        "program": figures.get("program"),
        "present": figures.get("present"),
    }


if __name__ == "__main__":
    main()
