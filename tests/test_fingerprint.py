"""The fingerprint and the dose of belief: what is recorded of an organism, and that a page shows what was recorded."""

from pathlib import Path

import pytest

from ontogeny import plugins
from ontogeny.audit import two_step_regression
from ontogeny.audit.base import control_subject
from ontogeny.studies import records
from ontogeny.studies.mesa import figures as mesa_figures
from ontogeny.studies.mesa import fingerprint
from ontogeny.studies.mesa import runner as mesa


def record(who, sort, effects, pattern):
    parts = dict(zip(fingerprint.PARTS, effects, strict=True))
    triples = {part: [mean, mean - 0.05, mean + 0.05] for part, mean in parts.items()}
    about = {"id": f"fingerprint/{sort}/{who}", "kind": "mesa_fingerprint", "verdict": "no"}
    return about | {"who": who, "sort": sort, "pattern": pattern, "effects": triples}


FOUND = [
    record("td_zero", "organism", (0.7, 0, 0, 0, 0, 0), "100"),
    record("td_zero", "distilled", (0.6, 0.02, 0, 0.1, -0.1, 0), "100"),
    {
        "id": "dose/organism/planner",
        "kind": "mesa_dose",
        "who": "planner",
        "sort": "organism",
        "verdict": "yes",
        "doses": [0.0, 0.5, 1.0],
        "belief": [[0, 0, 0], [0.33, 0.3, 0.36], [0.88, 0.85, 0.91]],
        "random": [[0, 0, 0], [0.01, 0, 0.02], [0.1, 0.05, 0.15]],
    },
]


def test_the_page_shows_what_was_recorded_and_nothing_where_there_is_nothing():
    assert mesa_figures.section([]) is None
    shown = mesa_figures.section(FOUND)
    assert shown is not None and shown.anchor == "fingerprint"
    assert "organism 100, distilled 100" in shown.body and "organism: 0.70, 0.00, 0.00, 0.00" in shown.body
    assert "distilled: 0.60, 0.02, 0.00, -0.10" in shown.body, "the weakest pair is drawn"
    assert "mechanism: yes" in shown.body and "all of it: belief 0.88, random 0.10" in shown.body


def test_subjects_are_a_dot_per_run():
    effects = {part: [0.2, 0.1, 0.3] for part in fingerprint.PARTS}
    evolved, poor = (
        {"kind": "mesa_evolved", "findings": [{"test": "plans", "effects": effects, "gate": gate}]}
        for gate in ("", "too few best choices")
    )
    num_lifetimes = {part: [0.0, 0.5] for part in fingerprint.PARTS}
    content = {"kind": "mesa_plans", "model": "prediction", "plans": {"num_lifetimes": num_lifetimes, "gate": ""}}
    found = mesa_figures._subjects([*FOUND, evolved, poor, content])
    assert found == [("evolution", [0.2] * 4), ("code", [0.25] * 4)]


def read_again(folder, *made):
    for record in made:
        records.append(folder / records.RECORDS_FILE, record)
    return records.read(folder / records.RECORDS_FILE)


def test_a_study_of_organisms_alone_ends_in_its_page(tmp_path):
    """What is recorded must be known to who reads it: the page is written from the file."""
    budget = mesa.SMALL._replace(name="own", contents=(), organisms=("td_zero",), asked=10)
    page = mesa.run_mesa_study(budget, tmp_path / "mesa", on_event=lambda event: None).read_text()
    assert "organism 100" in page and "not complete" not in page
    (dose,) = [record for record in FOUND if record["kind"] == "mesa_dose"]
    assert read_again(tmp_path, dose) == [dose]


def test_an_organism_is_recorded_with_its_pattern():
    (made,) = fingerprint.of_organism("td_zero", 20, 0)
    assert made["id"] == fingerprint.ids("td_zero", "organism")[0] and made["pattern"] == "100"
    assert made["effects"]["link 1"][0] > 0.4 and made["effects"]["link 2"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("sort", ["organism", "distilled"])
def test_the_full_study_plans_for_them(sort, tmp_path):
    planned = [name for step in mesa.plan(mesa.FULL, tmp_path, 0) for name in step.ids]
    assert set(fingerprint.ids("planner", sort)) <= set(planned)


def test_the_two_step_task_is_recorded_beside_its_mimics_and_shown(monkeypatch, tmp_path):
    build = two_step_regression.build
    monkeypatch.setattr(two_step_regression, "build", lambda: build(num_lifetimes=60))
    (made,) = fingerprint.of_two_step(control_subject("latent_state_fixed", plugins.build("environments", "two_step")), 0)
    fixed, drawn = made["interaction"]["fixed"], made["interaction"]["random"]
    assert fixed["subject"][0] > 0.4 and drawn["planner"][0] > 0.3, "who plans keeps it"
    assert abs(drawn["subject"][0]) < 0.2, "what answers by paths from before its life loses it"
    shown = mesa_figures.two_steps(read_again(tmp_path, made))
    assert shown is not None and f"latent_state_fixed {fixed['subject'][0]:.2f} and" in shown.body
    assert mesa_figures.two_steps(FOUND) is None
    planned = [name for step in mesa.plan(mesa.FULL, Path("studies"), 0) for name in step.ids]
    assert {"two_step/recurrent", "two_step/recurrent_cells"} <= set(planned)
