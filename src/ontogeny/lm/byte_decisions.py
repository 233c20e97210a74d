"""Tokens as sequences of binary decisions, so that a model of tokens and a model of bytes can be mixed bit by bit.

The tokens of a vocabulary, in the order of their bytes, are the leaves of a binary tree. From the root on, a decision
is either a bit of the next byte of the token, or whether the token ends before the next byte, or which one of several
tokens with the same bytes it is. Every node is an interval of the sorted vocabulary, so that the probability of a
decision under a distribution over tokens is a ratio of two differences of cumulative probabilities. Probabilities of
decisions that sum to 1 at every node give probabilities of tokens that sum to 1, whatever the tokenizer is.

Letters: V vocabulary, U distinct tokens of a text, L decisions of the longest of them, T tokens.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32, UInt8

from ontogeny.lm.tokenizer import Tokenizer


class DecisionTable(NamedTuple):
    """The decisions of the tokens that occur in a text.

    Attributes:
        sorted_tokens: The vocabulary in the order of the tokens' bytes.
        intervals: Of each decision: the first token below its node, the first one with outcome 1, and the end.
        bits: The outcome of each decision.
        is_byte_bit: Whether a decision is a bit of a byte.
        lengths: Number of decisions of each token; the other entries of its row mean nothing.
        row_of: The row of each token of the vocabulary; 0 for tokens that do not occur.
        prefixes: The prefix of the token that stands before each decision about its end and each first bit of a byte;
            -1 for an empty prefix and for other decisions.
        first_extension: Of each prefix, where its bytes begin in `extensions`, and their end.
        extensions: The bytes with which longer tokens continue each prefix, in increasing order.
        prefix_ranks: The first token of the sorted vocabulary that begins with each prefix.
    """

    sorted_tokens: Int32[np.ndarray, "V"]
    intervals: Int32[np.ndarray, "U L 3"]
    bits: UInt8[np.ndarray, "U L"]
    is_byte_bit: Bool[np.ndarray, "U L"]
    lengths: Int32[np.ndarray, "U"]
    row_of: Int32[np.ndarray, "V"]
    prefixes: Int32[np.ndarray, "U L"]
    first_extension: Int32[np.ndarray, "P1"]
    extensions: UInt8[np.ndarray, "E"]
    prefix_ranks: Int32[np.ndarray, "P"]


class _Decision(NamedTuple):
    """One decision: the interval of its node, where outcome 1 begins, the outcome, its kind and its prefix."""

    low: int
    middle: int
    high: int
    bit: int
    is_byte_bit: bool
    prefix: int = -1


class _Prefixes:
    """The prefixes of the tokens of a text, with the bytes that continue each of them."""

    def __init__(self, sorted_sources: list[bytes]) -> None:
        self._sources = sorted_sources
        self._numbers: dict[bytes, int] = {}
        self.ranks: list[int] = []
        self.extensions: list[bytes] = []

    def number(self, prefix: bytes, low: int, end: int, high: int) -> int:
        """The number of a prefix, whose tokens are `low` to `high`, those that it equals until `end`."""
        if prefix not in self._numbers:
            extensions = bytearray()
            while end < high:
                extensions.append(self._sources[end][len(prefix)])
                end = _end_of(self._sources, prefix, extensions[-1], end, high)
            self._numbers[prefix] = len(self.ranks)
            self.ranks.append(low)
            self.extensions.append(bytes(extensions))
        return self._numbers[prefix]


def tabulate(tokenizer: Tokenizer, vocab_size: int, tokens: np.ndarray) -> DecisionTable:
    """Lists the decisions of all tokens of a text.

    Args:
        tokenizer: Of the model.
        vocab_size: Of the model, which may be larger than that of the tokenizer.
        tokens: [T], the text.
    """
    sources = [tokenizer.source_of(token) for token in range(vocab_size)]
    order = sorted(range(vocab_size), key=lambda token: sources[token])
    sorted_sources, rank = [sources[token] for token in order], np.empty(vocab_size, np.int32)
    rank[order] = np.arange(vocab_size)
    distinct, prefixes = np.unique(tokens), _Prefixes(sorted_sources)
    decisions = [_list_decisions(sorted_sources, int(rank[token]), prefixes) for token in distinct]
    lengths = np.array([len(path) for path in decisions], np.int32)
    table = np.zeros((len(distinct), max(int(lengths.max()), 1), 6), np.int32)
    for row, path in enumerate(decisions):
        table[row, : len(path)] = np.array(path, np.int32).reshape(-1, 6)
    row_of = np.zeros(vocab_size, np.int32)
    row_of[distinct] = np.arange(len(distinct))
    bits, is_byte_bit = table[..., 3].astype(np.uint8), table[..., 4].astype(bool)
    first_extension = np.cumsum([0, *map(len, prefixes.extensions)], dtype=np.int32)
    extensions = np.frombuffer(b"".join(prefixes.extensions), np.uint8)
    return DecisionTable(
        np.array(order, np.int32), table[..., :3], bits, is_byte_bit, lengths, row_of,
        table[..., 5], first_extension, extensions, np.array(prefixes.ranks, np.int32),
    )  # fmt: skip


def _list_decisions(sorted_sources: list[bytes], leaf: int, prefixes: _Prefixes) -> list[_Decision]:
    """The decisions from the root to a leaf; those of one outcome alone are left out unless they are bits of a byte."""
    source, low, high, path = sorted_sources[leaf], 0, len(sorted_sources), []
    for depth in range(len(source) + 1):
        prefix = source[:depth]
        end = bisect_right(sorted_sources, prefix, low, high)  # the tokens that end here come first
        continues = depth < len(source)
        number = prefixes.number(prefix, low, end, high) if depth and end < high else -1
        if low < end < high:
            path.append(_Decision(low, end, high, int(continues), False, number))
        if not continues:
            high = end
            break
        low = end
        for shift in range(7, -1, -1):
            bit, first = source[depth] >> shift & 1, (source[depth] >> shift | 1) << shift
            middle = bisect_left(sorted_sources, prefix + bytes([first]), low, high)
            path.append(_Decision(low, middle, high, bit, True, number if shift == 7 else -1))
            low, high = (middle, high) if bit else (low, middle)
    while high - low > 1:
        middle = (low + high) // 2
        bit = int(leaf >= middle)
        path.append(_Decision(low, middle, high, bit, False))
        low, high = (middle, high) if bit else (low, middle)
    return path


def _end_of(sorted_sources: list[bytes], prefix: bytes, byte: int, low: int, high: int) -> int:
    """The end of the tokens that continue a prefix with a byte."""
    return high if byte == 255 else bisect_left(sorted_sources, prefix + bytes([byte + 1]), low, high)


def decision_probabilities(
    log_probabilities: Float[Array, "T V"],
    sorted_tokens: Int32[Array | np.ndarray, "V"],
    intervals: Int32[Array | np.ndarray, "T L 3"],
) -> Float[Array, "T L"]:
    """Computes the probability of outcome 1 at each decision of some tokens.

    Args:
        log_probabilities: Distribution of each token.
        sorted_tokens: As in the table.
        intervals: The row of the table for each token.

    Returns:
        Exactly 0 or 1 where the other outcome leads to no token, otherwise between these.
    """
    ordered = jnp.exp(log_probabilities)[:, sorted_tokens]
    cumulative = jnp.pad(jnp.cumsum(ordered, axis=1), ((0, 0), (1, 0)))
    at = jax.vmap(lambda values, index: values[index])(cumulative, intervals)
    low, middle, high = at[..., 0], at[..., 1], at[..., 2]
    is_positive = high - low > 0
    ratio = jnp.where(is_positive, (high - middle) / jnp.where(is_positive, high - low, 1.0), 0.5)
    # Rounding must not turn an improbable outcome into an impossible one.
    ratio = jnp.clip(ratio, 1e-6, 1.0 - 1e-6)
    first, boundary, end = intervals[..., 0], intervals[..., 1], intervals[..., 2]
    return jnp.where(boundary >= end, 0.0, jnp.where(boundary <= first, 1.0, ratio))


def select(table: DecisionTable, tokens: np.ndarray, padded: np.ndarray) -> np.ndarray:
    """Joins the entries of all decisions of a text.

    Args:
        table: Decisions of the tokens.
        tokens: [T].
        padded: [T, L], entries of each token's decisions, padded at the end.

    Returns:
        [D], those of the first token, then those of the second token, and so on.
    """
    return padded[np.arange(padded.shape[1]) < table.lengths[table.row_of[tokens]][:, None]]
