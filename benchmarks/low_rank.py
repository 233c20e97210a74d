"""Evolution with perturbations of rank 1 beside those of full rank: fitness at the end, and time. JSON lines.

    python benchmarks/low_rank.py                                  # two tasks, ten seeds
    python benchmarks/low_rank.py --seeds 20 --hidden-size 128

Both evolve the agent `recurrent` from the same initial genome with the same number of environment steps, in pairs by
seed. The line `low_rank/TASK/difference` is the mean of the paired differences of the final fitness on held-out tasks,
divided by the gain of full rank over the initial genome; `setting.interval` is its 95 % interval (Student's). The
criterion is that this interval lies within 2 % of the gain on either side. The line `low_rank/TASK/speed` is the ratio
of processor seconds.
"""

import argparse
import json
import statistics
import time
from typing import Any, NamedTuple

from ontogeny.cli.jax_setup import configure_jax

TASKS = {"two_arms": "bandit:num_arms=2,num_pulls=50", "five_arms": "bandit:num_arms=5,num_pulls=30"}
RANKS = (0, 1)
NUM_EVALUATION_TASKS = 4000
CRITERION = 0.02


class Final(NamedTuple):
    """A developed genome: mean score on held-out tasks, and processor seconds of the development."""

    score: float
    cpu_seconds: float


def develop(env_text: str, options: argparse.Namespace) -> tuple[dict[int, list[Final]], list[float]]:
    """The final scores by rank and seed, and the scores of the initial genomes by seed."""
    import jax

    from ontogeny import plugins, steering
    from ontogeny.stages.assembly import Assembly
    from ontogeny.stages.evaluate import evaluate

    name, settings = plugins.parse(env_text)
    env = plugins.build("environments", name, **settings)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=options.hidden_size)
    finals: dict[int, list[Final]] = {rank: [] for rank in RANKS}
    initial: list[float] = []

    def score(genome: Any) -> float:
        assembly = Assembly(agent, env, drives)
        return evaluate(*assembly, genome, num_tasks=NUM_EVALUATION_TASKS, seed=0, mode="frozen").mean

    developments = {
        rank: plugins.build(
            "development", "evolution", agent, env, drives, rank=rank, sigma=options.sigma,
            learning_rate=options.learning_rate, num_lifetimes=options.num_lifetimes,
            num_generations=options.num_generations,
        )
        for rank in RANKS
    }  # fmt: skip
    for rank, development in developments.items():
        development.step(development.init(jax.random.key(0)))  # compiles
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            state = development.init(jax.random.key(seed))
            if rank == RANKS[0]:
                initial.append(score(development.genome(state)))
            started = time.process_time()
            for _ in range(development.num_calls):
                state, _ = development.step(state)
            cpu_seconds = time.process_time() - started
            finals[rank].append(Final(score(development.genome(state)), cpu_seconds))
    return finals, initial


def print_lines(task: str, options: argparse.Namespace) -> None:
    """The lines of one task."""
    from ontogeny.stats import mean_interval

    started = time.perf_counter()
    finals, initial = develop(TASKS[task], options)
    full, low = (finals[rank] for rank in RANKS)
    gain = statistics.mean(a.score - b for a, b in zip(full, initial, strict=True))
    interval = mean_interval([(b.score - a.score) / gain for a, b in zip(full, low, strict=True)])
    setting = {
        "env": TASKS[task],
        "hidden_size": options.hidden_size,
        "num_generations": options.num_generations,
        "num_lifetimes": options.num_lifetimes,
        "sigma": options.sigma,
        "learning_rate": options.learning_rate,
        "seeds": options.seeds,
        "first_seed": options.first_seed,
    }
    line: dict[str, Any] = {
        "name": f"low_rank/{task}/difference",
        "value": round(interval.mean, 5),
        "unit": "share of the gain of full rank",
        "se": round(interval.standard_error, 5),
        "peer": "full rank",
        "peer_value": round(gain, 4),
        "ratio": round(1 + interval.mean, 5),
        "seconds": round(time.perf_counter() - started, 1),
        "setting": setting
        | {
            "interval": [round(interval.low, 5), round(interval.high, 5)],
            "is_within_criterion": interval.low >= -CRITERION and interval.high <= CRITERION,
            "scores": {rank: [round(final.score, 4) for final in finals[rank]] for rank in RANKS},
            "initial": [round(score, 4) for score in initial],
        },
    }
    print(json.dumps(line), flush=True)
    cpu = [statistics.median(final.cpu_seconds for final in side) for side in (full, low)]
    line = {
        "name": f"low_rank/{task}/speed",
        "value": round(cpu[1], 3),
        "unit": "processor seconds per development",
        "peer": "full rank",
        "peer_value": round(cpu[0], 3),
        "ratio": round(cpu[0] / cpu[1], 3),
        "setting": setting,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hidden-size", type=int, default=48)
    parser.add_argument("--num-generations", type=int, default=60)
    parser.add_argument("--num-lifetimes", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    chosen = parser.parse_args()
    configure_jax(None, 1)
    for chosen_task in chosen.tasks:
        print_lines(chosen_task, chosen)
