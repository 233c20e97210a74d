"""The prequential audit: tests whether the scores of an online predictor are those of one first pass over a stream.

Prequential: each token is predicted and scored before it is learned from (Dawid 1984, J R Stat Soc A 147:278). The
predictor is a black box that maps tokens [T] to log-probabilities [T, V]. Every pass is made by a new instance, and the
passes of one check share a process, since a start takes seconds. Variables of a module therefore outlive a pass, and a
failure of `causal` or `prefix_invariant` counts only where it recurs in a process of its own. Four conditions are
tested:

(a) `causal`: a change of token t leaves the distributions of tokens 0 to t bit-identical. A leak at a share f of the
    positions escapes K tested positions with probability (1 - f)^K; K must exclude that a fifth of all leak.
(b) `normalized`: each distribution sums to one. `finite_score`: no token of the stream has the probability zero.
(c) `prefix_invariant`: a prefix of the stream has the distributions of the whole stream, up to rounding.
(d) First pass. `reproducible`: two passes over one stream agree bit for bit. `random_tokens`: uniformly random tokens
    are not predicted at their first occurrence; each sequence is repeated within its stream, so a predictor that has
    already read the stream has learned it. `reported_score`: a published score is the score of a first pass.

A black box that recognizes the audit, or that was trained on the stream beforehand, cannot be detected.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from ontogeny.audit.prequential import checks, streams
from ontogeny.audit.prequential.base import RunPasses
from ontogeny.audit.prequential.checks import CheckResult, LogSum
from ontogeny.errors import BadInput
from ontogeny.seeds import check_seed
from ontogeny.validation import FrozenModel

CONDITIONS = {
    "causal": "(a)",
    "normalized": "(b)",
    "finite_score": "(b)",
    "prefix_invariant": "(c)",
    "reproducible": "(d)",
    "random_tokens": "(d)",
    "reported_score": "(d)",
}
MIN_STREAM_LENGTH = 16


class CertificateConfig(FrozenModel):
    """Settings of the audit.

    Attributes:
        num_tokens: Length of a generated stream; must exceed the chunk by which the predictor learns.
        num_positions: Positions at which a token is changed; a certificate needs 17, or nearly all of a short stream.
        num_prefixes: Prefixes of the stream that are compared with the whole.
        num_random_streams: Streams of random tokens.
        num_copies: Copies of the random sequence within each of these streams.
        level: Probability that a valid predictor fails the check `random_tokens`.
        tolerance: Difference in nats that counts as rounding.
    """

    num_tokens: int = Field(default=256, ge=MIN_STREAM_LENGTH)
    num_positions: int = Field(default=24, ge=1)
    num_prefixes: int = Field(default=3, ge=1)
    num_random_streams: int = Field(default=6, ge=1)
    num_copies: int = Field(default=4, ge=2)
    level: float = Field(default=0.001, gt=0, lt=1)
    tolerance: float = Field(default=1e-4, ge=0)


class Certificate(NamedTuple):
    """The results of all checks of one predictor."""

    checks: tuple[CheckResult, ...]
    nats_per_token: float  # of the first pass over the stream; infinite where a token has the probability zero
    num_tokens: int
    vocab_size: int  # number of tokens from which streams were drawn
    num_columns: int  # V
    num_passes: int

    @property
    def certified(self) -> bool:
        """Whether every check passed."""
        return all(check.verdict == "pass" for check in self.checks)


def certify(
    run_passes: RunPasses,
    *,
    config: CertificateConfig | None = None,
    stream: np.ndarray | None = None,
    vocab_size: int | None = None,
    reported: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Certificate:
    """Audits one predictor.

    Args:
        run_passes: Runs the predictor, as the functions of `passes` return it.
        config: Settings; by default those of the calibration.
        stream: Tokens [T], T at least 16, to audit on; by default a stream is generated.
        vocab_size: Tokens of generated streams are smaller; by default V of the predictor. Tokens that the predictor
            never considers possible are not drawn.
        reported: Published score of `stream` in nats per token, with the printed number of decimal places.
        seed: Determines the generated streams.
        on_progress: Called with the number of finished passes, the number of passes and the name of the check.

    Raises:
        BadInput: The predictor does not return log-probabilities [T, V], or the arguments do not fit together.
    """
    config = CertificateConfig() if config is None else config
    if reported is not None:
        if stream is None:
            raise BadInput("a reported score belongs to a stream: give the stream too")
        checks.parse_reported_score(reported)
    if stream is not None and len(stream) < MIN_STREAM_LENGTH:
        raise BadInput(f"the stream must have at least {MIN_STREAM_LENGTH} tokens, not {len(stream)}")
    random = np.random.default_rng(check_seed(seed))
    passes = _AuditPasses(run_passes, _num_passes(config, is_generated=stream is None), on_progress)
    stream, log_probs, vocabulary = _first_pass(passes, random, config, stream, vocab_size)
    reproducible = _check_reproducibility(passes, random, config, stream, log_probs, vocabulary)
    if reproducible.verdict == "pass":
        causal = _check_causality(passes, random, config, stream, log_probs, vocabulary)
        prefix_invariant = _check_prefixes(passes, random, config, stream, log_probs)
    else:
        reason = "not tested, since two passes over the same stream already differ"
        causal, prefix_invariant = (
            CheckResult(name, "undetermined", reason, "", {}) for name in ("causal", "prefix_invariant")
        )
    random_tokens = _check_random_tokens(passes, random, config, vocabulary)
    nats_per_token = -float(log_probs[np.arange(len(stream)), stream].astype(np.float64).mean())
    normalized, finite_score = (
        checks.check_normalization(passes.worst_sum),
        checks.check_finite_score(log_probs, stream),
    )
    results = [causal, normalized, finite_score, prefix_invariant, reproducible, random_tokens]
    if reported is not None:
        results.append(checks.check_reported_score(nats_per_token, reported, config.tolerance))
    num_columns = log_probs.shape[1]
    return Certificate(tuple(results), nats_per_token, len(stream), len(vocabulary), num_columns, passes.num_finished)


class _AuditPasses:
    """The passes of an audit: their number, their common row width, and the sum of probabilities farthest from one."""

    def __init__(
        self, run_passes: RunPasses, num_planned: int, on_progress: Callable[[int, int, str], None] | None
    ) -> None:
        self.run_passes, self.num_planned, self.on_progress = run_passes, num_planned, on_progress
        self.num_finished, self.num_columns, self.worst_sum = 0, 0, LogSum(0.0, 0)

    def run(self, streams: Iterable[np.ndarray], check: str, *, separate: bool = False) -> Iterator[np.ndarray]:
        """The log-probabilities [T, V] of each stream."""
        for log_probs in self.run_passes(streams, separate=separate):
            self.num_finished += 1
            self.num_planned = max(self.num_planned, self.num_finished)
            self.num_columns = self.num_columns or log_probs.shape[1]
            if log_probs.shape[1] != self.num_columns:
                raise BadInput(
                    f"the rows of the predictor have {self.num_columns} columns in one pass and {log_probs.shape[1]} "
                    "in another: their number must not depend on the tokens"
                )
            sums = self.worst_sum, checks.worst_log_sum(log_probs)
            self.worst_sum = max(sums, key=lambda farthest: abs(farthest.log_sum))
            if self.on_progress is not None:
                self.on_progress(self.num_finished, self.num_planned, check)
            yield log_probs

    def run_one(self, stream: np.ndarray, check: str) -> np.ndarray:
        """The log-probabilities [T, V] of a stream, computed in a new process."""
        (log_probs,) = self.run([stream], check)
        return log_probs


def _num_passes(config: CertificateConfig, *, is_generated: bool) -> int:
    """The number of passes if no check fails."""
    return 2 + 2 * is_generated + config.num_positions + config.num_prefixes + config.num_random_streams


def _first_pass(
    passes: _AuditPasses,
    random: np.random.Generator,
    config: CertificateConfig,
    stream: np.ndarray | None,
    vocab_size: int | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The stream, its log-probabilities in a first pass, and the tokens that can be drawn."""
    if stream is not None:
        log_probs = passes.run_one(stream, "first pass")
        if stream.max() >= passes.num_columns:
            raise BadInput(
                f"the rows of the predictor have {passes.num_columns} columns, too few for a stream that contains "
                f"token {stream.max()}"
            )
        return stream, log_probs, streams.possible_tokens(log_probs, vocab_size)

    def probe(probes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return passes.run(probes, "vocabulary")

    vocabulary = streams.probe_tokens(probe, random, config.num_tokens, vocab_size)
    stream = streams.generate_stream(random, config.num_tokens, vocabulary)
    try:
        return stream, passes.run_one(stream, "first pass"), vocabulary
    except BadInput as error:
        if vocab_size is not None:
            raise
        hint = f"its rows have {passes.num_columns} columns; if not all of them are tokens, use --vocab-size"
        raise BadInput(f"{error} ({hint})") from error


def _check_reproducibility(
    passes: _AuditPasses,
    random: np.random.Generator,
    config: CertificateConfig,
    stream: np.ndarray,
    log_probs: np.ndarray,
    vocabulary: np.ndarray,
) -> CheckResult:
    """Whether a pass in another process agrees; otherwise random tokens show whether the predictor remembers passes."""
    name, log_evidence = "reproducible", -np.inf
    repeated = passes.run_one(stream, name)
    if (repeated != log_probs).any():
        passes.num_planned += 2
        (sequence,), (random_stream,) = _draw_random_streams(random, config, vocabulary, 1)
        passes.run_one(random_stream, name)
        second_pass = passes.run_one(random_stream, name)[: len(sequence)]
        log_evidence = checks.max_log_wealth(checks.gains_over_chance(second_pass, sequence, vocabulary))
    threshold = -float(np.log(config.level))
    return checks.check_reproducibility(log_probs, repeated, stream, config.tolerance, threshold, log_evidence)


def _check_causality(
    passes: _AuditPasses,
    random: np.random.Generator,
    config: CertificateConfig,
    stream: np.ndarray,
    log_probs: np.ndarray,
    vocabulary: np.ndarray,
) -> CheckResult:
    """Whether changed tokens leave the rows before them unchanged."""
    # Positions ascend, so that a cache of prefixes never holds the row of the first changed token beforehand.
    positions, changed = streams.change_tokens(random, stream, vocabulary, config.num_positions)

    def check(indices: Sequence[int], separate: bool) -> CheckResult:
        rows = passes.run([changed[i] for i in indices], "causal", separate=separate)
        return checks.check_causality(log_probs, zip([positions[i] for i in indices], rows, strict=True))

    return _confirm_failure(passes, check, len(changed))


def _check_prefixes(
    passes: _AuditPasses,
    random: np.random.Generator,
    config: CertificateConfig,
    stream: np.ndarray,
    log_probs: np.ndarray,
) -> CheckResult:
    """Whether prefixes of the stream have the rows of the whole stream."""
    T, name = len(stream), "prefix_invariant"
    lengths = sorted({int(n) for n in random.integers(max(2, T // 8), T - 1, config.num_prefixes - 1)} | {T // 2})

    def check(indices: Sequence[int], separate: bool) -> CheckResult:
        chosen = [lengths[i] for i in indices]
        rows = passes.run([stream[:length] for length in chosen], name, separate=separate)
        return checks.check_prefixes(log_probs, zip(chosen, rows, strict=True), config.tolerance)

    return _confirm_failure(passes, check, len(lengths))


def _check_random_tokens(
    passes: _AuditPasses, random: np.random.Generator, config: CertificateConfig, vocabulary: np.ndarray
) -> CheckResult:
    """Whether random tokens are predicted at their first occurrence; state of earlier streams cannot cause it."""
    sequences, random_streams = _draw_random_streams(random, config, vocabulary, config.num_random_streams)
    repeated = passes.run(random_streams, "random_tokens")
    return checks.check_random_tokens(sequences, repeated, vocabulary, config.level)


def _draw_random_streams(
    random: np.random.Generator, config: CertificateConfig, vocabulary: np.ndarray, num_streams: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sequences of uniformly random tokens, and a stream of copies of each."""
    length = max(config.num_tokens // config.num_copies, 4)
    sequences = [random.choice(vocabulary, length) for _ in range(num_streams)]
    return sequences, [np.tile(sequence, config.num_copies) for sequence in sequences]


def _confirm_failure(
    passes: _AuditPasses, check: Callable[[Sequence[int], bool], CheckResult], num_streams: int
) -> CheckResult:
    """The result of a check in one process, whose failure must recur where a process has not run other streams.

    Args:
        passes: Counts the passes.
        check: Checks the streams of the given numbers, in one process or each in a process of its own.
        num_streams: Streams of the whole check.
    """
    first_check = check(range(num_streams), False)
    if first_check.verdict != "fail":
        return first_check
    passes.num_planned += 1
    if check([int(first_check.measurements["worst_index"])], True).verdict == "fail":
        return first_check
    passes.num_planned += num_streams
    return check(range(num_streams), True)
