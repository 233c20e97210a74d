"""Evolution: every strategy climbs, the sign turns once, and a generation is a function of seed and number alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.development import evolution
from ontogeny.types import BadInput

TARGET = {"a": jnp.linspace(-1, 1, 20), "b": jnp.array([[0.5, -0.5]] * 10)}


def height(genome):
    """A hill whose top is at TARGET, of height zero."""
    return -sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(genome), jax.tree.leaves(TARGET), strict=True))


@pytest.mark.parametrize("strategy", evolution.STRATEGIES)
def test_every_strategy_maximises_fitness(strategy):
    loop = evolution.evosax_loop(strategy, TARGET, 32, optax.constant_schedule(0.1), optax.constant_schedule(0.1))
    origin = jax.tree.map(jnp.zeros_like, TARGET)

    @jax.jit
    def climbed():
        def generation(state, key):
            ask_key, tell_key = jax.random.split(key)
            members, state = loop.ask(ask_key, state)
            return loop.tell(tell_key, state, members, jax.vmap(height)(members)), ()

        keys = jax.random.split(jax.random.key(1), 60)
        state, _ = jax.lax.scan(generation, loop.init(jax.random.key(0), origin), keys)
        return height(loop.genome(state))

    assert climbed() > 0.7 * height(origin), "a search that takes cost for fitness goes down"


def test_the_docstring_names_every_strategy():
    assert all(name in str(evolution.__doc__) for name in evolution.STRATEGIES)


def test_perturbations_are_antithetic():
    loop = evolution.evosax_loop("Open_ES", TARGET, 8, optax.constant_schedule(0.1), optax.constant_schedule(0.1))
    members, _ = loop.ask(jax.random.key(0), loop.init(jax.random.key(1), TARGET))
    for leaf, centre in zip(jax.tree.leaves(members), jax.tree.leaves(TARGET), strict=True):
        np.testing.assert_allclose(leaf[:4] - centre, centre - leaf[4:], atol=1e-6)
        assert np.std(leaf[:4] - centre) > 0.03


def developed(agent="recurrent_cells", **settings):
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


def test_one_dispatch_of_four_ends_in_the_same_bits_as_four_of_one():
    whole, parts = run(developed(generations_per_call=4)[0]), run(developed(generations_per_call=1)[0])
    assert trees.bitwise_equal(whole, parts)


def test_a_dispatch_is_over_before_another_one_can_begin():
    """Dispatches that overlap can deadlock where host devices gather the fitness."""
    development, _ = developed()
    state, info = development.step(development.init(jax.random.key(0)))
    assert all(leaf.is_ready() for leaf in jax.tree.leaves((state.search, info)))


def test_members_live_the_same_lives_on_all_devices():
    development, agent = developed(population=8)
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=8)
    drives = steering.build(env.spec)
    keys = jax.random.split(jax.random.key(0), 4)
    genomes = jax.vmap(agent.genome)(jax.random.split(jax.random.key(1), 8))
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), genomes)

    def measure(keys, genome):
        return evolution.mean_fitness(keys, agent, env, drives, genome)

    split = evolution.shard_population(measure, 8)
    assert np.ptp(jax.jit(split)(keys, alike)) == 0
    one_by_one = [float(jax.jit(measure)(keys, jax.tree.map(lambda leaf, i=i: leaf[i], genomes))) for i in range(8)]
    np.testing.assert_allclose(jax.jit(split)(keys, genomes), one_by_one, rtol=1e-6)
    assert development.steps_per_generation == 8 * 4 * 8


def test_evolution_improves_cells_on_bandits():
    _, curve = run(developed(population_size=64, num_lifetimes=32, num_generations=20, generations_per_call=5)[0])
    assert curve["advantage_over_baseline"][-5:].mean() > 0.5 > curve["advantage_over_baseline"][0]


@pytest.mark.parametrize(
    "settings", [{"strategy": "Open_SE"}, {"population_size": 7}, {"sigma": 0.0}, {"baseline_agent": "nobody"}]
)
def test_bad_settings_are_refused_by_name(settings):
    with pytest.raises(BadInput, match=r"Open_SE|population|sigma|nobody"):
        developed(**settings)
