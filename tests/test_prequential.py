"""The prequential audit: valid predictors are certified, each invalid one fails the check that it breaks."""

import json
import sys

import numpy as np
import pytest

from ontogeny import cli
from ontogeny.audit.prequential import calibration, checks, page
from ontogeny.audit.prequential.base import CHECKS, VERDICTS
from ontogeny.audit.prequential.certificate import CertificateConfig, certify
from ontogeny.audit.prequential.loading import find_predictor
from ontogeny.audit.prequential.passes import passes_by_instance, passes_by_process, run_pass
from ontogeny.audit.prequential.reference_predictors import (
    REFERENCE_PREDICTORS,
    VALID_VERDICTS,
    counts,
    predict_by_counts,
    second_pass,
)
from ontogeny.errors import BadInput

SMALL = CertificateConfig(num_tokens=128)


def certify_builder(build, **options):
    """The certificate of a predictor and its verdicts by check."""
    certificate = certify(passes_by_instance("tested", build), **options)
    return certificate, {check.name: check.verdict for check in certificate.checks}


@pytest.mark.parametrize("name", REFERENCE_PREDICTORS)
def test_every_reference_predictor_gets_the_verdicts_of_its_ground_truth(name):
    build, ground_truth = REFERENCE_PREDICTORS[name]
    for seed in range(2):
        certificate, verdicts = certify_builder(build, seed=seed)
        assert {check: verdicts[check] for check in ground_truth} == ground_truth, certificate.checks
        assert certificate.certified == (ground_truth == VALID_VERDICTS)


def test_calibration_reports_error_rates_that_are_too_large(monkeypatch):
    def make_result(name, num_certified, verdicts):
        ground_truth = REFERENCE_PREDICTORS[name].ground_truth
        all_verdicts = {check: dict.fromkeys(VERDICTS, 0) | verdicts.get(check, {}) for check in CHECKS}
        is_valid = ground_truth == VALID_VERDICTS
        return calibration.PredictorCalibration(name, is_valid, 10, num_certified, all_verdicts, ground_truth)

    all_pass = {check: {"pass": 10} for check in CHECKS}
    assert not calibration.find_failures([make_result("counts", 10, all_pass)])
    results = [make_result("counts", 8, all_pass), make_result("unnormalized", 10, all_pass)]
    assert calibration.find_failures(results) == [
        "the valid predictor counts is rejected in 20.0% of audits",
        "the invalid predictor unnormalized is certified in 100.0% of audits",
        "normalized reports fail for unnormalized in only 0.0% of audits",
    ]
    chosen = {name: REFERENCE_PREDICTORS[name] for name in ("counts", "unnormalized")}
    monkeypatch.setattr(calibration, "REFERENCE_PREDICTORS", chosen)
    assert not calibration.find_failures(calibration.calibrate(2))
    monkeypatch.setattr(checks, "MAX_LOG_SUM", 1.0)
    assert calibration.find_failures(calibration.calibrate(2))


def test_evidence_on_random_tokens_stays_within_the_proven_bound():
    """At any level, the evidence of a valid predictor reaches log(1 / level) with probability at most `level`."""
    evidence = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        sequences = [random.integers(0, 4, 16) for _ in range(4)]
        log_probs = (predict_by_counts(sequence, 4) for sequence in sequences)
        check = checks.check_random_tokens(sequences, log_probs, 0.001)
        evidence.append(check.measurements["log_evidence"])
    for level in (0.5, 0.2, 0.05):
        share = np.mean(np.array(evidence) >= -np.log(level))
        assert share <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_a_weak_second_pass_is_detected_on_random_tokens():
    _, verdicts = certify_builder(lambda: second_pass(count_weight=0.1), config=SMALL)
    assert verdicts["random_tokens"] == "fail"


def test_a_reported_score_is_compared_with_a_first_pass():
    stream = np.random.default_rng(0).integers(0, 16, 200).astype(np.int32)
    score = certify_builder(counts, stream=stream, config=SMALL)[0].nats_per_token
    for reported, verdict in ((f"{score:.3f}", "pass"), (f"{score:.6f}", "pass"), (f"{score - 0.01:.4f}", "fail")):
        certificate, verdicts = certify_builder(counts, stream=stream, reported=reported, config=SMALL)
        assert verdicts["reported_score"] == verdict and certificate.certified == (verdict == "pass")


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda tokens: np.zeros(len(tokens)), "must return"),
        (lambda tokens: np.zeros((len(tokens), 4), int), "real numbers"),
        (lambda tokens: np.full((len(tokens), 4), np.nan), "NaN"),
        (lambda tokens: np.zeros((len(tokens), 1)), "too few"),
    ],
)
def test_answers_that_are_not_log_probabilities_are_rejected(predict, message):
    with pytest.raises(BadInput, match=message):
        certify_builder(lambda: predict, config=SMALL, vocab_size=4)


MODULE = """
import numpy as np
CALLS = 0

def uniform(tokens):
    return np.full((len(tokens), 8), -np.log(8))

class Learner:
    def __init__(self):
        self.counts = np.ones(8)

    def __call__(self, tokens):
        log_probs = []
        for token in tokens:
            log_probs.append(np.log(self.counts / self.counts.sum()))
            self.counts[token] += 1
        return np.stack(log_probs)

SHARED = Learner()

def shared(tokens):
    return SHARED(tokens)

def broken(tokens):
    return tokens.nothing
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_predictors.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_predictors_are_functions_or_classes_of_files_and_modules(module):
    for name in ("uniform", "Learner", "shared"):
        assert certify(passes_by_instance(f"my_predictors.py:{name}"), config=SMALL).certified
    # A module is imported once per process, so its state is carried from pass to pass; a new process clears it.
    certificate = certify(passes_by_instance("my_predictors:shared"), config=SMALL)
    assert not certificate.certified and {c.name: c.verdict for c in certificate.checks}["reproducible"] == "fail"
    for name, message in (("my_predictors.py:none", "no function"), ("no.py:f", "no file"), ("f", "not a predictor")):
        with pytest.raises(BadInput, match=message):
            find_predictor(name)
    with pytest.raises(BadInput, match=r"failed in line \d+: AttributeError"):
        run_pass("my_predictors.py:broken", np.arange(4))
    with pytest.raises(BadInput, match="'os:getcwd' must build a predictor, which is a function, not str"):
        run_pass("os:getcwd", np.arange(4))


def test_each_pass_runs_in_a_new_process(module):
    config = CertificateConfig(num_tokens=32, num_positions=1, num_prefixes=1, num_random_streams=1)
    certificate = certify(passes_by_process("my_predictors:shared"), config=config)
    assert certificate.certified and {check.name for check in certificate.checks} == set(CHECKS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predictor:token_leak", "--isolation", "instance"], 1, ""),
        (["predictor:counts", "--isolation", "instance", "--out", "certificate.json", "--html", "page.html"], 0, ""),
        ([], 2, "either a predictor or"),
        (["predictor:coutns", "--isolation", "instance"], 2, "did you mean counts"),
        (["predictor:counts:vocab=4", "--isolation", "instance"], 2, "did you mean vocab_size"),
        (["predictor:leaks_token", "--isolation", "instance"], 2, "`leaks_token` was renamed `token_leak`"),
        (["predictor:counts", "--isolation", "never"], 2, "process or instance"),
        (["predictor:counts", "--num-tokens", "3", "--isolation", "instance"], 2, "greater than or equal to 16"),
        (["predictor:counts", "--reported", "1.2", "--isolation", "instance"], 2, "belongs to a stream"),
        (["predictor:counts", "--stream", "tokens.txt", "--isolation", "instance"], 0, ""),
        (["predictor:counts", "--stream", "words.txt", "--isolation", "instance"], 2, "does not contain tokens"),
    ],
)
def test_the_command_reports_by_exit_code_message_and_file(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_text(" ".join(str(i % 7) for i in range(64)))
    (tmp_path / "words.txt").write_text("one two")
    monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "prequential", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == code and message in captured.err
    if "--out" in arguments:
        record = json.loads((tmp_path / "certificate.json").read_text())
        assert record["certified"] and {check["name"] for check in record["checks"]} == set(CHECKS)
        assert "(a) causal           pass" in captured.out and "certified: all checks" in captured.out
        html = (tmp_path / "page.html").read_text()
        assert html == page.render(record) and "random_tokens" in html and "<script" not in html


def test_the_page_of_a_calibration_shows_every_predictor_and_failure():
    results = [result._asdict() for result in calibration.calibrate(1)]
    failures = ["a <failure>"]
    html = page.render({"num_audits": 1, "predictor_results": results, "failures": failures})
    assert all(name in html for name in REFERENCE_PREDICTORS) and "a &lt;failure&gt;" in html
    assert "Checks</h2>" not in html
