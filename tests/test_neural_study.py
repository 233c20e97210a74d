"""The neural study: its page follows the records, a killed study resumes, pictures show what the model predicted."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import studies, trees
from ontogeny.content import latent_model
from ontogeny.errors import BadInput
from ontogeny.runs.files import write_bytes
from ontogeny.runs.kinds import open_run
from ontogeny.runs.records import RECORDS_FILE, encode_record
from ontogeny.stages.assembly import assemble, make_env, make_steering
from ontogeny.stages.saved_agent import save_deployment
from ontogeny.stages.spec import complete_spec, parse_run_spec
from ontogeny.studies.kinds import study_kinds
from ontogeny.studies.neural import learners, page, pictures, rejax_baselines, runner
from ontogeny.studies.neural.budgets import AGENT, budgets, num_steps, with_settings
from ontogeny.studies.neural.pictures import ExperiencedStep
from ontogeny.studies.progress import StudyEvent
from ontogeny.studies.records import read_records as read_study_records
from ontogeny.studies.runner import run_study
from pages import DOCS, find_block

CATCH = budgets()["small"].environments[0]._replace(num_steps=90, num_baseline_steps=300, num_evolution_steps=5760)
TINY = budgets()["small"]._replace(
    name="tiny", num_seeds=2, environments=(CATCH,), learners=("random", "ppo"), minutes=0
)
PICTURE = {
    "observation": [[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]],
    "predicted": [[0.9, 0.1, 1.0, 0.0], [0.1, 0.0, 1.0, 0.8]],
    "predicted_spread": [0.1, 0.2],
    "imagined": [[0.5, 0.1, 0.9, 0.0], [0.3, 0.0, 0.9, 0.5]],
    "imagined_spread": [[0.1] * 4, [0.3] * 4],
    "imagined_total_spread": [0.1, 0.3],
    "expected_reward": [0.0, 0.1, 0.8],
    "imagined_reward": [0.0, 0.1, 0.5],
    "reward": [0.0, 0.0, 1.0],
    "action": [0, 2, 1],
    "probability": [0.5, 0.9, 0.95],
}


def make_record(learner: str, seed: int, steps_to_aim: int | None, final: float) -> dict[str, Any]:
    """A learning curve."""
    return {
        "id": f"curve/Catch/{learner}/seed{seed}", "kind": "learning_curve", "env": "Catch", "learner": learner,
        "seed": seed, "num_steps": 8000, "num_episodes": 800, "curve": [None, -0.5, final], "final": final,
        "steps_to_aim": steps_to_aim,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a random agent and PPO, which is missing without rejax."""
    out = tmp_path_factory.mktemp("neural") / "study"
    events: list[StudyEvent] = []
    runner.run_neural_study(TINY, out, on_event=events.append)
    start = next(event.text for event in events if event.kind == "start")
    assert rejax_baselines.is_installed() or "these records are missing: curve/Catch/ppo/seed0, " in start
    return out


@pytest.mark.uses_package("rejax")
@pytest.mark.filterwarnings("ignore")
def test_a_tiny_study_has_a_page_and_resumes_to_the_same_records(tiny_study: Path):
    text = (tiny_study / "report.html").read_text()
    assert "not at all" in text and "random not within" not in text
    assert ("pip install 'ontogeny[baselines]'" in text) == (not rejax_baselines.is_installed())
    assert open_run(tiny_study).status == ("finished" if rejax_baselines.is_installed() else "unfinished")
    records = (tiny_study / RECORDS_FILE).read_bytes()
    write_bytes(tiny_study / RECORDS_FILE, records[: len(records) // 2])
    runner.run_neural_study(TINY, tiny_study, on_event=lambda event: None)
    assert sorted(records.splitlines()) == sorted((tiny_study / RECORDS_FILE).read_bytes().splitlines())
    section = study_kinds()["neural"].render_section(tiny_study)
    assert section.anchor == "neural" and "study/report.html" in section.body
    assert studies.write_page(tiny_study).read_text() == (tiny_study / "report.html").read_text()


@pytest.mark.uses_package("rejax")
def test_a_study_holds_the_settings_of_its_baselines(tiny_study: Path, monkeypatch: pytest.MonkeyPatch):
    study = page.read_study(tiny_study)
    assert study["baselines"]["Catch"]["ppo"]["num_envs"] == 16 and page.count_copies(study) == "PPO in 16"
    assert page.count_copies({"baselines": runner.baseline_settings(budgets()["full"])}) == (
        "PPO in 16 in Catch, 8 in CartPole, 8 in MemoryChain; DQN in 10"
    )
    assert page.count_copies({}) == ""
    monkeypatch.setitem(rejax_baselines.PPO_SETTINGS_BY_ENV, "gymnax:Catch-bsuite", {})
    with pytest.raises(BadInput):
        runner.run_neural_study(TINY, tiny_study, on_event=lambda event: None)


def test_a_killed_lifetime_of_a_study_resumes_and_its_checkpoint_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    out, budget = tmp_path / "study", TINY._replace(learners=("random",))

    def stop(event: StudyEvent) -> None:
        if event.kind == "progress" and event.num_done == 54:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_neural_study(budget, out, on_event=stop)
    assert [path.name for path in (out / runner.CHECKPOINTS).iterdir()] == ["curve-Catch-random-seed0"]
    events: list[StudyEvent] = []
    runner.run_neural_study(budget, out, on_event=events.append)
    assert next(event.num_done for event in events if event.kind == "progress") == 54
    assert not (out / runner.CHECKPOINTS).exists()


def test_the_page_says_what_the_records_say(tiny_study: Path):
    study = page.read_study(tiny_study)
    budget = study["budget"] | {"learners": [AGENT, "ppo", "dqn"]}
    records = [make_record(AGENT, 0, 4000, 0.9), make_record(AGENT, 1, 5000, 1.0)]
    records += [make_record("ppo", 0, 18_800, 0.9), make_record("ppo", 1, None, 0.5), make_record("dqn", 0, None, 0.1)]
    records.append({"id": "picture/Catch/late", "kind": "picture", "env": "Catch", "time": "late", "seed": 0,
                    "num_steps": 8000, "picture": PICTURE})  # fmt: skip
    groups = page.collect_groups(study | {"budget": budget}, records)
    sentence = page.conclusions(study | {"budget": budget}, groups)[0]
    assert sentence == (
        "Catch, mean return 0.9: neural_model_based after 4,500 steps; PPO after at least 13,400 steps, as 1 of 2 runs "
        "reached it; DQN not within 8,000 steps."
    )
    text = page.render(study | {"budget": budget}, records, {})
    assert "4,500<br><small>2 of 2 runs" in text and "at least 13,400<br><small>1 of 2 runs" in text
    assert "0.950 ± 0.050" in text
    assert "At the end of the lifetime" in text and "3 steps, actions 0, 2, 1, reward 1.000 in all" in text
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    vector = {**PICTURE, "observation": [[0.0, 1.0], [0.5, 1.0], [1.0, 0.5]],
              "predicted": [[0.4, 1.0], [0.9, 0.6]], "imagined": [[0.4, 1.0], [0.7, 0.8]],
              "imagined_spread": [[0.1, 0.1], [0.2, 0.2]]}  # fmt: skip
    assert "Dots are observed numbers" in page.render_pictures(study, [records[-1] | {"picture": vector}])


def test_settings_and_steps_of_a_learner_follow_the_budget():
    assert with_settings(AGENT, "width=8") == f"{AGENT}:width=8" and with_settings("ppo", "width=8") == "ppo"
    assert with_settings(f"{AGENT}:ablation=no_imagination", "width=8") == f"{AGENT}:ablation=no_imagination,width=8"
    steps = [num_steps(CATCH, learner) for learner in (AGENT, "random", "ppo", "evolved:recurrent")]
    assert steps == [90, 90, 300, 5760]
    assert pictures.choose_steps(np.array([False, True, False, True, False])) == slice(1, 3)
    assert pictures.choose_steps(np.zeros(40, bool)) == slice(0, pictures.MAX_PICTURE_STEPS)


def test_pictures_hold_the_predictions_of_the_model():
    env = make_env("gymnax", id="Catch-bsuite", steps=20)
    shape = latent_model.model_shape(env.spec, 8)
    weights = latent_model.init_weights(shape, jax.random.key(0))
    L, key = 4, jax.random.key(1)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * L), latent_model.init_state(shape))
    steps = ExperiencedStep(
        jnp.zeros((L, 10, 5)), jnp.zeros(L, bool), jnp.array([0, 1, 2, 0]), jnp.full(L, 0.3), jnp.zeros(L), states
    )
    picture = pictures.draw_up(key, shape, weights, make_steering(env), steps)
    assert json.loads(encode_record(picture)) == picture
    assert np.shape(picture["imagined_spread"]) == (L - 1, 50)
    # An untrained model expects noise of one standard deviation, whatever its samples agree on.
    assert min(picture["predicted_spread"] + picture["imagined_total_spread"]) >= 1
    assert np.shape(picture["predicted"]) == np.shape(picture["imagined"]) == (L - 1, 50)
    next_key = jax.random.fold_in(jax.random.split(learners.model_noise_key(key))[0], 0)
    state = latent_model.init_state(shape)
    expected = latent_model.predict(shape, next_key, weights, state, jnp.int32(0), pictures.NUM_TRAJECTORIES)
    assert picture["predicted"][0] == pytest.approx(np.asarray(expected.observation).mean(axis=0).tolist(), abs=1e-3)
    assert picture["expected_reward"] == pytest.approx([0] * L, abs=1e-3)  # an untrained model expects none


def test_the_uncertainty_of_a_prediction_holds_its_noise_and_the_spread_of_its_samples():
    vector = latent_model.LatentModelShape(8, 2, 0, 2, 1)
    samples = jnp.array([[[0.0, 1.0], [2.0, 1.0]]])
    scale = jnp.array([[0.0, 0.5]])
    assert pictures.predictive_deviation(vector, samples, scale).tolist() == [[1.0, 0.5]]
    both = pictures.predictive_deviation(vector, samples, jnp.array([[0.75, 0.5]]))
    assert both[0, 0] == pytest.approx(1.25)
    of_numbers = pictures.predictive_deviation(vector._replace(num_observations=2), samples / 2, scale)
    assert of_numbers.tolist() == [[0.5, 0.5]]  # probabilities of 0.5 each


@pytest.mark.slow
def test_pictures_are_those_of_the_lifetime_of_the_curve():
    measured = pictures.measure_pictures(f"{AGENT}:width=8", "gymnax:Catch-bsuite", 0, {"early": 40, "late": 200})
    assert list(measured) == ["early", "late"] and len(measured["late"]["action"]) == 9
    assert measured["late"]["predicted"] != measured["early"]["predicted"]


def test_a_saved_agent_is_loaded_and_its_model_queried_as_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    choice = {"env": "gymnax:Catch-bsuite,steps=100", "agent": f"{AGENT}:width=8"}
    spec = complete_spec(parse_run_spec(choice))
    agent = assemble(spec).agent
    key = jax.random.key(0)
    initial = jax.jit(lambda key: agent.init(key, agent.genome(key)))(key)
    save_deployment(tmp_path / "runs" / "catch-trained", spec, initial, mode="online", num_steps=0)
    names: dict[str, Any] = {}
    how_to = DOCS / "how-to" / "learn-with-a-neural-model.md"
    exec(find_block(how_to, "run: load"), names)
    assert trees.bitwise_equal(names["state"].state.weights, initial.weights) and names["action"] in range(3)
    exec(find_block(how_to, "run: query"), names)
    assert len(capsys.readouterr().out.splitlines()) == 3 and names["expected"].shape == (10, 5)
    prediction = latent_model.predict(
        latent_model.model_shape(names["agent"].spec, 8), key, initial.weights.content.model,
        names["state"].state.activations.state, jnp.int32(2), 16,
    )  # fmt: skip
    assert names["prediction"].observation == pytest.approx(np.asarray(prediction.observation), abs=1e-5)


@pytest.mark.slow
def test_a_study_file_develops_compares_and_audits_both_ways_in_a_gymnasium_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    tutorial = DOCS / "tutorials" / "own-gymnasium-environment.md"
    Path("doors.py").write_text(find_block(tutorial, "file: doors.py"))
    text = find_block(tutorial, "study file: doors.toml")
    for full, short in (("300", "60"), ("num_generations=40", "num_generations=1"), ("[0, 1, 2]", "[0, 1]")):
        assert full in text
        text = text.replace(full, short)
    Path("doors.toml").write_text(text)
    written = run_study("doors.toml", "out", on_event=lambda event: None).read_text()
    records = read_study_records(Path("out"))
    audited = {(r["env"], r["agent"]): r["attribution"] for r in records if r["kind"] == "attribution"}
    assert set(audited) == {("ten episodes", "recurrent"), ("60 steps", "recurrent"), ("60 steps", AGENT)}
    assert all(attribution["num_tasks"] == 20 for attribution in audited.values())
    assert {(r["agent"], r["other_agent"]) for r in records if r["kind"] == "difference"} >= {("recurrent", AGENT)}
    assert "Where the ability is stored" in written and "frozen, reset" in written
