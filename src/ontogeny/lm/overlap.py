"""How much of a text a model has been trained on: the share of its runs of thirteen words that the training text holds.

Brown et al. 2020, arXiv 2005.14165, appendix C: lower-case words without punctuation, 13 in a row. The training text
is gone through once, piece by piece, from its tokens; only the hashes of the text in question are held.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ontogeny.lm.tokenizer import Tokenizer

WORDS = 13
WORD = re.compile(r"\w+")
PIECE = 1 << 18  # tokens of the training text at a time
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost (Knuth's multiplicative hash)


class Overlap(NamedTuple):
    """How many of a text's runs of words are in the training text too."""

    share: float  # of the different runs
    shared: int
    runs: int
    words: int  # in a run: 13, or all of a shorter text
    example: str  # one such run


def measure(text: str, tokenizer: Tokenizer, training: np.ndarray) -> Overlap:
    """Compares a text with a training text that is given by its tokens [N]; a text without words overlaps nothing."""
    words = WORD.findall(text.lower())
    length = min(WORDS, len(words))
    if not length:
        return Overlap(0.0, 0, 0, 0, "")
    hashes = _runs(_hashed(words), length)
    wanted = np.unique(hashes)
    met = np.zeros(len(wanted), bool)
    for found in _pieces(tokenizer, training, length):
        place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        met[place[wanted[place] == found]] = True
    shared = int(met.sum())
    example = ""
    if shared:
        at = int(np.argmax(np.isin(hashes, wanted[met])))
        example = " ".join(words[at : at + length])
    return Overlap(shared / len(wanted), shared, len(wanted), length, example)


def _pieces(tokenizer: Tokenizer, training: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """The hashes of all runs of the training text; pieces overlap by a run, so that none is missed at a border."""
    rest, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
    for at in range(0, len(training), PIECE):
        text = rest + decoder.decode(b"".join(map(tokenizer.bytes_of, training[at : at + PIECE].tolist())))
        words = list(WORD.finditer(text))
        if at + PIECE < len(training) and words:
            rest = text[words[max(len(words) - length, 0)].start() :]
            words.pop()  # it may go on in the next piece
        if len(words) >= length:
            yield _runs(_hashed([word.group().lower() for word in words]), length)


def _hashed(words: list[str]) -> np.ndarray:
    """[N] uint64, the same for the same word within one process."""
    return np.fromiter((hash(word) & 0xFFFFFFFFFFFFFFFF for word in words), np.uint64, len(words))


def _runs(words: np.ndarray, length: int) -> np.ndarray:
    """[N] hashes of words -> [N - length + 1] hashes of the runs that begin at each."""
    total = np.zeros(len(words) - length + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(length):
            total = (total ^ words[i : i + len(total)]) * MULTIPLIER
            total ^= total >> np.uint64(29)
    return total
