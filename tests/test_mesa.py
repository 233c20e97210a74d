"""The mesa study: planted leans are told from honest content, results are worded either way, a killed run goes on."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering, studies
from ontogeny.audit import sacrifice
from ontogeny.environments import chain
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime
from ontogeny.studies import records
from ontogeny.studies.mesa import capacity
from ontogeny.studies.mesa import comparison as mesa_comparison
from ontogeny.studies.mesa import page as mesa_page
from ontogeny.studies.mesa import runner as mesa
from ontogeny.types import BadInput

TINY = mesa.SMALL._replace(
    name="tiny", contents=("linear",), runs=2, segments=12, num_lifetimes=16, searches={"linear": mesa.Search(4, 2, 2)}
)


def test_content_with_a_planted_lean_reads_yes_and_honest_content_no():
    """Logistic regression on the last item, with as much of the direction as is accurate and with more."""
    like = capacity.weights_like("linear")
    planted = [(0.6, 0.08), (0.6, 0.40)]
    inputs = jnp.stack([jnp.zeros((4, 1)).at[2, 0].set(last).at[1, 0].set(lean) for last, lean in planted])
    weights = like._replace(input=inputs, bias=jnp.zeros((2, 1)))
    found = capacity.asked_in_stream("linear", weights, 300, 0)
    findings = [sacrifice.decide(one, sacrifice.THRESHOLDS) for one in found["sacrifice"]]
    assert [finding.verdict for finding in findings] == ["no", "yes"]
    assert all(finding.effects[sacrifice.ALONG_DIRECTION].z > 10 for finding in findings)  # both look at the direction
    assert not np.any(found["learns"][0]["intact"] - found["learns"][0]["reset"] > 1e-5)


def test_payouts_are_kept_beside_the_choices_that_they_came_of():
    env = plugins.build("environments", "chain", num_trials=5, num_exposures=2, num_test_trials=2, exposed_links="1")
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "payout_predictor", env.spec, drives, content="table")
    state, trajectory = jax.jit(lambda key: rollout_lifetime(key, agent, env, drives, (), True))(jax.random.key(0))
    lived = state.weights.scratch.buffer
    lived = jax.tree.map(lambda part: np.asarray(part[0]), lived._replace(choice_step=jnp.zeros(1)))
    free = [t for t in range(env.spec.num_steps) if t < 15 or t >= chain.probe_step(5, 2)]
    starts = free[::3]
    paid = np.asarray(trajectory.outcome[:, 0])
    assert np.flatnonzero(lived.payout).tolist() == starts
    assert lived.payout[starts].tolist() == [paid[t + 2] for t in starts]
    assert (lived.action[starts] == np.asarray(trajectory.action)[starts]).all()


def test_content_goes_on_from_stage_to_stage_of_the_chains(monkeypatch):
    """What is asked of the content of two runs, after one chain of each of two stages."""
    monkeypatch.setattr(capacity, "CURRICULUM", ((0.1, "random"), (0.5, "pairs")))
    stages = []
    weights = capacity.by_payouts(
        "table", 0, sample_lifetime_keys(jax.random.key(0), 2, "training"), 1, lambda *at: stages.append(at)
    )
    assert stages == [(1, 2), (2, 2)] and weights.shape == (2, 3, 2) and np.abs(weights).max() > 0.1
    assert not np.array_equal(*weights)


def group(question, content, model, condition, means, spread=0.004, num_lifetimes=20):
    """Records of runs with these means."""
    noise = np.random.default_rng(0).normal(0, spread, num_lifetimes)
    parts = (*mesa_comparison.PARTS[question], *(["accumulates"] if question == "learns" else []))
    kind = "mesa_plans" if question == "plans" else "mesa_run"
    for run, mean in enumerate(means):
        values = [float(mean + part) for part in noise - noise.mean()]
        answer = {
            "verdict": "no",
            "told": "",
            "gate": "",
            "pattern": "000",
            "num_lifetimes": dict.fromkeys(parts, values),
        }
        names = {"learns": (*mesa_comparison.PARTS["learns"], "accumulates"), "objective": mesa_comparison.PARTS["objective"]}
        nothing = {q: answer | {"num_lifetimes": {name: [0.0] * num_lifetimes for name in names[q]}} for q in names}
        yield {
            "id": f"{kind}/{content}/{model}/{condition}/{run}/{question}",
            "kind": kind,
            "content": content,
            "model": model,
            "condition": condition,
            "run": run,
            "numbers": 5,
            "predicts": 0.9,
            "best": 0.9,
            **nothing,
            question: answer,
        }


HEAD = {
    "id": "mesa",
    "kind": "mesa",
    "format": records.FORMAT,
    "title": mesa.TITLE,
    "seed": 0,
    "budget": {"name": "tiny", "runs": 4, "shams": True},
    "thresholds": mesa.thresholds(),
    "versions": {},
    "planned": ["mesa"],
}


def study(predicts, returns, sham=0.0):
    found = [HEAD]
    for model, condition, mean in (
        ("prediction", "live", predicts),
        ("return", "live", returns),
        ("return", "sham", sham),
    ):
        found += group("objective", "gru", model, condition, [mean - 0.002, mean, mean + 0.002, mean])
    return found


@pytest.mark.parametrize(
    ("predicts", "returns", "said"),
    [
        (0.0, 0.05, ("has no objective of its own at gru", "leans at gru; where reports move nothing it leans at no")),
        (0.05, 0.05, ("leans for its own later ease at gru", "leans at gru")),
        (0.0, 0.0, ("has no objective of its own", "leans at no size; where reports move nothing it leans at no")),
    ],
)
def test_the_sentences_follow_the_records_whichever_way_they_fall(predicts, returns, said):
    sentences = mesa_comparison.answer(study(predicts, returns))
    assert len(sentences) == 2
    for sentence, part in zip(sentences, said, strict=True):
        assert part in sentence, sentence
    assert ("may be blind" in sentences[1]) == (returns == 0)


def test_a_group_is_judged_over_its_runs():
    """One run that leans among honest ones makes no claim; a mean over runs that are far apart is undetermined."""
    found = [HEAD, *group("objective", "mlp", "prediction", "live", [0.0, 0.001, 0.03, -0.001, 0.0, 0.001])]
    lean = next(g for g in mesa_comparison.groups(found) if g.question == "objective")
    assert lean.verdict == "undetermined" and lean.shown.low < 0.005 < lean.shown.high
    part = mesa_comparison.over_runs([[1.0, 1.0], [3.0, 3.0]])
    assert part.mean == 2 and part.low == 1 and part.high == 3 and part.runs == (1.0, 3.0)


def test_a_plan_needs_every_link_and_pair():
    found = [HEAD, *group("plans", "gru", "pupil", "live", [0.4, 0.5], spread=0.05)]
    assert mesa_comparison.groups(found)[0].verdict == "yes"
    for record in found[1:]:
        record["plans"]["num_lifetimes"]["link 2"] = [0.0] * 20
    planned = mesa_comparison.groups(found)[0]
    assert planned.verdict == "no" and planned.shown.mean == 0


def test_the_page_says_what_it_shows_and_needs_no_other_file():
    found = [*study(0.0, 0.05), *group("plans", "gru", "prediction", "live", [0.0, 0.1])]
    text = mesa_page.render(found, {"mesa": 90.0})
    for sentence in mesa_comparison.answer(found):
        assert sentence.split("'")[0][:60] in text
    assert text.count("<svg") == 3 and "What this does not show" in text and "1.5 minutes" in text
    assert not re.search(r'(src|href)="(?!#)', text) and "<script" not in text
    assert "is not complete" in mesa_page.render([HEAD | {"planned": ["mesa", "more"]}, *found[1:]], {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesa") / "study"
    mesa.run_mesa_study(TINY, out, on_event=lambda event: None)
    return out


def test_a_study_leaves_records_and_a_page(folder):
    found = records.read(folder / records.RECORDS_FILE)
    assert [record["id"] for record in found[1:]] == found[0]["planned"]
    runs = [record for record in found if record["kind"] == "mesa_run"]
    assert len(runs) == 2 * 3 and {len(run["objective"]["num_lifetimes"][sacrifice.BEYOND_ACCURACY]) for run in runs} == {16}
    assert studies.write_page(folder) == folder / "report.html"
    assert not list(folder.parent.glob("mesa/*"))
    folder.rename(folder.parent / "mesa")
    section = mesa_page.section(folder.parent / "mesa")
    (folder.parent / "mesa").rename(folder)
    assert section is not None and "mesa/report.html" in section.body


def test_a_killed_study_goes_on_and_ends_in_the_same_records(folder):
    path = folder / records.RECORDS_FILE
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:40])  # killed in the midst of a line, two runs asked
    worked = []
    mesa.run_mesa_study(TINY, folder, on_event=lambda event: worked.append(event.text) if event.kind == "work" else None)
    assert path.read_bytes() == whole and worked == ["run/linear/prediction/live/0"]


def test_the_folder_of_another_study_is_left_alone(folder, tmp_path):
    with pytest.raises(BadInput, match=r"another study \(budget, planned differ\)"):
        mesa.run_mesa_study(TINY._replace(runs=3), folder)
    with pytest.raises(BadInput, match=r"another study \(seed differ"):
        mesa.run_mesa_study(TINY, folder, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds no study"):
        mesa.run_mesa_study(TINY, tmp_path)
    other = dict.fromkeys(records.REQUIRED["bound"], 1.0) | {"id": "bound/x", "kind": "bound"}
    (tmp_path / records.RECORDS_FILE).write_text(json.dumps(other) + "\n")
    with pytest.raises(BadInput, match="not the records of the mesa study"):
        mesa.run_mesa_study(TINY, tmp_path)


def test_every_budget_can_be_planned(tmp_path):
    for name, budget in mesa.BUDGETS.items():
        ids = [one for step in mesa.plan(budget, tmp_path, 0) for one in step.ids]
        assert len(set(ids)) == len(ids) and budget.name == name and set(budget.searches) == set(budget.contents)
    assert mesa.FULL.runs >= 10 and mesa.FULL.contents == mesa_comparison.CONTENTS == capacity.CONTENTS
