"""Seconds per generation of evolution on a Ray cluster: measured parts, a model of 1 to 1,000 machines, and its check.

    python benchmarks/scaling.py [--nodes 1 2 4 8] [--repeats 5]

A generation on W processors takes, one part after another,

    update + share + latency + max(tasks * overhead, rounds * shard + sigma * sqrt(rounds) * expected_max(W))

`update` is the work of the driver (drawing the generation, the step of the mean), `share` the transfer of the mean to
the machines, `overhead` the driver's time per task, `shard` the time to evaluate a shard on one processor, `sigma` its
standard deviation, and `expected_max(W)` the expected maximum of W standard normal variables, for which the slowest
processor is waited. All parts are measured here, on one machine; only the bandwidth between machines is assumed.

The check runs the drivers on local clusters of several nodes of one processor each, once with tasks that sleep for the
measured length of a shard, and on 1 and 2 nodes with real shards. Requires `pip install 'ontogeny[ray]'`. One JSON line
per figure.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")

from ontogeny.parallel.tasks import Setup, Task
from ontogeny.parallel.worker import prepare, worker_environment

BANDWIDTH = 1.25e9  # bytes per second between two machines: 10 Gbit/s, assumed
PROCESSORS_PER_MACHINE = 16  # of the machines of the model, assumed
MIN_EFFICIENCY = 0.5  # below this share of the processors' time that is spent in shards, more machines do not pay
MACHINES = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
MEMBERS_PER_SHARD = 16
NUM_CHECK_TASKS = 16


class Parts(NamedTuple):
    """The measured parts of a generation, in seconds."""

    shard: float  # mean over shards
    sigma: float  # standard deviation between shards
    update: float
    latency: float
    overhead: float
    share: float  # of the mean to one machine


def predict(parts: Parts, num_tasks: int, num_processors: int) -> float:
    """Seconds per generation by the model."""
    used = min(num_tasks, num_processors)
    rounds = math.ceil(num_tasks / used)
    evaluation = rounds * parts.shard + parts.sigma * math.sqrt(rounds) * expected_max(used)
    return parts.update + parts.share + parts.latency + max(num_tasks * parts.overhead, evaluation)


def expected_max(count: int) -> float:
    """The expected maximum of independent standard normal variables (Blom 1958, page 54)."""
    return statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def sleep(setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
    """A task in place of a shard."""
    time.sleep(request["seconds"])
    return {"fitness": [0.0] * MEMBERS_PER_SHARD}


def report(name: str, figure: float, unit: str, **fields: Any) -> None:
    """Print one figure as a JSON line."""
    print(json.dumps({"name": name, "value": round(figure, 6), "unit": unit, **fields}), flush=True)


def run_spec(width: int, population: int, num_lifetimes: int, steps: int, shard_size: int = MEMBERS_PER_SHARD) -> Any:
    """A spec of evolution on a bandit."""
    from ontogeny.stages.spec import parse_run_spec

    sizes = f"population_size={population},num_lifetimes={num_lifetimes},num_generations=100,shard_size={shard_size}"
    return parse_run_spec(
        {
            "agent": f"recurrent:hidden_size={width}",
            "env": f"bandit:num_arms=2,num_pulls={steps}",
            "development": f"evolution:{sizes}",
        }
    )


def measure_computation(spec: Any, repeats: int) -> dict[str, Any]:
    """Seconds of a shard and of the driver's update in this process, on one thread; size of the mean in bytes."""
    import jax
    import jax.numpy as jnp

    from ontogeny import trees
    from ontogeny.rng import key_from_seed
    from ontogeny.stages.assembly import assemble, build_development

    development = build_development(spec, assemble(spec))
    generation = development.shards
    assert generation is not None
    state = development.init(key_from_seed(0))
    num_members = int(spec.development.settings["population_size"])
    fitness = jax.random.normal(jax.random.key(1), (num_members,))
    env_steps = jnp.zeros(num_members, jnp.int32)
    shard_seconds, update_seconds = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        keys, proposal = jax.block_until_ready(generation.propose(state))
        arrays = trees.to_arrays((keys, proposal))
        proposed = time.perf_counter()
        jax.block_until_ready(generation.evaluate_shard(keys, proposal, jnp.int32(repeat % generation.num_shards)))
        evaluated = time.perf_counter()
        jax.block_until_ready(generation.finish(state, fitness, env_steps))
        finished = time.perf_counter()
        if repeat:  # the first one compiles
            shard_seconds.append(evaluated - proposed)
            update_seconds.append(finished - evaluated + proposed - start)
    num_bytes = sum(array.nbytes for array in arrays.values())
    return {"shard": shard_seconds, "update": update_seconds, "bytes": num_bytes, "arrays": arrays}


def start_cluster(num_nodes: int) -> Any:
    """A local cluster of nodes of one processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(num_nodes - 1):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return cluster


def loopback_bytes() -> int:
    """Bytes received on the loopback interface and on all others since the start of the machine."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[0]) for line in lines)


def time_runs(driver: Any, tasks: Sequence[Task], setup: Mapping[str, Any], repeats: int) -> list[float]:
    """Seconds of each run of some tasks with a new version of the setup; the first run is left out."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        driver.run(tasks, driver.put(setup))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def sleep_tasks(num_tasks: int, seconds: float) -> list[Task]:
    """Tasks that sleep."""
    return [Task(f"{Path(__file__).stem}:sleep", {"seconds": seconds, "shard": shard}) for shard in range(num_tasks)]


def measure_cluster(driver: Any, arrays: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Latency, overhead per task, and time to share the mean, on a cluster of one node."""
    small = statistics.median(time_runs(driver, sleep_tasks(1, 0.0), {}, 4 * repeats))
    large = statistics.median(time_runs(driver, sleep_tasks(129, 0.0), {}, repeats))
    with_arrays = statistics.median(time_runs(driver, sleep_tasks(1, 0.0), {"arrays": dict(arrays)}, 4 * repeats))
    overhead = (large - small) / 128
    return {"latency": small - overhead, "overhead": overhead, "share": max(0.0, with_arrays - small)}


def measure_traffic(driver: Any, setup: Mapping[str, Any]) -> dict[str, float]:
    """Bytes per task: of pickled requests and answers, and on the network beyond the traffic of an idle cluster."""
    tasks = sleep_tasks(256, 0.0)
    driver.run(tasks, driver.put(setup))
    before, first = driver.status(), loopback_bytes()
    start = time.perf_counter()
    driver.run(tasks, driver.put(setup))
    seconds, second = time.perf_counter() - start, loopback_bytes()
    after = driver.status()
    time.sleep(5)
    idle = (loopback_bytes() - second) / 5
    pickled = after.request_bytes + after.answer_bytes - before.request_bytes - before.answer_bytes
    setup_bytes = after.setup_bytes - before.setup_bytes
    network = (second - first - idle * seconds - setup_bytes) / len(tasks)
    return {"pickled": pickled / len(tasks), "network": network, "setup": setup_bytes}


def check_with_sleep(parts: Parts, num_nodes: int, driver: Any, repeats: int) -> None:
    """The model beside tasks that sleep."""
    measured = statistics.median(time_runs(driver, sleep_tasks(NUM_CHECK_TASKS, parts.shard), {}, repeats))
    without_compute = parts._replace(update=0.0, share=0.0, sigma=0.0)
    predicted = predict(without_compute, NUM_CHECK_TASKS, num_nodes)
    setting = {"nodes": num_nodes, "tasks": NUM_CHECK_TASKS, "seconds_per_task": round(parts.shard, 4)}
    fields = {"peer": "model", "peer_value": round(predicted, 4), "ratio": round(measured / predicted, 3)}
    report("seconds per generation, tasks that sleep", measured, "s", **fields, setting=setting)


def check_with_compute(parts: Parts, spec: Any, num_nodes: int, driver: Any, repeats: int) -> None:
    """The model beside real shards, the update included."""
    import tempfile

    import jax

    from ontogeny.rng import key_from_seed
    from ontogeny.stages.assembly import assemble, build_development
    from ontogeny.stages.shards import divide_generations

    with tempfile.TemporaryDirectory() as folder:
        development = divide_generations(build_development(spec, assemble(spec)), spec, Path(folder), driver)
        state, seconds = development.init(key_from_seed(0)), []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(development.step(state))
            seconds.append(time.perf_counter() - start)
    measured = statistics.median(seconds[2:])
    num_tasks = int(spec.development.settings["population_size"]) // MEMBERS_PER_SHARD
    predicted = predict(parts, num_tasks, num_nodes)
    fields = {"peer": "model", "peer_value": round(predicted, 4), "ratio": round(measured / predicted, 3)}
    setting = {"nodes": num_nodes, "tasks": num_tasks, "load": round(os.getloadavg()[0], 1)}
    report("seconds per generation, real shards", measured, "s", **fields, setting=setting)


def report_model(width: int, population: int, measured: Mapping[str, Any], cluster: Mapping[str, float]) -> None:
    """The model for 1 to 1,000 machines, and the number from which more of them do not pay.

    One shard per processor, of at least 2 members; parts that grow with the number of members are scaled.
    """
    per_member = statistics.median(measured["shard"]) / MEMBERS_PER_SHARD
    variation = statistics.stdev(measured["shard"]) / statistics.mean(measured["shard"])
    update = statistics.median(measured["update"]) * population / measured["population"]
    curve, largest = {}, 0
    single = per_member * population + update
    for num_machines in MACHINES:
        num_processors = num_machines * PROCESSORS_PER_MACHINE
        num_tasks = min(num_processors, population // 2)
        seconds = per_member * population / num_tasks
        share = cluster["share"] * measured["bytes"] / cluster["bytes"] + num_machines * measured["bytes"] / BANDWIDTH
        parts = Parts(seconds, variation * seconds, update, cluster["latency"], cluster["overhead"], share)
        curve[num_machines] = round(predict(parts, num_tasks, num_processors), 4)
        if single / (curve[num_machines] * num_processors) >= MIN_EFFICIENCY:
            largest = num_machines
    fastest = min(curve, key=curve.__getitem__)
    setting = {"width": width, "population": population, "lifetimes": measured["num_lifetimes"]}
    setting |= {"steps": measured["steps"], "bytes": measured["bytes"], "seconds_on_one_processor": round(single, 3)}
    setting |= {"processors_per_machine": PROCESSORS_PER_MACHINE, "seconds_by_machines": curve}
    setting |= {"fastest_machines": fastest, "fastest_seconds": curve[fastest]}
    report(f"machines up to which efficiency is at least {MIN_EFFICIENCY:.0%}", largest, "machines", setting=setting)


def report_cluster(driver: Any, by_width: Mapping[int, Mapping[str, Any]], repeats: int) -> dict[str, float]:
    """Measure what a cluster adds to the computation, and whether to send the mean or to rebuild it from fitness."""
    checked = by_width[checked_width(by_width)]
    parts = measure_cluster(driver, checked["arrays"], repeats) | {"bytes": checked["bytes"]}
    for name in ("latency", "overhead", "share"):
        report(f"seconds of {name}", parts[name], "s", setting={"bytes": checked["bytes"]})
    for width, measured in by_width.items():
        arrays = {"arrays": measured["arrays"]}
        traffic = measure_traffic(driver, arrays)
        setting = {"width": width, "setup_bytes": round(traffic["setup"])}
        for name in ("pickled", "network"):
            report(f"bytes per shard and generation, {name}", traffic[name], "B", setting=setting)
        seconds = statistics.median(time_runs(driver, sleep_tasks(1, 0.0), arrays, repeats))
        rebuilt = statistics.median(measured["update"]) * 256 / measured["population"]
        fields = {"peer": "rebuilt from fitness", "peer_value": round(rebuilt, 4), "ratio": round(rebuilt / seconds, 1)}
        report("seconds to receive the mean", seconds, "s", **fields, setting=setting | {"population": 256})
    return parts


def checked_width(by_width: Mapping[int, Any]) -> int:
    """The network with which the model is checked: the largest up to 64 units."""
    return max(width for width in by_width if width <= 64)


def check(
    by_width: Mapping[int, Mapping[str, Any]], nodes: Sequence[int], num_lifetimes: int, steps: int, repeats: int
) -> dict[str, float]:
    """Check the model on local clusters; returns the parts that the cluster adds."""
    from ontogeny.parallel.drivers import open_driver

    width = checked_width(by_width)
    measured, population = by_width[width], NUM_CHECK_TASKS * MEMBERS_PER_SHARD
    spec = run_spec(width, population, num_lifetimes, steps)
    update = statistics.median(measured["update"]) * population / measured["population"]
    shard, sigma = statistics.median(measured["shard"]), statistics.stdev(measured["shard"])
    added: dict[str, float] = {}
    for num_nodes in nodes:
        cluster = start_cluster(num_nodes)
        try:
            with open_driver(f"ray:address={cluster.address}") as driver:
                added = added or report_cluster(driver, by_width, repeats)
                parts = Parts(shard, sigma, update, added["latency"], added["overhead"], added["share"])
                check_with_sleep(parts, num_nodes, driver, repeats)
                if num_nodes <= 2:
                    check_with_compute(parts, spec, num_nodes, driver, repeats)
        finally:
            cluster.shutdown()
    return added


def main() -> None:
    """Measure the parts, check the model, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--populations", type=int, nargs="*", default=[256, 4096, 65536])
    parser.add_argument("--num-lifetimes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    prepare(worker_environment(os.environ))
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    sizes = {"num_lifetimes": options.num_lifetimes, "steps": options.steps}
    by_width, population = {}, 4 * MEMBERS_PER_SHARD
    for width in options.widths:
        measured = measure_computation(run_spec(width, population, **sizes), options.repeats)
        by_width[width] = measured | sizes | {"population": population}
        setting = {"width": width, "members": MEMBERS_PER_SHARD} | sizes
        for name in ("shard", "update"):
            error = statistics.stdev(measured[name]) / math.sqrt(len(measured[name]))
            report(
                f"seconds of the {name}", statistics.median(measured[name]), "s", se=round(error, 6), setting=setting
            )
    added = check(by_width, options.nodes, **sizes, repeats=options.repeats)
    for width, measured in by_width.items():
        for population in options.populations:
            report_model(width, population, measured, added)


if __name__ == "__main__":
    main()
