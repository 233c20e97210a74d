"""Learning curves, lifetimes in segments, baselines of rejax, calibration of world models, and their benchmark."""

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import rng, trees
from ontogeny.content import calibration
from ontogeny.content.latent_model import LatentPrediction
from ontogeny.content.two_hot import BIN_VALUES, two_hot_target
from ontogeny.errors import BadInput, LearningDiverged
from ontogeny.rollouts import rollout
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions
from ontogeny.stages.assembly import make_env
from ontogeny.studies.neural import devaluation, learners, learning_curves, rejax_baselines
from ontogeny.studies.neural.learning_curves import EpisodeReturns
from ontogeny.studies.neural.lifetime_segments import begin, compile_segment, concatenate, split_steps
from ontogeny.studies.neural.measurements import (
    PredictedStep,
    predict_steps,
    reverse_actions,
    reverse_repeatedly,
    run_steps,
    summarize_calibration,
)

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
    # A checkpoint of another lifetime or of other versions counts for nothing.
    path = tmp_path / "lifetime.json"
    checkpoint_bytes = path.read_bytes()
    versions = library_versions()
    steps = []
    for seed, saved_versions in ((2, versions), (1, versions | {"ontogeny": "0.0.1"})):
        steps.clear()
        with monkeypatch.context() as context:
            context.setattr(learners, "library_versions", lambda saved_versions=saved_versions: saved_versions)
            context.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 1e9)
            learners.run_learner(
                "random", ENV, seed, 40, checkpoint_folder=tmp_path, on_progress=lambda done, _: steps.append(done)
            )
        assert steps == [10, 20, 30, 40] and path.read_bytes() == checkpoint_bytes
    steps.clear()
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


DIVERGING_AGENT = '''"""Diverges in its fifth step."""

import jax.numpy as jnp

from ontogeny.agents import random
from ontogeny.types import State, Weights


def build(spec, steering, *, in_weights: bool = False):
    agent = random.build(spec, steering)

    def learn(key, state, transition):
        number = state.weights.scratch + 1
        broken = jnp.where(number >= 5, jnp.nan, 0.5)
        content = broken if in_weights else state.weights.content
        info = {"loss": jnp.float32(0) if in_weights else broken, "other_loss": 1 / broken}
        info = {"loss": info["loss"]} if in_weights else info
        return State(Weights(content, number), state.activations), info

    def init(key, genome):
        return State(Weights(jnp.float32(0), jnp.int32(0)), agent.init(key, genome).activations)

    return agent._replace(init=init, learn=learn, learning=True)
'''


@pytest.fixture
def diverging_agent(tmp_path: Path) -> str:
    """The file of an agent whose learning diverges in its fifth step."""
    path = tmp_path / "diverging.py"
    path.write_text(DIVERGING_AGENT)
    return str(path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("", "its 'loss' is not finite at step 5 of"),
        pytest.param(":in_weights=true", "its 'weights' is not finite at step", marks=pytest.mark.slow),
    ],
)
def test_a_lifetime_that_diverges_ends_without_a_checkpoint(setting, message, diverging_agent, tmp_path, monkeypatch):
    monkeypatch.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    agent_text, folder = diverging_agent + setting, tmp_path / "checkpoints"
    for num_segments in (1, 3):  # the learning diverges in the first segment, or in the second
        monkeypatch.setattr(learners, "MAX_SEGMENTS", num_segments)
        with pytest.raises(LearningDiverged, match=message):
            learners.run_learner(agent_text, ENV, 0, 12, checkpoint_folder=folder)
    assert checkpoint.read_metadata(folder, learners.PROGRESS)["segments"] == 1
    env = learners.build_env(ENV, steps=12)
    agent, steering = learners.build_agent(agent_text, env)
    with pytest.raises(LearningDiverged, match=message):
        run_steps(learners.lifetime_key(0), agent, env, steering, None, 0, 12, True)
    with pytest.raises(LearningDiverged, match=message):
        devaluation._learn(agent_text, env, 0, 12)
    frozen, _ = run_steps(learners.lifetime_key(0), agent, env, steering, None, 0, 12, False)
    assert trees.is_finite(frozen.state.weights)


@pytest.mark.slow
def test_a_neural_agent_that_diverges_ends_its_learning_curve():
    with pytest.raises(LearningDiverged, match=r"the learning diverged: its '.*' is not finite at step"):
        learners.run_learner("neural_model_based:width=8,learning_rate=1e30", "gymnax:Catch-bsuite", 0, 90)


def test_the_noise_of_a_model_is_none_of_the_lifetime():
    key = learners.lifetime_key(0)
    keys = rng.split_lifetime_key(key)
    steps = jax.vmap(jax.random.fold_in, (None, 0))(keys.learn, jnp.arange(1000))
    used = {tuple(words) for parts in (jnp.stack(keys), steps) for words in np.asarray(jax.random.key_data(parts))}
    noise = learners.model_noise_key(key)
    samples = [noise, *(jax.random.fold_in(noise, number) for number in range(20)), *jax.random.split(noise, 20)]
    assert not used & {tuple(np.asarray(jax.random.key_data(sample))) for sample in samples}
    steps = PredictedStep(*[jnp.zeros(20)] * len(PredictedStep._fields))
    predictions = predict_steps(key, lambda key, *_: jax.random.key_data(key), (), steps)
    assert len(predictions) == 20 and not used & {tuple(words) for words in np.asarray(predictions)}
    # What the lifetime's own key would give.
    assert tuple(np.asarray(jax.random.key_data(jax.random.fold_in(key, 4)))) in used


def test_settings_of_ppo_are_published_or_chosen_for_the_environment():
    names = ("Catch-bsuite", "MemoryChain-bsuite", "CartPole-v1")
    ppo = {name: rejax_baselines.settings_of("ppo", f"gymnax:{name}") for name in names}
    assert [(ppo[name]["num_envs"], ppo[name]["max_grad_norm"]) for name in ppo] == [(16, 1.0), (8, 0.5), (8, 100.0)]
    assert rejax_baselines.settings_of("ppo", "gymnax:Breakout-MinAtar")["agent_kwargs"]["hidden_layer_sizes"][0] == 256
    assert rejax_baselines.settings_of("dqn", "gymnax:Catch-bsuite") == rejax_baselines.DQN_SETTINGS
    env_text = runpy.run_path(str(BENCHMARK))["BENCHMARKS"]["FourRooms"].env
    env = learners.build_env(env_text, steps=100)
    assert env.spec.observation_shape == (13, 13, 2) and env.spec.name == "gymnax:FourRooms-misc"
    assert rejax_baselines.settings_of("ppo", env.spec.name)["num_envs"] == 16


@pytest.mark.parametrize("algorithm", rejax_baselines.ALGORITHMS)
def test_without_rejax_one_sentence_says_what_to_install(algorithm: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rejax_baselines, "is_installed", lambda: False)
    with pytest.raises(BadInput, match="needs the package rejax: pip install"):
        learners.run_learner(algorithm, ENV, 0, 64)


@pytest.mark.needs_package("rejax")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("ppo", {}), ("dqn", {"fill_buffer": 200, "buffer_size": 1000, "exploration_fraction": 0.1})],
)
def test_baselines_learn_where_rejax_is_installed(algorithm: str, settings: dict[str, Any]):
    cartpole = "gymnax:CartPole-v1"

    def run(**more: float) -> learners.LearnerRun:
        return learners.run_learner(algorithm, cartpole, 0, 1000, baseline_settings=settings | more)

    learned, repeated = run(), run()
    assert learned.num_steps >= 1000 and learned.episodes.counts.sum() > 20 and learned.episodes.returns.max() > 0
    assert np.array_equal(learned.episodes.returns, repeated.episodes.returns)
    still = run(learning_rate=0.0)  # the same chance, so that only updates of the weights can make a difference
    assert not np.array_equal(learned.episodes.returns, still.episodes.returns)
    with pytest.raises(LearningDiverged, match="is not finite at step"):
        run(learning_rate=float("nan"))


def test_actions_are_reversed_from_a_step_on():
    env = learners.build_env("gymnax:Catch-bsuite", steps=20)
    reversed_env, key = reverse_actions(env, 2), jax.random.key(0)
    state, _ = reversed_env.reset(key)
    plain, _ = env.reset(key)
    for number, effect in enumerate([0, 0, 2, 2]):
        state, time_step = reversed_env.step(jax.random.fold_in(key, number), state, jnp.int32(0))
        plain, expected = env.step(jax.random.fold_in(key, number), plain, jnp.int32(effect))
        assert trees.bitwise_equal(time_step, expected)


def test_actions_are_reversed_in_every_second_interval():
    env = learners.build_env("gymnax:Catch-bsuite", steps=20)
    changing_env, key = reverse_repeatedly(env, 2), jax.random.key(0)
    state, _ = changing_env.reset(key)
    plain, _ = env.reset(key)
    for number, effect in enumerate([0, 0, 2, 2, 0, 0, 2]):
        state, time_step = changing_env.step(jax.random.fold_in(key, number), state, jnp.int32(0))
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


@pytest.mark.uses_package("rejax")
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


def make_curve(learner: str, seed: int, num_steps: int, steps_to_aim: int | None) -> dict[str, Any]:
    """A record of the row `curves`."""
    return {
        "row": "curves", "environment": "Catch", "learner": learner, "seed": seed, "num_steps": num_steps,
        "settings": "", "steps": num_steps, "steps_to_aim": steps_to_aim, "final": 1.0, "curve": [1.0],
        "learning_cpu_seconds": 1.0, "compile_cpu_seconds": 1.0, "seconds": 1.0,
    }  # fmt: skip


def test_a_ratio_to_ppo_needs_a_ppo_that_reached_the_aim_and_its_largest_budget():
    benchmark = runpy.run_path(str(BENCHMARK))
    agent = [make_curve("neural_model_based", seed, 1000, 300 + 200 * seed) for seed in (0, 1)]
    large = [make_curve("ppo", 0, 8000, 2000), make_curve("ppo", 1, 8000, 6000)]
    small = [make_curve("ppo", 0, 500, None)]

    def line_of(records: list[dict[str, Any]], learner: str = "neural_model_based") -> dict[str, Any]:
        name = f"neural/Catch/{learner}/steps_to_aim"
        return next(line for line in benchmark["collect_lines"](records) if line["name"] == name)

    for records in ([*agent, *small, *large], [*large, *agent, *small]):
        line = line_of(records)
        assert line["peer_value"] == 4000 and line["ratio"] == 0.1 and line["setting"]["ppo_not_reached"] == 0
        assert line["peer"] == "ppo, same run, 8,000 steps"
    line = line_of([*agent, large[0], make_curve("ppo", 1, 8000, None)])
    assert (line["peer_value"], line["ratio"], line["setting"]["ppo_not_reached"]) == (5000, None, 1)
    line = line_of([agent[0], make_curve("neural_model_based", 1, 1000, None), *large])
    assert line["ratio"] is None and "ppo_not_reached" not in line_of(large, "ppo")["setting"]


def test_a_record_of_another_variant_or_baseline_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark, path = runpy.run_path(str(BENCHMARK)), tmp_path / "neural.jsonl"
    records = []
    for learner in ("random", "ppo"):
        record = make_curve(learner, 0, 100, 50)
        job = benchmark["Job"](*(record[field] for field in benchmark["Job"]._fields))
        records.append(record | benchmark["describe_origin"](job))
    assert records[1]["baseline_settings"]["num_envs"] == 16
    of_old_code = make_curve("random", 1, 100, 50)
    other_variant = records[0] | {"env": "gymnax:Catch-bsuite,parameters=rows:5", "seed": 2}
    other_ppo = records[1] | {"baseline_settings": records[1]["baseline_settings"] | {"num_envs": 8}, "seed": 3}
    path.write_text("".join(json.dumps(r) + "\n" for r in (*records, of_old_code, other_variant, other_ppo)))
    assert benchmark["read_records"](path) == records
    assert capsys.readouterr().err.count("is left out") == 3


def test_a_figure_that_is_published_for_another_task_is_no_peer():
    benchmark = runpy.run_path(str(BENCHMARK))
    peers = {}
    for name in benchmark["BENCHMARKS"]:
        lines = benchmark["collect_lines"]([make_curve("random", 0, 100, None) | {"environment": name}])
        peers[name] = next((line["peer"], line["peer_value"]) for line in lines if line["name"].endswith("/final"))
    assert peers["DeepSea20"] == (None, None) and peers["MemoryChain"] == ("gymnax-blines PPO, 150 k steps", 0.1)


def test_a_learner_that_diverges_leaves_no_record_and_no_other_one_out(
    diverging_agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    benchmark, out = runpy.run_path(str(BENCHMARK)), tmp_path / "neural.jsonl"
    benchmark["list_jobs"].__globals__["list_learners"] = lambda _: [diverging_agent, "random"]
    arguments = ["--environment", "Catch", "--steps", "90", "--baseline-steps", "90", "--out", str(out)]
    with pytest.raises(SystemExit, match="2"):
        benchmark["main"]([*arguments, "--seeds", "1"])
    assert "its 'loss' is not finite at step 5" in capsys.readouterr().err
    assert [json.loads(line)["learner"] for line in out.read_text().splitlines()] == ["random"]
    assert not any(path.name.startswith("curves-Catch-random") for path in out.with_suffix("").iterdir())
