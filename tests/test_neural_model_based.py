"""The agent `neural_model_based` and its learned content: replay, returns, learning, and rewards by steering."""

import sys
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering
from ontogeny.agents import actor_critic, experience, latent_search, neural_model_based, neural_updates
from ontogeny.agents.neural_updates import NeuralSettings
from ontogeny.content import latent_model, outcome_ensemble, two_hot
from ontogeny.content.distributional_value import lambda_returns
from ontogeny.content.optimizers import build_flat_optimizer
from ontogeny.rollouts import rollout
from ontogeny.trees import bitwise_equal
from ontogeny.types import BadInput, Environment, EnvSpec, Percept, TimeStep, Transition, Weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
NUM_STEPS, CELLS = 900, 5
CHANGES = {
    "width": 16, "learning_rate": 3e-3, "replay_ratio": 128.0, "discount": 0.9, "imagination_length": 6,
    "exploration_bonus": 0.0,
}  # fmt: skip
SETTINGS = NeuralSettings(**plugins.default_settings("agents", "neural_model_based") | CHANGES)
SPEC = EnvSpec("corridor", 2, CELLS, (), ("apple", "bread"), NUM_STEPS, 20, (("apple", 1.0), ("bread", -1.0)))
TO_APPLE, TO_BREAD = 0, 1  # actions


def corridor() -> Environment:
    """A corridor of five cells, entered in the middle: an apple at one end, bread at the other, and both end it."""

    def reset(key):
        del key
        cell = jnp.int32(CELLS // 2)
        return cell, TimeStep(cell, cell, jnp.zeros(2), jnp.bool_(True), jnp.float32(1))

    def step(key, cell, action):
        cell = (cell + 2 * action - 1).astype(jnp.int32)
        is_end = (cell == 0) | (cell == CELLS - 1)
        outcome = jnp.stack([cell == 0, cell == CELLS - 1]).astype(jnp.float32)
        next_cell = jnp.where(is_end, CELLS // 2, cell).astype(jnp.int32)
        return next_cell, TimeStep(next_cell, cell, outcome, is_end, 1.0 - is_end.astype(jnp.float32))

    return Environment(SPEC, reset, step, lambda outcome: outcome[0])


def build_agent(drives=None):
    reward = steering.build(SPEC, drives)
    return reward, neural_model_based.build(SPEC, reward, **SETTINGS._asdict())


@pytest.fixture(scope="module")
def lifetime():
    """The state after a lifetime in the corridor, and its trajectory."""
    reward, agent = build_agent()
    key = jax.random.key(100)
    state = agent.init(key, agent.genome(key))
    return rollout(key, agent, corridor(), reward, state, NUM_STEPS, True)


PARAMS = neural_model_based.make_params(SPEC, steering.build(SPEC), SETTINGS)


@jax.jit
def infer_state(model, cell, is_first):
    """The latent state at a cell, as far as the observation alone shows it."""
    encoded = latent_model.encode_percept(PARAMS.shape, model, cell, is_first, jnp.zeros(2))
    noise = jnp.full(PARAMS.shape.num_latents, 0.5)
    return latent_model.observe(PARAMS.shape, model, jnp.zeros(SETTINGS.width), encoded, noise)[0]


def choice_at_the_start(state):
    """The probabilities of the actions at the first step of an episode."""
    latent = infer_state(state.weights.content.model, jnp.int32(CELLS // 2), jnp.bool_(True))
    return np.exp(actor_critic.policy_logits(state.weights.content.actor, latent_model.flatten_state(latent)))


def test_it_learns_within_one_lifetime(lifetime):
    _, trajectory = lifetime
    reward, ends = np.asarray(trajectory.reward), np.asarray(trajectory.discount) == 0
    first, last = slice(0, NUM_STEPS // 4), slice(-NUM_STEPS // 4, None)
    assert abs(reward[first][ends[first]].mean()) < 0.9
    assert reward[last][ends[last]].mean() > 0.9
    assert all(np.isfinite(value).all() for value in trajectory.info.values())


def test_a_changed_drive_changes_the_choice_without_a_step_in_the_environment(lifetime):
    state, _ = lifetime
    assert choice_at_the_start(state)[TO_APPLE] > 0.9
    reward = steering.build(SPEC, {"apple": -1.0, "bread": 1.0})
    params = neural_model_based.make_params(SPEC, reward, SETTINGS)
    retrain = jax.jit(partial(neural_model_based.retrain_policy, params), static_argnums=2)
    retrained = retrain(jax.random.key(0), state, 300)
    assert choice_at_the_start(retrained)[TO_BREAD] > 0.9
    assert bitwise_equal(retrained.weights.content.model, state.weights.content.model)
    assert int(retrained.weights.scratch.experience.num_steps) == NUM_STEPS


@pytest.mark.parametrize(
    ("apple", "bread", "best"),
    [(1.0, -1.0, TO_APPLE), pytest.param(-1.0, 1.0, TO_BREAD, marks=pytest.mark.slow)],
)
def test_search_finds_the_action_of_any_drives_without_a_policy_or_a_critic(lifetime, apple, bread, best):
    """The model of a lifetime with other drives, and the policy and the critic before any learning."""
    trained = lifetime[0].weights.content
    params = neural_model_based.make_params(SPEC, steering.build(SPEC, {"apple": apple, "bread": bread}), SETTINGS)
    agent = build_agent()[1]
    initial = agent.init(jax.random.key(1), agent.genome(jax.random.key(1))).weights.content
    content = initial._replace(model=trained.model)
    latent = infer_state(trained.model, jnp.int32(CELLS // 2), jnp.bool_(True))
    search = jax.jit(jax.vmap(latent_search.build_search(params), in_axes=(0, None, None)))
    actions, log_probabilities = search(jax.random.split(jax.random.key(2), 32), content, latent)
    assert np.mean(np.asarray(actions) == best) > 0.8
    assert np.allclose(np.sum(np.exp(log_probabilities), axis=-1), 1, atol=1e-4)


def test_search_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(BadInput, match=r"\(planner=search\) need the package mctx: pip install 'ontogeny\[search\]'"):
        neural_model_based.build(SPEC, steering.build(SPEC), planner="search")


def test_the_ensemble_agrees_where_it_was_trained_and_nowhere_else():
    optimizer = build_flat_optimizer()
    weights = outcome_ensemble.init_ensemble(optimizer, jax.random.key(0), 12, 2)
    inputs = jax.nn.one_hot(jnp.arange(12), 12)
    before = outcome_ensemble.query_disagreement(weights.content, inputs)
    assert 0.5 < np.mean(before) < 2
    outcomes = jnp.tile(jnp.array([1.0, 0.0]), (12, 1))
    mask = (jnp.arange(12) < 6).astype(jnp.float32)
    update = jax.jit(partial(outcome_ensemble.update_ensemble, optimizer))
    for _ in range(300):
        weights, loss = update(weights, inputs, outcomes, mask, jnp.float32(1e-2))
    after = outcome_ensemble.query_disagreement(weights.content, inputs)
    assert loss < 1e-3
    assert np.max(after[:6]) < 0.1 and np.min(after[6:]) > 0.3


def test_the_exploration_bonus_is_added_to_the_rewards_of_steering(lifetime):
    params = PARAMS._replace(settings=SETTINGS._replace(exploration_bonus=5.0))
    ensemble = lifetime[0].weights.content.ensemble  # which no update has changed, as its bonus was zero
    states = jax.random.normal(jax.random.key(0), (3, PARAMS.shape.state_size))
    bonus = neural_updates.add_exploration_bonus(params, ensemble, jnp.ones(3), states, jnp.arange(3) % 2) - 1
    inputs = jnp.concatenate([states, jax.nn.one_hot(jnp.arange(3) % 2, 2)], axis=-1)
    assert np.allclose(bonus, 0.5 * outcome_ensemble.query_disagreement(ensemble, inputs)) and np.min(bonus) > 0.1
    assert np.all(neural_updates.add_exploration_bonus(PARAMS, ensemble, jnp.ones(3), states, jnp.zeros(3, int)) == 1)


def test_shuffled_actions_are_those_of_other_trajectories(lifetime):
    """Consequences, and so the exploration bonus, belong to the action of another trajectory."""
    content = lifetime[0].weights.content
    starts = jax.tree.map(lambda leaf: jnp.tile(leaf, (64, 1)), latent_model.init_state(PARAMS.shape))
    imagine = jax.jit(actor_critic.imagine_trajectories, static_argnums=(0, 6, 7))
    uniform = jax.tree.map(jnp.zeros_like, content.actor)
    for shuffles in (False, True):
        trajectories = imagine(
            PARAMS.shape, jax.random.key(0), content.model, uniform, starts, jnp.ones(64), 3, shuffles
        )
        chosen, effective = np.asarray(trajectories.actions), np.asarray(trajectories.effective_actions)
        assert np.array_equal(chosen, effective) != shuffles
        assert np.array_equal(np.sort(chosen, axis=1), np.sort(effective, axis=1))


def test_steps_that_do_not_count_leave_the_range_of_returns_alone(lifetime):
    """The return of a step outside of the mask is its value, far below the rewards of the others."""
    state = lifetime[0]
    (content, scratch), N = (state.weights.content, state.weights.scratch), 200
    states = jax.random.normal(jax.random.key(0), (1, N, content.actor[0].weight.shape[0]))
    actions = jnp.zeros((1, N), jnp.int32)
    log_probabilities = actor_critic.policy_logits(content.actor, states)[..., 0]
    mask = jnp.float32(jnp.arange(N) % 2)[None]
    trajectories = actor_critic.LatentTrajectories(
        states, actions, actions, jnp.zeros((1, N, 2)), jnp.zeros((1, N)), states, log_probabilities, mask
    )
    source = actor_critic.WeightedTrajectories(trajectories, 1000 + jnp.arange(N)[None] / 2, 1.0)
    weights = actor_critic.LatentActorCritic(
        Weights(content.actor, scratch.optimizers.actor),
        Weights(content.critic, scratch.optimizers.critic),
        scratch.slow_critic,
        jnp.float32(0),
    )
    update = jax.jit(partial(actor_critic.update_actor_critic, PARAMS.actor_critic))
    updated, _ = update(weights, [source], jnp.float32(0), jnp.float32(1e-3))
    assert updated.return_range == pytest.approx(0.01 * 90, abs=0.011)  # of 100 rewards, from 1000.5 to 1099.5


def test_the_model_predicts_what_follows_each_action(lifetime):
    model = lifetime[0].weights.content.model
    latent = infer_state(model, jnp.int32(1), jnp.bool_(False))
    query = jax.jit(PARAMS.model.query)
    prediction = query(jax.random.key(0), model, latent, jnp.int32(TO_APPLE))
    assert np.allclose(prediction.outcome_probabilities @ two_hot.BIN_VALUES, [1.0, 0.0], atol=0.2)
    assert prediction.discount < 0.2
    prediction = query(jax.random.key(0), model, latent, jnp.int32(TO_BREAD))
    assert np.mean(prediction.observation, axis=0)[2] > 0.8 and prediction.discount > 0.8


@pytest.mark.parametrize("latents", latent_model.LATENTS)
def test_latents_are_samples_or_their_probabilities(lifetime, latents):
    model = lifetime[0].weights.content.model
    shape = latent_model.model_shape(SPEC, SETTINGS.width, latents)
    noises = jax.random.uniform(jax.random.key(0), (200, shape.num_latents))
    states = jax.vmap(partial(latent_model.imagine, shape, model, jnp.zeros(SETTINGS.width)))(noises)
    groups = np.asarray(states.latent).reshape(200, shape.num_latents, latent_model.NUM_CLASSES)
    assert np.allclose(groups.sum(axis=-1), 1, atol=1e-5)
    if latents == "sampled":
        assert set(np.unique(np.round(groups, 6))) == {0, 1}
        expected = latent_model.model_shape(SPEC, SETTINGS.width, "expected")
        probabilities = latent_model.imagine(expected, model, jnp.zeros(SETTINGS.width), noises[0]).latent
        assert np.allclose(states.latent.mean(axis=0), probabilities, atol=0.15)
    else:
        assert np.all(groups == groups[0]) and 0 < groups.min() < groups.max() < 1


def test_imagined_rewards_are_the_steering_of_predicted_outcomes(lifetime):
    """Two drives, one state: outcomes are imagined alike, and rewards differ as the drives do."""
    state, _ = lifetime
    content, buffer = state.weights.content, state.weights.scratch.experience

    @partial(jax.jit, static_argnums=0)
    def imagined_rewards(apple):
        reward = steering.build(SPEC, {"apple": apple, "bread": 0.0})
        params = neural_model_based.make_params(SPEC, reward, SETTINGS)
        sampled = experience.sample_experience(jax.random.key(1), buffer, 4, 16)
        states = latent_model.infer_states(params.shape, jax.random.key(2), content.model, sampled.sequences)
        starts = jax.tree.map(lambda leaf: leaf[:, 0], states)
        trajectories = actor_critic.imagine_trajectories(
            params.shape, jax.random.key(3), content.model, content.actor, starts, jnp.ones(4), 6
        )
        return params.steering(trajectories.outcomes)

    assert np.allclose(3 * imagined_rewards(1.0), imagined_rewards(3.0), atol=1e-5)
    assert np.max(imagined_rewards(1.0)) > 0.8


def test_vector_observations_are_accepted_and_a_batch_is_updated_only_when_an_update_is_due():
    """Only lowered; the slow tests of contracts run the agent in every environment."""
    env = plugins.build("environments", "stream", num_segments=2, segment_length=10)
    assert env.spec.num_observations == 0
    reward = steering.build(env.spec)
    agent = neural_model_based.build(env.spec, reward, **SETTINGS._asdict())

    def continue_lifetime(key, state):
        return rollout(key, agent, env, reward, state, 3, True)[0]

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    states = jax.eval_shape(jax.vmap(lambda key: agent.init(key, agent.genome(key))), keys)
    program = jax.jit(jax.vmap(continue_lifetime)).trace(keys, states)
    assert "cond[" in str(program.jaxpr), "an update is computed in every step of a batch"
    program.lower()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("width", 4),
        ("ablation", "magic"),
        ("planner", "magic"),
        ("latents", "magic"),
        ("imagination_share", 1.5),
        ("exploration_bonus", -1.0),
        ("replay_ratio", 0.0),
        ("discount", 1.5),
        ("imagination_length", 0),
        ("learning_rate", 0.0),
        ("entropy_weight", 0.0),
    ],
)
def test_settings_out_of_range_are_rejected(setting, value):
    with pytest.raises(BadInput, match=setting):
        neural_model_based.build(SPEC, steering.build(SPEC), **{setting: value})


def test_sampled_sequences_are_consecutive_and_the_last_is_the_newest():
    def store(buffer, t):
        percept = Percept(t % CELLS, jnp.int32(0), jnp.float32(0), jnp.zeros(2), t == 0, jnp.float32(1))
        following = percept._replace(outcome=jnp.stack([t, 2 * t]).astype(jnp.float32))
        return experience.add_step(
            buffer, Transition(percept, t, following, percept.observation), t, -t.astype(jnp.float32)
        ), None

    def sample(num_steps, num_sequences):
        buffer = jax.lax.scan(store, experience.init_experience(SPEC, 8), jnp.arange(num_steps))[0]
        return experience.sample_experience(jax.random.key(0), buffer, num_sequences, 4)

    sample = jax.jit(sample, static_argnums=(0, 1))
    assert np.array_equal(sample(3, 3).sequences.mask, [[1, 1, 1, 0]] * 3)
    sequences, log_probability = sample(11, 64)
    assert np.array_equal(np.diff(sequences.action, axis=1), np.ones((64, 3)))
    assert set(np.unique(sequences.action)) == set(range(3, 11)) and np.all(sequences.mask == 1)
    assert np.array_equal(sequences.action[-1], [7, 8, 9, 10])
    assert np.array_equal(sequences.next_outcome[..., 1], 2 * sequences.action)
    assert np.array_equal(log_probability, -sequences.action)


VECTOR_SPEC = SPEC._replace(num_observations=0, observation_shape=(2,))


def numbered_transition(spec, t, action) -> Transition:
    """The step of number t of a lifetime in one episode, whose observations are far from 0 where they are vectors."""
    observation = jnp.int32(t % CELLS) if spec.num_observations else jnp.stack([30.0 + t, -50.0 - t * t])
    outcome = jnp.float32([t % 2, 0])
    percept = Percept(observation, jnp.int32(-1), jnp.float32(0), outcome, jnp.bool_(t == 0), jnp.float32(1))
    return Transition(percept, jnp.int32(action), percept, observation)


def test_an_untrained_model_infers_states_as_in_acting_and_learn_takes_every_update_that_is_due(monkeypatch):
    """Two updates of `learn` in imagination are two of `retrain_policy`, whatever the share of imagination."""
    monkeypatch.setattr(neural_model_based, "NUM_WARM_UP_STEPS", 1)
    settings = SETTINGS._replace(width=8, replay_ratio=300.0, imagination_length=2, ablation="untrained_model")
    reward = steering.build(VECTOR_SPEC)
    params = neural_model_based.make_params(VECTOR_SPEC, reward, settings)
    agent = neural_model_based.build(VECTOR_SPEC, reward, **settings._replace(imagination_share=1.0)._asdict())
    state = agent.init(jax.random.key(0), agent.genome(jax.random.key(1)))
    buffer = state.weights.scratch.experience
    for t in range(5):
        buffer = experience.add_step(buffer, numbered_transition(VECTOR_SPEC, t, t % 2), jnp.int32(0), jnp.float32(-1))
    state = state._replace(weights=state.weights._replace(scratch=state.weights.scratch._replace(experience=buffer)))
    assert neural_model_based.count_updates(params.updates_per_step, jnp.int32(6)) == 2
    learned, _ = jax.jit(agent.learn)(jax.random.key(2), state, numbered_transition(VECTOR_SPEC, 5, 1))
    buffer = learned.weights.scratch.experience
    state = state._replace(weights=state.weights._replace(scratch=state.weights.scratch._replace(experience=buffer)))
    retrain = jax.jit(partial(neural_model_based.retrain_policy, params), static_argnums=2)
    retrained = retrain(jax.random.key(2), state, 2)
    assert bitwise_equal(learned.weights.content.model, state.weights.content.model)
    for leaf, expected in zip(jax.tree.leaves(learned.weights), jax.tree.leaves(retrained.weights), strict=True):
        assert np.allclose(leaf, expected, rtol=1e-4, atol=1e-5)


def test_a_replaced_action_is_stored_as_certain_and_a_chosen_one_with_its_probability():
    _, agent = build_agent()
    state = agent.init(jax.random.key(0), agent.genome(jax.random.key(1)))
    chosen, state = agent.act(jax.random.key(2), state, numbered_transition(SPEC, 0, 0).percept)

    @jax.jit
    def stored_steps(state, carried_out):
        """Only the buffer is returned, so that the update, which is not due, need not be compiled."""
        transition = numbered_transition(SPEC, 0, 0)._replace(action=carried_out)
        return agent.learn(jax.random.key(3), state, transition)[0].weights.scratch.experience

    assert state.activations.action == chosen
    for carried_out, log_probability in ((chosen, np.log(0.5)), (1 - chosen, 0.0)):
        buffer = stored_steps(state, carried_out)
        assert buffer.action[0] == carried_out
        assert buffer.log_probability[0] == pytest.approx(log_probability, abs=1e-6)


@pytest.mark.parametrize("replay_ratio", [1 / 64, 0.3, 64.0, 100.0, 180.0, 256.0, 300.0, 1024.0])
def test_steps_are_replayed_as_often_as_the_ratio_says(replay_ratio):
    params = neural_model_based.make_params(SPEC, steering.build(SPEC), SETTINGS._replace(replay_ratio=replay_ratio))
    rate, late = Fraction(str(replay_ratio)) / 256, 2**30  # products of the late step exceed 32 bits
    steps = [*range(1, 40_001), late]
    counts = neural_model_based.count_updates(params.updates_per_step, jnp.asarray(steps, jnp.int32))
    assert np.array_equal(counts, [int(n * rate) - int((n - 1) * rate) for n in steps])


def test_perturbed_genomes_keep_positive_settings():
    _, agent = build_agent()
    genome = agent.genome(jax.random.key(0))
    assert genome.learning_rate == pytest.approx(SETTINGS.learning_rate, rel=1e-5)
    assert genome.entropy_weight == pytest.approx(SETTINGS.entropy_weight, rel=1e-5)
    noise = 0.05 * jax.random.normal(jax.random.key(1), (2, 1000))  # the standard deviation of `evolution`
    perturbed = jax.tree.map(jnp.add, genome, type(genome)(*noise))
    settings = jax.vmap(lambda genome: jnp.stack([genome.learning_rate, genome.entropy_weight]))(perturbed)
    ratios = settings / jnp.array([SETTINGS.learning_rate, SETTINGS.entropy_weight])
    assert jnp.min(ratios) > 0.7 and jnp.max(ratios) < 1.4
    assert agent.init(jax.random.key(0), genome).weights.scratch.genome == genome


def brute_force_returns(rewards, discounts, next_values, trace_decay):
    """The recursive definition of lambda returns."""
    returns, later = [], next_values[-1]
    for reward, discount, value in list(zip(rewards, discounts, next_values, strict=True))[::-1]:
        later = reward + discount * ((1 - trace_decay) * value + trace_decay * later)
        returns.insert(0, later)
    return np.array(returns)


def test_lambda_returns_equal_their_definition_and_a_planted_error_is_detected():
    rewards, discounts, next_values = jax.random.uniform(jax.random.key(0), (3, 6))
    values = jnp.append(0.5, next_values[:-1])
    expected = brute_force_returns(rewards, discounts, next_values, 0.9)
    assert np.allclose(lambda_returns(rewards, discounts, values, next_values, 0.9), expected, atol=1e-5)
    shifted = jnp.roll(discounts, 1)
    assert not np.allclose(lambda_returns(rewards, shifted, values, next_values, 0.9), expected, atol=1e-2)
    no_steps = lambda_returns(rewards, discounts, values, next_values, 0.9, jnp.zeros(6))
    assert np.allclose(no_steps, values)


def test_two_hot_targets_have_the_number_as_their_mean():
    numbers = jnp.array([-1e6, -30.0, -1.0, 0.0, 0.3, 5000.0])
    targets = two_hot.two_hot_target(numbers)
    assert np.allclose(targets.sum(axis=-1), 1) and np.max((targets > 0).sum(axis=-1)) == 2
    assert np.allclose(targets @ two_hot.BIN_VALUES, [two_hot.BIN_VALUES[0], *numbers[1:]], rtol=1e-4, atol=1e-5)
    assert two_hot.two_hot_mean(jnp.asarray(two_hot.INITIAL_LOGITS)) == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["untrained_model", "shuffled_actions"])
def test_without_the_consequences_of_actions_it_does_not_learn(ablation):
    reward = steering.build(SPEC)
    agent = neural_model_based.build(
        SPEC, reward, **SETTINGS._replace(ablation=ablation, imagination_share=1.0)._asdict()
    )
    key = jax.random.key(100)
    _, trajectory = rollout(key, agent, corridor(), reward, agent.init(key, agent.genome(key)), NUM_STEPS, True)
    ends = np.asarray(trajectory.discount)[-NUM_STEPS // 4 :] == 0
    assert np.asarray(trajectory.reward)[-NUM_STEPS // 4 :][ends].mean() < 0.7
