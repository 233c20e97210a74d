"""Prompts that were read, so that who comes with the same beginning again need not have it read again.

What a chunk leaves in a row depends on the tokens up to its end alone, and chunks begin at fixed places: so a row that
goes on from what another has read holds the same bits as if it had read all itself. What was generated is not kept,
since the program that generates has other bits. Only those of the same name share: a name is an owner, so that
nobody can tell by the time what others have asked, and the digest of the weights.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import KVCache

MOST_BYTES = 256 * 2**20
ITEM = np.dtype(np.int32).itemsize

Name = tuple[str, str]
Key = tuple[Name, bytes]  # whose prompt, and its tokens, int32


class Read(NamedTuple):
    """A row after so many tokens of a prompt; logits of what comes next where they are the whole prompt."""

    cache: KVCache
    length: int
    logits: np.ndarray | None


class PrefixCache:
    """The prompts that were read last, as many as fit into `most` bytes. Safe to use from several threads.

    Prompts are found by the hashes of their beginnings in whole chunks, so that looking takes as long however many
    there are.
    """

    def __init__(self, chunk: int, most: int = MOST_BYTES) -> None:
        self._chunk, self._most, self._bytes = chunk, most, 0
        self._kept: OrderedDict[Key, Read] = OrderedDict()
        self._beginning: dict[Key, dict[bytes, None]] = {}  # name and hash of a beginning -> prompts that have it
        self._lock = threading.Lock()
        self.epoch = 0  # how often something was forgotten

    def __len__(self) -> int:
        return len(self._kept)

    def contains(self, name: Name, tokens: bytes) -> bool:
        """Whether a whole prompt is known."""
        return (name, tokens) in self._kept

    def lookup(self, name: Name, tokens: bytes) -> Read | None:
        """The longest beginning of a prompt (int32 tokens, as bytes) that was read and can be gone on from."""
        with self._lock:
            if (whole := self._kept.get((name, tokens))) is not None:
                self._kept.move_to_end((name, tokens))
                return whole
            for length, hashed in reversed(
                [*self._beginnings(tokens[:-ITEM])]
            ):  # the last token is read, for its logits
                if (found := self._beginning.get((name, hashed))) is not None:
                    prompt = next(reversed(found))
                    self._kept.move_to_end((name, prompt))
                    return Read(self._kept[name, prompt].cache, length, None)
            return None

    def insert(self, name: Name, tokens: bytes, cache: KVCache, logits: np.ndarray, epoch: int) -> None:
        """A whole prompt that was read, asked for in `epoch`; those that were used longest ago go.

        If anything was forgotten since, it is not kept: it may be what was to be forgotten.
        """
        with self._lock:
            size = _bytes(tokens, cache, logits)
            if epoch != self.epoch or (name, tokens) in self._kept or size > self._most:
                return
            self._kept[name, tokens] = Read(cache, len(tokens) // ITEM, logits)
            self._bytes += size
            for _, hashed in self._beginnings(tokens):
                self._beginning.setdefault((name, hashed), {})[tokens] = None
            while self._bytes > self._most:
                self._drop(next(iter(self._kept)))

    def evict_owner(self, owner: str) -> None:
        """Whatever somebody has asked, and what they ask now."""
        with self._lock:
            self.epoch += 1
            for key in [key for key in self._kept if key[0][0] == owner]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        name, tokens = key
        gone = self._kept.pop(key)
        self._bytes -= _bytes(tokens, gone.cache, gone.logits)
        for _, hashed in self._beginnings(tokens):
            prompts = self._beginning[name, hashed]
            del prompts[tokens]
            if not prompts:
                del self._beginning[name, hashed]

    def _beginnings(self, tokens: bytes) -> Iterator[tuple[int, bytes]]:
        """Lengths, in tokens, and hashes of the beginnings in whole chunks, shortest first."""
        hashed, step = hashlib.blake2b(digest_size=20), self._chunk * ITEM
        for end in range(step, len(tokens) + 1, step):
            hashed.update(tokens[end - step : end])
            yield end // ITEM, hashed.digest()


def _bytes(tokens: bytes, cache: KVCache, logits: np.ndarray | None) -> int:
    return len(tokens) + sum(leaf.nbytes for leaf in jax.tree.leaves((cache, logits)))
