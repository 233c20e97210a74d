"""Prompts that were read, so that who comes with the same beginning again need not have it read again.

What a chunk leaves in a row depends on the tokens up to its end alone, and chunks begin at fixed places: so a row that
goes on from what another has read holds the same bits as if it had read all itself. What was generated is not kept,
since the program that generates has other bits. Only those of the same name share: a name is an owner, so that
nobody can tell by the time what others have asked, and the digest of the weights.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import Cache

MOST_BYTES = 256 * 2**20


class Read(NamedTuple):
    """A row after so many tokens of a prompt; logits of what comes next where they are the whole prompt."""

    cache: Cache
    length: int
    logits: np.ndarray | None


class Prefixes:
    """The prompts that were read last, as many as fit into `most` bytes. Safe to use from several threads."""

    def __init__(self, chunk: int, most: int = MOST_BYTES) -> None:
        self._chunk, self._most, self._bytes = chunk, most, 0
        self._kept: OrderedDict[tuple[tuple[str, str], bytes], Read] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: tuple[str, str], tokens: bytes) -> Read | None:
        """The longest beginning of a prompt (int32 tokens, as bytes) that was read and can be gone on from."""
        with self._lock:
            if (whole := self._kept.get((name, tokens))) is not None:
                self._kept.move_to_end((name, tokens))
                return whole
            wanted = np.frombuffer(tokens, np.int32)
            best, longest = None, 0
            for of, other in self._kept:
                if of == name:
                    known = np.frombuffer(other, np.int32)
                    differ = np.flatnonzero(known[: len(wanted)] != wanted[: len(known)])
                    common = int(differ[0]) if len(differ) else min(len(known), len(wanted))
                    length = min(common, len(wanted) - 1) // self._chunk * self._chunk  # the last token is read here
                    if length > longest:
                        best, longest = (of, other), length
            if best is None:
                return None
            self._kept.move_to_end(best)
            return Read(self._kept[best].cache, longest, None)

    def keep(self, name: tuple[str, str], tokens: bytes, cache: Cache, logits: np.ndarray) -> None:
        """A whole prompt, after it was read; those that were used longest ago go."""
        size = _bytes(cache)
        with self._lock:
            if (name, tokens) in self._kept or size > self._most:
                return
            self._kept[name, tokens] = Read(cache, len(tokens) // 4, logits)
            self._bytes += size
            while self._bytes > self._most:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1].cache)

    def forget(self, owner: str) -> None:
        """Whatever somebody has asked."""
        with self._lock:
            for key in [key for key in self._kept if key[0][0] == owner]:
                self._bytes -= _bytes(self._kept.pop(key).cache)


def _bytes(cache: Cache) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
