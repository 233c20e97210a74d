"""Learning curves, lifetimes in segments, baselines of rejax, calibration of world models, and their benchmark."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import trees
from ontogeny.content import calibration
from ontogeny.content.latent_model import LatentPrediction
from ontogeny.content.two_hot import BIN_VALUES, two_hot_target
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout
from ontogeny.stages.assembly import make_env
from ontogeny.studies.neural import learners, learning_curves, rejax_baselines
from ontogeny.studies.neural.learning_curves import EpisodeReturns
from ontogeny.studies.neural.lifetime_segments import begin, compile_segment, concatenate, split_steps
from ontogeny.studies.neural.measurements import PredictedStep, reverse_actions, summarize_calibration

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "neural.py"
KEYS = {"name", "value", "unit", "se", "tasks", "peer", "peer_value", "ratio", "seconds", "setting"}
ENV = "gymnax:CartPole-v1,parameters=max_steps_in_episode:5"


def make_episodes(returns: list[float], counts: list[int] | None = None, length: int = 10) -> EpisodeReturns:
    """Episodes of one length."""
    numbers = np.array(counts or [1] * len(returns))
    return EpisodeReturns(length * np.cumsum(numbers), np.array(returns, float), numbers)


def test_episodes_of_a_lifetime_are_the_sums_between_their_ends():
    episodes = learning_curves.episodes_of_lifetime(
        np.array([1.0, 2, 3, 4, 5]), np.array([False, True, True, False, False])
    )
    assert episodes.steps.tolist() == [2, 3] and episodes.returns.tolist() == [3, 3] and len(episodes.counts) == 2
    totals = learning_curves.episodes_of_totals(np.array([8, 16, 24]), np.array([5.0, 5.0, 9.0]), np.array([2, 2, 3]))
    assert totals.steps.tolist() == [8, 24] and totals.returns.tolist() == [5, 4] and totals.counts.tolist() == [2, 1]


def test_the_aim_is_reached_where_the_mean_of_the_last_episodes_reaches_it():
    episodes = make_episodes([0, 1, 0, 1, 1, 1, 0])
    steps, means = learning_curves.moving_mean(episodes, 2)
    assert steps.tolist() == [20, 30, 40, 50, 60, 70] and means.tolist() == [0.5, 0.5, 0.5, 1, 1, 0.5]
    assert learning_curves.steps_to_aim(episodes, 1, 2) == 50
    assert learning_curves.steps_to_aim(episodes, 1, 1) == 20
    assert learning_curves.steps_to_aim(episodes, 1, 4) is None and learning_curves.steps_to_aim(episodes, 0, 8) is None
    # Entries of several episodes: the fewest last entries that hold enough, here two of them and then the last alone.
    together = make_episodes([0, 2, 3], [1, 2, 3])
    assert learning_curves.moving_mean(together, 3)[1].tolist() == pytest.approx([2 / 3, 1])


def test_parts_and_the_final_score_are_means_over_episodes():
    episodes = make_episodes([0, 1, 2, 3], [1, 1, 1, 3])
    assert learning_curves.mean_by_part(episodes, 60, 3) == [0.5, 2, 1]
    assert learning_curves.mean_by_part(make_episodes([4]), 40, 4) == [4, None, None, None]
    assert learning_curves.final_score(episodes, 60) == 1 and learning_curves.final_score(make_episodes([]), 60) is None
    assert learning_curves.final_score(make_episodes([5, 7]), 1000) == 7
    points = learning_curves.mean_of_curves([[0.0, 1.0, None], [2.0, 1.0, 1.0]])
    assert points[0] is not None and points[0][0] == 1 and points[0][1] < 0 < 2 < points[0][2] and points[2] is None


def test_a_lifetime_in_segments_is_the_lifetime_of_a_rollout():
    env = learners.build_env("bandit:num_arms=3,num_pulls=12")
    agent, steering = learners.build_agent("q_learning", env)
    key = learners.lifetime_key(3)
    carry = begin(key, agent, env, steering, agent.genome(key))
    expected, trajectory = rollout(key, agent, env, steering, carry.state, 12, True)
    assert split_steps(12, 5) == (4, 3) and split_steps(7, 5) == (1, 7)
    program, records = compile_segment(agent, env, steering, 3, True), []
    for segment in range(4):
        carry, recorded = program.run(key, jnp.int32(3 * segment), carry)
        records.append(recorded)
    assert trees.bitwise_equal(carry.state, expected)
    assert concatenate(records).score.tolist() == [float(env.score(outcome)) for outcome in trajectory.outcome]


def test_a_lifetime_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(learners, "MAX_SEGMENTS", 4)
    uninterrupted = learners.run_learner("random", ENV, 1, 40)

    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(num_done: int, num_steps: int) -> None:
        if num_done == 30:
            raise Killed

    with pytest.raises(Killed):
        learners.run_learner("random", ENV, 1, 40, checkpoint_folder=tmp_path, on_progress=stop)
    steps = []
    resumed = learners.run_learner(
        "random", ENV, 1, 40, checkpoint_folder=tmp_path, on_progress=lambda done, _: steps.append(done)
    )
    assert steps == [30, 40]
    assert all(np.array_equal(*pair) for pair in zip(uninterrupted.episodes, resumed.episodes, strict=True))
    assert uninterrupted.episodes.returns.tolist() == [5.0] * 8


def test_rejax_is_given_five_values_with_done_at_terminations_and_truncations():
    env = make_env("gymnax", id="CartPole-v1", steps=100, parameters=("max_steps_in_episode:12",))
    wrapped = rejax_baselines.RejaxEnvironment(env, jax.random.key(0))
    assert wrapped.observation_space().shape == (4,) and wrapped.action_space().n == 2
    observation, state = wrapped.reset(jax.random.key(1))
    ends = set()
    for number in range(40):
        previous = state
        key = jax.random.fold_in(jax.random.key(2), number)
        # Alternating actions last until the time limit, one action alone makes the pole fall.
        observation, state, reward, done, info = wrapped.step(key, state, jnp.int32(number % 2 if number < 24 else 0))
        assert observation.shape == (4,) and float(reward) == 1 and info == {}
        time_step = env.step(key, previous.env_state, jnp.int32(number % 2 if number < 24 else 0))[1]
        assert bool(done) == bool(time_step.first)
        if done:
            ends.add("terminated" if float(time_step.discount) == 0 else "truncated")
            assert float(state.episode_return) == 0 and int(state.num_episodes) == int(previous.num_episodes) + 1
    assert ends == {"terminated", "truncated"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_baselines_learn_where_rejax_is_installed(algorithm: str):
    if not rejax_baselines.is_installed():
        with pytest.raises(BadInput, match="needs the package rejax: pip install"):
            learners.run_learner(algorithm, ENV, 0, 64)
        pytest.skip("rejax is not installed")
    run = learners.run_learner(algorithm, ENV, 0, 500)
    assert run.num_steps >= 500 and run.episodes.counts.sum() > 40 and run.episodes.returns.max() > 0
    repeated = learners.run_learner(algorithm, ENV, 0, 500)
    assert np.array_equal(run.episodes.returns, repeated.episodes.returns)


def test_actions_are_reversed_from_a_step_on():
    env = learners.build_env("gymnax:Catch-bsuite", steps=20)
    reversed_env, key = reverse_actions(env, 2), jax.random.key(0)
    state, _ = reversed_env.reset(key)
    plain, _ = env.reset(key)
    for number, effect in enumerate([0, 0, 2, 2]):
        state, time_step = reversed_env.step(jax.random.fold_in(key, number), state, jnp.int32(0))
        plain, expected = env.step(jax.random.fold_in(key, number), plain, jnp.int32(effect))
        assert trees.bitwise_equal(time_step, expected)


def test_calibration_errors_agree_with_cases_computed_by_hand():
    # Two groups: 3 predictions around 0.25 of which 1 occurs, and 1 prediction of 0.9 that occurs.
    error = calibration.expected_calibration_error(
        np.array([0.2, 0.3, 0.25, 0.9]), np.array([0, 0, 1, 1]), num_groups=2
    )
    assert error == pytest.approx(0.75 * abs(0.25 - 1 / 3) + 0.25 * 0.1)
    assert calibration.expected_calibration_error(np.array([1.0, 1.0]), np.array([1, 0])) == pytest.approx(0.5)
    means = calibration.expected_calibration_error(
        np.array([-2.0, 2.0]), np.array([-1.0, 2.0]), num_groups=2, bounds=(-2.0, 2.0)
    )
    assert means == pytest.approx(0.5)
    assert calibration.quantile_calibration_error(np.array([0.25, 0.5, 0.75]), num_levels=3) == pytest.approx(
        (abs(1 / 3 - 0.25) + abs(2 / 3 - 0.5) + abs(1 - 0.75)) / 3
    )


def test_log_likelihoods_agree_with_cases_computed_by_hand():
    outcomes = two_hot_target(jnp.array([0.0, 1.0]))  # certain, [F, K]
    discrete = LatentPrediction(jnp.array([[0.5, 0.5], [0.1, 0.9]]), jnp.zeros(2), outcomes, jnp.float32(0.8))
    assert float(calibration.observation_log_likelihood(discrete, jnp.int32(1))) == pytest.approx(np.log(0.7))
    assert float(calibration.discount_log_likelihood(discrete, jnp.float32(0))) == pytest.approx(np.log(0.2), rel=1e-4)
    assert calibration.expected_outcome(discrete).tolist() == pytest.approx([0, 1], abs=1e-5)
    weights = np.asarray(outcomes[1])[np.asarray(outcomes[1]) > 0]
    expected = float((weights * np.log(weights)).sum())  # the entropy of the two bins next to 1
    assert float(calibration.outcome_log_likelihood(discrete, jnp.array([0.0, 1.0]))) == pytest.approx(
        expected, rel=1e-4
    )
    assert len(BIN_VALUES) == outcomes.shape[1]
    normal = LatentPrediction(jnp.array([[0.0], [2.0]]), jnp.array([1.0]), outcomes, jnp.float32(1))
    densities = [np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) for x in (1.0, -1.0)]
    observation = jnp.array([1.0])
    assert float(calibration.observation_log_likelihood(normal, observation)) == pytest.approx(
        np.log(densities[0]), rel=1e-4
    )
    assert calibration.observation_quantiles(normal, observation).tolist() == pytest.approx([0.5])


def test_observations_after_the_end_of_an_episode_are_no_predictions():
    outcomes = jnp.stack([two_hot_target(jnp.array([0.0]))] * 2)
    predictions = LatentPrediction(
        jnp.array([[[0.9, 0.1]], [[0.9, 0.1]]]), jnp.zeros((2, 2)), outcomes, jnp.array([1.0, 0.0])
    )
    steps = PredictedStep(
        (), jnp.zeros(2, jnp.int32), jnp.array([0, 1]), jnp.array([False, True]), jnp.zeros((2, 1)),
        jnp.array([1.0, 0.0]),
    )  # fmt: skip
    summary = summarize_calibration(predictions, steps)
    assert summary["observation_log_likelihood"] == pytest.approx(np.log(0.9))
    assert summary["observation_calibration_error"] == pytest.approx(0.1)
    assert summary["discount_log_likelihood"] == pytest.approx(0) and summary["discount_calibration_error"] == 0
    assert summary["outcome_calibration_error"] == pytest.approx(0, abs=1e-6)


def test_an_evolution_ends_by_the_steps_that_were_taken():
    """Each step of CartPole pays 1, so the returns of all episodes are the steps; one generation could take 32,000."""
    run = learners.run_learner("evolved:recurrent", "gymnax:CartPole-v1", 0, 6000)
    steps = np.cumsum(run.episodes.returns)
    assert run.episodes.steps == pytest.approx(steps, rel=1e-5) and run.episodes.counts.tolist() == [64] * len(steps)
    assert len(steps) >= 3 and run.num_steps == run.episodes.steps[-1]
    generations = np.diff(run.episodes.steps, prepend=0)
    assert run.num_steps + generations[-1] > 6000, "another generation would have fitted"
    assert run.episodes.steps[-2] + generations[-2] <= 6000, "the last generation was begun after the end"


def test_the_benchmark_prints_its_lines_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(BENCHMARK))["main"]
    out = tmp_path / "neural.jsonl"
    arguments = ["--environment", "Catch", "--learners", "random", "evolved:recurrent", "ppo", "--steps", "90"]
    arguments += ["--baseline-steps", "5760", "--out", str(out)]
    arguments = [argument for argument in arguments if argument != "ppo" or not rejax_baselines.is_installed()]
    main([*arguments, "--seeds", "1"])
    messages = capsys.readouterr()
    assert rejax_baselines.is_installed() or "missing: Catch ppo" in messages.err
    first = out.read_text()
    out.write_text(first + '{"row": "cur')  # a process was killed while it wrote
    main([*arguments, "--seeds", "2"])
    assert out.read_text().startswith(first) and len(out.read_text().splitlines()) == 5
    capsys.readouterr()
    main(["--read", "--out", str(out)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {line["name"]: line for line in lines}
    assert all(
        {"name", "value", "unit", "se", "peer", "peer_value", "ratio", "seconds", "setting"} <= set(line)
        for line in lines
    )
    aim = by_name["neural/Catch/random/steps_to_aim"]
    assert aim["value"] == 90 and aim["setting"]["not_reached"] == 2 and aim["ratio"] is None
    final = by_name["neural/Catch/evolved:recurrent/final"]
    assert final["tasks"] == 2 and final["se"] > 0 and -1 <= final["value"] <= 1
