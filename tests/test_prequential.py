"""The certificate for online scores: honest predictors get it, each kind of cheat is refused by the check it breaks."""

import json
import sys

import numpy as np
import pytest

from ontogeny import cli, plugins
from ontogeny.audit.prequential import certificate as prequential
from ontogeny.audit.prequential.predictors.base import HONEST, counted
from ontogeny.types import BadInput

SMALL = prequential.Settings(tokens=128, positions=24)


def said(make, **how):
    found = prequential.audit(prequential.by_new(make), **how)
    return found, {check.name: check.verdict for check in found.checks}


@pytest.mark.parametrize("name", plugins.list_names("predictors"))
def test_every_predictor_is_judged_as_it_is(name):
    truth, make = (plugins.get_attribute("predictors", name, key) for key in ("TRUTH", "build"))
    for seed in range(2):
        found, verdicts = said(make, seed=seed)
        assert {check: verdicts[check] for check in truth} == truth, found.checks
        assert found.certified == (truth == HONEST)


def test_a_broken_certificate_is_found_by_its_calibration(monkeypatch):
    def row(name, certified, said):
        truth = plugins.get_attribute("predictors", name, "TRUTH")
        verdicts = {check: {"pass": 0, "fail": 0, "undetermined": 0} | said.get(check, {}) for check in HONEST}
        return prequential.Row(name, truth == HONEST, 10, certified, verdicts, truth)

    fine = {check: {"pass": 10} for check in HONEST}
    assert not prequential.failures([row("counts", 10, fine)])
    wrong = prequential.failures([row("counts", 8, fine), row("not_normalised", 10, fine)])
    assert wrong == [
        "the honest counts is refused in 20.0% of audits",
        "the guilty not_normalised is certified in 100.0% of audits",
        "normalised says fail of not_normalised in 0.0% of audits alone",
    ]
    monkeypatch.setattr(plugins, "names", lambda family: ["counts", "not_normalised"])
    assert not prequential.failures(prequential.calibrate(2))
    monkeypatch.setattr(prequential, "NORMAL", 1.0)
    assert prequential.failures(prequential.calibrate(2))


def test_secrets_stay_within_the_bound_that_was_proved():
    """Of an honest learner's evidence, at most a share `level` may reach log(1 / level), at any level."""
    evidence = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        secrets = [random.integers(0, 4, 16) for _ in range(4)]
        rows = (counted(secret, 4) for secret in secrets)
        evidence.append(prequential._secret(secrets, rows, 0.001).measured["evidence"])
    for level in (0.5, 0.2, 0.05):
        reached = np.mean(np.array(evidence) >= -np.log(level))
        assert reached <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_a_weak_second_pass_is_found_by_secrets_alone():
    from ontogeny.audit.prequential.predictors import second_pass

    _, verdicts = said(lambda: second_pass.build(kept=0.1), settings=SMALL)
    assert verdicts["secret"] == "fail"


def test_what_was_reported_is_held_against_a_first_pass():
    make = plugins.get_attribute("predictors", "counts", "build")
    stream = np.random.default_rng(0).integers(0, 16, 200).astype(np.int32)
    first = said(make, stream=stream, settings=SMALL)[0].nats_per_token
    for reported, verdict in ((f"{first:.3f}", "pass"), (f"{first:.6f}", "pass"), (f"{first - 0.01:.4f}", "fail")):
        found, verdicts = said(make, stream=stream, reported=reported, settings=SMALL)
        assert verdicts["reported"] == verdict and found.certified == (verdict == "pass")


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda tokens: np.zeros(len(tokens)), "must return"),
        (lambda tokens: np.zeros((len(tokens), 4), int), "real numbers"),
        (lambda tokens: np.full((len(tokens), 4), np.nan), "NaN"),
        (lambda tokens: np.zeros((len(tokens), 1)), "too few"),
    ],
)
def test_what_is_no_predictor_is_said(predict, message):
    with pytest.raises(BadInput, match=message):
        said(lambda: predict, settings=SMALL, vocabulary=4)


MINE = """
import numpy as np
CALLS = 0

def uniform(tokens):
    return np.full((len(tokens), 8), -np.log(8))

class Learner:
    def __init__(self):
        self.counts = np.ones(8)

    def __call__(self, tokens):
        rows = []
        for token in tokens:
            rows.append(np.log(self.counts / self.counts.sum()))
            self.counts[token] += 1
        return np.stack(rows)

KEPT = Learner()

def kept(tokens):
    return KEPT(tokens)

def breaks(tokens):
    return tokens.nothing
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_functions_classes_and_modules_are_found(mine):
    for name in ("mine.py:uniform", "mine.py:Learner", "mine.py:kept"):
        assert prequential.audit(prequential.in_instances(name), settings=SMALL).certified
    # A module is loaded once in a process: what it keeps is seen, as it should be, and a new process clears it.
    found = prequential.audit(prequential.in_instances("mine:kept"), settings=SMALL)
    assert not found.certified and {c.name: c.verdict for c in found.checks}["repeats"] == "fail"
    for name, message in (("mine.py:none", "no function"), ("no.py:f", "no file"), ("f", "names no predictor")):
        with pytest.raises(BadInput, match=message):
            prequential.made(name)
    with pytest.raises(BadInput, match=r"failed in line \d+: AttributeError"):
        prequential.one_pass("mine.py:breaks", np.arange(4))


def test_a_new_process_for_each_pass(mine):
    few = prequential.Settings(tokens=32, positions=1, cuts=1, secrets=1)
    found = prequential.audit(prequential.in_processes("mine:kept"), settings=few)
    assert found.certified and {check.name for check in found.checks} == set(HONEST)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predictor:leaks_token", "--fresh", "instance"], 1, ""),
        (["predictor:counts", "--fresh", "instance", "--out", "found.json"], 0, ""),
        ([], 2, "either a predictor or"),
        (["predictor:cunts", "--fresh", "instance"], 2, "did you mean counts"),
        (["predictor:counts", "--fresh", "never"], 2, "process or instance"),
        (["predictor:counts", "--reported", "1.2", "--fresh", "instance"], 2, "belongs to a stream"),
        (["predictor:counts", "--stream", "tokens.txt", "--fresh", "instance"], 0, ""),
        (["predictor:counts", "--stream", "words.txt", "--fresh", "instance"], 2, "holds no tokens"),
    ],
)
def test_the_command(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_text(" ".join(str(i % 7) for i in range(64)))
    (tmp_path / "words.txt").write_text("one two")
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "prequential", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    printed = capsys.readouterr()
    assert done.value.code == code and message in printed.err
    if "--out" in arguments:
        record = json.loads((tmp_path / "found.json").read_text())
        assert record["certified"] and {check["name"] for check in record["checks"]} == set(HONEST)
        assert "(a) causal     pass" in printed.out and "certified: a first pass" in printed.out
