"""The checks of the prequential audit: each compares the log-probabilities of several passes and gives a verdict."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.stats import clopper_pearson

MAX_LOG_SUM = 1e-4  # deviation of log sum(p) from zero that 32-bit rounding explains
MIN_REPLAY_GAIN = 0.01  # nats per token by which a second pass must improve before memory is named as the cause
UNIFORM_SHARES = (0.0, 0.5, 0.9)  # mixed into the predictions, so that single confident errors do not hide a gain


class CheckResult(NamedTuple):
    """The result of one check."""

    name: str
    verdict: str  # one of `base.VERDICTS`
    summary: str
    measurements: dict[str, float]


def check_causality(log_probs: np.ndarray, passes: Iterable[tuple[int, np.ndarray]]) -> CheckResult:
    """Checks that changing a token leaves every distribution up to and including its own bit-identical.

    Args:
        log_probs: [T, V], of the unchanged stream.
        passes: Pairs of the first changed position and the log-probabilities [T, V] of the changed stream.
    """
    num_positions = num_leaks = 0
    max_difference, leak = 0.0, ""
    for position, changed in passes:
        num_positions += 1
        original, altered = log_probs[: position + 1], changed[: position + 1]
        affected = np.nonzero((altered != original).any(axis=1))[0]
        num_leaks += len(affected) > 0
        if len(affected) and (difference := max_abs_difference(altered, original)) >= max_difference:
            max_difference = difference
            leak = f"a change of token {position} alters the prediction of token {affected[0]} by {difference:.2g} nats"
    low, high = clopper_pearson(num_leaks, num_positions)
    summary = f"changes at {num_positions} positions alter no earlier bit; the 95 % interval excludes leaks at more "
    summary += f"than {high:.0%} of positions"
    if num_leaks:
        summary = f"{leak} ({num_leaks} of {num_positions} positions leak)"
    counts = {"num_positions": num_positions, "num_leaks": num_leaks}
    return _result("causal", num_leaks > 0, summary, **counts, low=low, high=high, max_difference=max_difference)


def check_normalization(log_sum: float) -> CheckResult:
    """Checks that every distribution sums to one.

    Args:
        log_sum: The log of the sum that is farthest from one, over all passes.
    """
    failed = abs(log_sum) > MAX_LOG_SUM
    summary = f"every distribution sums to one within {abs(log_sum):.1g}"
    if failed:
        consequence = "which improves the scores" if log_sum > 0 else "so probability is lost"
        summary = f"one distribution sums to e^{log_sum:+.2g}, {consequence}"
    return _result("normalized", failed, summary, max_log_sum=log_sum)


def check_prefixes(log_probs: np.ndarray, passes: Iterable[tuple[int, np.ndarray]], tolerance: float) -> CheckResult:
    """Checks that a prefix of the stream has the same log-probabilities as the whole stream.

    Args:
        log_probs: [T, V], of the whole stream.
        passes: Pairs of a length L and the log-probabilities [L, V] of the prefix.
        tolerance: Largest difference in nats that counts as rounding.
    """
    differences = {length: max_abs_difference(of_prefix, log_probs[:length]) for length, of_prefix in passes}
    max_difference, worst_length = max((difference, length) for length, difference in differences.items())
    failed = max_difference > tolerance
    precision = "bit for bit" if max_difference == 0 else f"up to rounding ({max_difference:.1g} nats)"
    summary = f"{len(differences)} prefixes have the predictions of the whole stream, {precision}"
    if failed:
        summary = f"the predictions for a prefix of {worst_length} tokens differ by {max_difference:.2g} nats"
    return _result("prefix_invariant", failed, summary, num_prefixes=len(differences), max_difference=max_difference)


def check_reproducibility(first: np.ndarray, second: np.ndarray, stream: np.ndarray) -> CheckResult:
    """Checks that two passes over the same stream agree bit for bit.

    Args:
        first: Log-probabilities [T, V] of one pass.
        second: Log-probabilities [T, V] of another pass.
        stream: Tokens [T].
    """
    index = np.arange(len(stream)), stream
    with np.errstate(invalid="ignore"):
        gain = float(np.nan_to_num(second[index].astype(np.float64) - first[index]).mean())
    failed, summary = bool((second != first).any()), "two passes over the same stream agree bit for bit"
    if failed:
        cause = "the score cannot be checked unless random numbers are drawn from a fixed seed"
        if gain > MIN_REPLAY_GAIN:
            cause = "the predictor remembers earlier passes"
        summary = f"a second pass differs and gains {gain:+.2g} nats per token: {cause}"
    return _result("reproducible", failed, summary, max_difference=max_abs_difference(second, first), gain=gain)


def check_random_tokens(sequences: Sequence[np.ndarray], passes: Iterable[np.ndarray], level: float) -> CheckResult:
    """Checks that uniformly random tokens are not predicted better than chance at their first occurrence.

    With V tokens in the vocabulary, the product of p(token) V is a test martingale under any valid predictor, so it
    reaches 1 / level with probability at most `level` (Ville 1939). Three martingales are averaged, which mix
    different shares of the uniform distribution into the predictions (`UNIFORM_SHARES`).

    Args:
        sequences: Random tokens, [L] each.
        passes: Log-probabilities of streams that begin with these sequences, [at least L, V] each.
        level: Largest probability that a valid predictor fails.
    """
    gains = []
    for sequence, stream_log_probs in zip(sequences, passes, strict=True):
        log_probs = stream_log_probs[: len(sequence)].astype(np.float64)
        log_sums = np.asarray(logsumexp(log_probs, axis=1))  # sums above one are the concern of another check
        gains.append(log_probs[np.arange(len(sequence)), sequence] - log_sums + math.log(log_probs.shape[1]))
    gain = np.concatenate(gains)  # [N], over the uniform distribution, in nats
    with np.errstate(divide="ignore"):
        log_wealth = [np.cumsum(np.log((1 - share) * np.exp(gain) + share)) for share in UNIFORM_SHARES]
    log_evidence = float(np.max(np.asarray(logsumexp(np.stack(log_wealth), axis=0)))) - math.log(len(UNIFORM_SHARES))
    threshold, mean_gain = -math.log(level), float(np.mean(gain))
    failed = log_evidence >= threshold
    summary = "random tokens are predicted: " if failed else ""
    summary += f"gain {mean_gain:+.2g} nats per token on {len(gain)} random tokens at first sight; "
    summary += f"log evidence {log_evidence:.1f}, threshold {threshold:.1f}"
    measurements = {"num_tokens": len(gain), "mean_gain": mean_gain, "log_evidence": log_evidence}
    return _result("random_tokens", failed, summary, **measurements, threshold=threshold)


def check_reported_score(nats_per_token: float, reported: str, tolerance: float) -> CheckResult:
    """Checks that a published score is the one of a first pass.

    Args:
        nats_per_token: Score of a first pass.
        reported: The published score as text; its number of decimal places gives its precision.
        tolerance: Largest difference in nats that counts as rounding.

    Raises:
        BadInput: The text is not a finite number.
    """
    try:
        score = plugins.finite_float(float(reported), "the reported score")
    except ValueError as error:
        raise BadInput(f"the reported score '{reported}' is not a number") from error
    decimals = reported.partition(".")[2]
    precision = 0.5 * 10.0 ** -len(decimals) if "e" not in reported.lower() else 0.0
    failed = abs(score - nats_per_token) > max(tolerance, precision)
    summary = f"reported {reported} nats per token, a first pass has {nats_per_token:.6g}"
    if failed:
        summary += f": it is {'better than' if score < nats_per_token else 'different from'} a first pass"
    return _result("reported_score", failed, summary, reported_score=score, first_pass_score=nats_per_token)


def _result(name: str, failed: bool, summary: str, **measurements: float) -> CheckResult:
    """A check that failed or passed."""
    return CheckResult(name, "fail" if failed else "pass", summary, measurements)


def worst_log_sum(log_probs: np.ndarray) -> float:
    """Returns the log of the sum of probabilities that is farthest from one.

    Args:
        log_probs: [T, V].
    """
    log_sums = np.asarray(logsumexp(log_probs.astype(np.float64), axis=1))
    return float(log_sums[np.abs(log_sums).argmax()])


def max_abs_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the largest difference in nats; infinite where exactly one array gives a token probability zero."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(first.astype(np.float64) - second)
    return float(np.where(first == second, 0.0, difference).max())
