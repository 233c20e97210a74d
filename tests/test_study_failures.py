"""Studies of which measurements fail, which run in parts or in other processes, and which are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ontogeny.errors import BadInput, StudyIncomplete
from ontogeny.parallel.drivers import open_driver
from ontogeny.runs.records import RECORDS_FILE
from ontogeny.studies import merge, parts, plan, runner, spec, units
from ontogeny.studies.costs import RemainingTime
from ontogeny.studies.journal import Journal
from ontogeny.studies.progress import ProgressDisplay, StudyEvent, describe_remaining, format_duration
from ontogeny.studies.records import FAILURES_FILE, read_failures, read_records

SCRIPTED = Path(__file__).parent / "plugins" / "scripted.py"
STUDY = """
title = "Failures"
question = "Does the rest go on?"
[[environments]]
name = "arms"
env = "bandit:num_arms=2,num_pulls=3"
num_tasks = 8
record_lifetime = false
[[agents]]
agent = "random"
environments = ["arms"]
[[agents]]
name = "agent"
agent = "recurrent:hidden_size=2"
approach = "evolution"
development = "{development}"
environments = ["arms"]
[sweep]
{sweep}
"""


def write_study(folder, sweep, development=f"{SCRIPTED}:num_generations=1"):
    path = folder / "study.toml"
    path.write_text(STUDY.format(development=development, sweep=sweep), encoding="utf-8")
    return path


def ignore(event):
    pass


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    """A study of four developments without failures, and its folder."""
    folder = tmp_path_factory.mktemp("undivided")
    path = write_study(folder, "development.num_generations = [1, 2]\nseeds = [0, 1]")
    runner.run_study(path, folder / "study", on_event=ignore)
    return path, folder / "study"


def test_a_failure_stops_nothing_but_what_depends_on_it_and_the_same_command_retries_it(tmp_path):
    development = f"{SCRIPTED}:num_generations=1,folder={tmp_path}"
    path = write_study(tmp_path, 'development.mode = ["diverges", "works", "absent", "breaks"]', development)
    out, events = tmp_path / "study", []
    with pytest.raises(
        StudyIncomplete, match=r"of 22 measurements, 3 failed and 12 more are missing; 'development/arms"
    ):
        runner.run_study(path, out, on_event=events.append)
    assert [event.text for event in events if event.kind == "failure"] == [
        "development/arms/agent mode=diverges/0: the learning diverged in a test",
        "development/arms/agent mode=absent/0: the learning diverged in a test",
        "development/arms/agent mode=breaks/0: training fails in line 30: ZeroDivisionError: a test divides by zero",
    ]
    failures = read_failures(out)
    assert failures["evaluation/arms/agent mode=absent/0"].missing == "development/arms/agent mode=absent/0"
    assert "scripted.py" in failures["development/arms/agent mode=breaks/0"].traceback
    assert not failures["development/arms/agent mode=diverges/0"].traceback
    first = {record["id"] for record in read_records(out)}
    assert "difference/arms/agent mode=works/random" in first and len(first) == 7
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("development of seed 0: the learning diverged in a test.") == 2 and "1 of 4 cells have" in page

    (tmp_path / "present").touch()
    events.clear()
    with pytest.raises(StudyIncomplete, match="2 failed"):
        runner.run_study(path, out, on_event=events.append)
    attempted = {event.text for event in events if event.kind == "work"}
    assert not attempted & first and {name for name in attempted if name.startswith("development/")} == {
        f"development/arms/agent mode={mode}/0" for mode in ("diverges", "absent", "breaks")
    }
    assert "evaluation/arms/agent mode=absent/0" in {record["id"] for record in read_records(out)}


def test_an_error_of_the_receiver_of_events_is_no_failure_of_a_measurement(tmp_path):
    path = write_study(tmp_path, "num_seeds = 1")

    def fail(event):
        if event.kind == "progress":
            raise ValueError("of the receiver")

    with pytest.raises(ValueError, match="of the receiver"):
        runner.run_study(path, tmp_path / "study", on_event=fail)
    assert not read_failures(tmp_path / "study")


def test_parts_are_complete_and_even_and_their_merge_is_the_undivided_study(undivided, tmp_path):
    path, complete = undivided
    folders = [tmp_path / str(number) for number in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        runner.run_study(path, folder, part=f"{number}/3", on_event=ignore)
    assert "part 2/3 of a study" in (folders[1] / "report.html").read_text(encoding="utf-8")
    assert all(not (folder / FAILURES_FILE).exists() for folder in folders)
    with pytest.raises(StudyIncomplete, match=r"1 part of 3 is missing or incomplete \(2\)"):
        merge.merge_study(tmp_path / "merged", [folders[0], folders[2]], on_event=ignore)
    interrupted = next((folders[1] / "agents").iterdir())
    ignored = shutil.ignore_patterns("genome*")
    shutil.copytree(interrupted, tmp_path / "merged" / "agents" / interrupted.name, ignore=ignored)
    scores = next((folders[1] / "scores").iterdir())
    scores.rename(tmp_path / "scores")
    with pytest.raises(BadInput, match="is absent, although there is a record of it"):
        merge.merge_study(tmp_path / "merged", [folders[1]], on_event=ignore)
    (tmp_path / "scores").rename(scores)
    merge.merge_study(tmp_path / "merged", [folders[1]], on_event=ignore)
    merge.merge_study(tmp_path / "at once", folders[::-1], on_event=ignore)
    for out in (tmp_path / "merged", tmp_path / "at once"):
        assert (out / RECORDS_FILE).read_bytes() == (complete / RECORDS_FILE).read_bytes()
    events = []
    runner.run_study(path, tmp_path / "merged", on_event=events.append)
    assert not [event for event in events if event.kind == "work"], "a merged folder is that of the undivided study"

    path_of_records = folders[0] / RECORDS_FILE
    lines = [json.loads(line) for line in path_of_records.read_text(encoding="utf-8").splitlines()]
    changed = [line | {"mean": 7.0} if line["kind"] == "evaluation" else line for line in lines]
    path_of_records.write_text("".join(f"{json.dumps(line)}\n" for line in changed), encoding="utf-8")
    with pytest.raises(BadInput, match=r"the record 'evaluation/arms/.*' in .* differs from that in"):
        merge.merge_study(tmp_path / "merged", folders, on_event=ignore)


def test_folders_of_other_studies_divisions_or_versions_are_not_merged(undivided, tmp_path):
    path, _ = undivided
    runner.run_study(path, tmp_path / "1", part="1/4", on_event=ignore)
    runner.run_study(path, tmp_path / "2", part="2/5", on_event=ignore)
    runner.run_study(path, tmp_path / "3", part="2/4", seed=9, on_event=ignore)
    for folder, message in (("2", "is one of 4 parts and .* one of 5"), ("3", "differ in their spec: digest")):
        with pytest.raises(BadInput, match=message):
            merge.merge_study(tmp_path / "out", [tmp_path / "1", tmp_path / folder], on_event=ignore)
    with pytest.raises(BadInput, match=r"holds a run of another spec \(part differs"):
        runner.run_study(path, tmp_path / "1", part="2/4", on_event=ignore)
    first, second = (merge._read_part(tmp_path / "1") for _ in range(2))
    newer = second._replace(
        description=second.description._replace(versions=second.description.versions | {"jax": "9"})
    )
    with pytest.raises(BadInput, match=r"differ in their versions .*: jax .* and 9"):
        merge._check_same_study([first, newer])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "1/0", "a/b", "1/99999999", "-1/3", "1/3/4"])
def test_a_part_that_does_not_exist_is_refused(text):
    with pytest.raises(BadInput, match="a part is written as K/N, such as 3/20"):
        parts.parse_part(text)


@pytest.mark.parametrize("num_parts", [1, 3, 7, 30])
def test_parts_hold_every_unit_once_and_take_equally_long(num_parts):
    sweep = "agent.hidden_size = [2, 4, 8]\nnum_seeds = 4"
    study = spec.parse_spec(STUDY.format(development="evolution:num_generations=2", sweep=sweep))
    measurements = list(plan.list_measurements(study))
    sizes = {(agent.name, "arms"): plan.AgentSize(100 * i, 3, 10**7 * i) for i, agent in enumerate(study.agents)}
    division = parts.divide(measurements, sizes, num_parts)
    in_units = [name for ids in division for name in ids if name.startswith(units.KINDS)]
    assert sorted(in_units) == sorted(m.id for m in measurements if m.id.startswith(units.KINDS))
    for ids in division:
        for measurement in measurements:
            assert measurement.id not in ids or ids.issuperset(plan.dependencies(measurement))
    costs = [units.expected_seconds_of_unit([m for m in measurements if m.id in ids], sizes) for ids in division]
    longest = max(units.expected_seconds_of_unit(unit, sizes) for unit in units.group_units(measurements))
    assert max(costs) <= sum(costs) / num_parts + longest


def test_workers_leave_records_that_a_later_process_takes_over(undivided, tmp_path):
    path, complete = undivided
    study = spec.read_spec(path)
    measurements, sizes = list(plan.list_measurements(study)), plan.check_study(study)
    with runner.claim_study(tmp_path, study, measurements) as folder, open_driver() as driver:
        group = units.group_units(measurements)
        setup = {"text": study.text, "seed": study.seed, "folder": str(folder)}
        (folder / units.PENDING_FOLDER).mkdir()
        units.measure_unit(setup, {"ids": [m.id for m in group[0]]})  # whose process is killed afterwards
        pending = next((folder / units.PENDING_FOLDER).glob("*.jsonl"))
        pending.write_bytes(pending.read_bytes() + b'{"record": {"id"')
        journal = Journal(folder, measurements, sizes, ignore)
        units.collect_pending(journal)
        assert list(journal.records) == [m.id for m in group[0]] and not pending.exists()
        runner.StudyRun(study, journal, ignore).run_units(driver, sizes)
        assert not (folder / units.PENDING_FOLDER).exists()
    runner.run_study(path, tmp_path, on_event=ignore)
    assert (tmp_path / RECORDS_FILE).read_bytes() == (complete / RECORDS_FILE).read_bytes()


def test_the_remaining_time_follows_from_the_measured_times():
    study = spec.parse_spec(STUDY.format(development="evolution:num_generations=2", sweep="num_seeds = 4"))
    measurements = list(plan.list_measurements(study))
    sizes = {(name, "arms"): plan.AgentSize(10, 3, 1000) for name in ("random", "agent")}
    times = RemainingTime(measurements, sizes, {})
    developments = [m.id for m in measurements if m.id.startswith("development/arms/agent/")]
    assert times.estimate(developments) is None
    times.add(developments[0], 10.0)
    times.add(developments[1], 20.0)
    assert times.estimate(developments[2:]) == pytest.approx(2 * 15.0)
    evaluations = [m.id for m in measurements if m.kind == "evaluation"]
    assert (times.estimate(evaluations) or 0) > 0


def test_progress_states_what_is_left_and_how_long_it_takes(capsys):
    event = StudyEvent("done", "", 12, 40, num_failed=1, seconds_left=840.0)
    expected = "12 of 40 measurements done, 1 failed or missing, 27 left, about 14 min"
    assert describe_remaining(event) == expected
    display = ProgressDisplay()
    display(event)
    display(event._replace(num_done=13))
    assert capsys.readouterr().out.count("measurements done") == 1, "at most one line in ten seconds"
    assert [format_duration(seconds) for seconds in (40, 840, 12600)] == ["about 40 s", "about 14 min", "about 3.5 h"]


def start(path, out, *arguments):
    environment = {name: text for name, text in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "ontogeny", "study", str(path), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process):
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


@pytest.mark.slow
def test_processes_give_the_records_of_one_process_after_kills_and_crashes(tmp_path):
    development = "evolution:population_size=4,num_lifetimes=2,generations_per_call=1"
    path = write_study(tmp_path, "development.num_generations = [2, 4]\nseeds = [0, 1]", development)
    code, output = finish(start(path, tmp_path / "one", "--on", "in_process", "--num-host-devices", "1"))
    assert code == 0, output
    killed = tmp_path / "killed"
    for _ in range(3):
        process = start(path, killed, "--on", "processes:num_workers=2")
        num_records = len(list(killed.rglob("*.jsonl")))
        for _ in range(600):
            time.sleep(0.1)
            if len(list(killed.rglob("*.jsonl"))) > num_records + 1 or process.poll() is not None:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    code, output = finish(start(path, killed))  # which uses processes by itself
    assert code == 0, output
    code, output = finish(start(path, tmp_path / "part", "--part", "1/2"))
    assert code == 0, output
    expected = (tmp_path / "one" / RECORDS_FILE).read_bytes()
    assert (killed / RECORDS_FILE).read_bytes() == expected
    assert set((tmp_path / "part" / RECORDS_FILE).read_bytes().splitlines()) < set(expected.splitlines())


@pytest.mark.slow
def test_a_worker_that_crashes_fails_its_measurement_alone(tmp_path):
    path = write_study(tmp_path, 'development.mode = ["crashes", "works"]')
    code, output = finish(start(path, tmp_path / "study", "--on", "processes:num_workers=1"))
    assert code == 1 and "development/arms/agent mode=crashes/0' failed: 4 processes that computed it ended" in output
    ids = {record["id"] for record in read_records(tmp_path / "study")}
    assert "evaluation/arms/agent mode=works/0" in ids and "evaluation/arms/random/0" in ids
