"""The programs that every answer comes from: reading a chunk of one row, and one more token for a tile of rows.

Same question, same bits: a prompt is read alone, in chunks that begin at multiples of `chunk`, by a program of one
row, of which there are two: for prompts that are scored and for those that are not. What is generated comes one token
at a time from a program of `rows` rows. Each has one shape, whatever else is going on, and no row of a product depends
on another, so that an answer depends on its question alone. That a row's place makes no difference is what a compiler
might break: `check_rows` tries it on the machine at hand.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content.transformer import Cache, Config, Transformer, append, empty_cache
from ontogeny.errors import BadInput


class Shape(NamedTuple):
    """Static: with the model's config, all that programs are compiled for."""

    rows: int  # R, of a tile
    chunk: int  # K, tokens of a prompt read at a time
    capacity: int  # C, tokens that a row can hold


def shape_for(config: Config) -> Shape:
    """Eight rows on a processor, where wider tiles cost in proportion; on an accelerator as many as there may be."""
    rows = 8 if jax.default_backend() == "cpu" else 64
    return Shape(rows, min(32, config.context), config.context)


def empty_tile(config: Config, shape: Shape, compute: Any = jnp.float32) -> Cache:
    return empty_cache(config, shape.rows, shape.capacity, compute)


@partial(jax.jit, static_argnums=(0, 7), donate_argnums=2)
def read(
    config: Config,
    weights: Transformer,
    tile: Cache,
    row: Int32[Array, ""],
    start: Int32[Array, ""],
    tokens: Int32[Array, "K"],
    count: Int32[Array, ""],
    every: bool,
) -> tuple[Cache, Float[Array, "K V"] | Float[Array, "V"]]:
    """One row reads `count` tokens, the first of which is its token number `start`.

    Logits of what follows the last, or with `every` of what follows each: for short prompts a third of the work.
    """
    keys, values = (
        tuple(jax.lax.dynamic_slice_in_dim(leaf, row, 1) for leaf in leaves) for leaves in (tile.keys, tile.values)
    )
    one = Cache(keys, values, start[None])
    one, logits = append(config, weights, one, tokens[None], count[None], every=every)
    keys, values = (
        tuple(jax.lax.dynamic_update_slice_in_dim(whole, part, row, 0) for whole, part in zip(old, new, strict=True))
        for old, new in ((tile.keys, one.keys), (tile.values, one.values))
    )
    return Cache(keys, values, tile.length), logits[0]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def go_on(
    config: Config,
    weights: Transformer,
    tile: Cache,
    length: Int32[Array, "R"],
    tokens: Int32[Array, "R"],
    count: Int32[Array, "R"],
) -> tuple[Cache, Float[Array, "R V"]]:
    """Each row whose `count` is 1 reads one token, after the `length` that it holds; the others stay as they are."""
    tile = tile._replace(length=length)
    return append(config, weights, tile, tokens[:, None], count)


def check_rows(config: Config, shape: Shape, weights: Transformer) -> None:
    """Asks every row the same and raises `BadInput` where this machine's programs answer in other bits."""
    tokens = np.arange(shape.chunk, dtype=np.int32) % config.vocabulary
    tile, scored, answers = empty_tile(config, shape), [], []
    half, zero = np.int32(shape.chunk // 2), np.int32(0)
    for row in range(shape.rows):
        tile, logits = read(config, weights, tile, np.int32(row), zero, tokens, half, True)
        scored.append(np.asarray(logits)[half - 1])
    for row in range(shape.rows):
        tile, logits = read(config, weights, tile, np.int32(row), zero, tokens, half, False)
        answers.append(np.asarray(logits))
    alone = np.zeros(shape.rows, np.int32)
    alone[-1] = 1
    ones = np.ones(shape.rows, np.int32)
    length = np.full(shape.rows, shape.chunk // 2, np.int32)
    tile, together = go_on(config, weights, tile, length, ones, ones)
    tile, apart = go_on(config, weights, tile, length, ones, alone)  # the same token again, by one row alone
    together, apart = np.asarray(together), np.asarray(apart)
    same = [found.tobytes() == first.tobytes() for first, *others in (scored, answers) for found in others]
    same += [answer.tobytes() == together[0].tobytes() for answer in [*together, apart[-1]]]
    if not all(same):
        raise BadInput(
            "on this machine a row's place changes the bits of its answer, which this server promises never happens; "
            "no such machine was known"
        )
