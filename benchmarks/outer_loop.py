"""Agent-environment steps per second of evolution, beside a plain script of evosax and gymnax with the same task.

    python benchmarks/outer_loop.py [--repeats 15]
    python benchmarks/outer_loop.py --units 256 --repeats 5          # a wide network
    python benchmarks/outer_loop.py --units 256 --repeats 5 --rank 1 # with perturbations of low rank

Both evolve a GRU of 48 units with Open_ES and Adam on a two-armed Bernoulli bandit: population 256, 16 lifetimes per
member, 100 steps per lifetime. Complete generations are timed on the host: perturb, roll out, rank, update, read the
mean fitness. Each side is a process, and the sides alternate, so that other load of the machine affects all of them.
Medians are printed as JSON lines, per second of wall time and per second of processor time. The side `ours` runs the
plugins `evolution`, `recurrent` and `bandit` of ontogeny on one host device per core. The peer runs with XLA's default
flags, with wide vectors as ours has them, and with wide vectors on one thread; its best rate counts.

The line `outer_loop_bound` says what no implementation with the same numbers and XLA's products can exceed: the rate
at which the recurrent products and the gates of all members are computed, and nothing else. The last line is the
throughput of a float32 matrix product on this machine, and the share of it that each side reaches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

POPULATION, NUM_LIFETIMES, STEPS, GENERATIONS = 256, 16, 100, 5
MEMBERS_AT_ONCE = 16  # of the bound
SETTING = {
    "env": "Bernoulli bandit, 2 arms, 100 pulls",
    "strategy": "Open_ES, Adam, antithetic perturbations",
    "population": POPULATION,
    "num_lifetimes": NUM_LIFETIMES,
    "steps": STEPS,
}


def our_side(units: int, rank: int) -> Callable[[], None]:
    """The outer loop of ontogeny, five generations per compiled call."""
    import jax

    from ontogeny import plugins, steering

    env = plugins.build("environments", "bandit", num_arms=2, num_pulls=STEPS)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=units)
    development = plugins.build(
        "development", "evolution", agent, env, drives, strategy="Open_ES", population_size=POPULATION,
        num_lifetimes=NUM_LIFETIMES,
        sigma=0.2, learning_rate=0.1, generations_per_call=GENERATIONS, rank=rank,
    )  # fmt: skip
    state = development.init(jax.random.key(0))

    def run_generations() -> None:
        nonlocal state
        state, info = development.step(state)
        info["fitness"].tolist()

    return run_generations


def peer(units: int, rank: int) -> Callable[[], None]:
    """A plain script of evosax and gymnax: one jitted generation, `vmap` over members and lifetimes."""
    import gymnax
    import jax
    import jax.numpy as jnp
    import optax
    from evosax.algorithms import Open_ES

    del rank
    env, parameters = gymnax.make("BernoulliBandit-misc")
    num_inputs, num_actions, H = 4, 2, units
    solution = {
        "input": jnp.zeros((num_inputs, 3 * H)),
        "recurrent": jax.random.normal(jax.random.key(0), (H, 3 * H)) / jnp.sqrt(H),
        "bias": jnp.zeros(3 * H),
        "readout": jnp.zeros((H, num_actions)),
        "preference": jnp.zeros(num_actions),
    }
    strategy = Open_ES(POPULATION, solution, optimizer=optax.adam(0.1), std_schedule=optax.constant_schedule(0.2))
    defaults = strategy.default_params

    def advance(weights, hidden, observation):
        from_input = observation @ weights["input"] + weights["bias"]
        from_hidden = hidden @ weights["recurrent"]
        reset, update = jnp.split(jax.nn.sigmoid(from_input[: 2 * H] + from_hidden[: 2 * H]), 2)
        candidate = jnp.tanh(from_input[2 * H :] + reset * from_hidden[2 * H :])
        return (1 - update) * candidate + update * hidden

    def rollout(weights, key):
        reset_key, key = jax.random.split(key)
        observation, state = env.reset(reset_key, parameters)

        def step(carry, key):
            hidden, observation, state = carry
            hidden = advance(weights, hidden, observation)
            action = jnp.argmax(hidden @ weights["readout"] + weights["preference"])
            observation, state, reward, *_ = env.step(key, state, action, parameters)
            return (hidden, observation, state), reward

        _, rewards = jax.lax.scan(step, (jnp.zeros(H), observation, state), jax.random.split(key, STEPS))
        return jnp.sum(rewards)

    @jax.jit
    def generation(state, key):
        ask_key, lifetimes_key, tell_key = jax.random.split(key, 3)
        population, state = strategy.ask(ask_key, state, defaults)
        rollouts = jax.vmap(jax.vmap(rollout, (None, 0)), (0, None))
        fitness = jnp.mean(rollouts(population, jax.random.split(lifetimes_key, NUM_LIFETIMES)), axis=1)
        state, _ = strategy.tell(tell_key, population, -fitness, state, defaults)
        return state, jnp.mean(fitness)

    state, key = strategy.init(jax.random.key(1), solution, defaults), jax.random.key(2)

    def run_generations() -> None:
        nonlocal state, key
        for _ in range(GENERATIONS):
            key, generation_key = jax.random.split(key)
            state, fitness = generation(state, generation_key)
            float(fitness)

    return run_generations


def bound(units: int, rank: int) -> Callable[[], None]:
    """The recurrent products and the gates of all members in all steps of the generations, on one core."""
    import jax
    import jax.numpy as jnp

    del rank
    shape = (POPULATION // MEMBERS_AT_ONCE, MEMBERS_AT_ONCE)
    matrices = jax.random.normal(jax.random.key(0), (*shape, units, 3 * units)) / units
    biases = jnp.zeros((*shape, 1, 3 * units))

    def advance(hidden, matrix, bias):
        from_hidden = hidden @ matrix
        gates = jax.nn.sigmoid(from_hidden[..., : 2 * units] + bias[..., : 2 * units])
        reset, update = jnp.split(gates, 2, axis=-1)
        candidate = jnp.tanh(bias[..., 2 * units :] + reset * from_hidden[..., 2 * units :])
        return candidate + update * (hidden - candidate)

    @jax.jit
    def run_members(matrices, biases):
        def run(members):
            hidden = jnp.zeros((MEMBERS_AT_ONCE, NUM_LIFETIMES, units))
            return jax.lax.fori_loop(0, STEPS, lambda _, hidden: advance(hidden, *members), hidden)

        return jax.lax.map(run, (matrices, biases))

    return lambda: [run_members(matrices, biases).block_until_ready() for _ in range(GENERATIONS)] and None


def matrix_product(units: int, rank: int) -> Callable[[], None]:
    """Ten products of 1024 x 1024 float32 matrices."""
    import jax
    import jax.numpy as jnp

    del units, rank
    ones = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    return lambda: [product(ones).block_until_ready() for _ in range(10)] and None


WIDE_VECTORS = "--xla_cpu_prefer_vector_width=512"
ONE_THREAD = f"{WIDE_VECTORS} --xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
SIDES = {  # the program and its flags of XLA
    "ours": (our_side, f"{WIDE_VECTORS} --xla_force_host_platform_device_count={os.cpu_count()}"),
    "peer": (peer, ""),
    "peer, wide vectors": (peer, WIDE_VECTORS),
    "peer, wide vectors, one thread": (peer, ONE_THREAD),
    "bound": (bound, ONE_THREAD),
    "matrix_product": (matrix_product, ""),
}
PEERS = [side for side in SIDES if side.startswith("peer")]


def serve(side: str, units: int, rank: int) -> None:
    """Runs one side in this process: compiles, then times one call for each line of standard input."""
    run = SIDES[side][0](units, rank)
    run()
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - started_at, time.process_time() - cpu_started_at, flush=True)


def start(side: str, units: int, rank: int) -> subprocess.Popen[str]:
    """Starts the process of one side; returns when it has compiled."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": SIDES[side][1]}
    command = [sys.executable, __file__, "--side", side, "--units", str(units), "--rank", str(rank)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | flags
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        sys.exit(f"the side '{side}' did not start")
    return process


def time_call(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Returns wall time and processor time of one call, in seconds."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    seconds, cpu_seconds = process.stdout.readline().split()
    return float(seconds), float(cpu_seconds)


def standard_error(values: list[float]) -> float | None:
    """The standard error of the mean; None for a single value, which tells nothing about it."""
    from ontogeny.stats import mean_interval

    return mean_interval(values).standard_error if len(values) > 1 else None


def print_record(name: str, value: float, unit: str, **fields: Any) -> None:
    """Prints a JSON line."""
    print(json.dumps({"name": name, "value": value, "unit": unit, **fields}), flush=True)


def measure(repeats: int, units: int, rank: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor times of all calls, by side."""
    processes = {side: start(side, units, rank) for side in SIDES}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, process in processes.items():
            times[side].append(time_call(process))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return times


def main(repeats: int, units: int, rank: int) -> None:
    """Alternates between the sides and prints the records."""
    started_at = time.perf_counter()
    times = measure(repeats, units, rank)
    num_steps = POPULATION * NUM_LIFETIMES * STEPS * GENERATIONS
    programs = [side for side in SIDES if side != "matrix_product"]
    rates = {side: [num_steps / seconds for seconds, _ in times[side]] for side in programs}
    median = {side: statistics.median(values) for side, values in rates.items()}
    per_cpu = {side: statistics.median(num_steps / seconds for _, seconds in times[side]) for side in programs}
    setting = SETTING | {"agent": f"GRU-{units}", "rank": rank, "repeats": repeats, "devices": os.cpu_count()}
    best = max(PEERS, key=median.__getitem__)
    print_record(
        "outer_loop",
        median["ours"],
        "agent-environment steps/s",
        se=standard_error(rates["ours"]),
        peer=f"evosax + gymnax, jitted generation ({best})",
        peer_value=median[best],
        ratio=statistics.median(a / b for a, b in zip(rates["ours"], rates[best], strict=True)),
        seconds=time.perf_counter() - started_at,
        setting=setting | {"peers": {side: median[side] for side in PEERS}},
    )
    best = max(PEERS, key=per_cpu.__getitem__)
    unit = "agent-environment steps/s of one core's work"
    for name, side in (("outer_loop_per_cpu_second", "ours"), ("outer_loop_bound", "bound")):
        print_record(
            name,
            per_cpu[side],
            unit,
            peer=f"evosax + gymnax, jitted generation ({best})",
            peer_value=per_cpu[best],
            ratio=per_cpu[side] / per_cpu[best],
            setting=setting | {"peers": {peer_side: per_cpu[peer_side] for peer_side in PEERS}},
        )
    gflops = [10 * 2 * 1024**3 / cpu_seconds / 1e9 for _, cpu_seconds in times["matrix_product"]]
    product = statistics.median(gflops)
    flops = 2 * (units * 3 * units + 5 * 3 * units + units * 2)  # multiply-adds of the products in one step
    print_record(
        "matrix_product",
        product,
        "GFLOP/s of one core's work",
        se=standard_error(gflops),
        setting={
            "shape": "1024 x 1024 float32",
            "agent": f"GRU-{units}",
            "rank": rank,
            "share_ours": per_cpu["ours"] * flops / product / 1e9,
            "share_peer": per_cpu[best] * flops / product / 1e9,
            "share_bound": per_cpu["bound"] * flops / product / 1e9,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each side")
    parser.add_argument("--units", type=int, default=48, help="hidden units of the network")
    parser.add_argument("--rank", type=int, default=0, help="rank of our perturbations; 0 for full rank")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.units, options.rank
    serve(options.side, *sizes) if options.side else main(options.repeats, *sizes)
