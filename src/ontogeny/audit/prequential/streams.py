"""The token streams of the prequential audit, and the tokens from which they are drawn."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ontogeny.errors import BadInput

MOTIF_LENGTH, NOISE_SHARE = 16, 0.1  # of a generated stream
Run = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def probe_tokens(run: Run, random: np.random.Generator, length: int, vocab_size: int | None) -> np.ndarray:
    """Finds the tokens of a predictor from two streams of tokens that every predictor has, and a third if need be.

    Args:
        run: Maps token streams to log-probabilities [T, V].
        random: Draws the streams.
        length: T of the streams.
        vocab_size: Upper bound of the tokens; by default V.

    Returns:
        [S], the tokens in ascending order.

    Raises:
        BadInput: There are fewer than two tokens, or fewer than `vocab_size` columns.
    """
    streams = [np.zeros(length, np.int32), random.integers(0, 2, length).astype(np.int32)]
    log_probs = np.concatenate(list(run(streams)))
    tokens = possible_tokens(log_probs, vocab_size)
    num_candidates = log_probs.shape[1] if vocab_size is None else vocab_size
    if len(tokens) == num_candidates:
        return tokens
    # What is impossible after the tokens 0 and 1 may be possible after others, unless the predictor has no such tokens.
    random_tokens = random.integers(0, num_candidates, length).astype(np.int32)
    try:
        log_probs = np.concatenate([log_probs, *run([random_tokens])])
    except Exception:  # of any type, since it is that of the predictor
        return tokens
    return possible_tokens(log_probs, vocab_size)


def possible_tokens(log_probs: np.ndarray, vocab_size: int | None) -> np.ndarray:
    """Returns the tokens that are possible at some position, in ascending order.

    Columns that are -inf in every row, such as those that pad a vocabulary, belong to no token.

    Args:
        log_probs: [T, V].
        vocab_size: Upper bound of the tokens; by default V.

    Raises:
        BadInput: There are fewer than two such tokens, or fewer than `vocab_size` columns.
    """
    V = log_probs.shape[1]
    if (vocab_size or 2) > V:
        reason = "too few: there must be two" if vocab_size is None else f"too few for --vocab-size {vocab_size}"
        raise BadInput(f"the rows of the predictor have {V} {'column' if V == 1 else 'columns'}, {reason}")
    is_possible = np.asarray(np.isfinite(log_probs.astype(np.float64)).any(axis=0))
    tokens = np.nonzero(is_possible[:vocab_size])[0]
    if len(tokens) < 2:
        raise BadInput("the predictor gives fewer than two tokens a positive probability")
    return tokens.astype(np.int32)


def generate_stream(random: np.random.Generator, num_tokens: int, vocabulary: np.ndarray) -> np.ndarray:
    """Draws a stream [T] that can be learned: one motif repeats, and a share of the tokens is random.

    Args:
        random: Draws the stream.
        num_tokens: T.
        vocabulary: [S], the tokens to draw from.
    """
    motif = random.choice(vocabulary, MOTIF_LENGTH)
    is_noise = random.random(num_tokens) < NOISE_SHARE
    noise = random.choice(vocabulary, num_tokens)
    return np.where(is_noise, noise, np.resize(motif, num_tokens)).astype(np.int32)


def change_tokens(
    random: np.random.Generator, stream: np.ndarray, vocabulary: np.ndarray, num_positions: int
) -> tuple[list[int], list[np.ndarray]]:
    """Draws changed copies of a stream.

    Both ends are among the positions, the others are spread evenly. Copies alternate: one token is changed, or this
    token and all later ones.

    Args:
        random: Draws the positions and the new tokens.
        stream: [T].
        vocabulary: [S], the tokens to draw from.
        num_positions: Number of copies, of which short streams have fewer.

    Returns:
        The first position at which each copy differs, in ascending order, and the copies.
    """
    T = len(stream)
    edges = np.linspace(0, T, num_positions + 1).astype(int)
    inner = {int(random.integers(a, max(a + 1, b))) for a, b in itertools.pairwise(edges)}
    positions = sorted({0, T - 1} | set(random.permutation(sorted(inner))[: max(num_positions - 2, 0)].tolist()))
    changed = []
    for i, position in enumerate(positions):
        end = T if i % 2 else position + 1
        copy = stream.copy()
        copy[position:end] = _draw_others(random, stream[position:end], vocabulary)
        changed.append(copy)
    return positions, changed


def _draw_others(random: np.random.Generator, tokens: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """For each of the tokens [N] another token of the vocabulary, uniformly drawn."""
    is_known = np.isin(tokens, vocabulary)
    index = np.searchsorted(vocabulary, tokens)
    shifts = random.integers(1, len(vocabulary), len(tokens))
    unrelated = random.integers(0, len(vocabulary), len(tokens))
    return vocabulary[np.where(is_known, (index + shifts) % len(vocabulary), unrelated)]
