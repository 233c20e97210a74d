"""Every registered development satisfies the contract and runs exactly as many generations as requested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import contracts, plugins, steering, trees
from ontogeny.development.base import split_into_calls
from ontogeny.types import BadInput
from selection import slow_except

NAMES = plugins.list_names("development")
SMALL = {"population_size": 8, "num_lifetimes": 4, "num_generations": 5, "num_updates": 5}


def build_development(name, agent="recurrent:hidden_size=3", **settings):
    """A few generations in a small bandit; settings that the development does not have are omitted."""
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=6)
    drives = steering.build(env.spec)
    agent_name, agent_settings = plugins.parse(agent)
    built = plugins.build("agents", agent_name, env.spec, drives, **agent_settings)
    defaults = plugins.default_settings("development", name)
    small = {key: value for key, value in (SMALL | settings).items() if key in defaults}
    return plugins.build("development", name, built, env, drives, **small), built


@pytest.mark.parametrize("name", NAMES)
def test_every_development_satisfies_the_contract(name):
    contracts.check_development(*build_development(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 5, 7, 12])
def test_a_development_runs_exactly_the_requested_number_of_generations(name, total):
    development, _ = build_development(name, num_generations=total, num_updates=total)
    assert development.num_calls * development.generations_per_call == total


def test_generations_are_split_into_equal_calls_of_limited_length():
    assert split_into_calls(100, 5) == (20, 5)
    assert split_into_calls(7, 5) == (7, 1) and split_into_calls(12, 5) == (3, 4)
    assert split_into_calls(3, 10) == (1, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["num_lifetimes", "num_generations", "num_updates", "learning_rate"])
def test_invalid_settings_are_rejected_by_name(name, setting):
    if setting in plugins.default_settings("development", name):
        invalid = -0.5 if setting == "learning_rate" else 0
        with pytest.raises(BadInput, match=setting):
            build_development(name, **{setting: invalid})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "single_lifetime"])
def test_an_agent_without_a_genome_is_rejected(name):
    with pytest.raises(BadInput, match=r"genome|recurrent"):
        build_development(name, agent="random")


def test_the_settings_of_ml_code_can_be_searched():
    """Drives and exploration bonus are a genome like any other; only a sigma of their size changes behavior."""
    development, _ = build_development("evolution", "model_based", sigma=1.0, num_lifetimes=8)
    state, info = development.step(development.init(jax.random.key(0)))
    genome = development.genome(state)
    # By chance, all eight members may behave alike in a generation.
    assert trees.is_finite(genome) and float(jnp.mean(info["fitness_std"] > 0)) > 0.5
    assert float(genome.bonus_scale) != 1 and float(genome.drives[0]) != 1


def test_a_strategy_that_would_produce_nan_is_rejected():
    with pytest.raises(BadInput, match="at most twice the 2 parameters of this genome, not 8"):
        build_development("evolution", "model_based", strategy="LM_MA_ES")


@pytest.mark.parametrize(("name", "setting"), [("evolution", "baseline_agent"), ("distillation", "teacher")])
def test_a_privileged_second_agent_needs_an_env_that_reveals_tasks(name, setting):
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=6)._replace(reveal_task=None)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=3)
    with pytest.raises(BadInput, match="agent 'oracle' needs to know the task"):
        plugins.build("development", name, agent, env, drives, **{setting: "oracle"})


def end_after(env, num_steps):
    """The same environment, of which a lifetime is over after so many steps."""

    def reset(key):
        state, time_step = env.reset(key)
        return (state, jnp.int32(0)), time_step

    def step(key, state, action):
        env_state, time_step = env.step(key, state[0], action)
        return (env_state, state[1] + 1), time_step

    return env._replace(reset=reset, step=step, reveal_task=None, is_over=lambda state: state[1] >= num_steps)


@pytest.mark.parametrize("name", slow_except(["evolution", "policy_gradient"], NAMES))
def test_steps_after_a_lifetime_is_over_count_nowhere(name):
    """A lifetime that is over after five of twelve steps is worth as much as one of five steps, and as expensive."""
    infos = []
    for num_pulls in (5, 12):
        env = end_after(plugins.build("environments", "bandit", num_arms=3, num_pulls=num_pulls), 5)
        drives = steering.build(env.spec)
        agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=3)
        settings = SMALL | {"teacher": "q_learning"}
        settings = {key: settings[key] for key in plugins.default_settings("development", name) if key in settings}
        development = plugins.build("development", name, agent, env, drives, **settings)
        infos.append(development.step(development.init(jax.random.key(0)))[1])
    steps_per_generation = SMALL["num_lifetimes"] * 5 * (SMALL["population_size"] if name == "evolution" else 1)
    for info in infos:
        assert all(np.sum(num_steps) == steps_per_generation for num_steps in info["env_steps"])
    short, long = infos
    assert short.keys() == long.keys()
    for measured in short:
        np.testing.assert_allclose(short[measured], long[measured], rtol=1e-4, atol=1e-6, err_msg=measured)


def test_a_search_changes_the_genome_and_a_single_lifetime_does_not():
    for name in NAMES:
        development, _ = build_development(name)
        state = development.init(jax.random.key(0))
        before = development.genome(state)
        for _ in range(development.num_calls):
            state, _ = development.step(state)
        assert trees.bitwise_equal(before, development.genome(state)) == (name == "single_lifetime"), name
