"""The prequential audit: valid predictors are certified, each invalid one fails the check that it breaks."""

import json
import sys

import numpy as np
import pytest
from scipy.special import log_softmax

from ontogeny import cli
from ontogeny.audit.prequential import calibration, checks, page
from ontogeny.audit.prequential.base import CHECKS, VERDICTS
from ontogeny.audit.prequential.certificate import CertificateConfig, certify
from ontogeny.audit.prequential.loading import find_predictor
from ontogeny.audit.prequential.passes import passes_by_instance, passes_by_process, run_pass
from ontogeny.audit.prequential.reference_predictors import (
    REFERENCE_PREDICTORS,
    VALID_VERDICTS,
    count_transitions,
    counts,
    leak_tokens,
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
        for check in certificate.checks:
            assert bool(check.advice) == (check.verdict == "fail"), "a failure says what to do"


def test_a_few_tested_positions_are_no_certificate():
    """Five positions without a leak leave half of all positions possible, and 17 a fifth."""
    for num_positions, verdict in ((5, "undetermined"), (16, "undetermined"), (17, "pass"), (24, "pass")):
        config = CertificateConfig(num_tokens=128, num_positions=num_positions, num_random_streams=1)
        certificate, verdicts = certify_builder(counts, config=config)
        assert verdicts["causal"] == verdict and certificate.certified == (verdict == "pass")
    rows = np.zeros((16, 4))
    of_all = checks.check_causality(rows, [(position, rows) for position in range(14)])
    assert of_all.verdict == "pass" and of_all.measurements["high"] == 2 / 16  # those of the stream that are left
    assert "up to 52% of positions may leak" in checks.check_causality(np.zeros((64, 4)), [(0, rows)] * 5).summary


def passing_result(name, num_certified, num_audits):
    """The calibration of a reference predictor that passes every check in every audit."""
    ground_truth = REFERENCE_PREDICTORS[name].ground_truth
    verdicts = {check: dict.fromkeys(VERDICTS, 0) | {"pass": num_audits} for check in CHECKS}
    is_valid = ground_truth == VALID_VERDICTS
    return calibration.PredictorCalibration(name, is_valid, num_audits, num_certified, verdicts, ground_truth)


def test_calibration_reports_error_rates_that_are_too_large(monkeypatch):
    results = [passing_result("counts", 8, 10), passing_result("unnormalized", 10, 10)]
    assert calibration.claim_error_rates(results)[0] == [
        "the valid predictor counts is certified in 80.0% (44.4% to 97.5%) of 10 audits, where at least 99% is "
        "required",
        "the invalid predictor unnormalized is rejected in 0.0% (0.0% to 30.8%) of 10 audits, where at least 95% is "
        "required",
        "normalized reports fail for unnormalized in 0.0% (0.0% to 30.8%) of 10 audits, where at least 95% is required",
    ]
    chosen = {name: REFERENCE_PREDICTORS[name] for name in ("counts", "unnormalized")}
    monkeypatch.setattr(calibration, "REFERENCE_PREDICTORS", chosen)
    assert not calibration.claim_error_rates(calibration.calibrate(2))[0]
    monkeypatch.setattr(checks, "MAX_LOG_SUM", 1.0)
    assert calibration.claim_error_rates(calibration.calibrate(2))[0]


def test_a_calibration_with_few_audits_claims_no_error_rate():
    missed, undetermined = calibration.claim_error_rates([passing_result("counts", 10, 10)])
    assert not missed and len(undetermined) == 1 + len(CHECKS)
    assert "100.0% (69.2% to 100.0%) of 10 audits, which neither shows nor excludes 99%" in undetermined[0]
    assert calibration.claim_error_rates([passing_result("counts", 1000, 1000)]) == ([], [])


def widen(log_probs, num_columns, outside):
    """Rows with further columns, which share the probability `outside`."""
    with np.errstate(divide="ignore"):
        inside, padding = np.log1p(-outside), np.log(outside / num_columns)
    return np.concatenate([log_probs + inside, np.full((len(log_probs), num_columns), padding)], axis=1)


def mask(log_probs, tokens):
    """Rows in which a token that has not occurred is impossible, once any token has occurred."""
    one_hot = np.eye(log_probs.shape[1])[tokens]
    is_impossible = np.cumsum(one_hot, axis=0) - one_hot == 0
    is_impossible[0] = False
    return np.where(is_impossible, -np.inf, log_probs)


@pytest.mark.parametrize("rows", ["narrow", "wide", "padded", "masked", "empty"])
def test_evidence_on_random_tokens_stays_within_the_proven_bound(rows):
    """At any level, the evidence of a valid predictor reaches log(1 / level) with probability at most `level`."""

    def predict(sequence):
        log_probs = predict_by_counts(sequence, 4)
        if rows == "empty":  # every second row lies outside the tokens that are drawn
            log_probs[::2] = -np.inf
        log_probs = mask(log_probs, sequence) if rows == "masked" else log_probs
        outside = {"wide": 0.6, "padded": 0.0}.get(rows)
        return log_probs if outside is None else widen(log_probs, 60, outside)

    evidence = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        sequences = [random.integers(0, 4, 16) for _ in range(4)]
        check = checks.check_random_tokens(sequences, map(predict, sequences), np.arange(4), 0.001)
        evidence.append(check.measurements["log_evidence"])
    for level in (0.5, 0.2, 0.05):
        share = np.mean(np.array(evidence) >= -np.log(level))
        assert share <= level + 3 * np.sqrt(level * (1 - level) / 300)


@pytest.mark.parametrize("outside", [0.0, 0.5, 0.9])
def test_a_valid_predictor_with_rows_wider_than_the_vocabulary_is_certified(outside):
    def build():
        return lambda tokens: widen(predict_by_counts(tokens, 16), 1000, outside)

    for seed in range(3):
        certificate, _ = certify_builder(build, vocab_size=16, config=SMALL, seed=seed)
        assert certificate.certified and (certificate.vocab_size, certificate.num_columns) == (16, 1016)


CHEATS = {
    "reads ahead": (lambda tokens: leak_tokens(predict_by_counts(tokens, 16), tokens, 0.1), "causal"),
    "keeps what it saw": (second_pass(), "random_tokens"),
    "is not normalized": (lambda tokens: predict_by_counts(tokens, 16) + 0.01, "normalized"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_with_rows_wider_than_the_vocabulary_are_caught(name):
    predict, failed_check = CHEATS[name]
    for seed in range(3):
        certificate, verdicts = certify_builder(
            lambda: lambda tokens: widen(predict(tokens), 1000, 0.5), vocab_size=16, config=SMALL, seed=seed
        )
        assert not certificate.certified and verdicts[failed_check] == "fail"


def test_a_secret_that_persists_across_documents_is_caught_and_named_as_memory(tmp_path):
    path = tmp_path / "counts.npy"

    def predict(tokens):
        before = np.load(path) if path.exists() else np.zeros((17, 16))
        np.save(path, before + count_transitions(tokens, 16))
        return predict_by_counts(tokens, 16, before)

    certificate, verdicts = certify_builder(lambda: predict, config=SMALL)
    check = {check.name: check for check in certificate.checks}["reproducible"]
    assert verdicts["reproducible"] == "fail" and "remembers earlier passes" in check.summary


def test_unseeded_dropout_is_explained_by_random_numbers_and_not_by_memory():
    random = np.random.default_rng(0)  # continues from pass to pass; evidence of memory has a chance of 1 in 1,000

    def predict(tokens):
        mask = random.random((len(tokens), 16)) < 0.7
        return log_softmax(3 * mask * predict_by_counts(tokens, 16), axis=1)

    certificate, verdicts = certify_builder(lambda: predict, config=SMALL)
    check = {check.name: check for check in certificate.checks}["reproducible"]
    assert verdicts["reproducible"] == "fail" and "the same input gave different rows" in check.summary
    assert "remembers" not in check.summary and "fixed seed" in check.advice


def test_a_token_with_probability_zero_is_not_certified_unless_it_does_not_occur():
    def predict(tokens):
        log_probs = predict_by_counts(tokens, 8)
        log_probs[:, 7] = -np.inf
        return log_probs - np.log(np.exp(log_probs).sum(axis=1, keepdims=True))

    stream = np.arange(64, dtype=np.int32) % 8
    certificate, verdicts = certify_builder(lambda: predict, stream=stream, config=SMALL)
    assert not certificate.certified and certificate.nats_per_token == np.inf and verdicts["finite_score"] == "fail"
    certificate, _ = certify_builder(lambda: predict, stream=stream % 7, config=SMALL)
    assert certificate.certified and certificate.vocab_size == 7


def test_the_vocabulary_is_probed_by_streams_of_the_length_of_the_audit():
    lengths = []

    def predict(tokens):
        lengths.append(len(tokens))
        return predict_by_counts(tokens, 5)

    certificate, _ = certify_builder(lambda: predict, config=SMALL)
    assert certificate.vocab_size == 5 and lengths[:2] == [SMALL.num_tokens] * 2
    with pytest.raises(BadInput, match="must not depend on the tokens"):
        certify_builder(lambda: lambda tokens: predict_by_counts(tokens, int(tokens.max()) + 1), config=SMALL)


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
        (lambda tokens: np.full((len(tokens), 4), np.nan), "NaN among the log-probabilities of token 0"),
        (lambda tokens: np.where(np.arange(len(tokens))[:, None] < 9, np.full(4, -1.4), np.nan), "diverged after 9"),
        (lambda tokens: np.full((len(tokens), 4), np.inf), r"\+inf among the log-probabilities of token 0"),
        (lambda tokens: np.zeros((len(tokens), 1)), "too few"),
    ],
)
def test_answers_that_are_not_log_probabilities_are_rejected(predict, message):
    with pytest.raises(BadInput, match=message):
        certify_builder(lambda: predict, config=SMALL, vocab_size=4)


MODULE = """
import os
import numpy as np

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

def talkative(tokens):
    print("process", os.getpid())
    return uniform(tokens)
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
    with pytest.raises(BadInput, match=r"failed in line \d+: AttributeError"):
        run_pass("my_predictors:broken", np.arange(4))
    with pytest.raises(BadInput, match="'os:getcwd' must build a predictor, which is a function, not str"):
        run_pass("os:getcwd", np.arange(4))


def test_passes_run_in_new_processes_where_a_module_keeps_state(module):
    config = CertificateConfig(num_tokens=32, num_positions=24, num_prefixes=1, num_random_streams=1)
    certificate = certify(passes_by_process("my_predictors:shared"), config=config)
    assert certificate.certified and {check.name for check in certificate.checks} == set(CHECKS)


def test_a_process_serves_a_whole_check_and_what_a_predictor_prints_is_separate(module, monkeypatch, capfd):
    command = ["ontogeny", "audit", "prequential", "my_predictors:talkative", "--num-tokens", "32", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    record = json.loads(captured.out)
    processes = [line for line in record["predictor_output"].splitlines() if line.startswith("process ")]
    assert stop.value.code == 0 and record["certified"]
    assert len(processes) == record["num_passes"] > 30 and len(set(processes)) == 6
    assert "note: the predictor printed" in captured.err


def test_the_audits_of_a_predictor_in_a_file_are_in_its_history(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "from ontogeny.audit.prequential.reference_predictors import REFERENCE_PREDICTORS\n"
    (tmp_path / "mine.py").write_text(f"{text}build = REFERENCE_PREDICTORS['counts'].build\n")
    for seed in ("3", "4"):
        command = [
            "mine.py:build",
            "--isolation",
            "instance",
            "--num-tokens",
            "64",
            "--seed",
            seed,
            "--out",
            f"{seed}.json",
        ]
        monkeypatch.setattr(sys, "argv", ["ontogeny", "audit", "prequential", *command])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    assert "Audit 2 of this agent, after seed 3; its history is in 'mine.audits.jsonl'." in capsys.readouterr().out
    (earlier,) = json.loads((tmp_path / "4.json").read_text())["history"]["earlier_audits"]
    assert earlier["command"] == "audit prequential" and earlier["verdicts"] == {"certified": True, "not passed": []}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predictor:counts", "--num-host-devices", "2"], 2, "--num-host-devices configures a language-model run"),
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
        (["predictor:counts", "--stream", "long.txt", "--isolation", "instance"], 2, "whole numbers from 0 to"),
    ],
)
def test_the_command_reports_by_exit_code_message_and_file(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_text(" ".join(str(i % 7) for i in range(64)))
    (tmp_path / "words.txt").write_text("one two")
    (tmp_path / "long.txt").write_text(f"{2**32} " * 64)
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
