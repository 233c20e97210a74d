"""The sampler: the next token from logits, by temperature, top-k, top-p and a counter-based seed.

The server and the command line use one definition. Token number `position` of an answer with seed `seed` is drawn by
inverting the cumulative distribution at the uniform number `draw_uniform(seed, position)`, which Philox computes from
these two integers alone. `sample_token` evaluates the definition with NumPy in float64, for one sequence;
`sample_tokens` evaluates it with JAX in float32, for a batch inside a compiled loop. Top-k is applied before top-p and
both after temperature (nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751, section 3.1).

A server may adjust the logits before it samples: `adjust_logits`. Log-probabilities are always those of the model.

Letters: R sequences, V vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.errors import BadInput
from ontogeny.seeds import MIN_SAMPLING_SEED, NUM_SAMPLING_SEEDS

FORBIDDING_BIAS = -100.0  # the lowest bias of a token; it excludes the token whatever its logit is
FORBIDDEN_LOGIT = -1e30  # finite, so that no sum and no difference of logits is undefined
VIOLATING_LOGIT = -2e30  # of a token that would violate a constraint, which no bias can permit
BUCKET_SIZE = 256  # tokens whose probabilities are summed before the cumulative distribution is searched


class SamplingParams(NamedTuple):
    """How the tokens of one answer are drawn."""

    temperature: float = 1.0  # 0: the most probable token, of equal ones the first
    top_p: float = 1.0  # keeps the fewest most probable tokens that together have this probability; 0: the first
    seed: int = 0  # 0 to 2^64 - 1
    top_k: int = 0  # keeps this many of the most probable tokens; 0: all


class ConstraintFailure(Exception):
    """The next token of an answer cannot be determined, so the answer fails."""


@runtime_checkable
class TokenConstraint(Protocol):
    """Which tokens may come next in one answer."""

    def copy(self) -> "TokenConstraint":
        """Create the constraint of another answer, which has no token yet."""
        ...

    def find_allowed_tokens(self, generated: Sequence[int]) -> Bool[np.ndarray, "_"]:
        """Find which of the first tokens of the vocabulary may come next; the others may not."""
        ...


class LogitAdjustments(NamedTuple):
    """How the logits of one answer differ from those of the model; see `adjust_logits`.

    Attributes:
        presence_penalty: Subtracted from the logit of each token that the answer contains.
        frequency_penalty: Subtracted from the logit of each token as often as the answer contains it.
        biased_tokens: Tokens whose logits are biased, each once.
        biases: One per biased token, added to its logit; -100 excludes the token.
        min_tokens: The end tokens are excluded before the answer has this many tokens.
        constraint: Which tokens may come next, whatever the other adjustments are; it belongs to one answer.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    biased_tokens: Int32[np.ndarray, "_"] = np.zeros(0, np.int32)
    biases: Float[np.ndarray, "_"] = np.zeros(0, np.float32)
    min_tokens: int = 0
    constraint: TokenConstraint | None = None

    def for_another_answer(self) -> "LogitAdjustments":
        """Copy what belongs to one answer."""
        return self if self.constraint is None else self._replace(constraint=self.constraint.copy())


class BatchSamplingParams(NamedTuple):
    """The sampling parameters of R sequences; seeds enter through the uniform numbers."""

    temperature: Float[Array, "R"]
    top_p: Float[Array, "R"]
    top_k: Int32[Array, "R"]


class TokenLogprobs(NamedTuple):
    """The log-probability (natural logarithm) of a token and of the most probable tokens at its position."""

    token: int
    logprob: float | None  # None for the first token of a text, which has no context
    top_logprobs: tuple[tuple[int, float], ...]  # (token, log-probability), most probable first


def check_sampling_params(params: SamplingParams) -> SamplingParams:
    """Validate sampling parameters.

    Args:
        params: Temperature from 0 to 100, top-k at least 0, top-p from 0 to 1, seed from -2^63 to 2^64 - 1.

    Returns:
        The same parameters.

    Raises:
        BadInput: A parameter is out of its range.
    """
    if not 0 <= params.temperature <= 100:
        raise BadInput(f"the temperature must lie between 0 and 100, not {params.temperature}")
    if not 0 <= params.top_k < 2**31:
        raise BadInput(f"top-k must be at least 0 (0 keeps all tokens), not {params.top_k}")
    if not 0 <= params.top_p <= 1:
        raise BadInput(f"top-p must lie between 0 and 1, not {params.top_p}")
    if (
        isinstance(params.seed, bool)
        or not isinstance(params.seed, int)
        or not MIN_SAMPLING_SEED <= params.seed < NUM_SAMPLING_SEEDS
    ):
        raise BadInput(f"the seed must be a whole number of at most 64 bits, not {params.seed!r}")
    return params


def derive_seed(seed: int, choice: int) -> int:
    """Derive the seed of one of several answers to the same prompt.

    Seeds are hashed, not counted on: choice 1 of seed 3 would otherwise equal choice 0 of seed 4.

    Args:
        seed: The seed of the request; numbers beyond 0 to 2^64 - 1 wrap around.
        choice: The number of the answer; number 0 has the seed itself.
    """
    seed %= NUM_SAMPLING_SEEDS
    if choice == 0:
        return seed
    digest = hashlib.sha256(b"".join(number.to_bytes(8, "little") for number in (seed, choice))).digest()
    return int.from_bytes(digest[:8], "little")


def derive_seeds_of_repeats(requests: Sequence[str], seed: int = 0) -> list[int]:
    """Derive one seed per request, so that equal requests have different answers.

    Args:
        requests: A text that identifies each request.
        seed: The seed of the first of equal requests.
    """
    counts, seeds = Counter[str](), []
    for request in requests:
        seeds.append(derive_seed(seed, counts[request]))
        counts[request] += 1
    return seeds


def make_adjustments(
    *,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    min_tokens: int = 0,
    constraint: TokenConstraint | None = None,
) -> LogitAdjustments | None:
    """Collect adjustments of logits; None if there are none, so that sampling costs and changes nothing.

    Args:
        presence_penalty: As in `LogitAdjustments`.
        frequency_penalty: As in `LogitAdjustments`.
        logit_bias: Biases by token.
        min_tokens: As in `LogitAdjustments`.
        constraint: As in `LogitAdjustments`.
    """
    biases = {token: bias for token, bias in sorted((logit_bias or {}).items()) if bias}
    if not (presence_penalty or frequency_penalty or biases or min_tokens or constraint):
        return None
    tokens, values = np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)
    return LogitAdjustments(presence_penalty, frequency_penalty, tokens, values, min_tokens, constraint)


def adjust_logits(
    logits: Float[np.ndarray, "V"], adjustments: LogitAdjustments, generated: Sequence[int], end_tokens: Collection[int]
) -> Float[np.ndarray, "V"]:
    """Adjust the logits of the next token of one answer, before temperature, top-k and top-p.

    In this order: both penalties are subtracted, counting the tokens of the answer and not those of the prompt; biases
    are added; tokens with the bias -100, and the end tokens before `min_tokens`, are excluded; then those that violate
    the constraint. The result depends on nothing but the arguments, so that answers stay independent of their batch.

    Args:
        logits: Float32 logits of the model; not changed, because other answers may share them.
        adjustments: What to change.
        generated: The tokens of the answer so far.
        end_tokens: The tokens that end the answer.

    Returns:
        New float32 logits.

    Raises:
        ConstraintFailure: The constraint cannot be evaluated.
    """
    adjusted = logits.copy()
    if generated and (adjustments.presence_penalty or adjustments.frequency_penalty):
        tokens, counts = np.unique(np.asarray(generated, np.int64), return_counts=True)
        penalties = adjustments.presence_penalty + adjustments.frequency_penalty * counts
        adjusted[tokens] -= penalties.astype(np.float32)
    biased, biases = adjustments.biased_tokens, adjustments.biases
    adjusted[biased] = np.where(biases > FORBIDDING_BIAS, adjusted[biased] + biases, np.float32(FORBIDDEN_LOGIT))
    if len(generated) < adjustments.min_tokens:
        adjusted[list(end_tokens)] = FORBIDDEN_LOGIT
    if adjustments.constraint is not None:
        allowed = adjustments.constraint.find_allowed_tokens(generated)
        adjusted[: len(allowed)][~allowed] = VIOLATING_LOGIT
        adjusted[len(allowed) :] = VIOLATING_LOGIT
    return adjusted


def draw_uniform(seed: int, position: int) -> float:
    """Draw the uniform number in [0, 1) that selects one token of an answer.

    Args:
        seed: 0 to 2^64 - 1.
        position: The number of the token in its answer, from 0 on.
    """
    key = np.array([seed % NUM_SAMPLING_SEEDS, position], np.uint64)  # a plain list would turn large seeds into floats
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def sample_token(logits: Float[np.ndarray, "V"], params: SamplingParams, position: int) -> int:
    """Sample one token of one sequence.

    Args:
        logits: Float32 logits of the next token.
        params: Temperature, top-p, top-k and seed.
        position: The number of the token in its answer, from 0 on.

    Returns:
        The index of the sampled token.
    """
    if params.temperature == 0 or params.top_p == 0:
        return int(np.argmax(logits))
    shares = logits.astype(np.float64)
    shares = np.exp((shares - shares.max()) / params.temperature)
    if params.top_p < 1 or params.top_k:
        order = np.argsort(-shares, kind="stable")
        order = order[: params.top_k or None]
        sums = np.cumsum(shares[order])
        num_selected = int(np.searchsorted(sums, params.top_p * sums[-1])) + 1
        selected = np.zeros(len(shares), bool)
        selected[order[:num_selected]] = True
        shares = np.where(selected, shares, 0.0)
    sums = np.cumsum(shares)
    threshold = draw_uniform(params.seed, position) * sums[-1]
    return min(int(np.searchsorted(sums, threshold, side="right")), int(np.flatnonzero(shares)[-1]))


def sample_tokens(
    uniforms: Float[Array, "R"], logits: Float[Array, "R V"], params: BatchSamplingParams
) -> Int32[Array, "R"]:
    """Sample one token of each sequence of a batch, by the definition of `sample_token`.

    Args:
        uniforms: `draw_uniform` of each sequence's seed and position.
        logits: Float32 logits of the next tokens.
        params: The sampling parameters of each sequence; steps that no sequence needs are not computed.

    Returns:
        The indices of the sampled tokens.
    """
    greedy = _argmax(logits)

    is_sampled = (params.temperature > 0) & (params.top_p > 0)

    def draw(logits: Array) -> Array:
        temperature = jnp.where(params.temperature > 0, params.temperature, 1.0)[:, None]
        shares = jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature)
        restricted = jnp.any((params.top_k > 0) | (params.top_p < 1))
        shares = jax.lax.cond(restricted, lambda s: _restrict(s, params), lambda s: s, shares)
        return jnp.where(is_sampled, _invert_cumulative(shares, uniforms), greedy)

    return jax.lax.cond(jnp.any(is_sampled), draw, lambda logits: greedy, logits)


def compute_logprobs(logits: Float[np.ndarray, "V"], token: int, num_top: int) -> TokenLogprobs:
    """Compute the log-probability of a token and of the most probable tokens, in float64.

    Args:
        logits: Float32 logits at the token's position.
        token: The token whose log-probability is computed.
        num_top: How many of the most probable tokens to list.
    """
    wide = logits.astype(np.float64)
    highest = wide.max()
    logprobs = wide - (highest + np.log(np.exp(wide - highest).sum()))
    best = np.argsort(-logprobs, kind="stable")[:num_top] if num_top else ()
    return TokenLogprobs(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def _argmax(logits: Array) -> Array:
    """`jnp.argmax` of [R, V] by two plain reductions, which a CPU computes four times as fast."""
    V = logits.shape[-1]
    is_highest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.minimum(jnp.min(jnp.where(is_highest, jnp.arange(V), V), axis=-1), V - 1).astype(jnp.int32)


def _restrict(shares: Array, params: BatchSamplingParams) -> Array:
    """The unnormalized probabilities [R, V] with those outside top-k and top-p set to 0."""
    R, V = shares.shape
    tokens = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (R, V))
    negative, order = jax.lax.sort((-shares, tokens), num_keys=1, is_stable=True)
    limit = jnp.where(params.top_k > 0, params.top_k, V)[:, None]
    ordered = jnp.where(jnp.arange(V)[None] < limit, -negative, 0.0)
    sums = jnp.cumsum(ordered, axis=-1)
    # The fewest tokens whose probabilities reach top-p: those before the threshold, and one more.
    num_selected = jnp.sum(sums < params.top_p[:, None] * sums[:, -1:], axis=-1, keepdims=True) + 1
    selected = jnp.arange(V)[None] < jnp.minimum(jnp.where(params.top_p[:, None] < 1, num_selected, V), limit)
    return jnp.where(jnp.zeros((R, V), bool).at[jnp.arange(R)[:, None], order].set(selected), shares, 0.0)


def _invert_cumulative(shares: Array, uniforms: Array) -> Array:
    """The first token [R] at which the cumulative probability exceeds the uniform number.

    The search is done in two levels (buckets, then tokens of one bucket), so that no long cumulative sum is needed.
    """
    R, V = shares.shape
    buckets = jnp.pad(shares, ((0, 0), (0, -V % BUCKET_SIZE))).reshape(R, -1, BUCKET_SIZE)
    bucket_sums = buckets.sum(axis=-1)
    ends = jnp.cumsum(bucket_sums, axis=-1)
    threshold = uniforms[:, None] * ends[:, -1:]
    bucket = _first_beyond(ends, bucket_sums, threshold)
    threshold = threshold - jnp.where(bucket > 0, jnp.take_along_axis(ends, jnp.maximum(bucket - 1, 0), axis=-1), 0.0)
    inside = jnp.take_along_axis(buckets, bucket[:, :, None], axis=1)[:, 0]
    token = bucket * BUCKET_SIZE + _first_beyond(jnp.cumsum(inside, axis=-1), inside, threshold)
    return token[:, 0].astype(jnp.int32)


def _first_beyond(sums: Array, terms: Array, threshold: Array) -> Array:
    """The first index [R, 1] whose sum exceeds the threshold; by rounding there may be none: the last nonzero term."""
    last = terms.shape[-1] - 1 - jnp.argmax(terms[:, ::-1] > 0, axis=-1, keepdims=True)
    return jnp.minimum(jnp.sum(sums <= threshold, axis=-1, keepdims=True), last)
