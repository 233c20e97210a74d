"""Trees, random keys, plugins, steering and the rollout loop."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from ontogeny import plugins, rng, steering, trees
from ontogeny.environments import ranges
from ontogeny.rollouts import rollout, rollout_from_log, rollout_lifetime
from ontogeny.types import Agent, BadInput, Environment, EnvSpec, Percept, State, TimeStep, Weights

TREE = {"a": jnp.arange(3.0), "b": (jnp.int32(2), jax.random.key(7)), "c": {"d": jnp.array([True, False])}}


def test_arrays_round_trip_keeps_every_bit():
    arrays = trees.to_arrays(TREE)
    assert set(arrays) == {"a", "b.0", "b.1", "c.d"}
    assert trees.bitwise_equal(trees.from_arrays(TREE, arrays), TREE)


@pytest.mark.parametrize(("change", "part"), [({"a": None}, "missing"), ({"a": np.zeros(4, np.float32)}, "expected")])
def test_arrays_of_another_shape_are_rejected(change, part):
    arrays = {k: v for k, v in (trees.to_arrays(TREE) | change).items() if v is not None}
    with pytest.raises(BadInput, match=part):
        trees.from_arrays(TREE, arrays)


def test_digest_depends_on_bits_names_types_and_shapes():
    base = {"a": jnp.zeros(3)}
    variants = [{"a": -jnp.zeros(3)}, {"b": jnp.zeros(3)}, {"a": jnp.zeros(3, jnp.int32)}, {"a": jnp.zeros((3, 1))}]
    digests = {trees.digest(tree) for tree in [base, *variants]}
    assert len(digests) == 5


def test_scramble_changes_every_leaf_and_no_shape():
    scrambled = trees.scramble(jax.random.key(0), TREE)
    for old, new in zip(trees.to_arrays(TREE).values(), trees.to_arrays(scrambled).values(), strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype and (old != new).any()


@given(st.integers(0, 2**32 - 1), st.sampled_from(rng.STAGES))
def test_a_key_belongs_to_its_stage(seed, stage):
    keys = rng.sample_lifetime_keys(jax.random.key(seed), 8, stage)
    assert {rng.stage_of(key) for key in keys} == {stage}
    assert len({bytes(np.asarray(jax.random.key_data(key))) for key in keys}) == 8


def test_random_argmax_breaks_ties_uniformly_and_per_row():
    values = jnp.array([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    draws = jax.vmap(lambda key: rng.random_argmax(key, values))(jax.random.split(jax.random.key(0), 2000))
    frequencies = np.stack([np.bincount(np.asarray(row), minlength=3) for row in draws.T]) / 2000
    np.testing.assert_allclose(frequencies, [[0, 0.5, 0.5], [0.5, 0, 0.5]], atol=0.05)
    assert draws.dtype == jnp.int32
    assert int(rng.random_index(jax.random.key(0), jnp.array([False, False]))) == 0


def test_the_same_key_gives_every_agent_the_same_task():
    """Agents that are stochastic, learn or are privileged act in the same environment, bit for bit."""
    env = plugins.build("environments", "random_mdp", num_episodes=2)
    drives = steering.build(env.spec)
    agents = [plugins.build("agents", name, env.spec, drives) for name in ("random", "psrl", "q_learning", "oracle")]

    def first_action(agent):
        return agent._replace(act=lambda key, state, percept: (jnp.int32(0), agent.act(key, state, percept)[1]))

    trajectories = []
    for agent in map(first_action, agents):
        genome = agent.genome(jax.random.key(1))

        def run(key, agent=agent, genome=genome):
            return rollout_lifetime(key, agent, env, drives, genome, learning=agent.learning)[1]._replace(info=())

        trajectories.append(jax.jit(jax.vmap(run))(rng.sample_lifetime_keys(jax.random.key(0), 2, "evaluation")))
    assert all(trees.bitwise_equal(trajectory, trajectories[0]) for trajectory in trajectories)
    first, second = (jax.tree.map(lambda leaf, b=b: leaf[b], trajectories[0]) for b in (0, 1))
    assert not trees.bitwise_equal(first, second)
    assert first.reward.shape == (20,) and np.flatnonzero(first.first).tolist() == [0, 10]


def _data(key):
    return jax.random.key_data(key)


def collect_keys(key, num_steps):
    """Every key of a lifetime, collected by an agent and an environment that record their keys."""
    spec = EnvSpec("recording", 2, 0, (2,), ("feature",), num_steps, 1, (("feature", 1.0),))

    def emit(key):
        return _data(key), TimeStep(_data(key), _data(key), jnp.zeros(1), jnp.bool_(True), jnp.float32(1))

    env = Environment(spec, emit, lambda key, state, action: emit(key), lambda outcome: outcome[0])
    agent = Agent(
        genome=lambda key: (),
        init=lambda key, genome: State(Weights(_data(key)), _data(key)),
        reset=lambda state: state,
        act=lambda key, state, percept: (jnp.int32(0), state._replace(activations=_data(key))),
        learn=lambda key, state, transition: (
            state,
            (transition.percept.observation, transition.next_percept.observation, state.activations, _data(key)),
        ),
        learning=True,
    )
    state, trajectory = rollout_lifetime(key, agent, env, lambda outcome: outcome[0], (), learning=True)
    return np.concatenate([state.weights.content[None], *(np.asarray(keys) for keys in trajectory.info)])


@pytest.mark.parametrize("seed", range(3))
def test_no_key_of_a_lifetime_is_used_twice(seed):
    """An agent cannot predict the environment from its own keys, as it could if two keys were the same."""
    keys = collect_keys(rng.sample_lifetime_keys(jax.random.key(seed), 1, "training")[0], 50)
    distinct = {tuple(key) for key in keys.tolist()}
    assert len(distinct) == 1 + 50 + 1 + 50 + 50  # init, act, task, environment, learn
    derived = {
        tuple(_data(derive(jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32)))).tolist())
        for key in distinct
        for derive in (lambda k: jax.random.fold_in(k, 1), lambda k: jax.random.split(k)[0])
    }
    assert not derived & distinct, "a key of a lifetime can be derived from another one"


def test_a_lifetime_compiled_alone_or_in_a_batch_gives_bitwise_equal_results():
    """Jit and vmap change no action and no outcome."""
    env = plugins.build("environments", "bandit")
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "random", env.spec, drives)
    keys = rng.sample_lifetime_keys(jax.random.key(0), 4, "training")
    batch = jax.jit(jax.vmap(lambda key: rollout_lifetime(key, agent, env, drives, (), learning=False)))(keys)
    single = [rollout_lifetime(key, agent, env, drives, (), learning=False) for key in keys]
    assert trees.bitwise_equal(batch, jax.tree.map(lambda *leaves: jnp.stack(leaves), *single))


def test_activations_are_reset_at_every_episode_only_on_request():
    env = plugins.build("environments", "random_mdp", horizon=4, num_episodes=3)
    drives = steering.build(env.spec)
    random = plugins.build("agents", "random", env.spec, drives)

    def counting(key, state, percept):
        return jnp.int32(0), state._replace(activations=state.activations + 1)

    agent = random._replace(
        init=lambda key, genome: random.init(key, ())._replace(activations=jnp.int32(0)),
        reset=lambda state: state._replace(activations=jnp.int32(0)),
        act=counting,
    )
    for reset_each_episode, expected in ((False, 12), (True, 4)):
        initial = agent.init(jax.random.key(0), ())
        state, _ = rollout(
            jax.random.key(0), agent, env, drives, initial, 12, False, reset_each_episode=reset_each_episode
        )
        assert int(state.activations) == expected


def test_an_episode_that_begins_with_a_reset_shows_the_observation_and_nothing_of_the_past():
    env = plugins.build("environments", "random_mdp", horizon=4)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "q_learning", env.spec, drives)
    num_steps, key = 12, jax.random.key(0)

    def record(percept: Percept) -> tuple[Array, Percept]:
        """Whether the past shows in a percept, and the percept."""
        is_past = (percept.action >= 0) | (percept.reward != 0) | jnp.any(percept.outcome != 0) | (percept.discount < 1)
        return is_past, percept

    def reveal(key, state, percept):
        """The agent's own step, except that its action is 1 where the percept shows the past."""
        _, state = agent.act(key, state, percept)
        return record(percept)[0].astype(jnp.int32), state

    def learn(key, state, transition):
        return agent.learn(key, state, transition)[0], record(transition.percept)

    revealing = agent._replace(act=reveal, learn=learn)
    for reset_each_episode in (False, True):
        options = {"num_steps": num_steps, "reset_each_episode": reset_each_episode}
        _, trajectory = rollout_lifetime(key, revealing, env, drives, (), True, **options)
        is_past, percept = trajectory.info
        is_visible = ~trajectory.first if reset_each_episode else jnp.arange(num_steps) > 0
        assert jnp.array_equal(is_past, is_visible), "`learn` receives the percept that `act` received"
        assert jnp.array_equal(trajectory.action > 0, is_visible)
        assert jnp.array_equal(percept.observation, trajectory.observation)
    replayed = rollout_from_log(key, revealing, env, drives, (), num_steps)
    assert jnp.array_equal(replayed.action > 0, ~replayed.first)


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4),
)
def test_steering_is_the_weighted_sum_of_outcome_features(weights, outcome):
    spec = plugins.build("environments", "foraging").spec
    drives = steering.build(spec, dict(zip(spec.outcome_features, weights, strict=True)))
    assert float(drives(jnp.array(outcome))) == pytest.approx(float(np.dot(weights, outcome)), abs=1e-3)


@pytest.mark.parametrize(
    ("drives", "part"), [({"fod": 1}, "did you mean food"), ({"food": "much"}, "must be a number")]
)
def test_invalid_drives_are_rejected(drives, part):
    with pytest.raises(BadInput, match=part):
        steering.build(plugins.build("environments", "foraging").spec, drives)


def test_parse_reads_names_with_settings():
    assert plugins.parse("bandit") == ("bandit", {})
    assert plugins.parse("two_step:rewards=drifting,common_probability=0.7,has_second_choice=true") == (
        "two_step",
        {"rewards": "drifting", "common_probability": 0.7, "has_second_choice": True},
    )
    with pytest.raises(BadInput, match="setting=value"):
        plugins.parse("bandit:arms")


def test_a_range_is_read_in_one_form():
    assert ranges.parse_range("length:0.3..0.8", "vary") == ("length", 0.3, 0.8, 0, 0)
    assert ranges.parse_range("gravity:-1e-1..2", "vary") == ("gravity", -0.1, 2.0, 0, 0)
    assert ranges.parse_range("length:.3..1:500", "drift", has_steps=True) == ("length", 0.3, 1.0, 0, 500)
    assert ranges.parse_range("length:3..1:5..7", "drift", has_steps=True) == ("length", 3.0, 1.0, 5, 2)
    for text in ("length", "length:1", "length:1..", "length:a..b", "length:1..2:3", ":1..2", 3):
        with pytest.raises(BadInput, match=r"'vary' is of the form PARAMETER:LOW\.\.HIGH, not"):
            ranges.parse_range(text, "vary")
    with pytest.raises(BadInput, match=r"of the form PARAMETER:LOW\.\.HIGH:STEPS"):
        ranges.parse_range("length:1..2", "drift", has_steps=True)
    with pytest.raises(BadInput, match="the lower bound 2 exceeds the upper bound 1"):
        ranges.parse_range("length:2..1", "vary")


def test_every_plugin_has_a_help_line():
    for kind in plugins.PLUGIN_KINDS:
        for name in plugins.list_names(kind):
            assert plugins.help_line(kind, name).endswith((".", ":")), f"{kind}/{name} needs a first docstring line"


def test_listing_names_imports_no_jax():
    code = "import sys; from ontogeny import plugins; plugins.list_names('agents'); print('jax' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
