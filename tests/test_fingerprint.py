"""Fingerprints and dose curves: the records of an organism, and the page that shows them."""

from pathlib import Path

import pytest

from ontogeny import plugins
from ontogeny.audit import two_step_regression
from ontogeny.audit.base import control_subject
from ontogeny.runs.records import append_record
from ontogeny.studies.mesa import comparison, figures, fingerprint, measurements, page, runner
from ontogeny.studies.mesa.budgets import budgets
from ontogeny.studies.records import read_records


def planned_ids(folder):
    context = measurements.MesaContext(budgets()["full"], folder, 0)
    return {record_id for m in measurements.list_measurements(context) for record_id in m.ids}


def fingerprint_of(agent, group, effects, pattern):
    intervals = {part: [m, m - 0.05, m + 0.05] for part, m in zip(fingerprint.EFFECTS, effects, strict=True)}
    common = {"id": f"fingerprint/{group}/{agent}", "kind": "fingerprint", "verdict": "no"}
    return common | {"agent": agent, "group": group, "pattern": pattern, "effects": intervals}


RECORDS = [
    fingerprint_of("td_zero", "organism", (0.7, 0, 0, 0, 0, 0), "100"),
    fingerprint_of("td_zero", "distilled", (0.6, 0.02, 0, 0.1, -0.1, 0), "100"),
    {
        "id": "dose_curve/organism/planner",
        "kind": "dose_curve",
        "agent": "planner",
        "group": "organism",
        "verdict": "yes",
        "doses": [0.0, 0.5, 1.0],
        "belief": [[0, 0, 0], [0.33, 0.3, 0.36], [0.88, 0.85, 0.91]],
        "random": [[0, 0, 0], [0.01, 0, 0.02], [0.1, 0.05, 0.15]],
    },
]


def test_the_page_shows_fingerprints_only_where_there_are_records():
    assert page.render_fingerprints([]) == ""
    body = page.render_fingerprints(RECORDS)
    assert "organism 100, distilled 100" in body and "organism: 0.70, 0.00, 0.00, 0.00" in body
    assert "distilled: 0.60, 0.02, 0.00, -0.10" in body, "the weakest pair is drawn"
    assert "mechanism: yes" in body and "all of it: belief 0.88, random 0.10" in body


def test_each_competent_run_counts_as_one_agent_in_the_figure():
    effects = {part: [0.2, 0.1, 0.3] for part in fingerprint.EFFECTS}
    competent, incompetent = (
        {"kind": "evolved_agent", "results": [{"test": "plans", "effects": effects, "competence_failure": reason}]}
        for reason in ("", "too few best choices")
    )
    plans = {"lifetime_values": {part: [0.0, 0.5] for part in fingerprint.EFFECTS}, "competence_failure": ""}
    content = {"kind": "chain_audit", "training": "prediction", "plans": plans}
    subjects = figures.collect_subjects([*RECORDS, competent, incompetent, content])
    assert subjects == [("evolution", [0.2] * 4), ("ml_code", [0.25] * 4)]


def write_and_read(folder, *records):
    for record in records:
        append_record(folder / "records.jsonl", record)
    return read_records(folder, comparison.SCHEMA)


def test_a_study_of_organisms_alone_writes_its_page(tmp_path):
    small = budgets()["small"]._replace(planning=None)
    budget = small._replace(name="own", contents=(), organisms=("td_zero",), num_chain_lifetimes=100)
    text = runner.run_mesa_study(budget, tmp_path / "mesa", on_event=lambda event: None).read_text()
    assert "organism 100" in text and "not complete" not in text
    (dose,) = [record for record in RECORDS if record["kind"] == "dose_curve"]
    assert write_and_read(tmp_path, dose) == [dose]


def test_the_record_of_an_organism_holds_its_pattern():
    (record,) = fingerprint.measure_organism("td_zero", 100, 0)
    assert record["id"] == fingerprint.record_ids("td_zero", "organism")[0] and record["pattern"] == "100"
    assert record["effects"]["link 1"][0] > 0.4 and record["effects"]["link 2"][0] == 0.0


@pytest.mark.parametrize("group", ["organism", "distilled"])
def test_the_full_study_plans_fingerprints(group, tmp_path):
    assert set(fingerprint.record_ids("planner", group)) <= planned_ids(tmp_path)


@pytest.mark.slow
def test_the_two_step_task_is_recorded_with_reference_learners(monkeypatch, tmp_path):
    build = two_step_regression.build
    monkeypatch.setattr(two_step_regression, "build", lambda: build(num_lifetimes=60))
    subject = control_subject("latent_state_fixed", plugins.build("environments", "two_step"))
    (record,) = fingerprint.measure_two_step(subject, 0)
    fixed, random = record["interaction"]["fixed"], record["interaction"]["random"]
    assert fixed["subject"][0] > 0.4 and random["planner"][0] > 0.3, "the planner keeps its interaction"
    assert abs(random["subject"][0]) < 0.2, "predetermined responses lose it"
    body = page.render_two_step(write_and_read(tmp_path, record))
    assert f"latent_state_fixed {fixed['subject'][0]:.2f} and" in body
    assert page.render_two_step(RECORDS) == ""
    assert {"two_step/recurrent", "two_step/recurrent_cells"} <= planned_ids(Path("studies"))
