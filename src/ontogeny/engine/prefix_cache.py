"""The prefix cache: keys and values of processed texts, from which texts with the same beginning continue.

What is cached depends on the tokens alone, so a sequence that continues from a cached prefix is bitwise equal to one
that was processed whole. Only requests of the same scope share entries. A scope is an owner (so that nobody can infer
from the latency what others have requested) and the digest of the weights.
"""

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ontogeny.engine.requests import CacheScope

MAX_BYTES = 256 * 2**20
TOKEN_BYTES = np.dtype(np.int32).itemsize

CacheKey = tuple[CacheScope, bytes]  # the tokens of a whole text, int32


class CachedPrefix(NamedTuple):
    """What an engine's runner has computed for the first `length` tokens of a text, or for more of them."""

    cache: Any
    length: int


class _Entry(NamedTuple):
    """A cached text; several may have arrays in common."""

    cache: Any
    arrays: tuple[Any, ...]


class PrefixCache:
    """The most recently used texts, up to a total size. Safe to use from several threads.

    Texts are found by the hashes of their prefixes of whole chunks, so the time of a look-up does not grow with the
    number of entries.

    Args:
        chunk_size: Tokens of a chunk.
        max_bytes: The most memory of all entries.
        any_length: Whether a sequence may continue from any number of tokens, or from whole chunks alone.

    Attributes:
        epoch: How often entries were evicted on request.
    """

    def __init__(self, chunk_size: int, max_bytes: int = MAX_BYTES, *, any_length: bool = False) -> None:
        self._chunk_size, self._max_bytes, self._any_length, self._num_bytes = chunk_size, max_bytes, any_length, 0
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._by_hash: dict[CacheKey, dict[bytes, None]] = {}  # scope and hash of a prefix -> texts that have it
        self._num_uses = Counter[int]()  # of arrays, by identity
        self._lock = threading.Lock()
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """The size of all entries; what they have in common counts once."""
        return self._num_bytes

    def contains(self, scope: CacheScope, tokens: bytes) -> bool:
        """Whether a whole text is cached."""
        return (scope, tokens) in self._entries

    def lookup(self, scope: CacheScope, tokens: bytes) -> CachedPrefix | None:
        """Find the longest cached prefix of a prompt, without the last token, which is processed for its logits.

        Args:
            tokens: The prompt as the bytes of int32 tokens.
        """
        with self._lock:
            text, shared = self._find(scope, tokens)
            max_length = len(tokens) // TOKEN_BYTES - 1
            length = min(shared, max_length)
            if not self._any_length:
                length -= length % self._chunk_size
            if text is None or length <= 0:
                return None
            self._entries.move_to_end((scope, text))
            return CachedPrefix(self._entries[scope, text].cache, length)

    def insert(self, scope: CacheScope, tokens: bytes, cache: Any, arrays: Sequence[Any], epoch: int) -> None:
        """Cache a text; the least recently used entries are evicted.

        Args:
            tokens: The text as the bytes of int32 tokens.
            cache: What the runner has computed for it.
            arrays: The arrays of the cache.
            epoch: The epoch in which the prompt arrived. If entries were evicted on request since then, the text is
                not cached: it may contain what must be forgotten.
        """
        size = len(tokens) + sum(array.nbytes for array in arrays)
        with self._lock:
            if epoch != self.epoch or (scope, tokens) in self._entries or size > self._max_bytes:
                return
            self._entries[scope, tokens] = _Entry(cache, tuple(arrays))
            self._num_bytes += len(tokens)
            for array in arrays:
                self._num_bytes += 0 if self._num_uses[id(array)] else array.nbytes
                self._num_uses[id(array)] += 1
            for _, digest in self._prefix_hashes(tokens):
                self._by_hash.setdefault((scope, digest), {})[tokens] = None
            self._shrink(self._max_bytes)

    def limit(self, max_bytes: int) -> bool:
        """Evict the least recently used entries down to this size; returns False where even none is too large."""
        with self._lock:
            self._shrink(max(max_bytes, 0))
        return max_bytes >= 0

    def evict(self, owners: Collection[str], digests: Collection[str]) -> None:
        """Remove all prompts of some owners or weights; prompts that are being processed now will not be cached."""
        with self._lock:
            self.epoch += 1
            for key in [key for key in self._entries if key[0][0] in owners or key[0][1] in digests]:
                self._evict(key)

    def _shrink(self, max_bytes: int) -> None:
        """Evicts the least recently used entries down to a size."""
        while self._num_bytes > max_bytes:
            self._evict(next(iter(self._entries)))

    def _find(self, scope: CacheScope, tokens: bytes) -> tuple[bytes | None, int]:
        """The text that shares the longest prefix with a prompt, and how many tokens they share."""
        if (scope, tokens) in self._entries:
            return tokens, len(tokens) // TOKEN_BYTES
        for length, digest in reversed([*self._prefix_hashes(tokens)]):
            if (texts := self._by_hash.get((scope, digest))) is not None:
                text = next(reversed(texts))
                return text, length + _count_equal(text, tokens, length)
        return None, 0

    def _evict(self, key: CacheKey) -> None:
        """Remove an entry and its hashes."""
        scope, tokens = key
        entry = self._entries.pop(key)
        self._num_bytes -= len(tokens)
        for array in entry.arrays:
            self._num_uses[id(array)] -= 1
            if not self._num_uses[id(array)]:
                del self._num_uses[id(array)]
                self._num_bytes -= array.nbytes
        for _, digest in self._prefix_hashes(tokens):
            texts = self._by_hash[scope, digest]
            del texts[tokens]
            if not texts:
                del self._by_hash[scope, digest]

    def _prefix_hashes(self, tokens: bytes) -> Iterator[tuple[int, bytes]]:
        """Lengths, in tokens, and hashes of the prefixes of whole chunks, shortest first."""
        digest, step = hashlib.blake2b(digest_size=20), self._chunk_size * TOKEN_BYTES
        for end in range(step, len(tokens) + 1, step):
            digest.update(tokens[end - step : end])
            yield end // TOKEN_BYTES, digest.digest()


def _count_equal(left: bytes, right: bytes, start: int) -> int:
    """How many tokens of two texts are equal from a position on."""
    stop = min(len(left), len(right)) // TOKEN_BYTES
    parts = [np.frombuffer(text, np.int32)[start:stop] for text in (left, right)]
    different = np.flatnonzero(parts[0] != parts[1])
    return int(different[0]) if len(different) else stop - start
