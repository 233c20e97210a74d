"""Training by gradient: imitation of a named teacher, and the policy gradient that it is compared with."""

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
"""Stays with an arm that paid and else takes the next one; remembers by activations that anything happened."""
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
"""The same strategy, its memory in weights: `learn` writes down which arm comes next."""
import jax.numpy as jnp
from ontogeny.agents.base import empty_genome
from ontogeny.types import Agent, State, Weights

def build(spec, steering):
    def act(key, state, percept):
        return state.weights.content, state
    def learn(key, state, transition):
        then = transition.next_percept
        following = jnp.where(then.reward > 0, then.action, (then.action + 1) % spec.num_actions)
        return State(Weights(following.astype(jnp.int32)), state.activations), ()
    return Agent(empty_genome, lambda key, genome: State(Weights(jnp.int32(0)), ()), lambda state: state, act, learn, True)
'''


@pytest.fixture(scope="module")
def school():
    env = plugins.build("environments", "bandit", num_arms=3, num_pulls=12)
    drives = steering.build(env.spec)
    return env, drives, plugins.build("agents", "recurrent", env.spec, drives, hidden_size=12)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name, source in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        (folder / f"{name}.py").write_text(source.strip() + "\n")
    return {name: str(folder / f"{name}.py") for name in ("activations", "weights")}


def taught(school, teacher, updates=400):
    env, drives, agent = school
    development = plugins.build(
        "development", "distillation", agent, env, drives,
        teacher=teacher, num_updates=updates, num_lifetimes=32, learning_rate=0.02, updates_per_call=100,
    )  # fmt: skip
    state, losses = development.init(jax.random.key(0)), []
    for _ in range(development.num_calls):
        state, info = development.step(state)
        losses.extend(info["loss"].tolist())
    return development.genome(state), losses


def agreement(school, teacher, genome):
    """Of pupil and teacher on lives that training cannot draw."""
    env, drives, agent = school
    watched = distillation.make_student(agent, plugins.build("agents", teacher, env.spec, drives), env.spec)
    keys = sample_lifetime_keys(jax.random.key(1), 200, "validation")
    lesson, _ = jax.vmap(lambda key: distillation.rollout_student(key, watched, env, drives, genome))(keys)
    return float(jnp.mean(lesson.agrees))


def learns_from(school, teacher):
    """The pupil's loss falls and it does what its teacher would do, far above chance, in unseen lives."""
    genome, losses = taught(school, teacher)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), "the loss did not fall"
    assert agreement(school, teacher, genome) > 0.8, "the pupil does not do what its teacher would do"


def test_a_pupil_comes_to_do_what_its_teacher_would_do(school, teachers):
    learns_from(school, teachers["activations"])


def test_the_check_fails_with_labels_that_are_drawn_by_chance(school):
    with pytest.raises(AssertionError, match="the loss did not fall"):
        learns_from(school, "random")


def test_a_pupil_lives_as_the_agent_alone_does(school, teachers):
    """The teacher watches; it neither acts nor changes what the pupil perceives."""
    env, drives, agent = school
    genome = agent.genome(jax.random.key(2))
    genome = genome._replace(readout=jax.random.normal(jax.random.key(3), genome.readout.shape))
    master = plugins.build("agents", teachers["activations"], env.spec, drives)
    pupil = distillation.make_student(agent, master, env.spec)
    for key in jax.random.split(jax.random.key(4), 3):
        _, alone = rollout_lifetime(key, agent, env, drives, genome, learning=False)
        _, watched = rollout_lifetime(key, pupil, env, drives, genome, learning=True)
        np.testing.assert_array_equal(alone.action, watched.action)


def test_a_teacher_may_learn_by_weights(school, teachers):
    """The two teachers give the same lessons, wherever they keep what they remember."""
    env, drives, agent = school
    genome = agent.genome(jax.random.key(2))
    lessons = []
    for teacher in teachers.values():
        pupil = distillation.make_student(agent, plugins.build("agents", teacher, env.spec, drives), env.spec)
        lessons.append(distillation.rollout_student(jax.random.key(5), pupil, env, drives, genome)[0])
    np.testing.assert_array_equal(lessons[0].agrees, lessons[1].agrees)
    assert 0 < np.mean(lessons[0].agrees) < 1


def test_policy_gradient_raises_fitness(school):
    env, drives, agent = school
    development = plugins.build(
        "development", "policy_gradient", agent, env, drives,
        num_updates=400, num_lifetimes=64, discount=0.5, updates_per_call=100,
    )  # fmt: skip
    state, fitness = development.init(jax.random.key(0)), []
    for _ in range(development.num_calls):
        state, info = development.step(state)
        fitness.append(float(jnp.mean(info["fitness"])))
    assert fitness[-1] > fitness[0] + 0.5


def test_advantages_are_the_fading_sum_of_surprises():
    reward, value = np.array([1.0, 0.0, 2.0], np.float32), np.array([0.5, -1.0, 3.0], np.float32)
    surprise = reward + 0.9 * np.append(value[1:], 0) - value
    expected = [sum(0.45 ** (u - t) * surprise[u] for u in range(t, 3)) for t in range(3)]
    found = policy_gradient.advantages(jnp.asarray(reward), jnp.asarray(value), 0.9, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("development", ["distillation", "policy_gradient"])
def test_only_the_recurrent_network_can_be_trained_by_gradient(school, development):
    env, drives, _ = school
    other = plugins.build("agents", "random", env.spec, drives)
    given = {"teacher": "random"} if development == "distillation" else {}
    with pytest.raises(BadInput, match=f"'{development}'.*'recurrent'"):
        plugins.build("development", development, other, env, drives, **given)
