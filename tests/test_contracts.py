"""The three laws over every registered agent, and proof that each check fails where its law is broken."""

import jax
import jax.numpy as jnp
import pytest

from ontogeny import contracts, plugins, rollouts, steering
from ontogeny.agents.base import empty_genome
from ontogeny.types import Agent, BadInput, State, Weights

ENVS = [
    ("random_mdp", {"num_states": 3, "num_actions": 2, "horizon": 4, "num_episodes": 6}),
    ("bandit", {"num_arms": 3, "num_pulls": 20}),
    ("two_step", {"num_trials": 10}),
    ("stream", {"num_segments": 3, "segment_length": 10}),
    ("chain", {"num_trials": 4, "num_exposures": 2, "num_test_trials": 2}),
    ("foraging", {"size": 3, "wall_fraction": 0.0, "num_thorns": 1, "horizon": 5, "num_episodes": 5}),
    ("text", {"passage_length": 10, "num_passages": 3}),
]


NAMES = plugins.list_names("agents")


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """What is compared here are bits of one program with itself: the compiler's finer passes only cost time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def accepted(name):
    """The (environment, drives, agent) in which an agent can live; a refusal must name both."""
    for env, settings in ENVS:
        env = plugins.build("environments", env, **settings)
        drives = steering.build(env.spec)
        try:
            yield env, drives, plugins.build("agents", name, env.spec, drives)
        except BadInput as refusal:
            assert name in str(refusal) and env.spec.name in str(refusal)


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_keeps_the_laws(name):
    """In the first environment that the agent accepts; `make test-slow` goes through all of them."""
    env, drives, agent = next(accepted(name))
    contracts.check_agent(agent, env, drives)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_agent_keeps_the_laws_in_every_env(name):
    for env, drives, agent in list(accepted(name))[1:]:
        contracts.check_agent(agent, env, drives)


class Bad:
    """An agent that keeps the laws, and from it agents that break one each."""

    def __init__(self):
        self.env = plugins.build("environments", "bandit", num_arms=3, num_pulls=20)
        self.drives = steering.build(self.env.spec)
        zero = jnp.zeros(3)

        def init(key, genome):
            return State(Weights({"table": zero}, {"count": zero}), {"trace": zero})

        def reset(state):
            return State(state.weights, {"trace": zero})

        def act(key, state, percept):
            table = state.weights.content["table"] + state.activations["trace"]
            trace = state.activations["trace"] + percept.reward
            return jnp.argmax(table).astype(jnp.int32), state._replace(activations={"trace": trace})

        def learn(key, state, transition):
            weights = state.weights
            table = weights.content["table"].at[transition.action].add(transition.next_percept.reward)
            count = weights.scratch["count"] + 1
            return state._replace(weights=Weights({"table": table}, {"count": count})), ()

        self.good = Agent(empty_genome, init, reset, act, learn, learning=True)

    def act_that_learns(self):
        def act(key, state, percept):
            action, state = self.good.act(key, state, percept)
            content = {"table": state.weights.content["table"] + 1e-7}
            return action, state._replace(weights=state.weights._replace(content=content))

        return self.good._replace(act=act)

    def learn_that_acts(self):
        def learn(key, state, transition):
            state, info = self.good.learn(key, state, transition)
            return state._replace(activations={"trace": state.activations["trace"] + 1}), info

        return self.good._replace(learn=learn)

    def reset_that_forgets_weights(self):
        return self.good._replace(reset=lambda state: self.good.init(jax.random.key(0), ()))

    def reset_that_keeps_activations(self):
        return self.good._replace(reset=lambda state: state)

    def act_that_reads_scratch(self):
        def act(key, state, percept):
            _, state = self.good.act(key, state, percept)
            return (state.weights.scratch["count"].sum().astype(jnp.int32)) % 3, state

        return self.good._replace(act=act)

    def silent_learner(self):
        return self.good._replace(learning=False)


BREACHES = {
    "act_that_learns": "`act` changed weights",
    "learn_that_acts": "`learn` changed activations",
    "reset_that_forgets_weights": "`reset` changed weights",
    "reset_that_keeps_activations": "did not restore",
    "act_that_reads_scratch": "read `weights.scratch`",
    "silent_learner": "although `learns` is False",
}


def test_an_agent_that_keeps_the_laws_passes():
    bad = Bad()
    contracts.check_agent(bad.good, bad.env, bad.drives)


@pytest.mark.parametrize(("breach", "message"), list(BREACHES.items()))
def test_an_agent_that_breaks_a_law_is_found(breach, message):
    bad = Bad()
    with pytest.raises(AssertionError, match=message):
        contracts.check_agent(getattr(bad, breach)(), bad.env, bad.drives)


def test_a_score_that_leaks_into_a_life_is_found(monkeypatch):
    """A loop that rewards what was meant in place of what steering says."""
    bad = Bad()

    def leaking(key, agent, env, steering, state, num_steps, learning):
        return rollouts.rollout(key, agent, env, env.score, state, num_steps, learning)

    monkeypatch.setattr(contracts, "live", leaking)
    with pytest.raises(AssertionError, match="the life changed"):
        contracts.check_agent_lifetimes(bad.good, bad.env, bad.drives)
