"""Drawing tokens, and log-probabilities, for many sequences at a time.

The distribution is that of `engine.sampling.sample_token`: probabilities are exponentials in float32 and their sums are
in float64. Top-k and top-p select the most probable tokens, of equally probable ones those with lower numbers, by
histograms of the bits of the probabilities instead of a sort. V vocabulary.
"""

from typing import Any

import numpy as np

from ontogeny.kernels import layout as at
from ontogeny.kernels.compiling import kernel
from ontogeny.kernels.elementwise import exponential, view
from ontogeny.kernels.primitives import as_int_pointer, carray, fetch_add, intrinsic, load_shared, pause, types
from ontogeny.kernels.reductions import maximum

NUM_BUCKETS = 1024
SCRATCH_SIZE = 8 * NUM_BUCKETS  # float32 numbers beyond two for each token of the vocabulary
_LOWEST_EXPONENT = np.float32(-87.0)  # the exponential of lower numbers is 0
_HIGHEST_FACTOR = 3e38
_UNIT_BITS = 0x3F800000  # of 1.0, the largest probability before normalization
_SHIFTS = (20, 10, 0)  # each level of a search distinguishes 10 more bits
_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW_BITS, _HALF_BITS, _UNUSED_BITS = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)


@intrinsic
def as_double_pointer(typing: Any, address: Any) -> Any:
    """The address as a pointer to float64, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.float64)))

    return types.CPointer(types.float64)(types.int64), generate


@intrinsic
def as_bits_pointer(typing: Any, address: Any) -> Any:
    """The address as a pointer to int32, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int32)))

    return types.CPointer(types.int32)(types.int64), generate


@kernel
def multiply_high(left: np.uint64, right: np.uint64) -> np.uint64:
    """The upper 64 bits of a product."""
    low_left, high_left = left & _LOW_BITS, left >> _HALF_BITS
    low_right, high_right = right & _LOW_BITS, right >> _HALF_BITS
    middle = high_left * low_right + ((low_left * low_right) >> _HALF_BITS)
    carry = low_left * high_right + (middle & _LOW_BITS)
    return high_left * high_right + (middle >> _HALF_BITS) + (carry >> _HALF_BITS)


@kernel
def draw_uniform(seed: np.uint64, position: np.uint64) -> float:
    """The number of `engine.sampling.draw_uniform`: Philox 4x64 with 10 rounds (Salmon et al. 2011), as in NumPy."""
    a, b, c, d = np.uint64(1), np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        high_a, low_a = multiply_high(_MULTIPLIERS[0], a), _MULTIPLIERS[0] * a
        high_c, low_c = multiply_high(_MULTIPLIERS[1], c), _MULTIPLIERS[1] * c
        a, b, c, d = high_c ^ b ^ seed, low_c, high_a ^ d ^ position, low_a
        seed, position = seed + _WEYL[0], position + _WEYL[1]
    return float(a >> _UNUSED_BITS) * 2.0**-53


@kernel
def find_threshold(
    bits: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    shares: np.ndarray,
    max_count: int,
    target: float,
) -> tuple[int, int, float]:
    """Find the most probable tokens, in number `max_count` or with a sum of at least `target`, whichever is less.

    Args:
        bits: The probabilities of all tokens as integers.
        indices: Memory for the numbers of all tokens.
        counts: Memory for the counts of a histogram.
        sums: Memory for its sums.
        shares: The probabilities of all tokens.
        max_count: At least 1.
        target: A sum of probabilities.

    Returns:
        The bits of the least selected probability, how many tokens of this probability are selected, and the sum.
    """
    num_left, count, total, prefix = len(bits), 0, 0.0, 0
    for level in range(3):
        shift = _SHIFTS[level]
        counts[:], sums[:] = 0, 0.0
        for i in range(num_left):
            token = indices[i] if level else i
            bucket = (bits[token] >> shift) & (NUM_BUCKETS - 1) if level else bits[token] >> shift
            counts[bucket] += 1
            sums[bucket] += shares[token]
        bucket, last = NUM_BUCKETS - 1, -1
        while bucket >= 0:
            if counts[bucket]:
                last = bucket
                if count + counts[bucket] >= max_count or total + sums[bucket] >= target:
                    break
                count, total = count + counts[bucket], total + sums[bucket]
            bucket -= 1
        if bucket < 0:  # by rounding the target is not reached: all tokens are selected
            count, total, bucket = count - counts[last], total - sums[last], last
        num_equal = 0
        for i in range(num_left):
            token = indices[i] if level else i
            if (bits[token] >> shift) & (NUM_BUCKETS - 1) == bucket:
                indices[num_equal] = token
                num_equal += 1
        num_left, prefix = num_equal, (prefix << 10) | bucket
    share, selected = float(shares[indices[0]]), 0
    while selected < num_left:
        selected, total = selected + 1, total + share
        if count + selected >= max_count or total >= target:
            break
    return prefix, selected, total


@kernel
def draw_token(
    logits: int, count: int, temperature: float, top_p: float, top_k: int, uniform: float, scratch: int
) -> int:
    """Draw one of the first `count` tokens.

    Args:
        logits: Address of float32 logits.
        count: How many of them are candidates.
        temperature: 0 for the most probable token.
        top_p: See `engine.sampling.SamplingParams`.
        top_k: See there.
        uniform: Selects the token.
        scratch: Memory for two numbers per token and `SCRATCH_SIZE` more.
    """
    numbers, highest, first = view(logits, count), maximum(logits, count), 0
    for i in range(count):
        if numbers[i] == highest:
            first = i
            break
    if temperature == 0 or top_p == 0:
        return first
    counts = carray(as_int_pointer(scratch), (NUM_BUCKETS,))
    sums = carray(as_double_pointer(scratch + 8 * NUM_BUCKETS), (NUM_BUCKETS,))
    memory = scratch + 16 * NUM_BUCKETS
    shares, bits = view(memory, count), carray(as_bits_pointer(memory), (count,))
    indices = carray(as_bits_pointer(memory + 4 * count), (count,))
    factor = np.float32(min(1 / temperature, _HIGHEST_FACTOR))
    for i in range(count):
        exponent = (numbers[i] - highest) * factor
        shares[i] = exponential(exponent) if exponent >= _LOWEST_EXPONENT else np.float32(0)
    total, threshold, num_equal = 0.0, -1, count
    if 0 < top_k < count:
        threshold, num_equal, total = find_threshold(bits, indices, counts, sums, shares, top_k, np.inf)
    else:
        for i in range(count):
            total += shares[i]
    if top_p < 1:
        limit = top_k if 0 < top_k < count else count
        threshold, num_equal, total = find_threshold(bits, indices, counts, sums, shares, limit, top_p * total)
    goal, reached, last = uniform * total, 0.0, first
    for i in range(count):
        if bits[i] >= threshold and shares[i] > 0:
            if bits[i] == threshold:
                if not num_equal:
                    continue
                num_equal -= 1
            reached += shares[i]
            last = i
            if reached > goal:
                break
    return last


@kernel
def log_normalizer(logits: int, count: int, scratch: int) -> float:
    """The logarithm of the sum of the exponentials of float32 numbers; `scratch` is memory for as many."""
    numbers, highest, shares = view(logits, count), maximum(logits, count), view(scratch, count)
    for i in range(count):
        shares[i] = exponential(numbers[i] - highest)
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    stop = count - count % 4
    for i in range(0, stop, 4):
        first += shares[i]
        second += shares[i + 1]
        third += shares[i + 2]
        fourth += shares[i + 3]
    for i in range(stop, count):
        first += shares[i]
    return float(highest) + np.log((first + second) + (third + fourth))


@kernel
def find_top(
    logits: int, count: int, num_top: int, normalizer: float, tokens: np.ndarray, logprobs: np.ndarray
) -> None:
    """Writes the most probable tokens and their log-probabilities, of equal ones the first."""
    numbers, size = view(logits, count), 0
    for token in range(count):
        logprob = float(numbers[token]) - normalizer
        if size < num_top or logprob > logprobs[size - 1]:
            place = size if size < num_top else size - 1
            while place > 0 and logprobs[place - 1] < logprob:
                if place < num_top:
                    tokens[place], logprobs[place] = tokens[place - 1], logprobs[place - 1]
                place -= 1
            tokens[place], logprobs[place] = token, logprob
            size = min(size + 1, num_top)


@kernel
def sample_sequence(d: np.ndarray, number: int, scratch: int) -> None:
    """Draws the token of one sequence, unless it is given, and computes log-probabilities where they are needed."""
    fields = carray(as_int_pointer(d[at.SAMPLES] + 8 * at.NUM_SAMPLE_FIELDS * number), (at.NUM_SAMPLE_FIELDS,))
    numbers = carray(as_double_pointer(d[at.SAMPLE_NUMBERS] + 8 * at.NUM_SAMPLE_NUMBERS * number), (3,))
    if fields[at.SAMPLE_TOKEN] < 0:
        temperature, top_p, uniform = numbers[at.TEMPERATURE], numbers[at.TOP_P], 0.0
        if temperature > 0:
            uniform = draw_uniform(np.uint64(fields[at.SAMPLE_SEED]), np.uint64(fields[at.SAMPLE_POSITION]))
        fields[at.SAMPLE_TOKEN] = draw_token(
            fields[at.CANDIDATE_LOGITS],
            fields[at.NUM_CANDIDATES],
            temperature,
            top_p,
            fields[at.TOP_K],
            uniform,
            scratch,
        )
    num_top = fields[at.NUM_TOP]
    if num_top >= 0:
        logits, count, max_top = fields[at.MODEL_LOGITS], d[at.VOCAB_SIZE], d[at.MAX_TOP]
        normalizer = log_normalizer(logits, count, scratch)
        numbers[at.LOGPROB] = float(view(logits, count)[fields[at.SAMPLE_TOKEN]]) - normalizer
        if num_top:
            tokens = carray(as_int_pointer(d[at.TOP_TOKENS] + 8 * max_top * number), (max_top,))
            logprobs = carray(as_double_pointer(d[at.TOP_LOGPROBS] + 8 * max_top * number), (max_top,))
            find_top(logits, count, num_top, normalizer, tokens, logprobs)


@kernel
def sample_sequences(d: np.ndarray, scratch: int) -> None:
    """Runs the samples of a table together with other threads, and waits until all are complete."""
    counters, num_samples, completed = d[at.COUNTERS], d[at.NUM_SAMPLES], 0
    number = fetch_add(counters, 1)
    while number < num_samples:
        sample_sequence(d, number, scratch)
        number, completed = fetch_add(counters, 1), completed + 1
    fetch_add(counters + 8 * at.DONE, completed)
    while load_shared(counters + 8 * at.DONE) < num_samples:
        pause()
