"""Training by gradient: imitation of a named teacher, and the policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering
from ontogeny.development import distillation, policy_gradient
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime

ACTIVATIONS = '''
"""Win-stay, lose-shift; counts its steps in activations."""
import jax.numpy as jnp
from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.types import State

def build(spec, steering):
    def act(key, state, percept):
        action = jnp.where(percept.reward > 0, percept.action, (percept.action + 1) % spec.num_actions)
        return action.astype(jnp.int32), State(state.weights, state.activations + 1)
    return fixed_weights_agent(empty_genome, lambda: jnp.int32(0), act)
'''

WEIGHTS = '''
"""Win-stay, lose-shift; `learn` stores the next arm in weights."""
import jax.numpy as jnp
from ontogeny.agents.base import empty_genome
from ontogeny.types import Agent, State, Weights

def build(spec, steering):
    def act(key, state, percept):
        return state.weights.content, state
    def learn(key, state, transition):
        percept = transition.next_percept
        arm = jnp.where(percept.reward > 0, percept.action, (percept.action + 1) % spec.num_actions)
        return State(Weights(arm.astype(jnp.int32)), state.activations), ()
    def init(key, genome):
        return State(Weights(jnp.int32(0)), ())
    return Agent(empty_genome, init, lambda state: state, act, learn, True)
'''


@pytest.fixture(scope="module")
def setting():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=12)
    drives = steering.build(env.spec)
    return env, drives, plugins.build("agents", "recurrent", env.spec, drives, hidden_size=12)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name, source in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        (folder / f"{name}.py").write_text(source.strip() + "\n")
    return {name: str(folder / f"{name}.py") for name in ("activations", "weights")}


def distill(setting, teacher, updates=400):
    env, drives, agent = setting
    development = plugins.build(
        "development", "distillation", agent, env, drives,
        teacher=teacher, num_updates=updates, num_lifetimes=32, learning_rate=0.02, updates_per_call=100,
    )  # fmt: skip
    state, losses = development.init(jax.random.key(0)), []
    for _ in range(development.num_calls):
        state, info = development.step(state)
        losses.extend(info["loss"].tolist())
    return development.genome(state), losses


def agreement(setting, teacher, genome):
    """The agreement of student and teacher on lifetimes that training cannot draw."""
    env, drives, agent = setting
    student = distillation.make_student(agent, plugins.build("agents", teacher, env.spec, drives), env.spec)
    keys = sample_lifetime_keys(jax.random.key(1), 200, "validation")
    info, _ = jax.vmap(lambda key: distillation.rollout_student(key, student, env, drives, genome))(keys)
    return float(jnp.mean(info.agreement))


def check_learning(setting, teacher):
    """The student's loss falls, and it agrees with its teacher far above chance in unseen lifetimes."""
    genome, losses = distill(setting, teacher)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), "the loss did not fall"
    assert agreement(setting, teacher, genome) > 0.8, "the student does not agree with its teacher"


def test_a_student_learns_the_actions_of_its_teacher(setting, teachers):
    check_learning(setting, teachers["activations"])


def test_a_student_trained_on_random_labels_fails_the_learning_check(setting):
    with pytest.raises(AssertionError, match="the loss did not fall"):
        check_learning(setting, "random")


def test_a_student_acts_as_the_agent_without_a_teacher_does(setting, teachers):
    """The teacher neither acts nor changes the percepts of the student."""
    env, drives, agent = setting
    genome = agent.genome(jax.random.key(2))
    genome = genome._replace(readout=jax.random.normal(jax.random.key(3), genome.readout.shape))
    teacher = plugins.build("agents", teachers["activations"], env.spec, drives)
    student = distillation.make_student(agent, teacher, env.spec)
    for key in jax.random.split(jax.random.key(4), 3):
        _, without_teacher = rollout_lifetime(key, agent, env, drives, genome, learning=False)
        _, with_teacher = rollout_lifetime(key, student, env, drives, genome, learning=True)
        np.testing.assert_array_equal(without_teacher.action, with_teacher.action)


def test_a_teacher_may_be_an_agent_that_learns_in_its_weights(setting, teachers):
    """Teachers with the same strategy in activations and in weights give the same labels."""
    env, drives, agent = setting
    genome = agent.genome(jax.random.key(2))
    infos = []
    for teacher in teachers.values():
        student = distillation.make_student(agent, plugins.build("agents", teacher, env.spec, drives), env.spec)
        infos.append(distillation.rollout_student(jax.random.key(5), student, env, drives, genome)[0])
    np.testing.assert_array_equal(infos[0].agreement, infos[1].agreement)
    assert 0 < np.mean(infos[0].agreement) < 1


def test_policy_gradient_raises_fitness(setting):
    env, drives, agent = setting
    development = plugins.build(
        "development", "policy_gradient", agent, env, drives,
        num_updates=400, num_lifetimes=64, discount=0.5, updates_per_call=100,
    )  # fmt: skip
    state, fitness = development.init(jax.random.key(0)), []
    for _ in range(development.num_calls):
        state, info = development.step(state)
        fitness.append(float(jnp.mean(info["fitness"])))
    assert fitness[-1] > fitness[0] + 0.5


def test_advantages_are_the_decaying_sum_of_td_errors():
    reward, value = np.array([1.0, 0.0, 2.0], np.float32), np.array([0.5, -1.0, 3.0], np.float32)
    td_error = reward + 0.9 * np.append(value[1:], 0) - value
    expected = [sum(0.45 ** (u - t) * td_error[u] for u in range(t, 3)) for t in range(3)]
    result = policy_gradient.advantages(jnp.asarray(reward), jnp.asarray(value), 0.9, 0.5)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("development", ["distillation", "policy_gradient"])
def test_only_the_recurrent_network_can_be_trained_by_gradient(setting, development):
    env, drives, _ = setting
    agent = plugins.build("agents", "random", env.spec, drives)
    settings = {"teacher": "random"} if development == "distillation" else {}
    with pytest.raises(BadInput, match=f"'{development}'.*'recurrent'"):
        plugins.build("development", development, agent, env, drives, **settings)
