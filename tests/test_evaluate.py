"""Evaluation uses tasks that training cannot draw, the same for every agent, and is frozen by default."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import stdtrit

from ontogeny import lifetimes, plugins, rng
from ontogeny.errors import BadInput, ContractViolation, LearningDiverged, require_finite_learning
from ontogeny.stages.assembly import assemble
from ontogeny.stages.evaluate import curve_points, evaluate, record_lifetime, score_by_position, task_keys
from ontogeny.stages.spec import parse_run_spec

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture(autouse=True)
def few_lifetimes_per_call(monkeypatch):
    """One shape for all numbers of tasks, so that little is compiled."""
    monkeypatch.setattr(lifetimes, "MAX_LIFETIMES_PER_CALL", 4)


def assembled(agent: str, env: str):
    return assemble(parse_run_spec({"agent": agent, "env": env}))


def genome(assembly):
    return assembly.agent.genome(jax.random.key(0))


@pytest.fixture(scope="module")
def counting():
    return assembled(str(PLUGINS / "counting.py"), "bandit:num_arms=3,num_pulls=20")


def test_no_training_lifetime_can_be_an_evaluation_lifetime():
    keys = task_keys(0, 50)
    assert {rng.stage_of(key) for key in keys} == {"evaluation"}
    training = rng.sample_lifetime_keys(jax.random.key(0), 50, "training")
    words = {tuple(np.asarray(data)) for data in jax.random.key_data(keys)}
    assert not words & {tuple(np.asarray(data)) for data in jax.random.key_data(training)}


def test_mean_error_and_interval_are_those_of_the_totals(counting):
    evaluation = evaluate(*counting, genome(counting), num_tasks=101, seed=0)
    assert evaluation.totals.shape == (101,) and evaluation.totals.dtype == np.float64
    assert evaluation.mean == np.mean(evaluation.totals)
    assert evaluation.standard_error == pytest.approx(np.std(evaluation.totals, ddof=1) / np.sqrt(101), rel=1e-12)
    half_width = stdtrit(100, 0.975) * evaluation.standard_error  # Student's t
    assert evaluation.interval == pytest.approx((evaluation.mean - half_width, evaluation.mean + half_width))
    assert (evaluation.num_tasks, evaluation.env_steps, evaluation.mode) == (101, 101 * 20, "frozen")
    assert evaluation.curve.mean.mean() * 20 == pytest.approx(evaluation.mean)


def test_a_task_is_the_same_for_every_agent(counting):
    """In an environment whose outcomes ignore the action, all agents score the same, task by task."""
    agent, env, steering = counting
    indifferent = env._replace(step=lambda key, state, action: env.step(key, state, jnp.int32(0)))
    first = evaluate(agent, indifferent, steering, genome(counting), num_tasks=30, seed=4)
    second = evaluate(
        *assembled("random", "bandit:num_arms=3,num_pulls=20")[:1], indifferent, steering, (), num_tasks=30, seed=4
    )
    assert np.array_equal(first.totals, second.totals) and np.ptp(first.totals) > 0


def test_neither_batches_nor_the_number_of_tasks_change_a_score(counting, monkeypatch):
    progress = []
    in_batches = evaluate(
        *counting, genome(counting), num_tasks=13, seed=1, on_progress=lambda *numbers: progress.append(numbers)
    )
    monkeypatch.setattr(lifetimes, "MAX_LIFETIMES_PER_CALL", 1024)
    at_once = evaluate(*counting, genome(counting), num_tasks=30, seed=1)
    assert np.array_equal(in_batches.totals, at_once.totals[:13])
    assert len(progress) > 1 and progress[-1] == (13, 13, in_batches.env_steps)


def test_the_default_mode_is_frozen(counting):
    """In this mode the agent that learns counts by weights stays at chance."""
    frozen = evaluate(*counting, genome(counting), num_tasks=400, seed=0)
    online = evaluate(*counting, genome(counting), num_tasks=400, seed=0, mode="online")
    difference = online.totals - frozen.totals
    assert difference.mean() > 3 * difference.std() / 20
    assert frozen.mean == pytest.approx(10, abs=4 * frozen.standard_error)
    for mode in ("onlin", "learning", ""):
        with pytest.raises(BadInput, match="there is no mode"):
            evaluate(*counting, genome(counting), num_tasks=4, seed=0, mode=mode)


def test_weights_that_change_while_frozen_are_detected():
    """Of an agent that was built without the check that `assemble` makes."""
    assembly = assembled("random", "bandit:num_pulls=5")
    agent = plugins.build("agents", str(PLUGINS / "changes_weights_in_act.py"), assembly.env.spec, assembly.steering)
    with pytest.raises(ContractViolation, match="the weights changed in a lifetime without learning"):
        evaluate(agent, *assembly[1:], (), num_tasks=2, seed=0)


def test_weights_that_learn_although_the_agent_does_not_declare_it_are_detected_online(counting):
    undeclared = counting.agent._replace(learning=False)
    with pytest.raises(ContractViolation, match="although `learning` is False"):
        evaluate(undeclared, *counting[1:], genome(counting), num_tasks=2, seed=0, mode="online")


def test_the_quantity_that_diverges_first_is_named():
    with pytest.raises(LearningDiverged, match="its 'z' is not finite at step 3 of"):
        require_finite_learning({"a": 7, "z": 2, "finite": 20}, 20)
    require_finite_learning({"finite": 20}, 20)


def test_a_lifetime_in_which_learning_diverges_has_no_score():
    assembly = assembled(str(PLUGINS / "diverging.py"), "bandit:num_arms=3,num_pulls=20")
    assert evaluate(*assembly, genome(assembly), num_tasks=2, seed=0).env_steps == 40  # frozen
    with pytest.raises(LearningDiverged, match="its 'loss' is not finite at step 4 of the lifetime"):
        evaluate(*assembly, genome(assembly), num_tasks=2, seed=0, mode="online")


def test_a_log_in_which_learning_diverges_has_no_score():
    assembly = assembled(str(PLUGINS / "diverging.py"), "bandit:num_arms=3,num_pulls=20")
    keys = task_keys(0, 2)
    with pytest.raises(LearningDiverged, match="its 'loss' is not finite at step 4 of the lifetime"):
        lifetimes.score_from_log(keys, genome(assembly), *assembly)
    short = assembled(str(PLUGINS / "diverging.py"), "bandit:num_arms=3,num_pulls=3")
    assert lifetimes.score_from_log(keys, genome(short), *short).shape == (2,)


@pytest.mark.parametrize("field", [{"observation": jnp.int32(7)}, {"discount": jnp.float32(0.9)}])
def test_time_steps_outside_of_the_spec_are_detected_in_every_lifetime(counting, field):
    def step(key, state, action):
        state, time_step = counting.env.step(key, state, action)
        is_late = jax.random.uniform(key) < 0.3
        changed = {name: jnp.where(is_late, value, getattr(time_step, name)) for name, value in field.items()}
        return state, time_step._replace(**changed)

    env = counting.env._replace(step=step)
    with pytest.raises(ContractViolation, match="outside of the range in its spec, or a discount"):
        evaluate(counting.agent, env, counting.steering, genome(counting), num_tasks=2, seed=0)


def test_evaluation_continues_from_a_state(counting):
    """A state that has learned is evaluated with its weights."""
    state = counting.agent.init(jax.random.key(0), genome(counting))
    content = state.weights.content | {"hope": jnp.float32(5.0)}
    learned = state._replace(weights=state.weights._replace(content=content | {"sums": jnp.array([9.0, 0.0, 0.0])}))
    evaluation = evaluate(*counting, learned, num_tasks=10, seed=0)
    first_arm_only = evaluate(
        counting.agent,
        counting.env._replace(step=lambda key, state, action: counting.env.step(key, state, jnp.int32(0))),
        counting.steering,
        learned,
        num_tasks=10,
        seed=0,
    )
    assert np.array_equal(evaluation.totals, first_arm_only.totals)


def test_a_recorded_lifetime_is_one_of_the_evaluation(counting):
    evaluation = evaluate(*counting, genome(counting), num_tasks=8, seed=3, mode="online")
    for task in (0, 4):
        trajectory = record_lifetime(*counting, genome(counting), 3, "online", task=task)
        assert trajectory.outcome.shape == (20, 1) and trajectory.outcome.sum() == evaluation.totals[task]


def test_resetting_activations_leaves_no_memory_of_the_last_step():
    """The optimum of a bandit, reset at every pull, scores chance, and less than with activations that persist."""
    assembly = assembled("gittins", "bandit:num_arms=5,num_pulls=20")
    persistent = evaluate(*assembly, genome(assembly), num_tasks=400, seed=0)
    reset = evaluate(*assembly, genome(assembly), num_tasks=400, seed=0, reset_each_episode=True)
    difference = persistent.totals - reset.totals
    assert difference.mean() > 3 * difference.std() / 20
    assert abs(reset.mean - 10) < 3 * reset.standard_error, "half of the pulls pay out where no pull is remembered"


def test_an_evaluation_needs_two_tasks(counting):
    with pytest.raises(BadInput, match="at least 2 tasks"):
        evaluate(*counting, genome(counting), num_tasks=1, seed=0)


def test_the_curve_counts_whole_episodes_only():
    """Of two lifetimes of 6 steps with episodes of at most 3, both have 2 whole episodes and one begins a third."""
    scores = np.array([[1, 2, 3, 4, 5, 6], [1, 1, 1, 2, 2, 2]], np.float32)
    first = np.array([[1, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0]], bool)
    unit, starts, lengths = curve_points(6, horizon=3)
    assert unit == "episode" and starts.tolist() == [0, 1] and lengths.tolist() == [1, 1]
    assert score_by_position(scores, first, horizon=3).tolist() == [[3, 7], [3, 6]]


def test_the_curve_of_a_long_lifetime_has_no_more_than_a_hundred_points():
    scores = np.tile(np.arange(250, dtype=np.float32), (2, 1))
    unit, starts, lengths = curve_points(250, horizon=1)
    values = score_by_position(scores, np.ones((2, 250), bool), horizon=1)
    assert unit == "step" and values.shape == (2, 100) and starts[-1] + lengths[-1] == 250
    assert set(lengths.tolist()) == {2, 3}
    assert np.sum(values[0] * lengths) == pytest.approx(scores[0].sum())
    assert values[0, 0] == np.mean(scores[0, : lengths[0]])


def test_a_lifetime_of_one_episode_has_a_curve_by_step():
    assert curve_points(7, horizon=7)[0] == "step"


def test_standard_errors_of_the_curve_are_over_lifetimes(counting):
    evaluation = evaluate(*counting, genome(counting), num_tasks=40, seed=0)
    payouts = [record_lifetime(*counting, genome(counting), 0, task=task).outcome[:, 0] for task in range(3)]
    assert [payout.sum() for payout in payouts] == evaluation.totals[:3].tolist()
    rates = evaluation.curve.mean
    expected = np.sqrt(rates * (1 - rates) / 39)  # of 40 zeros and ones
    assert evaluation.curve.standard_error == pytest.approx(expected)
