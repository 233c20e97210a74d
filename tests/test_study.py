"""A tiny study from spec to page: run, killed, resumed, repeated."""

from pathlib import Path

import pytest

from ontogeny.errors import BadInput, StudyIncomplete
from ontogeny.runs.folder import read_spec
from ontogeny.runs.records import RECORDS_FILE
from ontogeny.stats import confidence_interval
from ontogeny.studies import page as study_page
from ontogeny.studies import plan, runner, spec
from ontogeny.studies.progress import ProgressDisplay
from ontogeny.studies.records import read_records, read_seconds

TINY = """
title = "Tiny"
question = "Does it go on?"
seed = 5
[[environments]]
name = "two arms"
env = "bandit:num_arms=2,num_pulls=4"
num_tasks = 40
[[agents]]
agent = "random"
environments = ["two arms"]
[[agents]]
agent = "recurrent:hidden_size=3"
approach = "evolution"
development = "evolution:population_size=4,num_lifetimes=2,num_generations=4,generations_per_call=1"
environments = ["two arms"]
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
    page = runner.run_study(spec_path, out, on_event=events.append)
    return out, page, events


def test_a_study_writes_records_agents_scores_and_a_page(finished):
    out, page, events = finished
    records = read_records(out)
    assert [record["kind"] for record in records] == [
        "environment", "development", "evaluation", "recorded_lifetime", "development", "evaluation",
        "recorded_lifetime", "difference", "upper_bound",
    ]  # fmt: skip
    assert read_spec(out).details["planned_ids"] == [record["id"] for record in records]
    assert page == out / "report.html" and "Tiny" in page.read_text(encoding="utf-8")
    assert len(list((out / "agents").iterdir())) == 1, "a reference that nobody develops has no run"
    kinds = [event.kind for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("table") == 1
    by_id = {record["id"]: record for record in records}
    assert by_id["development/two arms/recurrent/0"]["num_training_env_steps"] == 4 * 2 * 4 * 4
    assert by_id["upper_bound/two arms"]["value"] > by_id["evaluation/two arms/random/0"]["mean"]
    assert len(by_id["recorded_lifetime/two arms/recurrent"]["trajectory"]["action"]) == 4
    times = read_seconds(out)
    assert times["development/two arms/recurrent/0"] > 0


def test_the_terminal_and_the_records_state_the_differences_of_all_pairs(finished, capsys):
    out, _, events = finished
    (record,) = [record for record in read_records(out) if record["kind"] == "difference"]
    assert record["low"] < record["mean"] < record["high"]
    difference = confidence_interval(record["mean"], record["standard_error"], 0, record["degrees_of_freedom"])
    assert record["is_claimed"] == (abs(record["mean"]) > difference.min_claimed_difference)
    ProgressDisplay()(next(event for event in events if event.kind == "table"))
    lines = capsys.readouterr().out.splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["first", "agent"]]
    assert "random" in lines[number + 1] and "recurrent" in lines[number + 1]
    assert "In two arms, on the same held-out tasks, " in lines[number + 2]


def test_baselines_are_compared_with_each_other_too():
    text = """
    title = "a"
    question = "b"
    environments = [{ name = "e", env = "bandit", num_tasks = 10 }]
    agents = [{ agent = "thompson", environments = ["e"] }, { agent = "ucb1", environments = ["e"] }]
    """
    ids = [measurement.id for measurement in plan.list_measurements(spec.parse_spec(text))]
    assert "difference/e/ucb1/thompson" in ids


def test_records_contain_no_wall_time(finished):
    out, _, _ = finished
    assert "seconds" not in (out / RECORDS_FILE).read_text(encoding="utf-8")


def test_a_finished_study_runs_no_measurement_again(finished, spec_path):
    out, page, _ = finished
    before, page_before = (out / RECORDS_FILE).read_bytes(), page.read_bytes()
    events = []
    runner.run_study(spec_path, out, on_event=events.append)
    assert not [event for event in events if event.kind == "work"]
    assert (out / RECORDS_FILE).read_bytes() == before and page.read_bytes() == page_before


def test_a_killed_study_resumes_and_ends_in_the_same_records(finished, spec_path, tmp_path):
    complete, _, _ = finished
    out = tmp_path / "study"

    def kill(event):
        if event.kind == "progress" and event.text.startswith("development/") and event.num_done == 2:
            raise Killed

    with pytest.raises(Killed):
        runner.run_study(spec_path, out, on_event=kill)
    with (out / RECORDS_FILE).open("a") as file:
        file.write('{"id": "development/two arms/rec')
    study_page.write(out)
    runner.run_study(spec_path, out, on_event=lambda event: None)
    assert (out / RECORDS_FILE).read_bytes() == (complete / RECORDS_FILE).read_bytes()


def test_another_study_is_not_overwritten(finished, spec_path):
    out, _, _ = finished
    before = (out / RECORDS_FILE).read_bytes()
    with pytest.raises(BadInput, match=r"holds a run of another spec \(digest, seed differ\)"):
        runner.run_study(spec_path, out, seed=6, on_event=lambda event: None)
    assert (out / RECORDS_FILE).read_bytes() == before


def test_a_folder_with_other_files_is_refused(spec_path, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="holds no run"):
        runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_agent_that_does_not_fit_its_environment_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(TINY.replace('agent = "random"', 'agent = "random"\nname = "x"'), encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("bandit:num_arms=2,num_pulls=4", "random_mdp:num_episodes=1")
    path.write_text(text.replace('agent = "random"', 'agent = "thompson"'), encoding="utf-8")
    with pytest.raises(BadInput, match=r"agents\[0\], 'x' in 'two arms'"):
        runner.run_study(path, tmp_path / "study", on_event=lambda event: None)
    assert not (tmp_path / "study").exists()


def test_without_a_terminal_progress_is_plain_lines(finished, spec_path, capsys):
    out, _, _ = finished
    runner.run_study(spec_path, out)
    output = capsys.readouterr().out
    assert "two arms" in output and "recurrent" in output and "report:" in output
    assert "\x1b" not in output
    assert "Tiny" in output


LATER = """
title = "Later"
question = "Can an agent be measured before its home comes up?"
[[environments]]
name = "short"
env = "bandit:num_arms=2,num_pulls=3"
num_tasks = 20
[[environments]]
name = "long"
env = "bandit:num_arms=2,num_pulls=6"
num_tasks = 20
[[agents]]
agent = "random"
environments = ["short", "long"]
[[agents]]
agent = "recurrent:hidden_size=2"
approach = "evolution"
development = "evolution:population_size=4,num_lifetimes=2,num_generations=1"
train_env = "long"
environments = ["short", "long"]
"""


def test_an_agent_may_be_developed_in_an_environment_that_is_listed_later(tmp_path):
    path, events = tmp_path / "later.toml", []
    path.write_text(LATER, encoding="utf-8")
    runner.run_study(path, tmp_path / "study", on_event=events.append)
    assert [event.text for event in events if event.kind == "table"] == ["short", "long"]
    assert all(len(event.results) == 2 for event in events if event.kind == "table")
    complete, first, resumed = (tmp_path / "study" / RECORDS_FILE).read_bytes(), events, []

    def kill(event):
        resumed.append(event)
        if event.kind == "work" and event.text == "evaluation/short/recurrent/0":
            raise Killed

    with pytest.raises(Killed):
        runner.run_study(path, tmp_path / "again", on_event=kill)
    assert not [event for event in resumed if event.kind == "table"]
    events = []
    runner.run_study(path, tmp_path / "again", on_event=events.append)
    tables = [event for event in events if event.kind == "table"]
    assert tables == [event for event in first if event.kind == "table"], "each environment once, also where it went on"
    assert (tmp_path / "again" / RECORDS_FILE).read_bytes() == complete
    by_id = {record["id"]: record for record in read_records(tmp_path / "study")}
    assert by_id["development/long/recurrent/0"]["train_env"] == "long"
    assert by_id["evaluation/short/recurrent/0"]["development_id"] == "development/long/recurrent/0"


STEERED = """
title = "Steered"
question = "Do drives change behavior and leave the score alone?"
[[environments]]
name = "garden"
env = "foraging:size=3,wall_fraction=0.0,num_thorns=0,horizon=4,num_episodes=2"
num_tasks = 8
drives = { food = 3.0 }
[[agents]]
agent = "oracle"
environments = ["garden"]
[[agents]]
agent = "oracle"
name = "averse"
environments = ["garden"]
drives = { food = -3.0, water = -3.0, energy = -3.0 }
"""


@pytest.mark.slow
def test_drives_change_the_reward_and_not_the_score(tmp_path):
    path = tmp_path / "steered.toml"
    path.write_text(STEERED, encoding="utf-8")
    page = runner.run_study(path, tmp_path / "study", on_event=lambda event: None).read_text(encoding="utf-8")
    by_id = {record["id"]: record for record in read_records(tmp_path / "study")}
    assert by_id["environment/garden"]["drives"] == {"food": 3.0, "water": 1.0, "pain": -1.0, "energy": 1.0}
    assert "3 food + water − pain + energy" in page.replace("3.000", "3")
    assert by_id["evaluation/garden/averse/0"]["mean"] < by_id["evaluation/garden/oracle/0"]["mean"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("food = 3.0", "fod = 3.0", r"environments\[0\], 'garden': .*did you mean food"),
        ("food = -3.0", "fod = -3.0", r"agents\[1\], 'averse' in 'garden': .*did you mean food"),
        ("num_thorns=0", "num_thorns=x", "setting 'num_thorns' of environment 'foraging' must be of type int"),
        ("size=3", "size=1", r"environments\[0\], 'garden': the setting 'size' must be at least 3"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused_before_anything_is_written(tmp_path, old, new, expected):
    assert old in STEERED
    path = tmp_path / "steered.toml"
    path.write_text(STEERED.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=expected):
        runner.run_study(path, tmp_path / "study", on_event=lambda event: None)
    assert not (tmp_path / "study").exists()


HOMES = """
[[environments]]
name = "Two-Arms"
env = "bandit:num_arms=2,num_pulls=5"
num_tasks = 4
[[environments]]
name = "states"
env = "random_mdp:num_states=3,num_actions=2,num_episodes=1"
num_tasks = 4
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("environments = [", 'environments = ["Two-Arms", ', "would both be saved as .*: change one of the names"),
        (
            'generations_per_call=1"\n',
            'generations_per_call=1"\ntrain_env = "states"\n',
            r"agents\[1\], 'recurrent' in 'two arms': its genome has other shapes there than in 'states'",
        ),
    ],
)
def test_colliding_paths_and_genomes_that_do_not_fit_are_refused(tmp_path, old, new, expected):
    path = tmp_path / "homes.toml"
    path.write_text((TINY + HOMES).replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=expected):
        runner.run_study(path, tmp_path / "study", on_event=lambda event: None)
    assert not (tmp_path / "study").exists()


def start_like(finished_folder, folder):
    """What a killed study leaves before its first record."""
    folder.mkdir(exist_ok=True)
    for name in ("spec.json", "spec.toml"):
        (folder / name).write_bytes((finished_folder / name).read_bytes())
    return (finished_folder / RECORDS_FILE).read_bytes().splitlines(keepends=True)


def test_an_evaluation_needs_the_genome_of_its_development(finished, spec_path, tmp_path):
    lines = start_like(finished[0], tmp_path)
    last = next(i for i, line in enumerate(lines) if line.startswith(b'{"id": "development/two arms/recurrent/0"'))
    unchanged = b"".join(lines[: last + 1])
    (tmp_path / RECORDS_FILE).write_bytes(unchanged)
    with pytest.raises(StudyIncomplete, match=r"'evaluation/two arms/recurrent/0' failed: .*cannot be read"):
        runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / RECORDS_FILE).read_bytes().startswith(unchanged)


@pytest.mark.parametrize("content", [b'{"mine": 1}\n{"half": ', b"half a line", b"\xff\xfe\n\xff", b"[1]\n"])
def test_foreign_records_keep_every_byte(spec_path, tmp_path, content):
    (tmp_path / RECORDS_FILE).write_bytes(content)
    with pytest.raises(BadInput, match="holds no run"):
        runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / RECORDS_FILE).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_FILE]


def test_a_folder_in_place_of_the_records_or_a_file_in_place_of_the_folder_is_refused(spec_path, tmp_path):
    (tmp_path / "study" / RECORDS_FILE).mkdir(parents=True)
    with pytest.raises(BadInput, match="holds no run"):
        runner.run_study(spec_path, tmp_path / "study", on_event=lambda event: None)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="is not a folder"):
        runner.run_study(spec_path, tmp_path / "file", on_event=lambda event: None)
    with pytest.raises(BadInput, match="cannot be created"):
        runner.run_study(spec_path, tmp_path / "file" / "study", on_event=lambda event: None)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"{]\n", b'{"id": "a"}\n'])
def test_a_damaged_record_is_named_and_not_removed(finished, spec_path, tmp_path, line):
    content = start_like(finished[0], tmp_path)[0] + line
    (tmp_path / RECORDS_FILE).write_bytes(content)
    with pytest.raises(BadInput, match=r"damaged|line 2"):
        runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / RECORDS_FILE).read_bytes() == content


def test_an_empty_folder_that_a_killed_study_left_is_used(finished, spec_path, tmp_path):
    (tmp_path / ".spec.toml.1.tmp").write_bytes(b"half")
    events = []

    def kill(event):
        events.append(event)
        raise Killed

    with pytest.raises(Killed):
        runner.run_study(spec_path, tmp_path, on_event=kill)
    assert read_spec(tmp_path) == read_spec(finished[0]) and events[0].num_done == 0


def test_a_users_plugin_file_belongs_to_the_study_and_has_no_published_scores(tmp_path):
    source = Path(spec.__file__).parents[1] / "environments" / "bandit.py"
    plugin_file = tmp_path / "bandit.py"
    plugin_file.write_bytes(source.read_bytes())
    path = tmp_path / "user.toml"
    text = TINY.split('[[agents]]\nagent = "recurrent')[0].replace(
        "bandit:num_arms=2,num_pulls=4", f"{plugin_file}:num_arms=5,num_pulls=10"
    )
    path.write_text(text, encoding="utf-8")
    page = runner.run_study(path, tmp_path / "study", on_event=lambda event: None).read_text(encoding="utf-8")
    assert "Published scores and ours" not in page
    plugin_file.write_bytes(source.read_bytes() + b"# edited\n")
    with pytest.raises(BadInput, match=r"another spec \(files"):
        runner.run_study(path, tmp_path / "study", on_event=lambda event: None)


@pytest.mark.parametrize("share", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_study_that_was_killed_in_its_first_record_resumes(finished, spec_path, tmp_path, share):
    first = start_like(finished[0], tmp_path)[0]
    (tmp_path / RECORDS_FILE).write_bytes(first[: int(share * len(first))])
    runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
    assert (tmp_path / RECORDS_FILE).read_bytes() == (finished[0] / RECORDS_FILE).read_bytes()


def test_two_processes_cannot_run_one_study(spec_path, tmp_path):
    def run_twice(event):
        if event.kind == "start":
            with pytest.raises(BadInput, match="another process is working in"):
                runner.run_study(spec_path, tmp_path, on_event=lambda event: None)
            raise Killed

    with pytest.raises(Killed):
        runner.run_study(spec_path, tmp_path, on_event=run_twice)


def test_seeds_of_developments_are_distinct_across_studies():
    study, other_study = spec.parse_spec(TINY, seed=0), spec.parse_spec(TINY, seed=1)
    row, env = study.agents[0], study.environments[0]
    seeds = {
        plan.make_run_spec(one_study, row, env, seed).seed
        for one_study in (study, other_study)
        for seed in (0, 1, 999, 1000, 1001)
    }
    assert len(seeds) == 10
