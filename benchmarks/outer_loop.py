"""Agent-environment steps per second of evolution, beside a plain script of evosax and gymnax with the same task.

    python benchmarks/outer_loop.py [--repeats 15]

Both evolve a GRU of 48 units with Open_ES and Adam on a two-armed Bernoulli bandit: population 256, 16 lifetimes per
member, 100 steps per lifetime. Complete generations are timed on the host: perturb, roll out, rank, update, read the
mean fitness. Each side is a process with its own compiler settings, and the sides alternate, so that other load of the
machine affects both. Medians are printed as JSON lines, per second of wall time and per second of processor time. The
side `ours` runs the plugins `evolution`, `recurrent` and `bandit` of ontogeny on one host device per core. The last
line is the throughput of a float32 matrix product on this machine, and the share of it that each side reaches.
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

UNITS, POPULATION, NUM_LIFETIMES, STEPS, GENERATIONS = 48, 256, 16, 100, 5
SETTING = {
    "env": "Bernoulli bandit, 2 arms, 100 pulls",
    "agent": f"GRU-{UNITS}",
    "strategy": "Open_ES, Adam, full-rank antithetic perturbations",
    "population": POPULATION,
    "num_lifetimes": NUM_LIFETIMES,
    "steps": STEPS,
}


def our_side() -> Callable[[], None]:
    """The outer loop of ontogeny, five generations per compiled call."""
    import jax

    from ontogeny import plugins, steering

    env = plugins.build("environments", "bandit", num_arms=2, num_pulls=STEPS)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=UNITS)
    development = plugins.build(
        "development", "evolution", agent, env, drives, strategy="Open_ES", population_size=POPULATION,
        num_lifetimes=NUM_LIFETIMES,
        sigma=0.2, learning_rate=0.1, generations_per_call=GENERATIONS,
    )  # fmt: skip
    state = development.init(jax.random.key(0))

    def run_generations() -> None:
        nonlocal state
        state, info = development.step(state)
        info["fitness"].tolist()

    return run_generations


def peer() -> Callable[[], None]:
    """A plain script of evosax and gymnax: one jitted generation, `vmap` over members and lifetimes."""
    import gymnax
    import jax
    import jax.numpy as jnp
    import optax
    from evosax.algorithms import Open_ES

    env, parameters = gymnax.make("BernoulliBandit-misc")
    num_inputs, num_actions, H = 4, 2, UNITS
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


def matrix_product() -> Callable[[], None]:
    """Ten products of 1024 x 1024 float32 matrices."""
    import jax
    import jax.numpy as jnp

    ones = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    return lambda: [product(ones).block_until_ready() for _ in range(10)] and None


SIDES = {"ours": our_side, "peer": peer, "matrix_product": matrix_product}


def serve(side: str) -> None:
    """Runs one side in this process: compiles, then times one call for each line of standard input."""
    run = SIDES[side]()
    run()
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - started_at, time.process_time() - cpu_started_at, flush=True)


def start(side: str) -> subprocess.Popen[str]:
    """Starts the process of one side; returns when it has compiled."""
    flags = {"JAX_PLATFORMS": "cpu"}
    if side == "ours":
        devices = f"--xla_force_host_platform_device_count={os.cpu_count()}"
        flags["XLA_FLAGS"] = f"{devices} --xla_cpu_prefer_vector_width=512"
    command = [sys.executable, __file__, "--side", side]
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


def main(repeats: int) -> None:
    """Alternates between the sides and prints the records."""
    started_at = time.perf_counter()
    processes = {side: start(side) for side in SIDES}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, process in processes.items():
            times[side].append(time_call(process))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    num_steps = POPULATION * NUM_LIFETIMES * STEPS * GENERATIONS
    rates = {side: [num_steps / seconds for seconds, _ in times[side]] for side in ("ours", "peer")}
    median = {side: statistics.median(values) for side, values in rates.items()}
    per_cpu = {side: statistics.median(num_steps / seconds for _, seconds in times[side]) for side in rates}
    gflops = [10 * 2 * 1024**3 / seconds / 1e9 for seconds, _ in times["matrix_product"]]
    setting = SETTING | {"repeats": repeats, "devices": os.cpu_count()}
    print_record(
        "outer_loop",
        median["ours"],
        "agent-environment steps/s",
        se=standard_error(rates["ours"]),
        peer="evosax + gymnax, jitted generation",
        peer_value=median["peer"],
        ratio=statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)),
        seconds=time.perf_counter() - started_at,
        setting=setting | {"peer_se": standard_error(rates["peer"])},
    )
    print_record(
        "outer_loop_per_cpu_second",
        per_cpu["ours"],
        "agent-environment steps/s of one core's work",
        peer="evosax + gymnax, jitted generation",
        peer_value=per_cpu["peer"],
        ratio=per_cpu["ours"] / per_cpu["peer"],
        setting=setting,
    )
    product = statistics.median(gflops)
    flops = 2 * (UNITS * 3 * UNITS + 5 * 3 * UNITS + UNITS * 2)  # multiply-adds of the products in one step
    print_record(
        "matrix_product",
        product,
        "GFLOP/s",
        se=standard_error(gflops),
        setting={
            "shape": "1024 x 1024 float32",
            "share_ours": median["ours"] * flops / product / 1e9,
            "share_peer": median["peer"] * flops / product / 1e9,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each side")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    serve(options.side) if options.side else main(options.repeats)
