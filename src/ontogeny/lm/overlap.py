"""The overlap of a text with a training text: the share of its 13-grams of words that the training text contains.

Brown et al. 2020, arXiv 2005.14165, appendix C: lower-case words without punctuation, 13 in a row. The training text is
read once, piece by piece, from its tokens; only the hashes of the evaluated text are held in memory.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ontogeny.lm.tokenizer import Tokenizer

NGRAM_SIZE = 13
WORD = re.compile(r"\w+")
PIECE_TOKENS = 1 << 18  # tokens of the training text read at a time
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost (Knuth's multiplicative hash)


class TextOverlap(NamedTuple):
    """How many n-grams of a text the training text contains too.

    Attributes:
        fraction: The share of the distinct n-grams.
        num_shared: Distinct n-grams that both texts contain.
        num_ngrams: Distinct n-grams of the text.
        ngram_size: Words per n-gram: 13, or all words of a shorter text.
        example: One shared n-gram.
    """

    fraction: float
    num_shared: int
    num_ngrams: int
    ngram_size: int
    example: str


def measure_overlap(text: str, tokenizer: Tokenizer, training_tokens: np.ndarray) -> TextOverlap:
    """Measure the overlap of a text with a training text.

    Args:
        text: Any text; one without words overlaps nothing.
        tokenizer: The tokenizer of the training text.
        training_tokens: [N].
    """
    words = WORD.findall(text.lower())
    size = min(NGRAM_SIZE, len(words))
    if not size:
        return TextOverlap(0.0, 0, 0, 0, "")
    hashes = _hash_ngrams(_hash_words(words), size)
    distinct = np.unique(hashes)
    is_shared = np.zeros(len(distinct), bool)
    for piece in _training_hashes(tokenizer, training_tokens, size):
        index = np.minimum(np.searchsorted(distinct, piece), len(distinct) - 1)
        is_shared[index[distinct[index] == piece]] = True
    num_shared = int(is_shared.sum())
    example = ""
    if num_shared:
        start = int(np.argmax(np.isin(hashes, distinct[is_shared])))
        example = " ".join(words[start : start + size])
    return TextOverlap(num_shared / len(distinct), num_shared, len(distinct), size, example)


def _training_hashes(tokenizer: Tokenizer, tokens: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Hashes of all n-grams of the training text; pieces overlap by an n-gram, so none is lost at a border."""
    rest, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
    for start in range(0, len(tokens), PIECE_TOKENS):
        data = b"".join(map(tokenizer.bytes_of, tokens[start : start + PIECE_TOKENS].tolist()))
        text = rest + decoder.decode(data)
        words = list(WORD.finditer(text))
        if start + PIECE_TOKENS < len(tokens) and words:
            rest = text[words[max(len(words) - size, 0)].start() :]
            words.pop()  # the last word may continue in the next piece
        if len(words) >= size:
            yield _hash_ngrams(_hash_words([word.group().lower() for word in words]), size)


def _hash_words(words: list[str]) -> np.ndarray:
    """[N] uint64; equal words have equal hashes within one process."""
    return np.fromiter((hash(word) & 0xFFFFFFFFFFFFFFFF for word in words), np.uint64, len(words))


def _hash_ngrams(words: np.ndarray, size: int) -> np.ndarray:
    """[N] hashes of words -> [N - size + 1] hashes of the n-grams that begin at each."""
    total = np.zeros(len(words) - size + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(size):
            total = (total ^ words[i : i + len(total)]) * MULTIPLIER
            total ^= total >> np.uint64(29)
    return total
