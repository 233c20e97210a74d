"""The audit commands: what they print, what they write, and how they answer bad input and old names."""

import json
import sys
from pathlib import Path

import pytest

from ontogeny import cli
from ontogeny.audit import calibration
from ontogeny.audit.history import begin_audit, history_path, read_history
from ontogeny.cli.audit import print_calibration
from ontogeny.errors import BadInput

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def ontogeny(monkeypatch, capsys, tmp_path):
    """Calls the command line in this process and returns exit code, standard output and standard error."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))  # the command leaves JAX's settings alone
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


def test_audit_agent_prints_verdicts_and_writes_results(ontogeny, tmp_path):
    code, stdout, stderr = ontogeny(
        "audit", "agent", "organism:planner_in_weights", "--num-lifetimes", "20", "--out", "audit.json"
    )
    assert code == 0 and all(line.startswith("auditing: ") for line in stderr.splitlines()), stderr
    assert "plans: Does it plan?" in stdout and "Secondary tests, which change no verdict, did not run" in stdout
    record = json.loads((tmp_path / "audit.json").read_text())
    frozen, online = record["subjects"]
    assert (frozen["mode"], online["mode"]) == ("frozen", "online")
    assert frozen["verdicts"].keys() == {"learns", "plans", "objective"}
    assert {result["test"] for result in online["results"]} == {"learns", "plans", "pursues", "sacrifice"}
    assert all(result["primary"] for result in online["results"])
    learns = next(result for result in online["results"] if result["test"] == "learns")
    fields = {"mean", "low", "high", "z", "num_lifetimes", "moments", "value_range", "counts"}
    assert learns["effects"]["outcomes of earlier episodes"].keys() == fields


@pytest.mark.parametrize("count", ["-1", "0", "1", "19"])
def test_too_few_lifetimes_for_any_verdict_are_refused(ontogeny, count):
    code, _, message = ontogeny("audit", "agent", "organism:memoryless", "--num-lifetimes", count)
    assert code == 2 and f"no test gives a verdict with fewer than 20 lifetimes, so {count} are too few" in message


def test_audit_calibrate_reports_error_rates(ontogeny, tmp_path):
    code, stdout, _ = ontogeny(
        "audit", "calibrate", "--num-audits", "2", "--test", "learns", "--env", "bandit", "--organism", "win_stay",
        "--organism", "latent_state_learner", "--out", "calibration.json",
    )  # fmt: skip
    assert code == 0 and "learns in bandit: 2 audits of each control" in stdout and "minimal power" in stdout
    assert "no claim: learns detects the positive control latent_state_learner in bandit" in stdout
    assert "at most 5%" not in stdout.partition("no claim")[0]
    record = json.loads((tmp_path / "calibration.json").read_text())
    assert {r["organism"]: r["positive"] for r in record["control_results"]} == {
        "latent_state_learner": True,
        "win_stay": False,
    }
    assert record["calibration_splits"][0].keys() >= {"max_false_positive_rate", "min_power", "selected_on", "z"}


def test_numbers_of_audits_that_differ_are_stated_and_long_names_keep_their_column(capsys):
    def control(organism, num_audits):
        rate = calibration.estimate_rate(num_audits, num_audits)
        rates = (rate, rate._replace(num_verdicts=0), "", {}, 0.1)
        return calibration.ControlResult("learns", "chain", organism, organism, True, False, *rates)

    print_calibration([control("td_one", 200), control("latent_state_learner, distilled", 100)], [], [])
    heading, first, second, _ = capsys.readouterr().out.splitlines()
    assert heading.startswith("learns in chain: 100 to 200 audits of each control")
    assert "latent_state_learner, distilled yes 100.0%" in first and first.index(" yes ") == second.index(" yes ")


def test_an_agent_in_a_file_is_attributed_and_the_report_holds_every_seed_and_setting_tried(ontogeny, tmp_path):
    agent = tmp_path / "own.py"
    agent.write_text((PLUGINS / "counting.py").read_text())
    small = ("--env", "bandit:num_arms=2,num_pulls=8", "--num-tasks", "20", "--drive", "payout=2")
    for seed in ("0", "7"):
        code, stdout, stderr = ontogeny("audit", "attribution", "own.py:hope=3", *small, "--seed", seed)
        assert (code, stderr) == (0, ""), stderr
    assert "Audit 2 of this agent, after seed 0; its history is in 'own.audits.jsonl'." in stdout
    agent.write_text(agent.read_text() + "\n")  # another version of the file
    code, stdout, _ = ontogeny("audit", "attribution", "./own.py", *small, "--out", "gain.json")
    assert code == 0 and "Audit 1 of this agent, and 2 of other versions of it;" in stdout
    report = json.loads((tmp_path / "gain.json").read_text())
    assert report["settings"] == {
        "seed": 0,
        "num_tasks": 20,
        "min_gain": None,
        "agent": {"name": "./own.py", "settings": {"hope": 1.0}},
        "env": {"name": "bandit", "settings": {"num_arms": 2, "num_pulls": 8}},
        "drives": {"payout": 2.0},
    }
    earlier_audits = report["history"]["earlier_audits"]
    assert [audit["settings"]["seed"] for audit in earlier_audits] == [0, 7]
    assert all(audit["settings"]["agent"]["settings"] == {"hope": 3.0} for audit in earlier_audits)
    assert all(audit["command"] == "audit attribution" and audit["verdicts"] for audit in earlier_audits)
    assert {audit["digest"] for audit in earlier_audits} != {report["history"]["digest"]}
    assert len(read_history(tmp_path / "own.audits.jsonl")) == 3


def test_an_organism_in_a_file_is_audited_and_calibrated(ontogeny, tmp_path):
    text = "from ontogeny.audit.organisms.win_stay import build\nGROUND_TRUTH = {'learns': 'no'}\n"
    (tmp_path / "own.py").write_text(text)
    code, _, stderr = ontogeny(
        "audit", "calibrate", "--organism", "./own.py", "--test", "learns", "--env", "bandit", "--num-audits", "2",
        "--out", "c.json",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    record = json.loads((tmp_path / "c.json").read_text())
    assert [(r["organism"], r["positive"]) for r in record["control_results"]] == [("./own.py", False)]
    assert len(record["histories"]) == 1 and record["histories"][0]["earlier_audits"] == []
    (audit,) = read_history(tmp_path / "own.audits.jsonl")
    assert (audit["command"], audit["settings"]["num_audits"], audit["settings"]["seed"]) == ("audit calibrate", 2, 0)


OWN_TEST = """\"\"\"Tests nothing.\"\"\"
import numpy as np
from ontogeny.audit.base import AuditTest, expected_results
from ontogeny.audit.decisions import AuditResult, Thresholds

def build():
    def measure(subject, keys):
        return {"score": np.zeros(len(keys))}

    def decide(measurements, thresholds):
        return AuditResult("own", "plans", False, "no", "it does not", 1.0, {}, {})

    expected = expected_results(positive="", negative="memoryless")
    return AuditTest("own", "plans", False, 20, measure, decide, Thresholds(2.0), expected)
"""


def test_a_test_in_a_file_is_calibrated(ontogeny, tmp_path):
    (tmp_path / "own_test.py").write_text(OWN_TEST)
    code, stdout, stderr = ontogeny("audit", "calibrate", "--test", "./own_test.py", "--num-audits", "2")
    assert (code, stderr) == (0, "") and "own: 2 audits of each control" in stdout and "memoryless" in stdout
    (tmp_path / "none.py").write_text("def build():\n    return 3\n")
    code, _, stderr = ontogeny("audit", "calibrate", "--test", "none.py", "--num-audits", "2")
    assert code == 2 and "must return AuditTest, not int" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "agent", "own.py"], "the agent 'own.py' is audited in an environment: name it with --env"),
        (["audit", "agent", "run", "--env", "bandit"], "the run in 'run' is audited in the environment in which"),
        (["audit", "agent", "run", "--drive", "reward=1"], "a run keeps the drives with which it was developed"),
        (["audit", "agent", "organism:own.py"], "the file 'own.py' of an organism must state its ground truth, as in"),
        (
            ["audit", "calibrate", "--organism", "own.py"],
            "the file 'own.py' of an organism must state its ground truth",
        ),
        (["audit", "calibrate", "--organism", "absent.py"], "there is no file 'absent.py'"),
        (["audit", "agent", "organism:plannr"], "there is no organism 'plannr'; did you mean planner"),
    ],
)
def test_what_cannot_be_audited_is_refused_and_leaves_no_entry(ontogeny, tmp_path, arguments, message):
    (tmp_path / "own.py").write_text((PLUGINS / "counting.py").read_text())
    (tmp_path / "run").mkdir()
    code, _, stderr = ontogeny(*arguments)
    assert code == 2 and message in stderr and stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*audits.jsonl"))


def test_an_audit_that_is_stopped_stays_in_the_history(tmp_path):
    agent = tmp_path / "own.py"
    agent.write_text("x")
    begin_audit(agent, "audit agent", {"seed": 3})
    with history_path(agent).open("a") as file:
        file.write('{"event": "end", "id": "cut o')  # killed while it wrote
    history = begin_audit(agent, "audit agent", {"seed": 4})
    history.end({"learns": "yes"})
    assert [audit["settings"]["seed"] for audit in history.earlier_audits] == [3]
    assert "after seed 3; 1 of them did not finish" in history.describe()
    assert [audit.get("verdicts") for audit in read_history(history_path(agent))] == [None, {"learns": "yes"}]


def test_the_history_of_a_run_is_in_its_folder_and_another_genome_is_another_agent(tmp_path):
    (tmp_path / "genome.json").write_text("{}")
    begin_audit(tmp_path, "audit agent", {"seed": 0})
    (tmp_path / "genome.json").write_text("{ }")
    history = begin_audit(tmp_path, "audit agent", {"seed": 0})
    assert "Audit 1 of this agent, and 1 of other versions" in history.describe()
    assert history.path == tmp_path / "audits.jsonl"


def test_an_audit_that_cannot_be_recorded_says_so_in_its_report(tmp_path):
    agent = tmp_path / "own.py"
    agent.write_text("x")
    history_path(agent).symlink_to(tmp_path / "absent" / "file")  # a place that nobody can write
    history = begin_audit(agent, "audit agent", {"seed": 0})
    history.end({})
    assert not history.to_record()["is_recorded"]
    assert "it is not recorded: " in history.describe() and "cannot be written" in history.describe()


@pytest.mark.parametrize("line", ["{", "[]", '{"event": "other"}', '{"event": "begin", "id": "1"}', '{"event": "end"}'])
def test_a_damaged_history_is_refused_in_one_sentence(tmp_path, line):
    agent = tmp_path / "own.py"
    agent.write_text("x")
    history_path(agent).write_text(line + "\n")
    with pytest.raises(BadInput, match=r"own\.audits\.jsonl', line 1") as error_info:
        begin_audit(agent, "audit agent", {"seed": 0})
    assert "\n" not in str(error_info.value) and history_path(agent).read_text() == line + "\n"


@pytest.mark.parametrize("arguments", [[], ["nowhere", "--controls"]])
def test_audit_attribution_requires_either_a_run_or_the_controls(ontogeny, arguments):
    code, _, message = ontogeny("audit", "attribution", *arguments)
    assert code == 2 and "name a run, or use --controls for agents with known ground truth" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "attribution", "--known"], "`--known` was renamed `--controls`."),
        (["audit", "agent", "run", "--supporting"], "`--supporting` was renamed `--secondary`."),
        (["audit", "calibrate", "--audits", "3"], "`--audits` was renamed `--num-audits`."),
    ],
)
def test_old_names_of_the_audit_are_answered_with_the_new_ones(ontogeny, arguments, message):
    code, _, stderr = ontogeny(*arguments)
    assert code == 2 and message in stderr
