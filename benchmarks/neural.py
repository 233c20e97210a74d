"""Learning within one lifetime by a neural world model, beside PPO, DQN and evolution. One JSON line per figure.

    python benchmarks/neural.py --environment Catch --seeds 10 --hours 2   # learning curves of all learners
    python benchmarks/neural.py --rows drift calibration --seeds 3
    python benchmarks/neural.py --rows stability --environment Catch --seeds 1   # a lifetime of 10^6 steps
    python benchmarks/neural.py --read                                     # print the lines, run nothing

A run appends one record per row, environment, learner and seed to `--out`; the same command resumes a killed run,
and a lifetime of hours resumes from its last checkpoint. A learner whose learning diverges leaves no record and is
named. Seeds take turns, so that few hours give every learner its
first seeds. PPO and DQN need rejax (`pip install 'ontogeny[baselines]'`); without it the missing rows are named.

**Steps to the aim.** Every learner is measured by the returns of the episodes in which it learns, exploration included.
The figure is the number of environment steps, those of all parallel copies together, after which the mean return of the
last n episodes first reaches 90 % of the score at which the environment counts as solved. n depends on the environment
(`recent` in `setting`). Where
several episodes end in one iteration of PPO or one generation, the mean is over the fewest last iterations that hold n
episodes. A seed that never reaches the aim counts with all of its steps, and the number of such seeds is stated, so
that the mean is then a lower bound. There is no ratio to PPO where the mean of the learner or that of PPO
(`ppo_not_reached`) is a lower bound. Of several budgets of PPO, the largest counts. **Final score**: the mean return of
the episodes that end in the last tenth of the steps. `se` is the standard error over seeds; the interval in `setting`
is Student's.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.cli.jax_setup import HOST_DEVICES_FLAG, configure_jax
from ontogeny.errors import BadInput, LearningDiverged

AIM_SHARE = 0.9
NUM_PARTS = 20
SMALL = ("ppo", "dqn", "evolved:recurrent", "evolved_long:recurrent")
EVOLUTION_FACTOR = 50  # environment steps of `evolved_long` by those of PPO
WIDTHS = (16, 32, 64, 128)
DRIFTS = {"CartPole": ("length:0.5..2",), "Catch": ("actions reversed",)}
AGENT = "neural_model_based"


class Benchmark(NamedTuple):
    """An environment with the score at which it counts as solved, and the budgets.

    Attributes:
        env: In the syntax of the command line.
        solved: Score per episode; the aim is 90 % of it.
        published: Score per episode of PPO of gymnax-blines in this very task; None where there is none.
        source: Of the published score.
        steps: Of a lifetime of agents.
        baseline_steps: Of PPO, DQN and evolution.
        recent: Episodes of the moving mean.
        learners: Beside the agent, its ablations and `random`.
        agent_settings: Of `neural_model_based`.
    """

    env: str
    solved: float
    published: float | None
    source: str
    steps: int
    baseline_steps: int
    recent: int
    learners: tuple[str, ...] = SMALL
    agent_settings: str = ""


BLINES = "gymnax-blines PPO"
VISUAL_GRID = "gymnax:FourRooms-misc,parameters=use_visual_obs:true+resample_init_pos:true"  # as in gymnax-blines
DEEP_SEA_STEPS = {6: 4_000, 8: 6_000, 10: 10_000, 12: 16_000, 14: 20_000, 20: 40_000, 30: 90_000}  # by size
BENCHMARKS = {
    "Catch": Benchmark("gymnax:Catch-bsuite", 1, 1, f"{BLINES}, 100 k steps", 12_000, 100_000, 100),
    "CartPole": Benchmark("gymnax:CartPole-v1", 500, 500, f"{BLINES}, 150 k steps", 30_000, 150_000, 10),
    "UmbrellaChain": Benchmark("gymnax:UmbrellaChain-bsuite", 1, 1, f"{BLINES}, 150 k steps", 20_000, 150_000, 500),
    "FourRooms": Benchmark(VISUAL_GRID, 1, 1, f"{BLINES}, 200 k steps", 30_000, 200_000, 20),
    "MemoryChain": Benchmark("gymnax:MemoryChain-bsuite", 1, 0.1, f"{BLINES}, 150 k steps", 15_000, 150_000, 100),
    # Published figures are of other sizes, with one action map for all lifetimes.
    **{
        f"DeepSea{size}": Benchmark(
            f"gymnax:DeepSea-bsuite,parameters=size:{size}",
            0.99,
            None,
            "",
            steps,
            150_000,
            20,
            agent_settings="exploration_bonus=10",
        )
        for size, steps in DEEP_SEA_STEPS.items()
    },
    "Breakout": Benchmark(
        "gymnax:Breakout-MinAtar", 18, 18, f"{BLINES}, 1 M steps: 16 to 19", 1_000_000, 1_000_000, 20, ("ppo",)
    ),
    "Asterix": Benchmark(
        "gymnax:Asterix-MinAtar", 2.5, 2.5, f"{BLINES}, 1 M steps: 2 to 2.5", 1_000_000, 1_000_000, 20, ("ppo",)
    ),
}


class Devaluation(NamedTuple):
    """An outcome whose drive becomes -1 after a number of steps."""

    env: str
    feature: str
    steps: int


DEVALUATIONS = {
    "Foraging": Devaluation("foraging:size=4,num_episodes=250", "food", 4_000),
    "Catch": Devaluation("gymnax:Catch-bsuite", "env_reward", 8_000),
    "FourRooms": Devaluation(VISUAL_GRID, "env_reward", 8_000),
    "MemoryChain": Devaluation("gymnax:MemoryChain-bsuite", "env_reward", 6_000),
}
ENVIRONMENTS = tuple(dict.fromkeys([*BENCHMARKS, *DEVALUATIONS]))
ROWS = ("curves", "drift", "calibration", "devaluation", "stability")
STABILITY_DRIFT, STABILITY_INTERVAL, STABILITY_STEPS = "actions reversed every", 25_000, 1_000_000


class Job(NamedTuple):
    """One record that is to be measured."""

    row: str
    environment: str
    learner: str  # or the drift, the width, or the devalued outcome feature
    seed: int
    num_steps: int
    settings: str  # of the agent


def list_learners(benchmark: Benchmark) -> list[str]:
    """All learners of an environment: the agent, its ablations, `random` and the others."""
    from ontogeny.agents import neural_model_based

    ablations = [name for name in neural_model_based.ABLATIONS if name != "none"]
    return [AGENT, *(f"{AGENT}:ablation={name}" for name in ablations), "random", *benchmark.learners]


def list_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All jobs of a command; seeds come first, so that seeds take turns."""
    seeds = [options.first_seed + index for index in range(options.seeds)]
    for seed in seeds:
        for name, devaluation in DEVALUATIONS.items():
            if "devaluation" in options.rows and name in (options.environment or DEVALUATIONS):
                num_steps = options.steps or devaluation.steps
                yield Job("devaluation", name, devaluation.feature, seed, num_steps, options.settings)
        for name in options.environment or list(BENCHMARKS)[:5]:
            if name not in BENCHMARKS:
                continue
            benchmark = BENCHMARKS[name]
            settings = ",".join(filter(None, (benchmark.agent_settings, options.settings)))
            steps = options.steps or benchmark.steps
            baseline_steps = options.baseline_steps or benchmark.baseline_steps
            if "curves" in options.rows:
                for learner in list_learners(benchmark):
                    if options.learners is None or learner in options.learners:
                        num_steps = steps if learner.startswith((AGENT, "random")) else baseline_steps
                        num_steps *= EVOLUTION_FACTOR if learner.startswith("evolved_long") else 1
                        is_agent = learner.startswith(AGENT)
                        yield Job("curves", name, learner, seed, num_steps, settings if is_agent else "")
            if "drift" in options.rows:
                for drift in DRIFTS.get(name, ()):
                    yield Job("drift", name, drift, seed, 2 * steps, settings)
            if "stability" in options.rows:
                drift = f"{STABILITY_DRIFT} {options.interval}"
                yield Job("stability", name, drift, seed, options.steps or STABILITY_STEPS, settings)
            if "calibration" in options.rows:
                for width in options.widths:
                    yield Job("calibration", name, str(width), seed, steps, settings)


def measure(job: Job, folder: Path) -> dict[str, Any]:
    """The record of a job.

    Args:
        folder: For the checkpoints of its lifetime.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    fields = measure_devaluation(job) if job.row == "devaluation" else measure_row(job, folder)
    seconds = {"seconds": round(time.perf_counter() - started, 1)}
    identity = job._asdict() | describe_origin(job)
    return identity | fields | seconds | {"cpu_seconds": round(time.process_time() - cpu_started, 1)}


def env_of(row: str, environment: str) -> str:
    """The environment of a row, in the syntax of the command line; empty where earlier versions had another name."""
    entry = (DEVALUATIONS if row == "devaluation" else BENCHMARKS).get(environment)
    return entry.env if entry else ""


def describe_origin(job: Job) -> dict[str, Any]:
    """What a record depends on beside its job: the text of the environment, and the settings of a baseline."""
    from ontogeny.studies.neural import learners, rejax_baselines

    env = env_of(job.row, job.environment)
    settings = None
    if learners.is_baseline(job.learner):
        settings = rejax_baselines.settings_of(job.learner, env.partition(",")[0])
    return {"env": env, "baseline_settings": json.loads(json.dumps(settings))}


def measure_devaluation(job: Job) -> dict[str, Any]:
    """The amounts of an outcome before and after its devaluation."""
    from ontogeny import plugins
    from ontogeny.studies.neural import devaluation

    settings = plugins.parse(":".join(filter(None, (AGENT, job.settings))))[1]
    env, num_test_steps = env_of(job.row, job.environment), job.num_steps // 10
    if env.startswith("gymnax:"):
        env += f",steps={job.num_steps + num_test_steps}"
    amounts = devaluation.measure_devaluation(
        env, job.seed, job.num_steps, job.learner, -1.0, num_test_steps=num_test_steps, **settings
    )
    # None where no episode ended in the steps of the test, as where a goal is avoided that alone ends an episode
    return {"amounts": {name: amount if math.isfinite(amount) else None for name, amount in amounts.items()}}


def measure_row(job: Job, folder: Path) -> dict[str, Any]:
    """The fields of a record of the environments of `BENCHMARKS`; arguments as of `measure`."""
    from ontogeny.studies.neural import learners, learning_curves, measurements, stability

    benchmark = BENCHMARKS[job.environment]
    agent = ":".join(filter(None, (AGENT, job.settings)))
    if job.row == "drift":
        fields = measurements.measure_drift(
            benchmark.env, job.learner, job.seed, job.num_steps, benchmark.recent, agent
        )
    elif job.row == "calibration":
        from ontogeny import plugins

        settings = plugins.parse(agent)[1] | {"width": int(job.learner)}
        num_test_steps = max(50, min(2000, job.num_steps // 5))
        fields = measurements.measure_calibration(benchmark.env, job.seed, job.num_steps, num_test_steps, **settings)
    elif job.row == "stability":
        interval = int(job.learner.removeprefix(STABILITY_DRIFT))
        fields = stability.measure_stability(
            benchmark.env, interval, job.seed, job.num_steps, agent,
            checkpoint_folder=folder, on_progress=show_progress(job),
        )  # fmt: skip
    else:
        learner = job.learner.replace("evolved_long:", learners.EVOLVED)
        if job.settings:
            learner += ("," if ":" in learner else ":") + job.settings
        run = learners.run_learner(
            learner, benchmark.env, job.seed, job.num_steps, checkpoint_folder=folder, on_progress=show_progress(job)
        )
        aim = AIM_SHARE * benchmark.solved
        fields = {
            "steps": run.num_steps,
            "steps_to_aim": learning_curves.steps_to_aim(run.episodes, aim, benchmark.recent),
            "final": learning_curves.final_score(run.episodes, run.num_steps),
            "curve": learning_curves.mean_by_part(run.episodes, run.num_steps, NUM_PARTS),
            "learning_cpu_seconds": round(run.cpu_seconds, 2),
            "compile_cpu_seconds": round(run.compile_seconds, 2),
        }
    return fields


def show_progress(job: Job) -> Any:
    """A callback that shows how far a lifetime is, at most once in ten seconds."""
    last = time.perf_counter()

    def show(num_done: int, num_steps: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 10:
            last = time.perf_counter()
            print(f"{job.environment} {job.learner} seed {job.seed}: {num_done:,} of {num_steps:,}", file=sys.stderr)

    return show


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file that count.

    A last line that a killed process left behind in part is left out, and so are records of another variant of an
    environment or of other settings of a baseline, which earlier versions measured under the same names.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: a line is no JSON and is left out", file=sys.stderr)
            continue
        job = Job(*(record[field] for field in Job._fields))
        origin = describe_origin(job)
        if {field: record.get(field) for field in origin} == origin:
            records.append(record)
        else:
            name = " ".join(map(str, job))
            print(f"{path}: the record of {name} has another environment or baseline, and is left out", file=sys.stderr)
    return records


def run_jobs(options: argparse.Namespace) -> None:
    """Measures the jobs that have no record, until the hours are over.

    Raises:
        LearningDiverged: After all other jobs, where the learning of some diverged.
    """
    from ontogeny.studies.neural import learners, rejax_baselines

    jobs = list(list_jobs(options))
    if not jobs:
        raise BadInput(f"no row of {options.rows} has a learner and environment that were chosen")
    if not rejax_baselines.is_installed():
        missing = sorted({f"{job.environment} {job.learner}" for job in jobs if learners.is_baseline(job.learner)})
        jobs = [job for job in jobs if not learners.is_baseline(job.learner)]
        if missing:
            print(f"without rejax ({rejax_baselines.INSTALL}) missing: {', '.join(missing)}", file=sys.stderr)
    recorded = {tuple(record[field] for field in Job._fields) for record in read_records(options.out)}
    for job in jobs:
        if tuple(job) in recorded:  # a process may have been killed after it appended the record
            learners.remove_checkpoint(checkpoint_folder(options, job))
    jobs, diverged = [job for job in jobs if tuple(job) not in recorded], []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for number, job in enumerate(jobs, start=1):
        if time.perf_counter() - started > 3600 * options.hours:
            print(f"{options.hours:g} hours are over; {len(jobs) - number + 1} records are missing", file=sys.stderr)
            break
        print(f"{number} of {len(jobs)}: {' '.join(map(str, job))}", file=sys.stderr)
        folder = checkpoint_folder(options, job)
        try:
            record = measure(job, folder)
        except LearningDiverged as error:
            diverged.append(f"{' '.join(map(str, job))}: {error}")
            print(diverged[-1], file=sys.stderr)
            continue
        with options.out.open("a") as file:
            is_torn = file.tell() > 0 and not options.out.read_bytes().endswith(b"\n")
            file.write(("\n" if is_torn else "") + json.dumps(record) + "\n")
        learners.remove_checkpoint(folder)
    if diverged:
        raise LearningDiverged(f"{len(diverged)} records are missing, the first is {diverged[0]}")


def checkpoint_folder(options: argparse.Namespace, job: Job) -> Path:
    """The folder for the checkpoint of a job."""
    name = "".join(c if c.isalnum() else "-" for c in "-".join(map(str, job)))
    return options.out.with_suffix("") / name


def make_line(
    name: str,
    values: Sequence[float],
    unit: str,
    seconds: float,
    setting: dict[str, Any],
    peer: tuple[str, float] | None = None,
) -> dict[str, Any]:
    """One line: the mean over seeds with its standard error and interval."""
    from ontogeny.stats import mean_interval

    mean, error = sum(values) / len(values), None
    if len(values) > 1:
        interval = mean_interval(values)
        error = round(interval.standard_error, 4)
        setting = setting | {"interval": [round(interval.low, 4), round(interval.high, 4)]}
    return {
        "name": f"neural/{name}",
        "value": round(mean, 4),
        "unit": unit,
        "se": error,
        "tasks": len(values),
        "peer": peer[0] if peer else None,
        "peer_value": peer[1] if peer else None,
        "ratio": round(mean / peer[1], 4) if peer and peer[1] else None,
        "seconds": round(seconds, 1),
        "setting": setting,
    }


def collect_lines(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of all records: one group per row, environment, learner, budget and settings."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = tuple(record[field] for field in Job._fields if field != "seed")
        groups.setdefault(key, []).append(record)
    ppo: dict[str, list[dict[str, Any]]] = {}
    for group in sorted(groups.values(), key=lambda group: group[0]["num_steps"]):
        if group[0]["learner"] == "ppo":
            ppo[group[0]["environment"]] = group  # that with the largest budget is the last one
    for group in groups.values():
        if group[0]["row"] == "curves":
            yield from curve_lines(group, ppo.get(group[0]["environment"]))
        else:
            yield from COLLECTORS[group[0]["row"]](group)


def all_steps(group: Sequence[dict[str, Any]]) -> list[int]:
    """The steps to the aim, those of a whole run where it was not reached."""
    return [record["steps"] if record["steps_to_aim"] is None else record["steps_to_aim"] for record in group]


def count_missed(group: Sequence[dict[str, Any]]) -> int:
    """The number of runs that never reached the aim."""
    return sum(record["steps_to_aim"] is None for record in group)


def setting_of(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all lines of a group state."""
    first = group[0]
    fields = {name: first[name] for name in ("environment", "learner", "num_steps", "settings")}
    env = env_of(first["row"], first["environment"])
    return fields | {"env": env, "seeds": sorted(r["seed"] for r in group)}


def curve_lines(group: Sequence[dict[str, Any]], ppo: Sequence[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """Steps to the aim, final score, curve and speed of a learner.

    Args:
        group: Its records.
        ppo: Those of PPO in the same environment.
    """
    first, benchmark = group[0], BENCHMARKS[group[0]["environment"]]
    name, setting = f"{first['environment']}/{first['learner']}", setting_of(group)
    seconds = sum(record["seconds"] for record in group)
    num_missed, peer = count_missed(group), None
    aim = {"aim": AIM_SHARE * benchmark.solved, "recent": benchmark.recent, "not_reached": num_missed}
    if ppo and first["learner"] != "ppo":
        steps = all_steps(ppo)
        peer = f"ppo, same run, {ppo[0]['num_steps']:,} steps", round(sum(steps) / len(steps), 1)
        aim |= {"ppo_not_reached": count_missed(ppo)}
    line = make_line(f"{name}/steps_to_aim", all_steps(group), "environment steps", seconds, setting | aim, peer)
    is_bound = num_missed or aim.get("ppo_not_reached")
    yield line | ({"ratio": None} if is_bound else {})  # a ratio of lower bounds says nothing
    finals = [record["final"] for record in group if record["final"] is not None]
    curves = {"curves": [[p if p is None else round(p, 3) for p in record["curve"]] for record in group]}
    if finals:
        peer = None if benchmark.published is None else (benchmark.source, benchmark.published)
        yield make_line(f"{name}/final", finals, "return per episode", seconds, setting | curves, peer)
    speeds = [record["steps"] / record["learning_cpu_seconds"] for record in group if record["learning_cpu_seconds"]]
    if speeds:
        compilation = {"compile_cpu_seconds": [record["compile_cpu_seconds"] for record in group]}
        yield make_line(
            f"{name}/speed", speeds, "environment steps per processor second", seconds, setting | compilation
        )


def drift_lines(group: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Loss, recovery and final score of each condition."""
    from ontogeny.studies.neural.measurements import CONDITIONS

    first, seconds = group[0], sum(record["seconds"] for record in group)
    half = first["num_steps"] // 2
    for condition in CONDITIONS:
        name = f"drift/{first['environment']}/{first['learner']}/{condition}"
        setting = setting_of(group) | {"before": [record["before"] for record in group]}
        for field, unit in (("loss", "return per episode"), ("final", "return per episode")):
            values = [record[condition][field] for record in group if record[condition][field] is not None]
            if values:
                yield make_line(f"{name}/{field}", values, unit, seconds, setting)
        steps = [record[condition]["recovery_steps"] for record in group]
        more = {"not_recovered": sum(number is None for number in steps)}
        values = [half if number is None else number for number in steps]
        yield make_line(f"{name}/recovery", values, "environment steps", seconds, setting | more)


def calibration_lines(group: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Log-likelihoods and calibration errors at one width."""
    first, seconds = group[0], sum(record["seconds"] for record in group)
    for quantity in ("observation", "outcome", "discount"):
        for field, unit in (("log_likelihood", "nats per step"), ("calibration_error", "error")):
            values = [record[f"{quantity}_{field}"] for record in group]
            name = f"calibration/{first['environment']}/width {first['width']}/{quantity}_{field}"
            yield make_line(name, values, unit, seconds, setting_of(group))


def devaluation_lines(group: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The amount of the devalued outcome per episode, by condition."""
    seconds = sum(record["seconds"] for record in group)
    for condition in group[0]["amounts"]:
        amounts = [record["amounts"][condition] for record in group]
        values = [amount for amount in amounts if amount is not None]
        name = f"devaluation/{group[0]['environment']}/{condition}"
        setting = setting_of(group) | {"without_episodes": len(amounts) - len(values)}
        if values:
            yield make_line(name, values, f"{group[0]['learner']} per episode", seconds, setting)


def stability_lines(group: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return and signs of a loss of plasticity: the last twentieth, and all of them by seed."""
    first, seconds = group[0], sum(record["seconds"] for record in group)
    name, setting = f"stability/{first['environment']}/{first['learner']}", setting_of(group)

    def line(quantity: str, unit: str, curves: Sequence[Sequence[float | None]], **more: Any) -> dict[str, Any]:
        values = [curve[-1] for curve in curves if curve[-1] is not None]
        rounded = [[point if point is None else round(point, 4) for point in curve] for curve in curves]
        return make_line(f"{name}/{quantity}", values, unit, seconds, setting | {"curves": rounded} | more)

    def by_part(*path: str) -> list[list[float]]:
        """The numbers of one quantity, by record and twentieth."""
        return [[reduce(getitem, path, measured) for measured in record["plasticity"]] for record in group]

    for quantity in ("curve", "adapted"):
        if all(record[quantity][-1] is not None for record in group):
            yield line({"curve": "return"}.get(quantity, quantity), "return per episode", [r[quantity] for r in group])
    for quantity in ("dormant_share", "constant_share"):
        yield line(quantity, "share of hidden units", by_part(quantity))
    for layer, measured in first["plasticity"][-1]["layers"].items():
        curves = by_part("layers", layer, "effective_rank")
        yield line(f"effective_rank/{layer}", "effective rank", curves, num_units=measured["num_units"])
    for quantity in ("weight_norm", "weight_distance"):
        for part in first["plasticity"][-1][quantity]:
            yield line(f"{quantity}/{part}", "Euclidean norm", by_part(quantity, part))
    speeds = [r["num_steps"] / r["learning_cpu_seconds"] for r in group if r["learning_cpu_seconds"]]
    if speeds:
        yield make_line(f"{name}/speed", speeds, "environment steps per processor second", seconds, setting)


COLLECTORS = {
    "drift": drift_lines,
    "calibration": calibration_lines,
    "devaluation": devaluation_lines,
    "stability": stability_lines,
}


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environment", nargs="+", choices=ENVIRONMENTS, help="default: all of devaluation, five of other rows"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["curves"])
    parser.add_argument("--learners", nargs="+", help="only these, such as ppo neural_model_based; default: all")
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), help="of the row calibration")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no record after so many hours")
    parser.add_argument("--steps", type=int, help="of a lifetime, in place of those of the environment")
    parser.add_argument("--interval", type=int, default=STABILITY_INTERVAL, help="steps, of the row stability")
    parser.add_argument("--baseline-steps", type=int, help="of PPO, DQN and evolution")
    parser.add_argument("--settings", default="", help="of the agent: width=32,replay_ratio=32")
    parser.add_argument("--out", type=Path, default=Path("runs/neural.jsonl"))
    parser.add_argument("--read", action="store_true", help="print the lines of all records and run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = parse_options(arguments)
    try:
        if not options.read:
            # One device with one thread, which several processes can share, unless XLA_FLAGS says otherwise.
            configure_jax(None, None if HOST_DEVICES_FLAG in os.environ.get("XLA_FLAGS", "") else 1)
            run_jobs(options)
        for line in collect_lines(read_records(options.out)):
            print(json.dumps(line, ensure_ascii=False), flush=True)
    except BadInput as error:
        print(f"neural.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
