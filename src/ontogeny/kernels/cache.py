"""The keys and values of sequences in pages of 64 tokens, which sequences with the same beginning share."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ontogeny.content.transformer import TransformerConfig
from ontogeny.kernels import layout
from ontogeny.kernels.layout import PAGE

Layers = tuple[Float[np.ndarray, "G N D"], ...]  # keys or values of N tokens, one array per layer


def page_bytes(config: TransformerConfig) -> int:
    """The size of one page: the keys and values of 64 tokens in all layers."""
    sizes = config.size_of_head + layout.padded_size(config.size_of_head)
    return 4 * config.num_layers * config.kv_heads * PAGE * sizes


def new_page(config: TransformerConfig) -> np.ndarray:
    """Memory for one page, which nothing reads before it is written."""
    return np.empty(page_bytes(config) // 4, np.float32)


class SequenceCache:
    """The cache of one sequence, which grows page by page.

    A page has, for each layer and each head of keys and values, the transposed keys [D, 64] and the values [64, P]; see
    `attention`. What a full page holds never changes, so that other sequences may share it.

    Attributes:
        pages: In the order of their tokens.
        length: The tokens in the cache.
    """

    __slots__ = ("_config", "_table", "length", "pages", "table_address")

    def __init__(self, config: TransformerConfig, pages: Sequence[np.ndarray] = (), length: int = 0) -> None:
        self._config, self.pages, self.length = config, list[np.ndarray](), length
        self._reserve_table(max(4, len(pages)))
        for page in pages:
            self._append(page)

    @property
    def num_bytes(self) -> int:
        """The memory of all pages, shared ones included."""
        return sum(page.nbytes for page in self.pages)

    def reserve(self, num_tokens: int) -> None:
        """Append pages until there is space for this number of tokens."""
        while len(self.pages) * PAGE < num_tokens:
            self._append(new_page(self._config))

    def fork(self, length: int) -> "SequenceCache":
        """Return a cache of the first tokens, which shares all full pages."""
        num_full = length // PAGE
        pages = self.pages[:num_full]
        if length % PAGE:
            pages.append(self.pages[num_full].copy())
        return SequenceCache(self._config, pages, length)

    def to_layers(self, length: int) -> tuple[Layers, Layers]:
        """Copy the keys and values of the first tokens into arrays of their own."""
        config, size = self._config, self._config.size_of_head
        keys, values = (
            tuple(np.empty((config.kv_heads, length, size), np.float32) for _ in range(config.num_layers))
            for _ in range(2)
        )
        for first, page in zip(range(0, length, PAGE), self.pages, strict=False):
            stop = min(first + PAGE, length)
            for layer, (page_keys, page_values) in enumerate(self._split(page)):
                keys[layer][:, first:stop] = page_keys[:, :, : stop - first].swapaxes(1, 2)
                values[layer][:, first:stop] = page_values[:, : stop - first, :size]
        return keys, values

    @classmethod
    def from_layers(cls, config: TransformerConfig, keys: Layers, values: Layers) -> "SequenceCache":
        """Create the cache that has these keys and values; the inverse of `to_layers`."""
        cache, length = cls(config), keys[0].shape[1]
        cache.reserve(length)
        for first, page in zip(range(0, length, PAGE), cache.pages, strict=True):
            stop = min(first + PAGE, length)
            for layer, (page_keys, page_values) in enumerate(cache._split(page)):
                page_keys[:, :, : stop - first] = keys[layer][:, first:stop].swapaxes(1, 2)
                page_values[:, :, config.size_of_head :] = 0
                page_values[:, : stop - first, : config.size_of_head] = values[layer][:, first:stop]
        cache.length = length
        return cache

    def _split(self, page: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The keys [G, D, 64] and values [G, 64, P] of each layer of a page."""
        config, size = self._config, self._config.size_of_head
        padded = layout.padded_size(size)
        layers = page.reshape(config.num_layers, config.kv_heads, PAGE * (size + padded))
        return [
            (
                layer[:, : size * PAGE].reshape(-1, size, PAGE),
                layer[:, size * PAGE :].reshape(-1, PAGE, padded),
            )
            for layer in layers
        ]

    def _append(self, page: np.ndarray) -> None:
        """Adds a page and its address."""
        if len(self.pages) == len(self._table):
            self._reserve_table(2 * len(self._table))
        self._table[len(self.pages)] = layout.address(page)
        self.pages.append(page)

    def _reserve_table(self, num_pages: int) -> None:
        """Makes space for this number of addresses."""
        table = np.zeros(num_pages, np.int64)
        if self.pages:
            table[: len(self.pages)] = self._table[: len(self.pages)]
        self._table, self.table_address = table, layout.address(table)
