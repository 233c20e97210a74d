"""Evolution: every strategy maximizes fitness, and a generation is a function of seed and number alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.development import evolution
from ontogeny.development.base import require_finite_search
from ontogeny.types import Agent, BadInput, State, Weights

TARGET = {"a": jnp.linspace(-1, 1, 20), "b": jnp.array([[0.5, -0.5]] * 10)}


def negative_distance(genome):
    """A fitness with its maximum of zero at TARGET."""
    return -sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(genome), jax.tree.leaves(TARGET), strict=True))


@pytest.mark.parametrize("strategy", evolution.STRATEGIES)
def test_every_strategy_maximizes_fitness(strategy):
    loop = evolution.evosax_loop(strategy, TARGET, 32, optax.constant_schedule(0.1), optax.constant_schedule(0.1))
    origin = jax.tree.map(jnp.zeros_like, TARGET)

    @jax.jit
    def final_fitness():
        def generation(state, key):
            ask_key, tell_key = jax.random.split(key)
            members, state = loop.ask(ask_key, state)
            return loop.tell(tell_key, state, members, jax.vmap(negative_distance)(members)), ()

        keys = jax.random.split(jax.random.key(1), 60)
        state, _ = jax.lax.scan(generation, loop.init(jax.random.key(0), origin), keys)
        return negative_distance(loop.genome(state))

    assert final_fitness() > 0.7 * negative_distance(origin), "a search that minimizes fitness ends below its start"


def test_the_docstring_names_every_strategy():
    assert all(name in str(evolution.__doc__) for name in evolution.STRATEGIES)


def test_perturbations_are_antithetic():
    loop = evolution.evosax_loop("Open_ES", TARGET, 8, optax.constant_schedule(0.1), optax.constant_schedule(0.1))
    members, _ = loop.ask(jax.random.key(0), loop.init(jax.random.key(1), TARGET))
    for leaf, center in zip(jax.tree.leaves(members), jax.tree.leaves(TARGET), strict=True):
        np.testing.assert_allclose(leaf[:4] - center, center - leaf[4:], atol=1e-6)
        assert np.std(leaf[:4] - center) > 0.03


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

    split = evolution.shard_population(measure, 8)
    assert np.ptp(jax.jit(split)(keys, identical)[0]) == 0
    one_by_one = [float(jax.jit(measure)(keys, jax.tree.map(lambda leaf, i=i: leaf[i], genomes))[0]) for i in range(8)]
    fitness, env_steps = jax.jit(split)(keys, genomes)
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
    "settings", [{"strategy": "Open_SE"}, {"population_size": 7}, {"sigma": 0.0}, {"baseline_agent": "nobody"}]
)
def test_invalid_settings_are_rejected_by_name(settings):
    with pytest.raises(BadInput, match=r"Open_SE|population|sigma|nobody"):
        build_development(**settings)
