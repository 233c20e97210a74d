"""Memory of a run: lifetimes in chunks, the prediction, the limits of machine and control groups, and the refusal."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ontogeny
from ontogeny import BadInput, memory, parallel, trees
from ontogeny.development import base, evolution
from ontogeny.development.base import HostMembers, LifetimeFitness, build_agent_from_text, lifetime_fitness
from ontogeny.lifetimes import require_jax_env
from ontogeny.parallel.in_process import InProcess
from ontogeny.rollouts import rollout_in_chunks, rollout_lifetime
from ontogeny.stages.assembly import assemble, build_development
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train

GIGABYTE = 10**9
MDP = {"num_states": 3, "num_actions": 2, "horizon": 4, "num_episodes": 5}
SPEC = {
    "agent": "recurrent_cells:hidden_size=2,readout_size=2",
    "env": "bandit:num_arms=2,num_pulls=5",
    "development": "evolution:population_size=4,num_lifetimes=2,num_generations=2",
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Writes what the system says about memory, in place of the real files."""
    monkeypatch.setattr(memory, "PROCESS_FOLDER", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUP_FOLDER", tmp_path / "cgroup")

    def write(path: str, text: object) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")

    return write


def test_a_lifetime_in_chunks_has_the_steps_of_a_whole_one():
    env = require_jax_env(ontogeny.make_env("random_mdp", **MDP), "the test")
    agent, steering, key = ontogeny.make_agent("q_learning", env), ontogeny.make_steering(env), jax.random.key(3)
    genome = agent.genome(key)
    _, expected = jax.jit(lambda: rollout_lifetime(key, agent, env, steering, genome, True))()
    chunks, is_within = jax.jit(
        lambda: rollout_in_chunks(
            key, agent, env, steering, genome, True, max_steps=7, summarize=lambda *both: both
        )
    )()  # fmt: skip
    assert is_within.shape == (3, 7) and bool(is_within.ravel()[:20].all()) and not bool(is_within.ravel()[20:].any())
    joined = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:20], chunks)
    assert trees.bitwise_equal(joined, expected)


def test_the_fitness_of_a_lifetime_in_chunks_is_that_of_a_whole_one(monkeypatch):
    env = require_jax_env(ontogeny.make_env("random_mdp", **MDP), "the test")
    agent, steering = ontogeny.make_agent("q_learning", env), ontogeny.make_steering(env)
    fitness = partial(lifetime_fitness, agent=agent, env=env, steering=steering, genome=agent.genome(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), 4)
    expected = jax.jit(jax.vmap(fitness))(keys)
    monkeypatch.setattr(base, "MAX_STEPS_AT_ONCE", 7)
    chunked = jax.jit(jax.vmap(lambda key: fitness(key)))(keys)
    np.testing.assert_allclose(chunked.fitness, expected.fitness, rtol=1e-5)
    assert trees.bitwise_equal(chunked._replace(fitness=expected.fitness), expected)


@pytest.mark.parametrize(("counts", "expected"), [([7, 7, 7], 20), ([7, 3, 7], 10), ([0, 7, 7], 0), ([7, 7, 2], 16)])
def test_the_first_step_that_is_not_finite_is_counted_over_chunks(counts, expected):
    parts = LifetimeFitness(jnp.ones(3), jnp.ones(3, jnp.int32), {"error": jnp.array(counts)})
    assert int(base._join_chunks(parts, 20).num_finite_steps["error"]) == expected


@pytest.mark.parametrize("at_once", [4, 5])
def test_lifetimes_of_a_member_in_chunks_have_the_fitness_of_all_at_once(monkeypatch, at_once):
    env = require_jax_env(ontogeny.make_env("random_mdp", **MDP), "the test")
    steering = ontogeny.make_steering(env)
    built = build_agent_from_text("recurrent:hidden_size=3", env, steering)
    genomes = jax.vmap(built.genome)(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(1), 10)

    def evaluate():
        fitness = partial(evolution.mean_fitness, built, keys, env=env, steering=steering, members_at_once=2)
        return jax.jit(jax.vmap(fitness))(genomes)

    expected_fitness, expected_steps = evaluate()
    size = base.lifetime_bytes(built, env, steering, jax.tree.map(lambda leaf: leaf[0], genomes))
    monkeypatch.setattr(evolution, "LIFETIME_BYTES", 2 * size * at_once)
    shapes = []
    monkeypatch.setattr(evolution, "map_in_batches", lambda *of: shapes.append(of[-1]) or parallel.map_in_batches(*of))
    fitness, steps = evaluate()
    assert shapes == [at_once]
    np.testing.assert_allclose(fitness, expected_fitness, rtol=1e-6)
    assert trees.bitwise_equal(steps, expected_steps)


def test_a_second_generation_compiles_nothing():
    spec = parse_run_spec(SPEC | {"development": SPEC["development"] + ",generations_per_call=1"})
    development = build_development(spec, assemble(spec))
    predict = partial(memory.predict_peak, development.program)
    state = development.init(jax.random.key(0))
    compiled = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        compiled.append(event)

    assert predict(jax.eval_shape(development.init, jax.random.key(0))).program > predict(state).program
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(2):
            state, _ = development.step(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert "/jax/core/compile/backend_compile_duration" not in compiled


def test_available_memory_is_what_the_machine_and_all_control_groups_leave(machine):
    assert memory.available_bytes() is None and memory.read_memory("VmRSS") is None
    machine("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB")
    assert memory.available_bytes() == 8_192_000_000
    machine("proc/self/cgroup", "0::/user/job")
    machine("cgroup/user/job/memory.max", "max")
    assert memory.available_bytes() == 8_192_000_000
    machine("cgroup/user/memory.max", 5 * GIGABYTE)
    machine("cgroup/user/memory.current", 4 * GIGABYTE)
    machine("cgroup/user/memory.stat", f"anon 1\ninactive_file {GIGABYTE}")
    assert memory.available_bytes() == 2 * GIGABYTE
    machine("proc/self/cgroup", "5:cpu:/\n4:memory:/docker/abc")  # version 1, in a container
    machine("cgroup/memory/memory.limit_in_bytes", 3 * GIGABYTE)
    machine("cgroup/memory/memory.usage_in_bytes", 2 * GIGABYTE)
    machine("cgroup/memory/memory.stat", "total_inactive_file 0")
    assert memory.available_bytes() == GIGABYTE


def test_a_prediction_counts_the_buffers_of_the_program():
    sizes = 2_000, 8_000
    programs = [jax.jit(lambda x: jnp.sort(x @ x.T, axis=0) @ x) for _ in sizes]
    small, large = (
        memory.predict_peak(program, jax.ShapeDtypeStruct((size, 10), jnp.float32))
        for program, size in zip(programs, sizes, strict=True)
    )
    assert large.program - small.program > 0.9 * 4 * (sizes[1] ** 2 - sizes[0] ** 2)
    assert small.peak >= small.present > 0 and "predicted peak memory" in small.describe()


def test_a_run_that_needs_more_memory_than_there_is_is_refused_before_it_starts(machine, monkeypatch, tmp_path):
    machine("proc/meminfo", "MemAvailable: 1 kB")
    with pytest.raises(BadInput, match=r"needs about 400 MB .* for the compilation .*, and only 1,024 bytes"):
        train(SPEC, tmp_path / "run")
    monkeypatch.setattr(memory, "COMPILATION_BYTES", 0)
    with pytest.raises(BadInput, match=r"needs about .* of memory, .* and only 1,024 bytes more are available; choose"):
        train(SPEC, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    machine("proc/meminfo", "MemAvailable: 9000000 kB")
    predictions = []
    train(SPEC, tmp_path / "run", on_memory=predictions.append)
    assert len(predictions) == 1 and Path(tmp_path / "run" / "genome.json").exists()


@pytest.mark.parametrize("env", ["bandit:num_arms=2,num_pulls=5", "gymnasium:CartPole-v1,steps=2"])
def test_runs_with_a_driver_and_in_environments_of_python_are_refused_too(machine, monkeypatch, tmp_path, env):
    if "gymnasium" in env:
        pytest.importorskip("gymnasium")
    monkeypatch.setattr(memory, "COMPILATION_BYTES", 0)
    machine("proc/meminfo", "MemAvailable: 1 kB")
    spec = SPEC | {"agent": "recurrent:hidden_size=2", "env": env}
    with pytest.raises(BadInput, match=r"needs about .* of memory"):
        train(spec, tmp_path / "run", driver=None if "gymnasium" in env else InProcess())
    assert not (tmp_path / "run").exists()


def test_the_memory_of_workers_counts_for_each_of_them():
    prediction = memory.MemoryPrediction(3 * GIGABYTE, 2 * GIGABYTE, GIGABYTE, 10 * GIGABYTE, num_workers=3)
    memory.require_memory(prediction, "choose less")
    assert "of each worker, 3 on a machine, 3.0 GB, 11.0 GB are available" in prediction.describe()
    with pytest.raises(BadInput, match=r"each of the 4 worker .* 3.0 GB .* only 10.0 GB .*; choose fewer .*, or less"):
        memory.require_memory(prediction._replace(num_workers=4), "choose less")


@pytest.mark.parametrize(
    ("size", "num_lifetimes", "at_once"), [(4, 1, 1), (6, 3, 4), (6, 5, 2), (8, 1, 3), (10, 2, 20)]
)
def test_batches_of_lifetimes_draw_the_members_that_they_need(size, num_lifetimes, at_once):
    counts = []

    def draw(first, count):
        assert first % 2 == count % 2 == 0 and 0 <= first <= size - count
        counts.append(count)
        return jnp.arange(size)[first : first + count]

    indices = np.repeat(np.arange(size), num_lifetimes)
    members = HostMembers(draw, size, indices)
    for begin in range(0, len(indices), at_once):
        chunk = slice(begin, begin + at_once)
        np.testing.assert_array_equal(members.genomes_of(chunk, at_once), indices[chunk])
    assert len(set(counts)) == 1 and counts[0] <= at_once // num_lifetimes + 4
