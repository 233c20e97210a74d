"""Every registered outer loop keeps the contract of a development, and does as much as it was asked for."""

import jax
import pytest

from ontogeny import contracts, plugins, steering, trees
from ontogeny.development.base import dispatches
from ontogeny.types import BadInput

NAMES = plugins.list_names("development")
SMALL = {"population": 8, "num_lifetimes": 4, "generations": 5, "updates": 5}


def developed(name, agent="recurrent:hidden_size=3", **settings):
    """A few generations in a small bandit; settings that the loop does not have are left out."""
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=6)
    drives = steering.build(env.spec)
    room, given = plugins.parse(agent)
    built = plugins.build("agents", room, env.spec, drives, **given)
    known = plugins.default_settings("development", name)
    small = {key: value for key, value in (SMALL | settings).items() if key in known}
    return plugins.build("development", name, built, env, drives, **small), built


@pytest.mark.parametrize("name", NAMES)
def test_every_development_keeps_its_contract(name):
    contracts.check_development(*developed(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 5, 7, 12])
def test_a_development_takes_exactly_as_many_generations_as_it_was_asked_for(name, total):
    development, _ = developed(name, generations=total, updates=total)
    assert development.num_calls * development.generations_per_call == total


def test_dispatches_are_as_large_as_they_may_be():
    assert dispatches(100, 5) == (20, 5) and dispatches(7, 5) == (7, 1) and dispatches(12, 5) == (3, 4)
    assert dispatches(3, 10) == (1, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["num_lifetimes", "generations", "updates", "step_size"])
def test_settings_that_make_no_sense_are_refused_by_name(name, setting):
    if setting in plugins.default_settings("development", name):
        bad = -0.5 if setting == "step_size" else 0
        with pytest.raises(BadInput, match=setting):
            developed(name, **{setting: bad})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "single_lifetime"])
def test_an_agent_without_a_genome_cannot_be_searched(name):
    with pytest.raises(BadInput, match=r"genome|recurrent"):
        developed(name, agent="random")


def test_the_settings_of_code_can_be_searched():
    """Drives and curiosity are a genome like any other; a spread of their own size is needed to move behaviour."""
    development, _ = developed("evolution", "model_based", sigma=1.0, num_lifetimes=8)
    state, info = development.step(development.init(jax.random.key(0)))
    genome = development.genome(state)
    assert trees.is_finite(genome) and float(info["spread"].min()) > 0
    assert float(genome.bonus_scale) != 1 and float(genome.drives[0]) != 1


def test_a_strategy_that_would_end_in_no_number_is_refused():
    with pytest.raises(BadInput, match="at most twice the 2 numbers of this genome, not 8"):
        developed("evolution", "model_based", strategy="LM_MA_ES")


@pytest.mark.parametrize(("name", "setting"), [("evolution", "reference"), ("distillation", "teacher")])
def test_an_oracle_beside_needs_a_env_that_can_be_laid_open(name, setting):
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=6)._replace(reveal_task=None)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=3)
    with pytest.raises(BadInput, match="agent 'oracle' needs tasks laid open"):
        plugins.build("development", name, agent, env, drives, **{setting: "oracle"})


def test_a_search_moves_the_genome_and_a_single_lifetime_does_not():
    for name in NAMES:
        development, _ = developed(name)
        state = development.init(jax.random.key(0))
        before = development.genome(state)
        for _ in range(development.num_calls):
            state, _ = development.step(state)
        assert trees.bitwise_equal(before, development.genome(state)) == (name == "single_lifetime"), name
