"""The prequential audit: tests whether the scores of an online predictor are those of one first pass over a stream.

Prequential: each token is predicted and scored before it is learned from (Dawid 1984, J R Stat Soc A 147:278). The
predictor is a black box that maps tokens [T] to log-probabilities [T, V]. Every pass is made by a predictor that has
not seen any stream. Four conditions are tested:

(a) `causal`: a change of token t leaves the distributions of tokens 0 to t bit-identical. A leak at a share f of the
    positions escapes K tested positions with probability (1 - f)^K.
(b) `normalized`: each distribution sums to one.
(c) `prefix_invariant`: a prefix of the stream has the distributions of the whole stream, up to rounding.
(d) First pass. `reproducible`: two passes over one stream agree bit for bit. `random_tokens`: uniformly random tokens
    are not predicted at their first occurrence; each sequence is repeated within its stream, so a predictor that has
    already read the stream has learned it. `reported_score`: a published score is the score of a first pass.

A black box that recognizes the audit, or that was trained on the stream beforehand, cannot be detected.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from pydantic import Field

from ontogeny.audit.prequential import checks
from ontogeny.audit.prequential.base import RunPasses
from ontogeny.audit.prequential.checks import CheckResult
from ontogeny.errors import BadInput
from ontogeny.validation import FrozenModel

CONDITIONS = {
    "causal": "(a)",
    "normalized": "(b)",
    "prefix_invariant": "(c)",
    "reproducible": "(d)",
    "random_tokens": "(d)",
    "reported_score": "(d)",
}
MIN_STREAM_LENGTH = 16
MOTIF_LENGTH, NOISE_SHARE = 16, 0.1  # of a generated stream


class CertificateConfig(FrozenModel):
    """Settings of the audit.

    Attributes:
        num_tokens: Length of a generated stream; must exceed the chunk by which the predictor learns.
        num_positions: Positions at which a token is changed.
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
    nats_per_token: float  # of the first pass over the stream
    num_tokens: int
    vocab_size: int
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
        vocab_size: Tokens of generated streams are smaller; by default V of the predictor.
        reported: Published score of `stream` in nats per token, with the printed number of decimal places.
        seed: Determines the generated streams.
        on_progress: Called with the number of finished passes, the number of passes and the name of the check.

    Raises:
        BadInput: The predictor does not return log-probabilities [T, V], or the arguments do not fit together.
    """
    config = CertificateConfig() if config is None else config
    if reported is not None and stream is None:
        raise BadInput("a reported score belongs to a stream: give the stream too")
    random = np.random.default_rng(seed)
    if stream is None:
        stream = _generate_stream(random, config.num_tokens, vocab_size or _find_vocab_size(run_passes))
    elif len(stream) < MIN_STREAM_LENGTH:
        raise BadInput(f"the stream must have at least {MIN_STREAM_LENGTH} tokens, not {len(stream)}")
    T = len(stream)
    log_probs = next(run_passes([stream]))
    V = vocab_size or log_probs.shape[1]
    if log_probs.shape[1] < 2 or stream.max() >= log_probs.shape[1]:
        raise BadInput(
            f"the predictor has {log_probs.shape[1]} tokens, too few for a stream that contains token {stream.max()}"
        )
    positions, changed = _change_tokens(random, stream, V, config.num_positions)
    lengths = sorted({int(n) for n in random.integers(max(2, T // 8), T - 1, config.num_prefixes - 1)} | {T // 2})
    sequence_length = max(config.num_tokens // config.num_copies, 4)
    sequences = [random.integers(0, V, sequence_length).astype(np.int32) for _ in range(config.num_random_streams)]
    total = 2 + len(changed) + len(lengths) + len(sequences)
    num_passes, log_sum = 1, checks.worst_log_sum(log_probs)

    def run(streams: Iterable[np.ndarray], check: str) -> Iterator[np.ndarray]:
        nonlocal num_passes, log_sum
        for stream_log_probs in run_passes(streams):
            num_passes += 1
            log_sum = max(log_sum, checks.worst_log_sum(stream_log_probs), key=abs)
            if on_progress is not None:
                on_progress(num_passes, total, check)
            yield stream_log_probs

    reproducible = checks.check_reproducibility(log_probs, next(run([stream], "reproducible")), stream)
    causal = checks.check_causality(log_probs, zip(positions, run(changed, "causal"), strict=True))
    prefixes = run([stream[:length] for length in lengths], "prefix_invariant")
    prefix_invariant = checks.check_prefixes(log_probs, zip(lengths, prefixes, strict=True), config.tolerance)
    repeated = run([np.tile(sequence, config.num_copies) for sequence in sequences], "random_tokens")
    random_tokens = checks.check_random_tokens(sequences, repeated, config.level)
    if reproducible.verdict == "fail":
        unknown = {"verdict": "undetermined", "summary": "two passes over the same stream already differ"}
        causal, prefix_invariant = causal._replace(**unknown), prefix_invariant._replace(**unknown)
    nats_per_token = -float(log_probs[np.arange(T), stream].astype(np.float64).mean())
    results = [causal, checks.check_normalization(log_sum), prefix_invariant, reproducible, random_tokens]
    if reported is not None:
        results.append(checks.check_reported_score(nats_per_token, reported, config.tolerance))
    return Certificate(tuple(results), nats_per_token, T, int(log_probs.shape[1]), num_passes)


def _find_vocab_size(run_passes: RunPasses) -> int:
    """The number of tokens that a predictor distinguishes."""
    return next(run_passes([np.zeros(2, np.int32)])).shape[1]


def _generate_stream(random: np.random.Generator, num_tokens: int, vocab_size: int) -> np.ndarray:
    """A stream that can be learned: one motif repeats, and a share of the tokens is random."""
    motif = random.integers(0, vocab_size, MOTIF_LENGTH)
    is_noise = random.random(num_tokens) < NOISE_SHARE
    noise = random.integers(0, vocab_size, num_tokens)
    return np.where(is_noise, noise, np.resize(motif, num_tokens)).astype(np.int32)


def _change_tokens(
    random: np.random.Generator, stream: np.ndarray, vocab_size: int, num_positions: int
) -> tuple[list[int], list[np.ndarray]]:
    """Changed copies of a stream and the first position at which each differs.

    Both ends are among the positions, the others are spread evenly. Copies alternate: one token is changed, or this
    token and all later ones.
    """
    T = len(stream)
    edges = np.linspace(0, T, num_positions + 1).astype(int)
    inner = {int(random.integers(a, max(a + 1, b))) for a, b in itertools.pairwise(edges)}
    positions = sorted({0, T - 1} | set(random.permutation(sorted(inner))[: max(num_positions - 2, 0)].tolist()))
    changed = []
    for i, position in enumerate(positions):
        end = T if i % 2 else position + 1
        copy = stream.copy()
        copy[position:end] = (stream[position:end] + random.integers(1, vocab_size, end - position)) % vocab_size
        changed.append(copy)
    return positions, changed
