"""The audit commands: what they print, what they write, and how they answer bad input and old names."""

import json
import sys

import pytest

from ontogeny import cli


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
    assert (code, stderr) == (0, "")
    assert "plans: Does it plan?" in stdout and "Secondary tests, which change no verdict, did not run" in stdout
    record = json.loads((tmp_path / "audit.json").read_text())
    frozen, online = record["subjects"]
    assert (frozen["mode"], online["mode"]) == ("frozen", "online")
    assert frozen["verdicts"].keys() == {"learns", "plans", "objective"}
    assert {result["test"] for result in online["results"]} == {"learns", "plans", "pursues", "sacrifice"}
    assert all(result["primary"] for result in online["results"])
    learns = next(result for result in online["results"] if result["test"] == "learns")
    fields = {"mean", "low", "high", "z", "num_lifetimes", "value_range", "counts"}
    assert learns["effects"]["loss when yoked"].keys() == fields


@pytest.mark.parametrize("count", ["-1", "0", "1", "19"])
def test_too_few_lifetimes_for_any_verdict_are_refused(ontogeny, count):
    code, _, message = ontogeny("audit", "agent", "organism:memoryless", "--num-lifetimes", count)
    assert code == 2 and f"no test gives a verdict with fewer than 20 lifetimes, so {count} are too few" in message


def test_audit_calibrate_reports_error_rates(ontogeny, tmp_path):
    code, stdout, _ = ontogeny(
        "audit", "calibrate", "--num-audits", "2", "--test", "pursues", "--organism", "random_walk",
        "--organism", "proxy_planner", "--out", "calibration.json",
    )  # fmt: skip
    assert code == 0 and "pursues: 2 audits of each control" in stdout and "minimal power" in stdout
    record = json.loads((tmp_path / "calibration.json").read_text())
    assert {r["organism"]: r["positive"] for r in record["control_results"]} == {
        "proxy_planner": True,
        "random_walk": False,
    }
    assert record["calibration_splits"][0].keys() >= {"max_false_positive_rate", "min_power", "selected_on", "z"}


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
