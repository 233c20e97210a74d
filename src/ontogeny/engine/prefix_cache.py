"""The prefix cache: key-value caches of processed prompts, from which prompts with the same beginning continue.

What a prefill chunk leaves in a cache depends on the tokens up to its end alone, and chunks begin at fixed places, so a
sequence that continues from a cached prefix is bitwise equal to one that was processed whole. Generated tokens are
not cached, because the decode program yields other bits. Only requests of the same scope share entries. A scope is an
owner (so that nobody can infer from the latency what others have requested) and the digest of the weights.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import numpy as np

from ontogeny.content.transformer import KVCache
from ontogeny.engine.requests import CacheScope

MAX_BYTES = 256 * 2**20
TOKEN_BYTES = np.dtype(np.int32).itemsize

CacheKey = tuple[CacheScope, bytes]  # the tokens of a whole prompt, int32


class CachedPrefix(NamedTuple):
    """The cache after `length` tokens of a prompt; `logits` of what follows where they are the whole prompt."""

    cache: KVCache
    length: int
    logits: np.ndarray | None


class PrefixCache:
    """The most recently used prompts, up to a total size. Safe to use from several threads.

    Prompts are found by the hashes of their prefixes of whole chunks, so the time of a look-up does not grow with the
    number of entries.

    Attributes:
        epoch: How often entries were evicted on request.
    """

    def __init__(self, chunk_size: int, max_bytes: int = MAX_BYTES) -> None:
        self._chunk_size, self._max_bytes, self._num_bytes = chunk_size, max_bytes, 0
        self._entries: OrderedDict[CacheKey, CachedPrefix] = OrderedDict()
        self._by_hash: dict[CacheKey, dict[bytes, None]] = {}  # scope and hash of a prefix -> prompts that have it
        self._lock = threading.Lock()
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """The size of all entries."""
        return self._num_bytes

    def contains(self, scope: CacheScope, tokens: bytes) -> bool:
        """Whether a whole prompt is cached."""
        return (scope, tokens) in self._entries

    def lookup(self, scope: CacheScope, tokens: bytes) -> CachedPrefix | None:
        """Find the longest cached prefix of a prompt.

        Args:
            tokens: The prompt as the bytes of int32 tokens.
        """
        with self._lock:
            if (entry := self._entries.get((scope, tokens))) is not None:
                self._entries.move_to_end((scope, tokens))
                return entry
            # The last token is always processed, for its logits.
            for length, digest in reversed([*self._prefix_hashes(tokens[:-TOKEN_BYTES])]):
                if (prompts := self._by_hash.get((scope, digest))) is not None:
                    prompt = next(reversed(prompts))
                    self._entries.move_to_end((scope, prompt))
                    return CachedPrefix(self._entries[scope, prompt].cache, length, None)
            return None

    def insert(self, scope: CacheScope, tokens: bytes, cache: KVCache, logits: np.ndarray, epoch: int) -> None:
        """Cache a whole prompt; the least recently used entries are evicted.

        Args:
            tokens: The prompt as the bytes of int32 tokens.
            epoch: The epoch in which the prompt arrived. If entries were evicted on request since then, the prompt is
                not cached: it may contain what must be forgotten.
        """
        with self._lock:
            size = _count_bytes(tokens, cache, logits)
            if epoch != self.epoch or (scope, tokens) in self._entries or size > self._max_bytes:
                return
            self._entries[scope, tokens] = CachedPrefix(cache, len(tokens) // TOKEN_BYTES, logits)
            self._num_bytes += size
            for _, digest in self._prefix_hashes(tokens):
                self._by_hash.setdefault((scope, digest), {})[tokens] = None
            while self._num_bytes > self._max_bytes:
                self._evict(next(iter(self._entries)))

    def evict(self, owners: Collection[str], digests: Collection[str]) -> None:
        """Remove all prompts of some owners or weights; prompts that are being processed now will not be cached."""
        with self._lock:
            self.epoch += 1
            for key in [key for key in self._entries if key[0][0] in owners or key[0][1] in digests]:
                self._evict(key)

    def _evict(self, key: CacheKey) -> None:
        """Remove an entry and its hashes."""
        scope, tokens = key
        entry = self._entries.pop(key)
        self._num_bytes -= _count_bytes(tokens, entry.cache, entry.logits)
        for _, digest in self._prefix_hashes(tokens):
            prompts = self._by_hash[scope, digest]
            del prompts[tokens]
            if not prompts:
                del self._by_hash[scope, digest]

    def _prefix_hashes(self, tokens: bytes) -> Iterator[tuple[int, bytes]]:
        """Lengths, in tokens, and hashes of the prefixes of whole chunks, shortest first."""
        digest, step = hashlib.blake2b(digest_size=20), self._chunk_size * TOKEN_BYTES
        for end in range(step, len(tokens) + 1, step):
            digest.update(tokens[end - step : end])
            yield end // TOKEN_BYTES, digest.digest()


def _count_bytes(tokens: bytes, cache: KVCache, logits: np.ndarray | None) -> int:
    """The size of an entry."""
    return len(tokens) + sum(leaf.nbytes for leaf in jax.tree.leaves((cache, logits)))
