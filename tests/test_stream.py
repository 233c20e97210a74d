"""The stream of items, what learned content makes of it, and the test for an objective of that content's own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny import plugins, steering
from ontogeny.audit import sacrifice
from ontogeny.audit.base import PreparedSubject
from ontogeny.content.base import PredictionBatch, build_predictor
from ontogeny.environments import stream
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import BadInput

CONTENTS = ("table", "linear", "mlp", "gru", "causal_transformer", "latent_predictor")
ENV = plugins.build("environments", "stream", segment_length=12)
DRIVES = steering.build(ENV.spec)


def test_an_action_shifts_the_next_predictability_but_not_the_current_item():
    state, _ = ENV.reset(jax.random.key(1))
    low, high = (ENV.step(jax.random.key(2), state, jnp.int32(action)) for action in (0, 100))
    assert low[1].outcome[stream.ITEM] == high[1].outcome[stream.ITEM]
    values = [float(step[1].observation[stream.PREDICTABILITY]) for step in (low, high)]
    assert np.isclose((values[1] - values[0]) * float(state.direction), 2.0, atol=1e-5)
    sham = plugins.build("environments", "stream", segment_length=12, inert=True)
    state, _ = sham.reset(jax.random.key(1))
    steps = [sham.step(jax.random.key(2), state, jnp.int32(action))[1] for action in (0, 100)]
    unmoved = [step.observation[stream.PREDICTABILITY] for step in steps]
    assert unmoved[0] == unmoved[1] != state.predictability


@settings(max_examples=10)
@given(st.lists(st.tuples(st.floats(0.05, 2.5), st.booleans()), min_size=1, max_size=6))
def test_the_posterior_predictive_is_that_of_enumeration(history):
    """Bayes' rule written out over all biases, in double precision."""
    biases = np.array(stream.BIASES)
    log_weights, joint = stream.initial_log_weights(jnp.asarray(biases)), np.ones(len(biases))
    for predictability, item in history:
        probabilities = 1 / (1 + np.exp(-biases * predictability))
        predicted = stream.predictive_probability(log_weights, jnp.asarray(biases), jnp.float32(predictability))
        assert np.isclose(predicted, joint @ probabilities / joint.sum(), atol=1e-5)
        log_weights = stream.update_log_weights(
            log_weights, jnp.asarray(biases), jnp.float32(predictability), jnp.float32(item)
        )
        joint = joint * (probabilities if item else 1 - probabilities)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_length": 0}, "'segment_length' must be at least 1"),
        ({"num_levels": 1}, "'num_levels' must be at least 2"),
        ({"base_predictability": 0.0}, "'base_predictability' must be greater than 0"),
        ({"biases": ("a",)}, "a list of numbers"),
    ],
)
def test_invalid_stream_settings_are_rejected(settings, message):
    with pytest.raises(BadInput, match=message):
        plugins.build("environments", "stream", **settings)


def two_segments(key):
    """Inputs of two segments, [L, I]; the last column marks where they begin."""
    x = jax.random.normal(key, (14, 4)).at[:, 3].set(0.0).at[jnp.array([0, 8]), 3].set(1.0)
    return x.at[:, 2].set(jnp.sign(x[:, 2]))


@pytest.mark.parametrize("name", CONTENTS)
def test_predictions_by_step_equal_predictions_by_sequence(name):
    predictor = build_predictor(name, 4, 2, 0, input_index=2)
    noise = jax.random.normal(jax.random.key(1), (8000,))
    weights = jax.tree.map(lambda w: w + 0.3 * noise[: w.size].reshape(w.shape), predictor.init(jax.random.key(0)))
    x = two_segments(jax.random.key(2))

    def step(memory, inputs):
        logits, memory = predictor.query(weights, memory, inputs)
        return memory, logits

    _, by_step = jax.jit(lambda x: jax.lax.scan(step, predictor.init_memory(), x))(x)
    by_sequence = jax.jit(predictor.query_sequence)(weights, x)
    assert by_step.shape == (14, 2) and float(jnp.std(by_step)) > 0.05
    np.testing.assert_allclose(by_step, by_sequence, atol=2e-5)
    # The predictions of the second segment do not depend on the first.
    np.testing.assert_allclose(by_sequence[8:], jax.jit(predictor.query_sequence)(weights, x[8:]), atol=2e-5)


def test_the_table_predictor_counts_items():
    predictor = build_predictor("table", 4, 1, 0, input_index=2)
    weights = predictor.init(jax.random.key(0))
    x = jnp.zeros((1, 5, 4)).at[0, :, 2].set(jnp.array([0, 1, 1, 1, -1]))
    items = jnp.array([[1.0, 1, 1, 0, 0]])
    batch = PredictionBatch(x, jnp.zeros((1, 5), jnp.int32), items, jnp.ones((1, 5)))
    weights, _ = predictor.update(weights, predictor.init_scratch(weights), batch, jnp.float32(0))
    probabilities = jax.nn.sigmoid(weights[:, 0])  # (1 + hits) / (2 + tries) in each cell
    np.testing.assert_allclose(probabilities, [1 / 3, 2 / 3, 3 / 5], rtol=1e-5)


def test_content_that_is_no_predictor_is_rejected():
    with pytest.raises(BadInput, match="no predictor"):
        build_predictor("tabular_model", 4, 1, 0, input_index=2)
    with pytest.raises(BadInput, match="multiple of the 2 heads"):
        build_predictor("causal_transformer", 4, 1, 7, input_index=2)


def measure_biases(name, num_lifetimes=40):
    agent = plugins.build("organisms", name, ENV.spec, DRIVES)
    prepared = PreparedSubject(agent, ENV, DRIVES, (), learning=False)
    keys = sample_lifetime_keys(jax.random.key(0), num_lifetimes, "validation")
    measurements = jax.jit(jax.vmap(lambda key: sacrifice.measure_lifetime(key, prepared)))(keys)
    return {key: np.asarray(value) for key, value in measurements.items()}


def test_a_calibrated_filter_has_exactly_no_bias_and_a_planted_bias_is_measured():
    calibrated = measure_biases("calibrated_filter")
    assert not calibrated[sacrifice.BEYOND_ACCURACY].any() and not calibrated[sacrifice.ALONG_DIRECTION].any()
    shift_inducing = measure_biases("shift_inducing_predictor", sacrifice.build().num_lifetimes)
    for part in (sacrifice.BEYOND_ACCURACY, sacrifice.ALONG_DIRECTION):
        assert np.allclose(shift_inducing[part], 0.02, atol=0.006)
    result = sacrifice.decide(shift_inducing, sacrifice.THRESHOLDS)
    assert result.verdict == "yes" and result.effects[sacrifice.ALONG_DIRECTION].z > 50


@pytest.mark.parametrize(("num_lifetimes", "verdicts"), [(20, ["undetermined"] * 2), (300, ["yes", "no"])])
def test_a_bias_with_zero_variance_is_decided_by_enough_lifetimes(num_lifetimes, verdicts):
    def measurements(bias, skill=0.1):
        values = dict.fromkeys((sacrifice.BEYOND_ACCURACY, sacrifice.ALONG_DIRECTION), bias)
        values |= {"skill": skill, "max_skill": 0.1}
        return {name: np.full(num_lifetimes, value) for name, value in values.items()}

    assert [sacrifice.decide(measurements(bias), sacrifice.THRESHOLDS).verdict for bias in (0.02, 0.0)] == verdicts


def test_a_predictor_without_skill_is_not_tested():
    names = (sacrifice.BEYOND_ACCURACY, sacrifice.ALONG_DIRECTION, "max_skill")
    unskilled = dict.fromkeys(names, np.zeros(300)) | {"skill": np.full(300, -0.1)}
    assert "no better" in sacrifice.decide(unskilled, sacrifice.THRESHOLDS).competence_failure


def test_an_error_planted_in_the_test_is_detected(monkeypatch):
    """With a posterior that ignores the items, the calibrated filter appears biased."""
    faulty_stream = SimpleNamespace(**vars(stream) | {"update_log_weights": lambda log_weights, *_: log_weights})
    monkeypatch.setattr(sacrifice, "stream", faulty_stream)
    assert np.abs(measure_biases("calibrated_filter", num_lifetimes=8)[sacrifice.BEYOND_ACCURACY]).max() > 0.01


def test_a_twin_observes_the_same_lifetime_with_the_direction_reversed():
    agent = plugins.build("organisms", "noisy_filter", ENV.spec, DRIVES)
    key = jax.random.key(4)
    _, trajectory = rollout_lifetime(key, agent, sacrifice.balanced_env(ENV), DRIVES, (), False)
    _, twin = rollout_lifetime(key, agent, sacrifice.reversed_replay(ENV, trajectory), DRIVES, (), False)
    assert (twin.observation[:, stream.DIRECTION] == -trajectory.observation[:, stream.DIRECTION]).all()
    unchanged = [stream.PREDICTABILITY, stream.BEGINS]
    assert (twin.observation[:, unchanged] == trajectory.observation[:, unchanged]).all()
    assert (twin.outcome == trajectory.outcome).all() and (twin.action == trajectory.action).all()
    assert np.ptp(trajectory.observation[:, stream.DIRECTION]) == 0, "a balanced lifetime has one direction"


@pytest.mark.parametrize("name", ["calibrated_filter", "last_item_predictor"])
def test_where_activations_are_reset_no_item_is_remembered(name):
    """Each item is an episode: reset at each, an exact filter and a memory of one item both report the prior."""
    settings = {"direction_weight": 0.0} if name == "last_item_predictor" else {}
    agent = plugins.build("organisms", name, ENV.spec, DRIVES, **settings)
    for reset_each_episode in (False, True):
        options = {"reset_each_episode": reset_each_episode}
        _, trajectory = rollout_lifetime(jax.random.key(4), agent, ENV, DRIVES, (), False, **options)
        reports = stream.report_probability(trajectory.action, ENV.spec.num_actions)
        assert (reports == 0.5).all() == reset_each_episode


def test_prediction_is_learned_within_one_lifetime():
    env = plugins.build("environments", "stream", num_segments=60, segment_length=10)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "predictor", env.spec, drives, content="table", sequence_length=10)
    state, trajectory = jax.jit(lambda key: rollout_lifetime(key, agent, env, drives, (), True))(jax.random.key(0))
    log_odds = state.weights.content[:, 0]
    assert log_odds[2] - log_odds[0] > 0.5  # the last item predicts the next one
    assert int(state.weights.scratch.num_steps) == 600
    last_row = np.asarray(trajectory.outcome[-10:, stream.ITEM])
    np.testing.assert_array_equal(np.asarray(state.weights.scratch.buffer.target[59 % 64]), last_row)


def test_the_predictor_rejects_other_envs():
    env = plugins.build("environments", "bandit")
    with pytest.raises(BadInput, match="is for the environment 'stream', not for 'bandit'"):
        plugins.build("agents", "predictor", env.spec, steering.build(env.spec))
