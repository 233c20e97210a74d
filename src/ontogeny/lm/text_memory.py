"""A memory of text that predicts the next byte from what followed the same contexts before.

It is learned content without gradients: a context model as of data compression (Mahoney 2005, "Adaptive weighing of
context models for lossless data compression", Florida Tech CS-2005-16). For each context (the last 0 to 6 bytes, and
the letters of the current word) a binary tree over the bits of the next byte counts the bits that followed. A map that
is learned too turns a pair of counts into a probability, so that it need not be assumed how reliable three equal
observations are. A further predictor repeats the byte that followed the longest match of at least five bytes. Their
log-odds are added with learned weights (logistic mixing: section 3 there; Mattern 2012, arXiv 1302.4773): the set of
weights depends on the number of contexts that have occurred before, and each bit is a step of gradient descent on its
coding cost.

`read` also mixes the memory with the probabilities of a network, with two more weights of the same kind. Each bit is
predicted before anything is learned from it. Where the network predicts tokens of several bytes, the memory must say
whether a token ends, too. A token of which longer tokens begin with the same bytes ends almost surely if the next byte
continues none of them; otherwise the memory counts how often it ended before that byte. Its predictions of the next
byte then give the probability that the token ends, and those of the next byte given that it ends or not.

With numba (the extra `fast`) the functions are compiled; without it the same functions run as plain Python, about a
hundred times slower.

Letters: D decisions, M nodes, R roots, K contexts, N bytes, P prefixes of tokens, E bytes that continue them.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ontogeny import kernels

MAX_ORDER = 6  # bytes of the longest context
NUM_CONTEXTS = MAX_ORDER + 2  # orders 0 to 6, and the current word
NUM_KEYS = NUM_CONTEXTS + 1  # and the prefix of a token with the byte after it
NUM_INPUTS = NUM_CONTEXTS + 2  # and the longest match, and a constant
MATCH_ORDER = 5  # bytes that a match has at least
MAX_MATCH = 31  # longer matches are equally reliable
MAX_COUNT = 31  # of equal bits in a context
DISCOUNTED = 2  # of a count of the other bit, more than this is halved: recent bits count for more
MAX_OBSERVATIONS = 127.0  # over which the reliability of counts is averaged
MIN_PROBABILITY = 1e-5
LEARNING_RATE = 0.002  # of the weights of the predictors
MIXING_RATE = 0.004  # of the weights of network and memory
INITIAL_WEIGHT = 0.3  # of each predictor
INITIAL_MIXING = (0.3, 0.7)  # of network and memory
CONSTANT = 0.3  # the last input
BASE = 257
WORD_MODULUS = 8796093022151  # the largest prime below 2^43
NODES_PER_BYTE = 40
MAX_TEXT_BYTES = 1 << 21

if importlib.util.find_spec("numba") is not None and os.environ.get(kernels.ENVIRONMENT_VARIABLE, "1") != "0":
    from ontogeny.kernels.compiling import kernel as compiled
else:

    def compiled(function: Callable[..., Any]) -> Any:
        """Returns a function as it is, where numba is absent."""
        return function


class TextMemory(NamedTuple):
    """The arrays of a memory, changed in place.

    Attributes:
        root_keys: [R] int64, contexts by open addressing; -1 where there is none.
        root_nodes: [R] int32, the node of the first bit after each context.
        root_positions: [R] int32, where in `text` each context occurred last; -1 before.
        children: [2 M] int32, the nodes after a bit of 0 and of 1; -1 where there is none.
        counts: [2 M] uint8, recent bits of 0 and of 1 at each node.
        reliability: [(K + 1) x counts x counts] float64, the probability of 1 after a pair of counts in each context,
            and that a token ends.
        num_observations: As `reliability`, the number of bits from which it was learned.
        match_reliability: [lengths] float64, the probability that the byte after a match of this length is repeated.
        num_matches: [lengths] float64.
        weights: [(K + 1) x inputs] float64, of the predictors, by the number of contexts that have occurred.
        mixing_weights: [2] float64, of network and memory.
        text: [N] uint8, the bytes that were read.
        sizes: [2] int64, the number of bytes and of nodes in use.
    """

    root_keys: np.ndarray
    root_nodes: np.ndarray
    root_positions: np.ndarray
    children: np.ndarray
    counts: np.ndarray
    reliability: np.ndarray
    num_observations: np.ndarray
    match_reliability: np.ndarray
    num_matches: np.ndarray
    weights: np.ndarray
    mixing_weights: np.ndarray
    text: np.ndarray
    sizes: np.ndarray


class Prefixes(NamedTuple):
    """The prefixes of tokens that longer tokens continue; see `byte_decisions.DecisionTable`.

    Attributes:
        first_extension: [P + 1] int32, where the bytes of each prefix begin in `extensions`.
        extensions: [E] uint8, the bytes that continue each prefix, in increasing order.
        ranks: [P] int32, a number of each prefix that is the same in all texts.
    """

    first_extension: np.ndarray
    extensions: np.ndarray
    ranks: np.ndarray


class _Reader(NamedTuple):
    """What a pass over a text carries from bit to bit, changed in place."""

    recent: np.ndarray  # [MAX_ORDER] int64, the last bytes plus one, the last one first; 0 before the text
    keys: np.ndarray  # [K] int64, of the contexts
    nodes: np.ndarray  # [K] int64, the node of each context; -1 where it has none
    inputs: np.ndarray  # [inputs] float64, log-odds of 1
    pairs: np.ndarray  # [K] int64, the entry of `reliability` that was used; -1 for none
    numbers: np.ndarray  # [10] int64, see the constants below
    reach: np.ndarray  # [1] float64, the memory's probability of the bits of the byte so far
    masses: np.ndarray  # [256] float64, the probability that the token continues, with each byte that can continue it
    path_nodes: np.ndarray  # [9 x K] int64, the node of each context after 0 to 8 bits of such a byte
    path_probabilities: np.ndarray  # [2 x 9] float64, after these bits: that of 1, and that of the bits themselves


# Entries of `numbers`.
WORD, MATCH, MATCH_LENGTH, PARTIAL_BYTE, NUM_BITS, EXPECTED_BIT, NUM_KNOWN, HAS_BEGUN, TOKEN_STATE, PREFIX = range(10)
# Values of `TOKEN_STATE`: whether the token ended before the byte, if longer tokens begin with the same bytes.
NO_PREFIX, ENDED, CONTINUED, CANNOT_END = range(4)


def init_memory(num_bytes: int) -> TextMemory:
    """Creates an empty memory.

    Args:
        num_bytes: Bytes that it will read. Of more than `MAX_TEXT_BYTES` only the first ones add contexts; those that
            exist continue to learn.
    """
    capacity = min(max(num_bytes, 64), MAX_TEXT_BYTES)
    num_nodes, num_roots = NODES_PER_BYTE * capacity, NUM_KEYS * (capacity + 1) + 1
    zeros, ones = np.meshgrid(np.arange(MAX_COUNT + 1), np.arange(MAX_COUNT + 1), indexing="ij")
    reliability = np.tile(((ones + 0.4) / (zeros + ones + 0.8)).ravel(), NUM_KEYS)
    weights = np.full((NUM_CONTEXTS + 1, NUM_INPUTS), INITIAL_WEIGHT)
    weights[:, -1] = 0.0
    return TextMemory(
        np.full(num_roots, -1, np.int64),
        np.full(num_roots, -1, np.int32),
        np.full(num_roots, -1, np.int32),
        np.zeros(2 * num_nodes, np.int32),
        np.zeros(2 * num_nodes, np.uint8),
        reliability,
        np.zeros(len(reliability)),
        1 - 1 / (np.arange(MAX_MATCH + 1) + 2.5),
        np.zeros(MAX_MATCH + 1),
        weights.ravel(),
        np.array(INITIAL_MIXING),
        np.zeros(capacity, np.uint8),
        np.array([0, 1], np.int64),  # node 0 is none
    )


def copy_memory(memory: TextMemory) -> TextMemory:
    """Copies all arrays of a memory."""
    return TextMemory(*(array.copy() for array in memory))


def new_reader() -> _Reader:
    """Returns the state of a pass at the beginning of a text."""
    K = NUM_CONTEXTS
    return _Reader(
        np.zeros(MAX_ORDER, np.int64),
        np.zeros(K, np.int64),
        np.zeros(K, np.int64),
        np.zeros(NUM_INPUTS),
        np.zeros(K, np.int64),
        np.array([0, -1, 0, 1, 0, -1, 0, 0, NO_PREFIX, -1], np.int64),
        np.ones(1),
        np.zeros(256),
        np.zeros((9, K), np.int64),
        np.ones((2, 9)),
    )


@compiled
def _log_odds(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


@compiled
def _probability(log_odds: float) -> float:
    bounded = min(max(log_odds, -30.0), 30.0)
    return min(max(1.0 / (1.0 + math.exp(-bounded)), MIN_PROBABILITY), 1.0 - MIN_PROBABILITY)


@compiled
def _find_root(memory: TextMemory, key: int) -> int:
    """The place of a context, or the empty place where it would be entered."""
    size = len(memory.root_keys)
    place = key % size
    while memory.root_keys[place] != key and memory.root_keys[place] != -1:
        place = place + 1 if place + 1 < size else 0
    return place


@compiled
def _can_grow(memory: TextMemory) -> bool:
    """Whether all nodes of one more byte fit, and the byte itself."""
    has_nodes = 2 * (memory.sizes[1] + 9 * NUM_CONTEXTS) < len(memory.children)
    return has_nodes and memory.sizes[0] < len(memory.text)


@compiled
def _add_node(memory: TextMemory) -> int:
    node = memory.sizes[1]
    memory.sizes[1] += 1
    return node


@compiled
def _begin_byte(memory: TextMemory, reader: _Reader, learning: bool) -> None:
    """Finds the contexts of the next byte and the longest match; enters new contexts where the memory learns."""
    numbers = reader.numbers
    grows = learning and _can_grow(memory)
    code, scale, match_root = 0, 1, -1
    for k in range(NUM_CONTEXTS):
        if k < NUM_CONTEXTS - 1:
            if k > 0:
                code += reader.recent[k - 1] * scale
                scale *= BASE
            key = code * NUM_KEYS + k
        else:
            key = (numbers[WORD] * BASE + reader.recent[0]) * NUM_KEYS + k
        place = _find_root(memory, key)
        if memory.root_keys[place] == -1 and grows:
            memory.root_keys[place] = key
            memory.root_nodes[place] = _add_node(memory)
        is_known = memory.root_keys[place] != -1
        reader.nodes[k] = memory.root_nodes[place] if is_known else 0
        if k == MATCH_ORDER and is_known:
            match_root = place
    _follow_match(memory, reader, match_root)
    if match_root >= 0 and grows:  # after the last occurrence was looked up
        memory.root_positions[match_root] = memory.sizes[0]
    numbers[PARTIAL_BYTE], numbers[NUM_BITS], numbers[HAS_BEGUN], reader.reach[0] = 1, 0, 1, 1.0


@compiled
def _follow_match(memory: TextMemory, reader: _Reader, match_root: int) -> None:
    """Continues the match of the byte before, or begins one with the last occurrence of the context."""
    numbers = reader.numbers
    if numbers[MATCH_LENGTH] > 0 and numbers[MATCH] + 1 < memory.sizes[0]:
        numbers[MATCH] += 1
        numbers[MATCH_LENGTH] = min(numbers[MATCH_LENGTH] + 1, MAX_MATCH)
        return
    numbers[MATCH_LENGTH] = 0
    if match_root >= 0 and reader.recent[MATCH_ORDER - 1] > 0 and memory.root_positions[match_root] >= 0:
        position = memory.root_positions[match_root]
        length = MATCH_ORDER
        while (
            length < MAX_ORDER and position > length and memory.text[position - 1 - length] + 1 == reader.recent[length]
        ):
            length += 1
        numbers[MATCH] = position
        numbers[MATCH_LENGTH] = length


@compiled
def _predict_bit(memory: TextMemory, reader: _Reader) -> float:
    """Predicts the next bit of a byte: the probability of 1 by the memory alone."""
    numbers, inputs = reader.numbers, reader.inputs
    num_known = 0
    for k in range(NUM_CONTEXTS):
        node = reader.nodes[k]
        zeros, ones = int(memory.counts[2 * node]), int(memory.counts[2 * node + 1])
        inputs[k], reader.pairs[k] = 0.0, -1
        if node > 0 and zeros + ones > 0:
            reader.pairs[k] = (k * (MAX_COUNT + 1) + zeros) * (MAX_COUNT + 1) + ones
            inputs[k] = _log_odds(memory.reliability[reader.pairs[k]])
            num_known += 1
    numbers[EXPECTED_BIT] = -1
    inputs[NUM_CONTEXTS] = 0.0
    if numbers[MATCH_LENGTH] > 0:
        expected = int(memory.text[numbers[MATCH]]) + 256
        if expected >> (8 - numbers[NUM_BITS]) == numbers[PARTIAL_BYTE]:
            numbers[EXPECTED_BIT] = (expected >> (7 - numbers[NUM_BITS])) & 1
            log_odds = _log_odds(memory.match_reliability[numbers[MATCH_LENGTH]])
            inputs[NUM_CONTEXTS] = log_odds if numbers[EXPECTED_BIT] == 1 else -log_odds
    inputs[NUM_INPUTS - 1] = CONSTANT
    numbers[NUM_KNOWN] = num_known
    total = 0.0
    for i in range(NUM_INPUTS):
        total += memory.weights[num_known * NUM_INPUTS + i] * inputs[i]
    return _probability(total)


@compiled
def _learn_bit(memory: TextMemory, reader: _Reader, bit: int, probability: float) -> None:
    """Learns from a bit that was predicted: counts, their reliability, and the weights of the predictors."""
    numbers, first_weight = reader.numbers, reader.numbers[NUM_KNOWN] * NUM_INPUTS
    step = LEARNING_RATE * (bit - probability)
    for i in range(NUM_INPUTS):
        memory.weights[first_weight + i] += step * reader.inputs[i]
    grows = 2 * (memory.sizes[1] + NUM_CONTEXTS) < len(memory.children)
    for k in range(NUM_CONTEXTS):
        pair, node = reader.pairs[k], reader.nodes[k]
        if pair >= 0:
            _learn_reliability(memory, pair, bit)
        if node > 0:
            _count_bit(memory, node, bit)
            if numbers[NUM_BITS] < 7 and memory.children[2 * node + bit] == 0 and grows:
                memory.children[2 * node + bit] = _add_node(memory)
    if numbers[EXPECTED_BIT] >= 0:
        length = numbers[MATCH_LENGTH]
        memory.num_matches[length] = min(memory.num_matches[length] + 1.0, MAX_OBSERVATIONS)
        is_repeated = 1.0 if numbers[EXPECTED_BIT] == bit else 0.0
        rate = 1.0 / (memory.num_matches[length] + 1.5)
        changed = memory.match_reliability[length] + (is_repeated - memory.match_reliability[length]) * rate
        memory.match_reliability[length] = min(max(changed, 0.001), 0.9995)


@compiled
def _learn_reliability(memory: TextMemory, pair: int, bit: int) -> None:
    """Moves the probability of 1 after a pair of counts toward the bit that followed."""
    memory.num_observations[pair] = min(memory.num_observations[pair] + 1.0, MAX_OBSERVATIONS)
    rate = 1.0 / (memory.num_observations[pair] + 1.5)
    memory.reliability[pair] += (bit - memory.reliability[pair]) * rate


@compiled
def _count_bit(memory: TextMemory, node: int, bit: int) -> None:
    """Counts a bit at a node, and discounts a larger count of the other bit."""
    count, other_count = int(memory.counts[2 * node + bit]), int(memory.counts[2 * node + 1 - bit])
    memory.counts[2 * node + bit] = min(count + 1, MAX_COUNT)
    if other_count > DISCOUNTED:
        memory.counts[2 * node + 1 - bit] = other_count // 2 + 1


@compiled
def _advance(memory: TextMemory, reader: _Reader, bit: int, by_memory: float, learning: bool) -> None:
    """Moves on by one bit; after eight of them the byte is part of the context, and of the memory where it learns."""
    numbers = reader.numbers
    reader.reach[0] *= by_memory if bit else 1.0 - by_memory
    for k in range(NUM_CONTEXTS):
        node = reader.nodes[k]
        reader.nodes[k] = memory.children[2 * node + bit] if node > 0 else 0
    if numbers[EXPECTED_BIT] >= 0 and numbers[EXPECTED_BIT] != bit:
        numbers[MATCH_LENGTH] = 0
    numbers[PARTIAL_BYTE] = 2 * numbers[PARTIAL_BYTE] + bit
    numbers[NUM_BITS] += 1
    if numbers[NUM_BITS] < 8:
        return
    byte = numbers[PARTIAL_BYTE] - 256
    for k in range(MAX_ORDER - 1, 0, -1):
        reader.recent[k] = reader.recent[k - 1]
    reader.recent[0] = byte + 1
    lower = byte + 32 if 65 <= byte <= 90 else byte
    is_letter = 97 <= lower <= 122 or byte >= 128
    numbers[WORD] = (numbers[WORD] * BASE + lower + 1) % WORD_MODULUS if is_letter else 0
    numbers[NUM_BITS], numbers[HAS_BEGUN] = 0, 0
    if learning and memory.sizes[0] < len(memory.text):
        memory.text[memory.sizes[0]] = byte
        memory.sizes[0] += 1


@compiled
def _end_key(reader: _Reader, prefixes: Prefixes, byte: int) -> int:
    """The context of how often a token ended after a prefix and before a byte that could continue it."""
    return (int(prefixes.ranks[reader.numbers[PREFIX]]) * 256 + byte) * NUM_KEYS + NUM_CONTEXTS


@compiled
def _end_pair(memory: TextMemory, place: int) -> int:
    """The entry of `reliability` for the counts of such a context."""
    node = memory.root_nodes[place] if memory.root_keys[place] != -1 else 0
    zeros, ones = int(memory.counts[2 * node]), int(memory.counts[2 * node + 1])
    return (NUM_CONTEXTS * (MAX_COUNT + 1) + zeros) * (MAX_COUNT + 1) + ones


@compiled
def _learn_end(memory: TextMemory, reader: _Reader, prefixes: Prefixes, byte: int) -> None:
    """Counts whether the token ended before a byte, if the byte could have continued it."""
    ended, prefix = 1 if reader.numbers[TOKEN_STATE] == ENDED else 0, reader.numbers[PREFIX]
    for e in range(prefixes.first_extension[prefix], prefixes.first_extension[prefix + 1]):
        if int(prefixes.extensions[e]) == byte:
            key = _end_key(reader, prefixes, byte)
            place = _find_root(memory, key)
            _learn_reliability(memory, _end_pair(memory, place), ended)
            if memory.root_keys[place] == -1 and _can_grow(memory):
                memory.root_keys[place] = key
                memory.root_nodes[place] = _add_node(memory)
            if memory.root_keys[place] != -1:
                _count_bit(memory, memory.root_nodes[place], ended)


@compiled
def _weigh_extensions(memory: TextMemory, reader: _Reader, prefixes: Prefixes, can_end: bool) -> float:
    """Computes `masses` of the bytes that can continue a prefix, and their sum: the probability that one does."""
    numbers, path, probabilities = reader.numbers, reader.path_nodes, reader.path_probabilities
    first, last = prefixes.first_extension[numbers[PREFIX]], prefixes.first_extension[numbers[PREFIX] + 1]
    path[0] = reader.nodes
    total, previous, num_known = 0.0, -1, 0
    for e in range(first, last):
        byte, level = int(prefixes.extensions[e]), 0
        while previous >= 0 and byte >> (7 - level) == previous >> (7 - level):
            level += 1  # over the bits that both bytes have
        is_predicted = previous >= 0
        while level < 8:
            if not is_predicted:
                reader.nodes[:] = path[level]
                numbers[NUM_BITS], numbers[PARTIAL_BYTE] = level, (256 + byte) >> (8 - level)
                probabilities[0, level] = _predict_bit(memory, reader)
                num_known = numbers[NUM_KNOWN] if level == 0 else num_known
            bit, is_predicted = byte >> (7 - level) & 1, False
            by_memory = probabilities[0, level]
            probabilities[1, level + 1] = probabilities[1, level] * (by_memory if bit else 1.0 - by_memory)
            for k in range(NUM_CONTEXTS):
                node = path[level, k]
                path[level + 1, k] = memory.children[2 * node + bit] if node > 0 else 0
            level += 1
        mass = probabilities[1, 8]
        if can_end:
            mass *= 1.0 - memory.reliability[_end_pair(memory, _find_root(memory, _end_key(reader, prefixes, byte)))]
        reader.masses[e - first] = mass
        total += mass
        previous = byte
    reader.nodes[:] = path[0]
    numbers[NUM_BITS], numbers[PARTIAL_BYTE], numbers[NUM_KNOWN] = 0, 1, num_known
    return min(max(float(total), MIN_PROBABILITY), 1.0 - MIN_PROBABILITY)


@compiled
def _given_token(reader: _Reader, prefixes: Prefixes, by_memory: float) -> float:
    """The memory's probability of a bit of 1, given whether the token ended before the byte."""
    numbers, reach = reader.numbers, reader.reach[0]
    if numbers[TOKEN_STATE] == NO_PREFIX:
        return by_memory
    first, zeros, ones = prefixes.first_extension[numbers[PREFIX]], 0.0, 0.0
    for e in range(first, prefixes.first_extension[numbers[PREFIX] + 1]):
        bits = (256 + int(prefixes.extensions[e])) >> (7 - numbers[NUM_BITS])
        if bits >> 1 == numbers[PARTIAL_BYTE]:
            zeros += 0.0 if bits & 1 else reader.masses[e - first]
            ones += reader.masses[e - first] if bits & 1 else 0.0
    if numbers[TOKEN_STATE] == ENDED:
        zeros = max(reach * (1.0 - by_memory) - zeros, 0.0)
        ones = max(reach * by_memory - ones, 0.0)
    if zeros + ones <= 0.0:
        return by_memory
    return min(max(float(ones / (zeros + ones)), MIN_PROBABILITY), 1.0 - MIN_PROBABILITY)


@compiled
def read(
    memory: TextMemory,
    reader: _Reader,
    bits: np.ndarray,
    is_byte_bit: np.ndarray,
    prefix_of: np.ndarray,
    prefixes: Prefixes,
    network: np.ndarray,
    learning: bool,
    mixing: bool,
    predictions: np.ndarray,
) -> None:
    """Predicts a text bit by bit and learns from each bit after it is predicted.

    Args:
        memory: Changed in place where it learns.
        reader: State of the pass, changed in place.
        bits: [D] uint8, the outcomes of the decisions.
        is_byte_bit: [D] bool, whether a decision is a bit of a byte of the text.
        prefix_of: [D] int32, see `DecisionTable.prefixes`. Other decisions than bits of bytes and the ends of prefixes
            are not predicted by the memory, and the mixture follows the network.
        prefixes: Of the tokens.
        network: [D] float64, the network's probability of 1. Where it is 0 or 1 the outcome is certain.
        learning: Whether the memory learns.
        mixing: Whether the two weights of the mixture learn.
        predictions: [D, 4] float64, receives the probabilities of the outcomes by the memory alone, which reads bytes
            (1 for other decisions), and by the mixture, and the weights of network and memory in the mixture.
    """
    weights, numbers = memory.mixing_weights, reader.numbers
    for d in range(len(bits)):
        bit, is_byte, prefix = int(bits[d]), bool(is_byte_bit[d]), int(prefix_of[d])
        is_certain = network[d] <= 0.0 or network[d] >= 1.0
        by_network = min(max(network[d], MIN_PROBABILITY), 1.0 - MIN_PROBABILITY)
        by_memory, by_mixture, given_token = 1.0, by_network, 0.5
        if (is_byte or prefix >= 0) and not numbers[HAS_BEGUN]:
            _begin_byte(memory, reader, learning)
        if prefix >= 0 and numbers[TOKEN_STATE] == NO_PREFIX:
            numbers[PREFIX] = prefix
            given_token = _weigh_extensions(memory, reader, prefixes, not is_byte)
            numbers[TOKEN_STATE] = CANNOT_END if is_byte else CONTINUED if bit else ENDED
        if is_byte:
            by_memory = _predict_bit(memory, reader)
            given_token = _given_token(reader, prefixes, by_memory)
        if (is_byte or prefix >= 0) and numbers[NUM_KNOWN] > 0 and not is_certain:
            network_odds, memory_odds = _log_odds(by_network), _log_odds(given_token)
            by_mixture = _probability(weights[0] * network_odds + weights[1] * memory_odds)
            if mixing:
                step = MIXING_RATE * (bit - by_mixture)
                weights[0] += step * network_odds
                weights[1] += step * memory_odds
        if is_byte:
            if learning:
                _learn_bit(memory, reader, bit, by_memory)
            _advance(memory, reader, bit, by_memory, learning)
            by_memory = by_memory if bit else 1.0 - by_memory
            if not numbers[HAS_BEGUN]:
                if learning and (numbers[TOKEN_STATE] == ENDED or numbers[TOKEN_STATE] == CONTINUED):
                    _learn_end(memory, reader, prefixes, reader.recent[0] - 1)
                numbers[TOKEN_STATE] = NO_PREFIX
        predictions[d, 0] = by_memory
        predictions[d, 1] = 1.0 if is_certain else (by_mixture if bit else 1.0 - by_mixture)
        predictions[d, 2], predictions[d, 3] = weights[0], weights[1]
