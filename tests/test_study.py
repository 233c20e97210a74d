"""A tiny study from spec to page through the real thing: killed, resumed, repeated."""

import json

import pytest

from ontogeny.errors import BadInput
from ontogeny.study import records, report, run

TINY = """
title = "Tiny"
question = "Does it go on?"
seed = 5
[[worlds]]
name = "two arms"
world = "bandit:arms=2,pulls=4"
tasks = 40
[[agents]]
agent = "random"
worlds = ["two arms"]
[[agents]]
agent = "recurrent:units=3"
model = "evolution"
development = "evolution:population=4,lives=2,generations=4,generations_per_dispatch=1"
worlds = ["two arms"]
"""


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def spec_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(spec_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    events = []
    page = run.run(spec_path, out, on_event=events.append)
    return out, page, events


def test_a_study_leaves_records_agents_scores_and_a_page(finished):
    out, page, events = finished
    found = records.read(out / records.RECORDS)
    assert [record["kind"] for record in found] == [
        "study", "world", "development", "evaluation", "development", "evaluation", "replay", "difference", "bound",
    ]  # fmt: skip
    assert found[0]["planned"] == [record["id"] for record in found[1:]]
    assert page == out / "report.html" and "Tiny" in page.read_text(encoding="utf-8")
    assert len(list((out / "agents").iterdir())) == 1, "a reference that nobody develops has no run"
    kinds = [event.kind for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("table") == 1
    by_id = {record["id"]: record for record in found}
    assert by_id["development/two arms/recurrent/0"]["development_steps"] == 4 * 2 * 4 * 4
    assert by_id["bound/two arms"]["value"] > by_id["evaluation/two arms/random/0"]["mean"]
    assert len(by_id["replay/two arms/recurrent"]["life"]["action"]) == 4
    times = records.read_times(out / records.TIMES)
    assert times["development/two arms/recurrent/0"] > 0


def test_records_hold_no_wall_time(finished):
    out, _, _ = finished
    assert "seconds" not in (out / records.RECORDS).read_text(encoding="utf-8")


def test_a_finished_study_measures_nothing_again_and_keeps_its_records(finished, spec_path):
    out, page, _ = finished
    before, seen = (out / records.RECORDS).read_bytes(), page.read_bytes()
    events = []
    run.run(spec_path, out, on_event=events.append)
    assert not [event for event in events if event.kind == "work"]
    assert (out / records.RECORDS).read_bytes() == before and page.read_bytes() == seen


def test_a_study_that_was_killed_goes_on_and_ends_in_the_same_records(finished, spec_path, tmp_path):
    whole, _, _ = finished
    out = tmp_path / "study"

    def kill(event):
        if event.kind == "progress" and event.text.startswith("development/") and event.done == 2:
            raise Killed

    with pytest.raises(Killed):
        run.run(spec_path, out, on_event=kill)
    with (out / records.RECORDS).open("a") as file:
        file.write('{"id": "development/two arms/rec')
    report.write(out)
    run.run(spec_path, out, on_event=lambda event: None)
    assert (out / records.RECORDS).read_bytes() == (whole / records.RECORDS).read_bytes()


def test_another_study_is_not_overwritten(finished, spec_path):
    out, _, _ = finished
    before = (out / records.RECORDS).read_bytes()
    with pytest.raises(BadInput, match=r"holds another study \(digest, seed differ\)"):
        run.run(spec_path, out, seed=6, on_event=lambda event: None)
    assert (out / records.RECORDS).read_bytes() == before


def test_a_folder_that_holds_something_else_is_left_alone(spec_path, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="holds no study"):
        run.run(spec_path, tmp_path, on_event=lambda event: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_agent_that_does_not_fit_its_world_is_said_before_anything_runs(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(TINY.replace('agent = "random"', 'agent = "random"\nname = "x"'), encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("bandit:arms=2,pulls=4", "random_mdp:episodes=1")
    path.write_text(text.replace('agent = "random"', 'agent = "thompson"'), encoding="utf-8")
    with pytest.raises(BadInput, match="agent 'x' in 'two arms'"):
        run.run(path, tmp_path / "study", on_event=lambda event: None)
    assert not (tmp_path / "study").exists()


def test_off_a_terminal_the_tables_are_plain_lines(finished, spec_path, capsys):
    out, _, _ = finished
    run.run(spec_path, out)
    printed = capsys.readouterr().out
    assert "two arms" in printed and "recurrent" in printed and "report:" in printed
    assert "\x1b" not in printed
    assert json.loads((out / records.RECORDS).read_text().splitlines()[0])["title"] == "Tiny"
