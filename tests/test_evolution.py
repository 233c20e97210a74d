"""Evolution: every strategy maximizes fitness, and a generation is a function of seed and number alone."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.development import evolution, perturbations
from ontogeny.development.base import require_finite_search
from ontogeny.development.evosax_search import evosax_loop
from ontogeny.development.open_es import build_open_es, choose_shard_size
from ontogeny.development.perturbations import form_matrices
from ontogeny.parallel import map_shards
from ontogeny.types import Agent, BadInput, State, Weights

TARGET = {"a": jnp.linspace(-1, 1, 20), "b": jnp.array([[0.5, -0.5]] * 10)}


def negative_distance(genome):
    """A fitness with its maximum of zero at TARGET."""
    return -sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(genome), jax.tree.leaves(TARGET), strict=True))


def build_loop(strategy, population_size=32, sigma=0.1, **settings):
    if strategy != "Open_ES":
        return evosax_loop(strategy, TARGET, population_size, sigma)
    schedule = optax.constant_schedule(sigma)
    settings = {"shard_size": population_size, "rank": 0} | settings
    return build_open_es(TARGET, population_size, sigmas=schedule, learning_rates=schedule, **settings)


def evaluate(loop, proposal, population_size):
    members = form_matrices(loop.members(proposal, jnp.int32(0), population_size))
    return jax.vmap(negative_distance)(members)


@pytest.mark.parametrize(("strategy", "rank"), [*((name, 0) for name in evolution.STRATEGIES), ("Open_ES", 1)])
def test_every_strategy_maximizes_fitness(strategy, rank):
    loop = build_loop(strategy, rank=rank) if rank else build_loop(strategy)
    origin = jax.tree.map(jnp.zeros_like, TARGET)

    @jax.jit
    def final_fitness():
        def generation(state, key):
            ask_key, tell_key = jax.random.split(key)
            proposal, state = loop.ask(ask_key, state)
            return loop.tell(tell_key, state, proposal, evaluate(loop, proposal, 32)), ()

        keys = jax.random.split(jax.random.key(1), 60)
        state, _ = jax.lax.scan(generation, loop.init(jax.random.key(0), origin), keys)
        return negative_distance(loop.genome(state))

    assert final_fitness() > 0.7 * negative_distance(origin), "a search that minimizes fitness ends below its start"


def test_open_es_takes_the_step_of_evosax():
    """The reference is evosax's Open_ES, with the members that computed draws."""
    algorithms = pytest.importorskip("evosax.algorithms")
    loop = build_loop("Open_ES", 8)
    proposal, state = loop.ask(jax.random.key(0), loop.init(jax.random.key(1), TARGET))
    fitness = jnp.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    computed = loop.genome(loop.tell(jax.random.key(2), state, proposal, fitness))
    zeros = jax.tree.map(jnp.zeros_like, TARGET)
    reference = algorithms.Open_ES(8, zeros, optimizer=optax.adam(0.1), std_schedule=optax.constant_schedule(0.1))
    parameters = reference.default_params
    state = reference.init(jax.random.key(1), TARGET, parameters)
    members = form_matrices(loop.members(proposal, jnp.int32(0), 8))
    expected = reference.get_mean(reference.tell(jax.random.key(2), members, -fitness, state, parameters)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), computed, expected)


def test_the_docstring_names_every_strategy():
    assert all(name in str(evolution.__doc__) for name in evolution.STRATEGIES)


@pytest.mark.parametrize("rank", [0, 1])
def test_perturbations_are_antithetic(rank):
    loop = build_loop("Open_ES", 8, rank=rank)
    proposal, _ = loop.ask(jax.random.key(0), loop.init(jax.random.key(1), TARGET))
    members = form_matrices(loop.members(proposal, jnp.int32(0), 8))
    for leaf, center in zip(jax.tree.leaves(members), jax.tree.leaves(TARGET), strict=True):
        np.testing.assert_allclose(leaf[0::2] - center, center - leaf[1::2], atol=1e-6)
        assert np.std(leaf[0::2] - center) > 0.03


@pytest.mark.parametrize("rank", [1, 2])
def test_perturbations_of_low_rank(rank):
    """Every number has mean 0 and variance 1, the rank is as set, and products do not need the sum."""
    genome = {"matrix": jnp.ones((16, 24)), "narrow": jnp.zeros((16, 2)), "vector": jnp.zeros(5)}
    keys = jax.random.split(jax.random.key(0), 2000)
    noise = jax.vmap(lambda key: perturbations.draw_noise(key, genome, rank))(keys)
    members = perturbations.perturb(genome, noise, jnp.full(2000, 0.5))
    matrices = form_matrices(members)["matrix"]
    assert np.linalg.matrix_rank(matrices[0] - 1) == rank
    np.testing.assert_allclose(jnp.mean(matrices, axis=0), 1, atol=0.06)
    np.testing.assert_allclose(jnp.std(matrices, axis=0), 0.5, atol=0.12)
    vectors = jax.random.normal(jax.random.key(1), (3, 16))
    axes = perturbations.member_axes(genome, rank)
    products = jax.vmap(lambda member: vectors @ member["matrix"], (axes,))(members)
    np.testing.assert_allclose(products, vectors @ matrices, atol=1e-4)
    weights = jax.random.normal(jax.random.key(2), (2000,))
    total = perturbations.weighted_sum(weights, noise)
    np.testing.assert_allclose(total["matrix"], jnp.tensordot(weights, (matrices - 1) / 0.5, 1), atol=1e-2)
    assert members["narrow"].shape == (2000, 16, 2) and members["vector"].shape == (2000, 5)


def build_development(agent="recurrent_cells", **settings):
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", agent, env.spec, drives)
    small = {"population_size": 8, "num_lifetimes": 4, "num_generations": 8, "generations_per_call": 4} | settings
    return plugins.build("development", "evolution", agent, env, drives, **small), agent


def run(development):
    state, curve = development.init(jax.random.key(3)), []
    for _ in range(development.num_calls):
        state, info = development.step(state)
        curve.append(info)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *curve)


def test_one_call_of_four_generations_equals_four_calls_of_one():
    one_call, four_calls = (run(build_development("recurrent", generations_per_call=calls)[0]) for calls in (4, 1))
    assert trees.bitwise_equal(one_call, four_calls)


def test_a_call_ends_before_the_next_one_begins():
    """Overlapping calls can deadlock where host devices gather the fitness."""
    development, _ = build_development()
    state, info = development.step(development.init(jax.random.key(0)))
    assert all(leaf.is_ready() for leaf in jax.tree.leaves((state.strategy, info)))


def test_members_are_evaluated_on_the_same_lifetimes_on_all_devices():
    development, agent = build_development(population_size=8)
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    keys = jax.random.split(jax.random.key(0), 4)
    genomes = jax.vmap(agent.genome)(jax.random.split(jax.random.key(1), 8))
    identical = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), genomes)

    def measure(keys, genome):
        return evolution.mean_fitness(agent, keys, genome, env=env, steering=drives)

    loop = evosax_loop("SNES", jax.eval_shape(agent.genome, jax.random.key(0)), 8, 0.1)  # proposes a population
    evaluate_shard = evolution.make_shard_evaluation(measure, loop, shard_size=4, members_at_once=2)

    @jax.jit
    def split(keys, population):
        return jax.tree.map(jnp.ravel, map_shards(evaluate_shard, (keys, population), num_shards=2))

    assert np.ptp(split(keys, identical)[0]) == 0
    one_by_one = [float(jax.jit(measure)(keys, jax.tree.map(lambda leaf, i=i: leaf[i], genomes))[0]) for i in range(8)]
    fitness, env_steps = split(keys, genomes)
    np.testing.assert_allclose(fitness, one_by_one, rtol=1e-6)
    assert env_steps.tolist() == [4 * 8] * 8
    assert development.steps_per_generation == 8 * 4 * 8


def test_evolution_improves_recurrent_cells_on_bandits():
    settings = {"population_size": 64, "num_lifetimes": 32, "num_generations": 20, "generations_per_call": 5}
    _, curve = run(build_development(**settings)[0])
    assert curve["advantage_over_baseline"][-5:].mean() > 0.5 > curve["advantage_over_baseline"][0]


def fragile_agent():
    """An agent that takes the first action, and whose loss is infinite where its genome is positive."""

    def learn(key, state, transition):
        return state, {"loss": jnp.where(state.weights.content > 0, jnp.inf, 0.0)}

    return Agent(
        lambda key: jnp.zeros(1)[0], lambda key, genome: State(Weights(genome), ()), lambda state: state,
        lambda key, state, percept: (jnp.int32(0), state), learn, learning=True,
    )  # fmt: skip


def test_a_search_turns_away_from_genomes_whose_learning_diverges():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    settings = {"population_size": 8, "num_lifetimes": 2, "num_generations": 4, "generations_per_call": 4}
    development = plugins.build("development", "evolution", fragile_agent(), env, drives, **settings)
    state, curve = run(development)
    assert np.isneginf(curve["fitness"]).all() and np.isfinite(curve["max_fitness"]).all()
    require_finite_search(curve)
    assert float(development.genome(state)) < -0.02  # without a difference in fitness it would stay near 0
    fragile_everywhere = fragile_agent()._replace(genome=lambda key: jnp.float32(10))
    development = plugins.build("development", "evolution", fragile_everywhere, env, drives, **settings)
    with pytest.raises(BadInput, match=r"the fitness is not finite .* the learning within a lifetime does not diverge"):
        require_finite_search(run(development)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "Open_SE"}, "there is no strategy 'Open_SE'; did you mean Open_ES"),
        ({"population_size": 7}, "'population_size' must be even and at least 4, not 7"),
        ({"shard_size": 3}, "'shard_size' must be even and divide the population size 8, not 3"),
        ({"sigma": 0.0}, "sigma"),
        ({"baseline_agent": "nobody"}, "nobody"),
        ({"strategy": "SNES", "rank": 1}, "'rank' needs the strategy 'Open_ES', not 'SNES'"),
    ],
)
def test_invalid_settings_are_rejected_by_name(settings, message):
    with pytest.raises(BadInput, match=message):
        build_development(**settings)


def matrix_agent(use):
    """An agent whose only use of its matrix is given."""

    def act(key, state, percept):
        return jnp.argmax(use(jnp.ones(8), state.weights.content)[:3]).astype(jnp.int32), state

    return Agent(
        lambda key: jnp.zeros((8, 8)), lambda key, genome: State(Weights(genome), ()), lambda state: state, act,
        lambda key, state, transition: (state, {}),
    )  # fmt: skip


def test_low_rank_needs_agents_that_only_multiply_by_their_matrices():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    settings = {"population_size": 8, "num_lifetimes": 2, "num_generations": 2, "rank": 1}
    plugins.build("development", "evolution", matrix_agent(lambda x, matrix: x @ matrix), env, drives, **settings)
    for use in (lambda x, matrix: x @ matrix.T, lambda x, matrix: x + jnp.sum(matrix**2, axis=0)):
        with pytest.raises(BadInput, match="as `x @ matrix` only; set rank=0"):
            plugins.build("development", "evolution", matrix_agent(use), env, drives, **settings)


@pytest.mark.parametrize("rank", [0, 1])
def test_low_rank_and_full_rank_members_have_the_fitness_of_their_matrices(rank):
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=16)
    loop = build_open_es(
        jax.eval_shape(agent.genome, jax.random.key(0)), 8, 8, optax.constant_schedule(0.5),
        optax.constant_schedule(0.1), rank,
    )  # fmt: skip
    proposal, _ = loop.ask(jax.random.key(0), loop.init(jax.random.key(0), agent.genome(jax.random.key(1))))
    keys = jax.random.split(jax.random.key(2), 4)

    def measure(keys, genome):
        return evolution.mean_fitness(agent, keys, genome, env=env, steering=drives)

    shard = evolution.make_shard_evaluation(measure, loop, shard_size=8, members_at_once=4)
    fitness, _ = jax.jit(shard)(keys, proposal, jnp.int32(0))
    members = form_matrices(loop.members(proposal, jnp.int32(0), 8))
    expected = jax.jit(jax.vmap(lambda member: measure(keys, member)[0]))(members)
    np.testing.assert_allclose(fitness, expected, atol=1e-6)
    assert np.std(expected) > 0


def test_the_default_shard_depends_on_the_population_alone():
    sizes = {size: choose_shard_size(size) for size in (4, 8, 64, 250, 256, 4096, 65_536)}
    assert sizes == {4: 4, 8: 8, 64: 16, 250: 50, 256: 16, 4096: 64, 65_536: 1024}


def test_a_generation_in_shards_is_that_of_one_program():
    development, _ = build_development(population_size=64, num_generations=1)
    shards = development.shards
    state = development.init(jax.random.key(3))
    keys, proposal = shards.propose(state)
    parts = [shards.evaluate_shard(keys, proposal, jnp.int32(number)) for number in reversed(range(shards.num_shards))]
    fitness, env_steps = (jnp.concatenate(list(reversed(leaves))) for leaves in zip(*parts, strict=True))
    after, info = shards.finish(state, fitness, env_steps)
    expected, expected_info = development.step(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-5), info, expected_info)
    for computed, reference_leaf in zip(*map(jax.tree.leaves, (after.strategy, expected.strategy)), strict=True):
        np.testing.assert_allclose(computed, reference_leaf, atol=1e-5)
    assert shards.num_shards == 4


def test_the_gradient_is_bitwise_reproducible_on_any_number_of_devices(monkeypatch):
    assert jax.local_device_count() == 2
    loop = build_loop("Open_ES", 64, shard_size=16)
    proposal, state = loop.ask(jax.random.key(0), loop.init(jax.random.key(1), TARGET))
    fitness = jax.random.normal(jax.random.key(2), (64,))

    def step():
        return jax.jit(lambda state, proposal, fitness: loop.tell(jax.random.key(3), state, proposal, fitness))(
            state, proposal, fitness
        )

    on_two_devices = step()
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert trees.bitwise_equal(on_two_devices, step())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_is_bitwise_reproducible_on_any_number_of_devices(tmp_path, rank):
    sizes = "population_size=256,num_lifetimes=8,num_generations=6,generations_per_call=3"
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    contents = set()
    for count in (1, 2, 8):
        folder = tmp_path / str(count)
        arguments = ["train", "--agent", "recurrent:hidden_size=16", "--env", "bandit:num_pulls=20"]
        arguments += ["--development", f"evolution:{sizes},rank={rank}"]
        arguments += ["--num-host-devices", str(count), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "ontogeny", *arguments], env=environment, check=True, timeout=600)
        contents.add((folder / "genome.safetensors").read_bytes() + (folder / "records.jsonl").read_bytes())
    assert len(contents) == 1
