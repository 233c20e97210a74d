"""A tiny study from spec to page through the real thing: killed, resumed, repeated."""

import json
import re
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.study import records, report, run, spec

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
        "study", "world", "development", "evaluation", "replay", "development", "evaluation", "replay", "difference",
        "bound",
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


LATER = """
title = "Later"
question = "Can an agent be measured before its home comes up?"
[[worlds]]
name = "short"
world = "bandit:arms=2,pulls=3"
tasks = 20
[[worlds]]
name = "long"
world = "bandit:arms=2,pulls=6"
tasks = 20
[[agents]]
agent = "random"
worlds = ["short", "long"]
[[agents]]
agent = "recurrent:units=2"
model = "evolution"
development = "evolution:population=4,lives=2,generations=1"
developed_on = "long"
worlds = ["short", "long"]
"""


def test_an_agent_may_be_developed_in_a_world_that_is_listed_later(tmp_path):
    path, events = tmp_path / "later.toml", []
    path.write_text(LATER, encoding="utf-8")
    run.run(path, tmp_path / "study", on_event=events.append)
    assert [event.text for event in events if event.kind == "table"] == ["short", "long"]
    assert all(len(event.rows) == 2 for event in events if event.kind == "table")
    by_id = {record["id"]: record for record in records.read(tmp_path / "study" / records.RECORDS)}
    assert by_id["development/long/recurrent/0"]["developed_on"] == "long"
    assert by_id["evaluation/short/recurrent/0"]["development"] == "development/long/recurrent/0"


STEERED = """
title = "Steered"
question = "Do drives move behaviour and leave the score alone?"
[[worlds]]
name = "garden"
world = "foraging:size=3,walls=0.0,thorns=0,horizon=4,episodes=2"
tasks = 8
drives = { food = 3.0 }
[[agents]]
agent = "oracle"
worlds = ["garden"]
[[agents]]
agent = "oracle"
name = "averse"
worlds = ["garden"]
drives = { food = -3.0, water = -3.0, energy = -3.0 }
"""


def test_drives_steer_and_the_score_stays_what_was_meant(tmp_path):
    path = tmp_path / "steered.toml"
    path.write_text(STEERED, encoding="utf-8")
    page = run.run(path, tmp_path / "study", on_event=lambda event: None).read_text(encoding="utf-8")
    by_id = {record["id"]: record for record in records.read(tmp_path / "study" / records.RECORDS)}
    assert by_id["world/garden"]["drives"] == {"food": 3.0, "water": 1.0, "pain": -1.0, "energy": 1.0}
    assert "3 food + water − pain + energy" in page.replace("3.000", "3")
    assert by_id["evaluation/garden/averse/0"]["mean"] < by_id["evaluation/garden/oracle/0"]["mean"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("food = 3.0", "fod = 3.0", "world 'garden': .*did you mean food"),
        ("food = -3.0", "fod = -3.0", "agent 'averse' in 'garden': .*did you mean food"),
        ("thorns=0", "thorns=x", "setting 'thorns' of world 'foraging' must be of type int"),
        ("size=3", "size=1", "world 'garden': the setting 'size' must be at least 3"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused_before_anything_is_made(tmp_path, old, new, expected):
    assert old in STEERED
    path = tmp_path / "steered.toml"
    path.write_text(STEERED.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=expected):
        run.run(path, tmp_path / "study", on_event=lambda event: None)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "content",
    [b'{"mine": 1}\n{"half": ', b"half a line", b"\xff\xfe\n\xff", b'{"kind": "other"}\n', b"[1]\n"],
)
def test_records_of_somebody_else_keep_every_byte(spec_path, tmp_path, content):
    (tmp_path / records.RECORDS).write_bytes(content)
    with pytest.raises(BadInput, match="not the records of a study"):
        run.run(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / records.RECORDS).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [records.RECORDS]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_study_that_was_killed_in_its_first_line_begins_again(finished, spec_path, tmp_path, share):
    whole, _, _ = finished
    first = (whole / records.RECORDS).read_bytes().split(b"\n")[0]
    (tmp_path / records.RECORDS).write_bytes(first[: int(share * len(first))])
    run.run(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / records.RECORDS).read_bytes() == (whole / records.RECORDS).read_bytes()


def test_two_processes_do_not_run_one_study(spec_path, tmp_path):
    def again(event):
        if event.kind == "start":
            with pytest.raises(BadInput, match="another process is running a study"):
                run.run(spec_path, tmp_path, on_event=lambda event: None)
            raise Killed

    with pytest.raises(Killed):
        run.run(spec_path, tmp_path, on_event=again)


def test_no_two_developments_of_two_studies_share_a_seed():
    study, other = spec.parse(TINY, seed=0), spec.parse(TINY, seed=1)
    row, world = study.agents[0], study.worlds[0]
    seeds = {run._run_spec(each, row, world, seed).seed for each in (study, other) for seed in (0, 1, 999, 1000, 1001)}
    assert len(seeds) == 10


def test_the_page_of_study_md_is_complete_and_its_example_is_a_study(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
    study = spec.parse(text.split("```toml")[1].split("```")[0])
    run.check(study)
    told = set(re.findall(r"^\| `?(top|\[\[\w+\]\])`? \| `(\w+)`", text, re.MULTILINE))
    known = {("top", key) for key in spec.KEYS["study"]}
    known |= {("[[worlds]]", key) for key in spec.KEYS["world"]} | {("[[agents]]", key) for key in spec.KEYS["agent"]}
    assert told == known
