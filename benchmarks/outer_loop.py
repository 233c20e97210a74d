"""Agent-environment steps per second of our evolution, beside a plain evosax + gymnax script of the same work.

    python benchmarks/outer_loop.py [--repeats 15]

Both evolve a gated network of 48 units with Open_ES and Adam on a two-armed Bernoulli bandit: population 256, 16 lives
each, 100 steps a life. Whole generations are timed on the host: perturb, live, rank, update, read the mean fitness.
Each side is a process of its own with the compiler's settings of its own, and they take turns, so that what else
the machine does meets both. Medians are printed as JSON lines, on the clock and per second of a core's work. Ours runs
through the house's own `evolution`, `recurrent`, `bandit` and `live`, one host device per core. The last line is the
machine's float32 matrix product, and which share of it each side reaches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

UNITS, POPULATION, LIVES, STEPS, GENERATIONS = 48, 256, 16, 100, 5
SETTING = {
    "env": "Bernoulli bandit, 2 arms, 100 pulls",
    "agent": f"GRU-{UNITS}",
    "strategy": "Open_ES, Adam, full-rank antithetic perturbations",
    "population": POPULATION,
    "num_lifetimes": LIVES,
    "steps": STEPS,
}


def ours() -> Callable[[], None]:
    """Five generations per dispatch of the house's own outer loop."""
    import jax

    from ontogeny import plugins, steering

    env = plugins.build("environments", "bandit", num_arms=2, num_pulls=STEPS)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=UNITS)
    development = plugins.build(
        "development", "evolution", agent, env, drives, strategy="Open_ES", population_size=POPULATION, num_lifetimes=LIVES,
        sigma=0.2, learning_rate=0.1, generations_per_call=GENERATIONS,
    )  # fmt: skip
    state = development.init(jax.random.key(0))

    def dispatch() -> None:
        nonlocal state
        state, info = development.step(state)
        info["fitness"].tolist()

    return dispatch


def peer() -> Callable[[], None]:
    """What a practised user of evosax and gymnax writes: one jitted generation, `vmap` over members and lives."""
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

    def advance(weights, hidden, seen):
        given = seen @ weights["input"] + weights["bias"]
        kept = hidden @ weights["recurrent"]
        reset, update = jnp.split(jax.nn.sigmoid(given[: 2 * H] + kept[: 2 * H]), 2)
        candidate = jnp.tanh(given[2 * H :] + reset * kept[2 * H :])
        return (1 - update) * candidate + update * hidden

    def rollout(weights, key):
        reset_key, key = jax.random.split(key)
        seen, state = env.reset(reset_key, parameters)

        def step(carry, key):
            hidden, seen, state = carry
            hidden = advance(weights, hidden, seen)
            action = jnp.argmax(hidden @ weights["readout"] + weights["preference"])
            seen, state, reward, *_ = env.step(key, state, action, parameters)
            return (hidden, seen, state), reward

        _, rewards = jax.lax.scan(step, (jnp.zeros(H), seen, state), jax.random.split(key, STEPS))
        return jnp.sum(rewards)

    @jax.jit
    def generation(state, key):
        ask_key, life_key, tell_key = jax.random.split(key, 3)
        population, state = strategy.ask(ask_key, state, defaults)
        num_lifetimes = jax.vmap(jax.vmap(rollout, (None, 0)), (0, None))
        fitness = jnp.mean(num_lifetimes(population, jax.random.split(life_key, LIVES)), axis=1)
        state, _ = strategy.tell(tell_key, population, -fitness, state, defaults)
        return state, jnp.mean(fitness)

    state, key = strategy.init(jax.random.key(1), solution, defaults), jax.random.key(2)

    def dispatch() -> None:
        nonlocal state, key
        for _ in range(GENERATIONS):
            key, now = jax.random.split(key)
            state, fitness = generation(state, now)
            float(fitness)

    return dispatch


def matrix_product() -> Callable[[], None]:
    """Ten products of 1024 x 1024 matrices: what the machine's float32 arithmetic reaches."""
    import jax
    import jax.numpy as jnp

    ones = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    return lambda: [product(ones).block_until_ready() for _ in range(10)] and None


SIDES = {"ours": ours, "peer": peer, "matrix_product": matrix_product}


def serve(side: str) -> None:
    """One side: compiles, then times one dispatch for every line that it reads."""
    dispatch = SIDES[side]()
    dispatch()
    dispatch()
    print("ready", flush=True)
    for _ in sys.stdin:
        started, worked = time.perf_counter(), time.process_time()
        dispatch()
        print(time.perf_counter() - started, time.process_time() - worked, flush=True)


def start(side: str) -> subprocess.Popen:
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


def seconds(process: subprocess.Popen) -> tuple[float, float]:
    """Of one dispatch: on the clock, and of processors' work."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    clock, work = process.stdout.readline().split()
    return float(clock), float(work)


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


def line(name: str, value: float, unit: str, **more) -> None:
    print(json.dumps({"name": name, "value": value, "unit": unit, **more}), flush=True)


def main(repeats: int) -> None:
    began = time.perf_counter()
    processes = {side: start(side) for side in SIDES}
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, process in processes.items():
            taken[side].append(seconds(process))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    work = POPULATION * LIVES * STEPS * GENERATIONS
    rates = {side: [work / clock for clock, _ in taken[side]] for side in ("ours", "peer")}
    median = {side: statistics.median(values) for side, values in rates.items()}
    per_cpu = {side: statistics.median(work / cpu for _, cpu in taken[side]) for side in rates}
    gflops = [10 * 2 * 1024**3 / clock / 1e9 for clock, _ in taken["matrix_product"]]
    setting = SETTING | {"repeats": repeats, "devices": os.cpu_count()}
    line(
        "outer_loop",
        median["ours"],
        "agent-environment steps/s",
        se=standard_error(rates["ours"]),
        peer="evosax + gymnax, jitted generation",
        peer_value=median["peer"],
        ratio=statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)),
        seconds=time.perf_counter() - began,
        setting=setting | {"peer_se": standard_error(rates["peer"])},
    )
    line(
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
    line(
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
    parser.add_argument("--repeats", type=int, default=15, help="turns that each side takes")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    serve(given.side) if given.side else main(given.repeats)
