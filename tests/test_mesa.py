"""The mesa study: a planted bias is detected, conclusions follow the records, a killed study resumes."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering, studies
from ontogeny.audit import learns, sacrifice
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime
from ontogeny.runs.folder import read_spec
from ontogeny.runs.kinds import open_run
from ontogeny.runs.records import RECORDS_FILE
from ontogeny.studies.mesa import capacity, comparison, measurements, page, runner
from ontogeny.studies.mesa.budgets import SearchBudget, budgets, content_keys
from ontogeny.studies.records import read_records

TINY = budgets()["small"]._replace(
    name="tiny",
    contents=("linear",),
    num_runs=2,
    num_segments=12,
    num_lifetimes=16,
    searches={"linear": SearchBudget(4, 2, 2)},
    planning=None,
)
MIN_EFFECTS = measurements.min_effects()


def test_a_planted_bias_is_detected_and_accurate_content_is_not():
    """Logistic regression on the last item, with an accurate weight on the direction and with a larger one."""
    like = capacity.item_content_template("linear")
    planted = [(0.6, 0.08), (0.6, 0.40)]
    inputs = jnp.stack([jnp.zeros((4, 1)).at[2, 0].set(last).at[1, 0].set(bias) for last, bias in planted])
    weights = like._replace(input=inputs, bias=jnp.zeros((2, 1)))
    measured = capacity.audit_in_stream("linear", weights, 300, 0)
    results = [sacrifice.decide(run, sacrifice.THRESHOLDS) for run in measured["sacrifice"]]
    assert [result.verdict for result in results] == ["no", "yes"]
    assert all(result.effects[sacrifice.ALONG_DIRECTION].z > 10 for result in results)  # both look at the direction
    assert not np.any(measured["learns"][0][learns.EARLIER])  # it remembers the last item alone


def test_payouts_are_stored_with_the_choices_that_caused_them():
    env = plugins.build("environments", "chain", num_trials=5, num_exposures=2, num_test_trials=2, exposed_links="1")
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "payout_predictor", env.spec, drives, content="table")
    state, trajectory = jax.jit(lambda key: rollout_lifetime(key, agent, env, drives, (), True))(jax.random.key(0))
    stored = jax.tree.map(lambda part: np.asarray(part[0]), state.weights.scratch.buffer)
    stored_payout = stored.mask * (2 * stored.target - 1)
    first_test_step = env.spec.num_steps - 2 * 3
    free = [t for t in range(env.spec.num_steps) if t < 15 or t >= first_test_step]
    starts = free[::3]
    payouts = np.asarray(trajectory.outcome[:, 0])
    assert np.flatnonzero(stored_payout).tolist() == starts
    assert stored_payout[starts].tolist() == [payouts[t + 2] for t in starts]
    assert (stored.target_index[starts] == np.asarray(trajectory.action)[starts]).all()


def test_content_is_carried_from_stage_to_stage_of_the_curriculum(monkeypatch):
    """The content of two runs, after one chain of each of two stages."""
    monkeypatch.setattr(capacity, "CURRICULUM", ((0.1, "random"), (0.5, "pairs")))
    stages = []
    weights = capacity.train_by_payouts(
        "table", 0, sample_lifetime_keys(jax.random.key(0), 2, "training"), 1, lambda *at: stages.append(at)
    )
    assert stages == [(1, 2), (2, 2)] and weights.shape == (2, 3, 2) and np.abs(weights).max() > 0.1
    assert not np.array_equal(*weights)


def run_records(hypothesis, content, training, condition, means, spread=0.004, num_lifetimes=20):
    """Records of runs whose effects have these means."""
    noise = np.random.default_rng(0).normal(0, spread, num_lifetimes)
    kind = "chain_audit" if hypothesis == "plans" else "stream_audit"
    parts = comparison.EFFECTS | {"learns": page.LEARNS_EFFECTS}

    def result(names, values):
        common = {"verdict": "no", "summary": "", "competence_failure": "", "pattern": "000"}
        return common | {"lifetime_values": dict.fromkeys(names, values)}

    for run, mean in enumerate(means):
        values = [float(mean + part) for part in noise - noise.mean()]
        yield {
            "id": f"{kind}/{content}/{training}/{condition}/{run}/{hypothesis}",
            "kind": kind,
            "content": content,
            "training": training,
            "condition": condition,
            "run_index": run,
            "num_parameters": 5,
            "relative_skill": 0.9,
            "optimal_action_rate": 0.9,
            **{name: result(parts[name], [0.0] * num_lifetimes) for name in ("learns", "objective")},
            hypothesis: result(parts[hypothesis], values),
        }


STUDY = {
    "title": runner.TITLE,
    "seed": 0,
    "budget": {"name": "tiny", "num_runs": 4, "has_evolution_sham": True},
    "min_effects": MIN_EFFECTS,
    "versions": {},
    "planned_ids": [],
}


def study_records(on_prediction, on_return, sham=0.0):
    records = []
    for training, condition, mean in (
        ("prediction", "active", on_prediction),
        ("return", "active", on_return),
        ("return", "sham", sham),
    ):
        records += run_records("objective", "gru", training, condition, [mean - 0.002, mean, mean + 0.002, mean])
    return records


@pytest.mark.parametrize(
    ("on_prediction", "on_return", "expected"),
    [
        (
            0.0,
            0.05,
            ("has no objective of its own at gru", "is detected at gru; in its sham, in which reports change no"),
        ),
        (
            0.05,
            0.05,
            ("pursues an objective of its own (items that are easier to predict) at gru", "is detected at gru"),
        ),
        (
            0.0,
            0.0,
            ("has no objective of its own", "is detected at no content; in its sham, in which reports change no"),
        ),
    ],
)
def test_the_conclusions_follow_the_records(on_prediction, on_return, expected):
    sentences = comparison.conclusions(study_records(on_prediction, on_return), MIN_EFFECTS)
    assert len(sentences) == 2
    for sentence, part in zip(sentences, expected, strict=True):
        assert part in sentence, sentence
    assert ("may be insensitive" in sentences[1]) == (on_return == 0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("undetermined", "yes"), "a gru can represent a plan"),
        (("no", "undetermined"), "whether networks that are distilled from a planner plan is undetermined"),
        (("no", "no"), "do not plan, so a negative result on planning implies little"),
    ],
)
def test_an_undetermined_plan_of_a_student_is_no_lack_of_a_plan(verdicts, expected):
    students = list(run_records("plans", "gru", "student", "active", [0.1] * len(verdicts)))
    for record, verdict in zip(students, verdicts, strict=True):
        record["plans"]["verdict"] = verdict
    assert expected in comparison.conclusions([*study_records(0.0, 0.05), *students], MIN_EFFECTS)[1]


def test_the_verdict_on_a_group_is_computed_over_its_runs():
    """One biased run among accurate ones supports no claim; a mean over dissimilar runs is undetermined."""
    records = list(run_records("objective", "mlp", "prediction", "active", [0.0, 0.001, 0.03, -0.001, 0.0, 0.001]))
    group = next(g for g in comparison.collect_groups(records, MIN_EFFECTS) if g.hypothesis == "objective")
    assert group.verdict == "undetermined" and group.summary_effect.low < 0.005 < group.summary_effect.high
    part = comparison.mean_over_runs([[1.0, 1.0], [3.0, 3.0]])
    assert part.mean == 2 and part.run_means == (1.0, 3.0)
    assert part.high - 2 == 2 - part.low == pytest.approx(12.706, rel=1e-3), "Student's t of two runs"


@pytest.mark.parametrize(("hypothesis", "value"), [("plans", 0.0), ("learns", 0.0), ("objective", 0.02)])
def test_equal_means_of_all_runs_are_no_certainty(hypothesis, value):
    """Two runs of few lifetimes that all agree decide nothing; many lifetimes do."""
    for num_lifetimes, is_decided in ((3, False), (2000, True)):
        settings = {"spread": 0.0, "num_lifetimes": num_lifetimes}
        records = list(run_records(hypothesis, "gru", "prediction", "active", [value, value], **settings))
        group = next(g for g in comparison.collect_groups(records, MIN_EFFECTS) if g.hypothesis == hypothesis)
        effect = group.summary_effect
        assert effect.low < value < effect.high and effect.run_means == (value, value)
        assert (group.verdict != "undetermined") == is_decided
        minimum = MIN_EFFECTS[hypothesis]
        assert (effect.p_above(minimum) < 0.025) == (is_decided and value > minimum)


@pytest.mark.parametrize(("num_lifetimes", "is_competent"), [(4, False), (200, True)])
def test_a_perfect_competence_of_all_runs_is_no_certainty(num_lifetimes, is_competent):
    records = list(run_records("plans", "gru", "student", "active", [0.4, 0.5], num_lifetimes=num_lifetimes))
    for record in records:
        record["optimal_action_rate"] = 1.0
    (group,) = comparison.collect_groups(records, MIN_EFFECTS)
    assert group.competence.high == 1 and (group.competence.low > 0.75) == group.is_competent == is_competent


def test_the_verdict_on_planning_requires_every_link_and_pair():
    records = list(run_records("plans", "gru", "student", "active", [0.4, 0.45, 0.45, 0.5], spread=0.05))
    assert comparison.collect_groups(records, MIN_EFFECTS)[0].verdict == "yes"
    for record in records:
        record["plans"]["lifetime_values"]["link 2"] = [0.0] * 20
    group = comparison.collect_groups(records, MIN_EFFECTS)[0]
    assert group.verdict == "no" and group.summary_effect.mean == 0


def test_the_page_shows_its_conclusions_and_is_self_contained():
    records = [*study_records(0.0, 0.05), *run_records("plans", "gru", "prediction", "active", [0.0, 0.1])]
    text = page.render(STUDY, records, {"training": 90.0})
    for sentence in comparison.conclusions(records, MIN_EFFECTS):
        assert sentence.split("'")[0][:60] in text
    assert text.count("<svg") == 3 and "What this does not show" in text and "1.5 minutes" in text
    assert not re.search(r'(src|href)="(?!#)', text) and "<script" not in text
    assert "is not complete" in page.render(STUDY | {"planned_ids": ["more"]}, records, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesa") / "study"
    runner.run_mesa_study(TINY, out, on_event=lambda event: None)
    return out


def test_a_study_writes_records_and_a_page(folder):
    records = read_records(folder, comparison.SCHEMA)
    assert [record["id"] for record in records] == read_spec(folder).details["planned_ids"]
    runs = [record for record in records if record["kind"] == "stream_audit"]
    values = {len(run["objective"]["lifetime_values"][sacrifice.BEYOND_ACCURACY]) for run in runs}
    assert len(runs) == 2 * 3 and values == {16}
    assert studies.write_page(folder) == folder / "report.html" and open_run(folder).status == "finished"
    section = page.render_section(folder)
    assert section.anchor == "mesa" and "study/report.html" in section.body


def test_a_killed_study_resumes_and_ends_in_the_same_records(folder):
    path = folder / RECORDS_FILE
    complete = path.read_bytes()
    lines = complete.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # killed while it wrote the third audited run
    worked = []
    runner.run_mesa_study(TINY, folder, on_event=lambda e: worked.append(e.text) if e.kind == "work" else None)
    assert path.read_bytes() == complete and worked == ["stream_audit/linear/prediction/active/0"]


TINY_STUDY = """
import sys
from ontogeny.studies.mesa import runner
from ontogeny.studies.mesa.budgets import SearchBudget, budgets
from ontogeny.studies.mesa.planning.training import TrainingPlan

brief = budgets()["brief"]
training = TrainingPlan(20, batch_size=2, updates_per_call=5)
measurement = brief.planning.measurement._replace(curve_updates=(0, 10, 20), num_curve_streams=4, num_streams=4)
planning = brief.planning._replace(num_runs=1, training=training, measurement=measurement, num_together=1)
search = SearchBudget(4, 2, 2)
budget = brief._replace(
    name="tiny", contents=("linear",), num_runs=2, num_segments=12, num_lifetimes=8, searches={"linear": search},
    planning=planning,
)
runner.run_mesa_study(budget, sys.argv[1])
"""


@pytest.mark.slow  # six processes, each of which compiles or loads the training of two cells
def test_a_study_that_is_killed_anywhere_resumes_to_the_same_records(tmp_path):
    """SIGKILL at the sixth part of the records, at the third, and so on; the brief form with fewer updates and runs."""

    def begin(out):
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        environment = cache | os.environ  # so that only the first process compiles
        command = [sys.executable, "-c", TINY_STUDY, str(out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(out):
        process = begin(out)
        _, complaint = process.communicate(timeout=1200)
        assert process.returncode == 0, complaint
        return (out / RECORDS_FILE).read_bytes()

    complete = finish(tmp_path / "undisturbed")
    killed, num_kills = tmp_path / "killed", 0
    for part in range(1, 5):
        process, records, deadline = begin(killed), killed / RECORDS_FILE, time.monotonic() + 1200
        while process.poll() is None and time.monotonic() < deadline:
            if records.exists() and records.stat().st_size >= part * len(complete) / 6:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        if process.poll() is None and time.monotonic() >= deadline:
            process.kill()
        process.communicate(timeout=60)
        num_kills += process.returncode == -signal.SIGKILL
    assert num_kills >= 2 and open_run(killed).status != "finished"
    assert finish(killed) == complete and open_run(killed).status == "finished"
    weights = [
        sorted(path.name for path in (tmp_path / name / "runs").rglob("*")) for name in ("undisturbed", "killed")
    ]
    assert weights[0] == weights[1] and "planner-0.safetensors" in weights[0]
    for path in (tmp_path / "undisturbed" / "runs").rglob("*.safetensors"):
        assert path.read_bytes() == (killed / path.relative_to(tmp_path / "undisturbed")).read_bytes(), path.name


def test_the_folder_of_another_study_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match=r"another spec \(budget differs"):
        runner.run_mesa_study(TINY._replace(num_runs=3), folder)
    with pytest.raises(BadInput, match=r"another spec \(seed differs"):
        runner.run_mesa_study(TINY, folder, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds no run"):
        runner.run_mesa_study(TINY, tmp_path)


def test_the_latent_state_space_model_is_trained_by_prediction_within_one_lifetime():
    """It is a content of the full study by its key number alone."""
    keys = sample_lifetime_keys(jax.random.key(0), 2, "training")
    weights = capacity.train_by_prediction("latent_predictor", keys, jnp.array([False, True]), num_segments=2)
    assert capacity.count_runs(weights) == 2 and "latent_predictor" in budgets()["full"].contents
    heads = weights.head.output.weight
    assert np.isfinite(heads).all() and heads[0].any() and not np.array_equal(*heads)


@pytest.mark.slow  # compiles training and audit
def test_the_dial_accepts_the_latent_state_space_model(tmp_path):
    """A registered predictor with a key number is a content of the study, without a change of the study."""
    searches = {"latent_predictor": SearchBudget(4, 2, 2)}
    budget = TINY._replace(contents=("latent_predictor",), num_segments=24, num_lifetimes=8, searches=searches)
    runner.run_mesa_study(budget, tmp_path / "study", on_event=lambda event: None)
    records = read_records(tmp_path / "study", comparison.SCHEMA)
    runs = [record for record in records if record["kind"] == "stream_audit"]
    assert {(run["content"], run["training"]) for run in runs} == {
        ("latent_predictor", "prediction"),
        ("latent_predictor", "return"),
    }
    assert all(run["num_parameters"] > 1000 and np.isfinite(run["relative_skill"]) for run in runs)
    names = {path.name for path in (tmp_path / "study" / "runs").glob("*.safetensors")}
    assert "training-latent_predictor-prediction.safetensors" in names


def test_every_budget_can_be_planned(tmp_path):
    for name, budget in budgets().items():
        context = measurements.MesaContext(budget, tmp_path, 0)
        ids = [record_id for m in measurements.list_measurements(context) for record_id in m.ids]
        assert len(set(ids)) == len(ids) and budget.name == name and set(budget.contents) <= set(budget.searches)
    full = budgets()["full"]
    assert full.num_runs >= 10 and full.contents == tuple(content_keys())


def test_the_key_numbers_of_contents_are_fixed():
    """They enter random keys, so a change would change every result."""
    keys = {"table": 0, "linear": 1, "mlp": 2, "gru": 3, "causal_transformer": 4, "latent_predictor": 5}
    assert content_keys() == keys
