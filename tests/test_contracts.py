"""Every registered agent satisfies the agent contract, and each check detects a planted violation."""

import jax
import jax.numpy as jnp
import pytest

from ontogeny import contracts, plugins, rollouts, steering
from ontogeny.agents.base import empty_genome
from ontogeny.errors import ContractViolation
from ontogeny.seeds import MAX_SEED
from ontogeny.types import Agent, BadInput, State, Weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
ENVS = [
    ("random_mdp", {"num_states": 3, "num_actions": 2, "horizon": 4, "num_episodes": 6}),
    ("bandit", {"num_arms": 3, "num_pulls": 20}),
    ("two_step", {"num_trials": 10}),
    ("stream", {"num_segments": 3, "segment_length": 10}),
    ("chain", {"num_trials": 4, "num_exposures": 2, "num_test_trials": 2}),
    ("relay", {"num_steps": 30}),
    ("foraging", {"size": 3, "wall_fraction": 0.0, "num_thorns": 1, "horizon": 5, "num_episodes": 5}),
    ("text", {"passage_length": 10, "num_passages": 3}),
]


NAMES = plugins.list_names("agents")


SMALL_SETTINGS = {
    "content_planner": {"width": 8, "num_blocks": 1, "num_heads": 2},
    "neural_model_based": {"width": 8, "imagination_length": 2},
}


def accepted_envs(name, **agent_settings):
    """Yields (environment, drives, agent) for each environment that the agent accepts; a rejection must name both."""
    for env, settings in ENVS:
        env = plugins.build("environments", env, **settings)
        drives = steering.build(env.spec)
        try:
            yield env, drives, plugins.build("agents", name, env.spec, drives, **agent_settings)
        except BadInput as error:
            assert name in str(error) and env.spec.name in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_satisfies_the_contract(name):
    """Tests a small agent in the first environment that it accepts, without values where its programs show a rule.

    `make test-slow` tests all environments and compares all values.
    """
    env, drives, agent = next(accepted_envs(name, **SMALL_SETTINGS.get(name, {})))
    contracts.check_agent_first_steps(agent, env, drives)
    contracts.check_agent_lifetimes(agent, env, drives)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_agent_satisfies_the_contract_in_every_env(name):
    for env, drives, agent in accepted_envs(name):
        contracts.check_agent(agent, env, drives)


@pytest.mark.parametrize("name", NAMES)
def test_no_agent_calls_lapack_in_a_batch(name):
    """LAPACK divides a batch among the threads of XLA and waits for them, all of which may be waiting themselves."""
    env, drives, agent = next(accepted_envs(name))
    assert "lapack" not in lower_lifetimes(agent, env, drives)


def test_a_call_of_lapack_in_a_batch_is_detected():
    violations = Violations()
    genome = jax.nn.initializers.orthogonal()
    agent = violations.valid._replace(genome=lambda key: genome(key, (4, 4)))
    assert "lapack" in lower_lifetimes(agent, violations.env, violations.drives)


def lower_lifetimes(agent, env, drives):
    """The program of two lifetimes, which depend on the genome."""

    def live(key):
        genome = agent.genome(key)
        return genome, rollouts.rollout(key, agent, env, drives, agent.init(key, genome), 2, True)

    return jax.jit(jax.vmap(live)).lower(jax.random.split(jax.random.key(0), 2)).as_text()


class Violations:
    """A valid agent, and agents derived from it that each violate one rule."""

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

        self.valid = Agent(empty_genome, init, reset, act, learn, learning=True)

    def act_that_changes_weights(self):
        def act(key, state, percept):
            action, state = self.valid.act(key, state, percept)
            content = {"table": state.weights.content["table"] + 1e-7}
            return action, state._replace(weights=state.weights._replace(content=content))

        return self.valid._replace(act=act)

    def learn_that_changes_activations(self):
        def learn(key, state, transition):
            state, info = self.valid.learn(key, state, transition)
            return state._replace(activations={"trace": state.activations["trace"] + 1}), info

        return self.valid._replace(learn=learn)

    def reset_that_changes_weights(self):
        return self.valid._replace(reset=lambda state: self.valid.init(jax.random.key(0), ()))

    def reset_that_keeps_activations(self):
        return self.valid._replace(reset=lambda state: state)

    def act_that_reads_scratch(self):
        def act(key, state, percept):
            _, state = self.valid.act(key, state, percept)
            return (state.weights.scratch["count"].sum().astype(jnp.int32)) % 3, state

        return self.valid._replace(act=act)

    def learner_without_the_flag(self):
        return self.valid._replace(learning=False)


MESSAGES = {
    "act_that_changes_weights": "`act` changed weights",
    "learn_that_changes_activations": "`learn` changed activations",
    "reset_that_changes_weights": "`reset` changed weights",
    "reset_that_keeps_activations": "did not restore",
    "act_that_reads_scratch": "read `weights.scratch`",
    "learner_without_the_flag": "although `learning` is False",
}


def test_a_valid_agent_satisfies_the_contract():
    agents = Violations()
    contracts.check_agent(agents.valid, agents.env, agents.drives)


def test_the_contract_is_checked_with_the_largest_seed():
    """The seeds after it are 0 and 1; JAX would silently use the lower bits of a larger number."""
    agents = Violations()
    contracts.check_agent(agents.valid, agents.env, agents.drives, MAX_SEED)
    with pytest.raises(ContractViolation, match=MESSAGES["act_that_reads_scratch"]):
        contracts.check_agent(agents.act_that_reads_scratch(), agents.env, agents.drives, MAX_SEED)


@pytest.mark.parametrize(("violation", "message"), list(MESSAGES.items()))
def test_a_violation_of_the_contract_is_detected(violation, message):
    agents = Violations()
    with pytest.raises(ContractViolation, match=message):
        contracts.check_agent(getattr(agents, violation)(), agents.env, agents.drives)


def test_a_score_that_leaks_into_rewards_is_detected(monkeypatch):
    """The planted rollout computes rewards by the score in place of steering."""
    agents = Violations()

    def rollout_with_the_score_as_reward(key, agent, env, steering, state, num_steps, learning):
        return rollouts.rollout(key, agent, env, env.score, state, num_steps, learning)

    monkeypatch.setattr(contracts.agents, "rollout", rollout_with_the_score_as_reward)
    with pytest.raises(ContractViolation, match="the rollout changed"):
        contracts.check_agent_lifetimes(agents.valid, agents.env, agents.drives)
