"""The checks of the prequential audit: each compares the log-probabilities of several passes and gives a verdict.

The result of a check says what was found, and where it failed, what that means and what to do.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.stats import clopper_pearson

MAX_LOG_SUM = 1e-4  # deviation of log sum(p) from zero that 32-bit rounding explains
MAX_LEAK_SHARE = 0.2  # of positions; a predictor is certified only if a larger share is excluded
UNIFORM_SHARES = (0.0, 0.5, 0.9)  # mixed into the predictions, so that single confident errors do not hide a gain
MAX_WRITTEN_LOG = 15.0  # sums and odds with a larger logarithm are written as powers


class CheckResult(NamedTuple):
    """The result of one check."""

    name: str
    verdict: str  # one of `base.VERDICTS`
    summary: str  # what was found and what it means
    advice: str  # what to do where the check failed, else empty
    measurements: dict[str, float]


class LogSum(NamedTuple):
    """The log of the sum of a row's probabilities."""

    log_sum: float
    token: int  # position of the row in its stream


def check_causality(log_probs: np.ndarray, passes: Iterable[tuple[int, np.ndarray]]) -> CheckResult:
    """Checks that changing a token leaves every distribution up to and including its own bit-identical.

    Without a leak the check passes only where enough positions were tested to exclude that more than `MAX_LEAK_SHARE`
    of all positions leak, by the exact 95 % interval, or as counted where nearly all of a short stream were tested.

    Args:
        log_probs: [T, V], of the unchanged stream.
        passes: Pairs of the first changed position and the log-probabilities [T, V] of the changed stream.
    """
    num_positions = num_leaks = 0
    max_difference, worst_index, leak = 0.0, 0, ""
    for index, (position, changed) in enumerate(passes):
        num_positions += 1
        original, altered = log_probs[: position + 1], changed[: position + 1]
        affected = np.nonzero((altered != original).any(axis=1))[0]
        num_leaks += len(affected) > 0
        if len(affected) and (difference := max_abs_difference(altered, original)) >= max_difference:
            max_difference, worst_index = difference, index
            leak = f"the prediction of token {affected[0]} depends on token {position}, "
            leak += "the very one that it predicts" if affected[0] == position else "which comes after it"
            leak += f": a change of that token changes the prediction by {format_nats(difference)}"
    low, high = clopper_pearson(num_leaks, num_positions)
    num_untested = len(log_probs) - num_positions
    high = min(high, (num_leaks + num_untested) / len(log_probs))
    is_excluded = high <= MAX_LEAK_SHARE
    summary = f"no prediction depends on its own token or a later one: changes at {num_positions} positions alter no "
    summary += f"earlier bit (by the 95 % interval, at most {high:.0%} of positions leak)"
    if not is_excluded:
        summary = (
            f"changes at {num_positions} positions alter no earlier bit, but that many positions are too few for a "
        )
        summary += f"certificate: by the 95 % interval, up to {high:.0%} of positions may leak, and at most "
        summary += f"{MAX_LEAK_SHARE:.0%} are allowed"
    if num_leaks:
        summary = f"{leak} ({num_leaks} of {num_positions} tested positions leak)"
    counts = {"num_positions": num_positions, "num_leaks": num_leaks, "worst_index": worst_index}
    advice = "predict and score each token, or chunk of tokens, before anything is computed or learned from it"
    measurements = counts | {"low": low, "high": high, "max_difference": max_difference}
    result = _result("causal", num_leaks > 0, summary, advice, measurements)
    return result if num_leaks or is_excluded else result._replace(verdict="undetermined")


def check_normalization(farthest: LogSum) -> CheckResult:
    """Checks that every distribution sums to one.

    Args:
        farthest: The sum that is farthest from one, over all passes.
    """
    log_sum = farthest.log_sum
    failed = abs(log_sum) > MAX_LOG_SUM
    summary = f"every distribution sums to one, with an error of {abs(log_sum):.1g} at most"
    if failed:
        summary = f"the probabilities of token {farthest.token} sum to {_format_exp(log_sum)} instead of 1, so "
        if log_sum == -math.inf:
            summary = f"all probabilities of token {farthest.token} are zero, so nothing is predicted"
        elif log_sum > 0:
            summary += f"scores can be {format_nats(log_sum)} per token better than those of a distribution"
        else:
            summary += "they are no distribution, and scores are worse than those of the predictor"
    advice = "return log-probabilities that are normalized over all columns in 32 bits, for example by log_softmax"
    return _result("normalized", failed, summary, advice, {"max_log_sum": log_sum, "token": farthest.token})


def check_finite_score(log_probs: np.ndarray, stream: np.ndarray) -> CheckResult:
    """Checks that every token of the stream has a positive probability, so that the score is finite.

    Args:
        log_probs: [T, V], of the first pass.
        stream: Tokens [T].
    """
    impossible = np.nonzero(np.isneginf(_scores(log_probs, stream)))[0]
    summary = "every token of the stream has a positive probability"
    if len(impossible):
        first = int(impossible[0])
        summary = f"{len(impossible)} of the {len(stream)} tokens have the predicted probability zero, the first of "
        summary += f"them token {first} (number {stream[first]} of the vocabulary), so the score is infinite"
    advice = "give every token a positive probability, for example by a small share of the uniform distribution; rows "
    advice += "may be -inf only for tokens that do not occur"
    return _result("finite_score", len(impossible) > 0, summary, advice, {"num_impossible": len(impossible)})


def check_prefixes(log_probs: np.ndarray, passes: Iterable[tuple[int, np.ndarray]], tolerance: float) -> CheckResult:
    """Checks that a prefix of the stream has the same log-probabilities as the whole stream.

    Args:
        log_probs: [T, V], of the whole stream.
        passes: Pairs of a length L and the log-probabilities [L, V] of the prefix.
        tolerance: Largest difference in nats that counts as rounding.
    """
    pairs = [(max_abs_difference(of_prefix, log_probs[:length]), length) for length, of_prefix in passes]
    max_difference, worst_length = max(pairs)
    failed = max_difference > tolerance
    precision = "bit for bit" if max_difference == 0 else f"up to rounding ({max_difference:.1g} nats)"
    summary = f"{len(pairs)} prefixes have the predictions of the whole stream, {precision}"
    if failed:
        summary = f"the predictions for the first {worst_length} tokens alone differ by {format_nats(max_difference)} "
        summary += "from those for the same tokens within the whole stream, so they depend on its length or its end"
    advice = "derive learning rates and the borders of chunks from the tokens before, not from the length of the stream"
    worst_index = pairs.index((max_difference, worst_length))
    measurements = {"num_prefixes": len(pairs), "max_difference": max_difference, "worst_index": worst_index}
    return _result("prefix_invariant", failed, summary, advice, measurements)


def check_reproducibility(
    first: np.ndarray, second: np.ndarray, stream: np.ndarray, tolerance: float, threshold: float, log_evidence: float
) -> CheckResult:
    """Checks that two passes over the same stream agree bit for bit, and names the cause where they do not.

    Args:
        first: Log-probabilities [T, V] of one pass.
        second: Log-probabilities [T, V] of another pass.
        stream: Tokens [T].
        tolerance: Largest difference in nats that counts as rounding.
        threshold: Log evidence from which on the predictor remembers earlier passes.
        log_evidence: `max_log_wealth` on random tokens that an earlier pass has read; -inf where it was not measured.
    """
    failed, difference = bool((second != first).any()), max_abs_difference(second, first)
    with np.errstate(invalid="ignore"):
        gains = _scores(second, stream) - _scores(first, stream)
    gain = float(gains[np.isfinite(gains)].mean()) if np.isfinite(gains).any() else 0.0
    summary, advice = "two passes over the same stream agree bit for bit", ""
    if failed and log_evidence >= threshold:
        summary = "the predictor remembers earlier passes: it predicts random tokens that an earlier pass has read, to "
        summary += f"a degree that a new predictor reaches by chance in {_format_rate(log_evidence)}"
        advice = "clear every cache, file and server in which the predictor keeps what it has read, before each pass"
    elif failed and difference <= tolerance:
        summary = (
            f"the same input gave rows that differ by rounding ({difference:.1g} nats), so sums are computed in a "
        )
        summary += "varying order, and the conditions on single bits cannot be tested"
        advice = "use deterministic operations and a fixed number of threads"
    elif failed:
        summary = f"the same input gave different rows in two passes, by up to {format_nats(difference)}, without a "
        summary += "sign of memory: most likely the predictor draws random numbers, so that no score can be checked"
        advice = "set a fixed seed in every new predictor, and switch dropout off or seed it"
    measurements = {"max_difference": difference, "gain": gain}
    if failed:
        measurements["log_evidence"] = log_evidence
    return _result("reproducible", failed, summary, advice, measurements)


def check_random_tokens(
    sequences: Sequence[np.ndarray], passes: Iterable[np.ndarray], vocabulary: np.ndarray, level: float
) -> CheckResult:
    """Checks that uniformly random tokens are not predicted better than chance at their first occurrence.

    Args:
        sequences: Random tokens, [L] each, drawn uniformly from the vocabulary.
        passes: Log-probabilities of streams that begin with these sequences, [at least L, V] each.
        vocabulary: [S], the tokens that are drawn.
        level: Largest probability that a valid predictor fails.
    """
    gain = np.concatenate(
        [gains_over_chance(rows[: len(s)], s, vocabulary) for s, rows in zip(sequences, passes, strict=True)]
    )
    log_wealth, threshold = max_log_wealth(gain), -math.log(level)
    failed, is_possible = log_wealth >= threshold, np.isfinite(gain)
    mean_gain = float(gain[is_possible].mean()) if is_possible.any() else 0.0
    comparison = f"{format_nats(abs(mean_gain))} per token {'better' if mean_gain > 0 else 'worse'} than chance"
    summary = "random tokens are not predicted at their first occurrence beyond what chance explains (on average "
    summary += f"{comparison} over {len(gain)} tokens; bets on the predictions multiply a stake by at most "
    summary += f"{_format_exp(log_wealth)}, and a failure needs {_format_exp(threshold)})"
    if failed:
        summary = (
            "random tokens are predicted at their first occurrence, so the predictor has read them before: bets on "
        )
        summary += f"its predictions multiply a stake by {_format_exp(log_wealth)}, which a valid predictor reaches by "
        summary += f"chance in {_format_rate(log_wealth)} (on average {comparison} over {len(gain)} tokens)"
    if not is_possible.all():
        summary += f"; {int((~is_possible).sum())} of them had the predicted probability zero"
    advice = "look for a second pass over the stream, or for a chunk that is learned before it is scored"
    measurements = {"num_tokens": len(gain), "mean_gain": mean_gain, "log_evidence": log_wealth, "threshold": threshold}
    return _result("random_tokens", failed, summary, advice, measurements)


def gains_over_chance(log_probs: np.ndarray, tokens: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """Returns the gain over the uniform distribution on uniformly drawn tokens, in nats.

    Rows are normalized over the tokens that can be drawn, so that the expectation of exp(gain) is one under any valid
    predictor, however wide its rows are and whatever they sum to. A row without a possible token is no bet: gain zero.

    Args:
        log_probs: Log-probabilities [L, V].
        tokens: [L], drawn uniformly from the vocabulary.
        vocabulary: [S], the tokens that can be drawn.

    Returns:
        [L]; -inf where the drawn token has the probability zero.
    """
    rows = log_probs[:, vocabulary].astype(np.float64)  # [L, S]
    log_sums = np.asarray(logsumexp(rows, axis=1))
    is_bet = np.isfinite(log_sums)
    gains = _scores(log_probs, tokens) - np.where(is_bet, log_sums, 0.0) + math.log(len(vocabulary))
    return np.where(is_bet, gains, 0.0)


def max_log_wealth(gains: np.ndarray) -> float:
    """Returns the log of the largest wealth that bets on the predictions reach from a stake of one.

    The product of exp(gain) is a test martingale under any valid predictor, so it reaches w with probability at most
    1 / w (Ville 1939). Three martingales are averaged, which mix different shares of the uniform distribution into the
    predictions (`UNIFORM_SHARES`).

    Args:
        gains: `gains_over_chance` of successive tokens, [N].
    """
    with np.errstate(divide="ignore"):
        log_wealth = [np.cumsum(np.log((1 - share) * np.exp(gains) + share)) for share in UNIFORM_SHARES]
    return float(np.max(np.asarray(logsumexp(np.stack(log_wealth), axis=0)))) - math.log(len(UNIFORM_SHARES))


def check_reported_score(nats_per_token: float, reported: str, tolerance: float) -> CheckResult:
    """Checks that a published score is the one of a first pass.

    Args:
        nats_per_token: Score of a first pass.
        reported: The published score as text; its number of decimal places gives its precision.
        tolerance: Largest difference in nats that counts as rounding.

    Raises:
        BadInput: The text is not a finite number.
    """
    score = parse_reported_score(reported)
    decimals = reported.partition(".")[2]
    precision = 0.5 * 10.0 ** -len(decimals) if "e" not in reported.lower() else 0.0
    failed = abs(score - nats_per_token) > max(tolerance, precision)
    summary = f"the reported score of {reported} nats per token is that of a first pass, {nats_per_token:.6g}"
    if failed:
        summary = f"the reported score of {reported} nats per token is not that of a first pass, which is "
        summary += f"{format_nats(nats_per_token, 6)}: it is {'better' if score < nats_per_token else 'worse'} by "
        summary += format_nats(abs(score - nats_per_token))
    advice = "report the score of a first pass, or audit the stream and the settings to which the report refers"
    measurements = {"reported_score": score, "first_pass_score": nats_per_token}
    return _result("reported_score", failed, summary, advice, measurements)


def parse_reported_score(reported: str) -> float:
    """Converts a published score to a number.

    Raises:
        BadInput: The text is not a finite number.
    """
    try:
        return plugins.finite_float(float(reported), "the reported score")
    except ValueError as error:
        raise BadInput(f"the reported score '{reported}' is not a finite number") from error


def worst_log_sum(log_probs: np.ndarray) -> LogSum:
    """Returns the log of the sum of probabilities that is farthest from one.

    Args:
        log_probs: [T, V].
    """
    log_sums = np.asarray(logsumexp(log_probs.astype(np.float64), axis=1))
    token = int(np.abs(log_sums).argmax())
    return LogSum(float(log_sums[token]), token)


def max_abs_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the largest difference in nats; infinite where exactly one array gives a token probability zero."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(first.astype(np.float64) - second)
    return float(np.where(first == second, 0.0, difference).max())


def format_nats(nats: float, num_digits: int = 2) -> str:
    """A number of nats; an infinite one results from a probability of zero."""
    return f"{nats:.{num_digits}g} nats" if math.isfinite(nats) else "infinitely many nats"


def _scores(log_probs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The log-probability of each of the tokens [T], [T]."""
    return log_probs[np.arange(len(tokens)), tokens].astype(np.float64)


def _format_exp(log_number: float) -> str:
    """A positive number by its logarithm."""
    return f"{math.exp(log_number):,.4g}" if abs(log_number) < MAX_WRITTEN_LOG else f"e^{log_number:.0f}"


def _format_rate(log_wealth: float) -> str:
    """The largest rate of valid predictors that reach a wealth."""
    if log_wealth >= MAX_WRITTEN_LOG:
        return f"at most one of 10^{log_wealth / math.log(10):.0f} audits"
    return f"at most one of {math.exp(log_wealth):,.3g} audits"


def _result(name: str, failed: bool, summary: str, advice: str, measurements: dict[str, float]) -> CheckResult:
    """A check that failed or passed."""
    return CheckResult(name, "fail" if failed else "pass", summary, advice if failed else "", measurements)
