"""Dynamics that several environments share: moves on a walled grid, random layouts, the start of new episodes."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.types import Environment, EnvState, Key, PyTree, Steering, TimeStep

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of the actions north, east, south and west
MAX_LAYOUTS = 50  # layouts that are drawn before the walls are left out

MAX_LANES = 64  # that draw at the same time
BITS = 32  # of a word

Layout = TypeVar("Layout")
Draw = TypeVar("Draw")


class Revaluation(NamedTuple):
    """What a test of planning needs of an environment: how single links are exposed alone, changed or as they are.

    A lifetime has ordinary trials, exposures of some links, and a choice. Lifetimes with the same key differ in nothing
    but which of the exposed links have changed, and each change reverses the best choice. The module of an environment
    offers it as `build_revaluation(train_spec, num_links)`. Letters: L links, E exposed links, T steps.
    """

    links: tuple[str, ...]  # L names; each may stand for a kind of link, of which every lifetime draws one
    make_env: Callable[[int], Environment]  # E -> an environment in which so many links are exposed and none changes
    expose: Callable[[Environment, Steering, Array, Array], Environment]  # exposed [E] int, is_changed [L] 0 or 1
    is_former_best: Callable[[EnvState, Array], Array]
    """Initial state and actions [T] of a lifetime -> whether the first choice after the exposures is the action that
    was best before the changes, [] bool."""


class GoalConflict(NamedTuple):
    """What a test of objectives needs of an environment: pairs of graphs that differ in one link and for one goal.

    The goal of steering and another goal have the same optimum in the first graph and different ones in the second;
    steering values all choices equally in both. For steering itself, the optimum differs between the graphs. The module
    of an environment offers it as `build_goal_conflict(train_spec, steering)`. Letter: T steps.
    """

    goals: tuple[str, ...]  # names, that of steering first
    links: tuple[str, ...]  # names of the links that may differ
    env: Environment
    draw_graphs: Callable[[Key, Array, Array], "GraphPair"]  # keys, indices of goals and of links, all [N]
    enter: Callable[[PyTree], Environment]  # a graph -> lifetimes in it
    choice_step: int  # the last choice of a lifetime


class GraphPair(NamedTuple):
    """Two graphs that differ in one link."""

    graphs: PyTree  # axis 2 on every leaf, the first one or after N
    best_action: Int32[Array, ""]  # by steering, in the first graph
    is_valid: Bool[Array, ""]  # false where no pair was found


def first_feature(outcome: Float[Array, "F"]) -> Float[Array, ""]:
    """The score of an environment whose designers meant its first outcome feature."""
    return outcome[0]


def initial_time_step(observation: Array, num_outcome_features: int) -> TimeStep:
    """The time step of `reset`: an observation, and no outcome before it."""
    return TimeStep(observation, observation, jnp.zeros(num_outcome_features), jnp.bool_(True), jnp.float32(1))


def choose_tree(condition: Bool[Array, ""], if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees of the same structure, e.g. the start of a new episode or the continued one."""
    return jax.tree.map(lambda first, second: jnp.where(condition, first, second), if_true, if_false)


def grid_size(cells: Array) -> int:
    """The number of cells to a side of a square grid, from any array with one entry per cell."""
    return round(cells.shape[0] ** 0.5)


def manhattan_distance(cells: Array, start: Int32[Array, ""], goal: Int32[Array, ""]) -> Int32[Array, ""]:
    """Steps from one cell of a square grid to another where no wall is in the way.

    Args:
        cells: Any array with one entry per cell.
        start: Cells are numbered row by row.
        goal: Numbered likewise.
    """
    size = grid_size(cells)
    return jnp.abs(start // size - goal // size) + jnp.abs(start % size - goal % size)


def next_cell(walls: Bool[Array, "cells"], cell: Array, action: Array | int) -> Int32[Array, ""]:
    """The cell to which a move leads; a move against a wall or the border leads nowhere.

    Args:
        walls: True where a cell is walled; cells are numbered row by row.
        cell: The agent's cell.
        action: Index into `MOVES`.
    """
    size = grid_size(walls)
    row_change, column_change = jnp.array(MOVES)[action]
    row, column = cell // size + row_change, cell % size + column_change
    is_inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    target = jnp.where(is_inside, row * size + column, cell)
    return jnp.where(walls[target], cell, target).astype(jnp.int32)


def distances_to(walls: Bool[Array, "cells"], target: Int32[Array, ""]) -> Int32[Array, "cells"]:
    """Steps from every cell of a square grid to a target; the number of cells where no path of 3 x size steps exists.

    A wave spreads from the target. Its cells are the bits of a few words, so that one operation of the processor moves
    32 of them, of several lifetimes at once.

    Args:
        walls: True where a cell is walled; cells are numbered row by row.
        target: A cell without a wall.
    """
    cells, size = walls.shape[0], grid_size(walls)
    columns = np.arange(cells) % size
    is_free, has_east, has_west = (_to_words(mask) for mask in (~walls, columns < size - 1, columns > 0))

    def spread(wave: list[Array], _: None) -> tuple[list[Array], Array]:
        to_east = _shift([word & mask for word, mask in zip(wave, has_east, strict=True)], 1)
        to_west = _shift([word & mask for word, mask in zip(wave, has_west, strict=True)], -1)
        shifted = zip(to_east, to_west, _shift(wave, size), _shift(wave, -size), strict=True)
        neighbors = (east | west | south | north for east, west, south, north in shifted)
        reached = [word | (new & free) for word, new, free in zip(wave, neighbors, is_free, strict=True)]
        return reached, jnp.stack(wave)

    last, waves = jax.lax.scan(spread, _to_words(jnp.arange(cells) == target), length=3 * size)
    num_waves_before = jnp.sum(1 - _to_bits(waves), axis=0, dtype=jnp.int32)[:cells]
    is_reached = _to_bits(jnp.stack(last))[:cells] > 0
    return jnp.where(is_reached & ~walls, num_waves_before, cells)


def _to_words(mask: Array | np.ndarray) -> list[Array]:
    """The bits of a mask [cells] as words."""
    padded = jnp.pad(jnp.asarray(mask), (0, -mask.shape[0] % BITS)).reshape(-1, BITS).astype(jnp.uint32)
    return list(jnp.sum(padded << jnp.arange(BITS, dtype=jnp.uint32), axis=1, dtype=jnp.uint32))


def _to_bits(words: Array) -> Array:
    """The bits of words [..., words] as numbers [..., 32 * words]."""
    bits = (words[..., None] >> jnp.arange(BITS, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)


def _shift(words: list[Array], distance: int) -> list[Array]:
    """A long number in words, lowest word first, shifted by some bits: to higher bits where `distance` is positive."""
    skipped_words, skipped_bits = divmod(distance, BITS)
    zeros = [jnp.uint32(0)] * (len(words) + 1)
    padded = zeros + words + zeros
    start = len(zeros) - skipped_words
    pairs = zip(padded[start - 1 :], padded[start : start + len(words)], strict=False)
    if skipped_bits == 0:
        return [word for _, word in pairs]
    return [(lower >> (BITS - skipped_bits)) | (word << skipped_bits) for lower, word in pairs]


def draw_layout(key: Key, draw: Callable[[Key], Layout], is_valid: Callable[[Layout], Array]) -> Layout:
    """The first valid layout; after `MAX_LAYOUTS` invalid ones, a layout without walls.

    Args:
        key: Determines all draws.
        draw: Draws a NamedTuple with a field `walls`.
        is_valid: Whether the layout may be used, [] bool.
    """

    def draw_numbered(key: Key, number: Array) -> Layout:
        layout = draw(key)
        return layout._replace(walls=layout.walls & (number < MAX_LAYOUTS))  # pyright: ignore[reportAttributeAccessIssue]

    return draw_until_valid(key, draw_numbered, is_valid, MAX_LAYOUTS)


def draw_until_valid(
    key: Key, draw: Callable[[Key, Array], Draw], is_valid: Callable[[Draw], Array], max_draws: int
) -> Draw:
    """The first valid draw, or the last one after `max_draws` invalid ones.

    Args:
        key: Determines all draws.
        draw: Maps a key and the number of invalid draws before to a draw.
        is_valid: Whether the draw may be used, [] bool.
        max_draws: Invalid draws before the last one.
    """

    def is_rejected(attempt: tuple[Array, Draw]) -> Array:
        return (attempt[0] < max_draws) & ~is_valid(attempt[1])

    def draw_next(attempt: tuple[Array, Draw]) -> tuple[Array, Draw]:
        number = attempt[0] + 1
        return number, draw(jax.random.fold_in(key, number), number)

    first = (jnp.int32(0), draw(jax.random.fold_in(key, 0), jnp.int32(0)))
    return jax.lax.while_loop(is_rejected, draw_next, first)[1]


def draw_all_until_valid(
    keys: Key,
    items: PyTree,
    draw: Callable[[Key, Array, PyTree], PyTree],
    is_valid: Callable[..., Array],
    max_draws: int,
) -> PyTree:
    """The first valid draw of every key, as by `draw_until_valid`, at a cost that follows the mean number of draws.

    Lanes draw at the same time. A lane whose draw is valid goes on with its next key, so that none waits for a key that
    needs many draws.

    Args:
        keys: [N].
        items: What else a draw depends on; leading axis N on every leaf.
        draw: Maps a key, the number of invalid draws before and an item to a draw.
        is_valid: Whether a draw may be used, [] bool.
        max_draws: Invalid draws of a key before the last one.

    Returns:
        The draws, with the leading axis N.
    """
    N = len(keys)
    num_lanes = min(MAX_LANES, N)
    item = jax.tree.map(lambda leaf: leaf[0], items)
    shapes = jax.eval_shape(draw, keys[0], jnp.int32(0), item)
    blank = jax.tree.map(lambda leaf: jnp.zeros((N, *leaf.shape), leaf.dtype), shapes)

    def draw_once(state: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
        positions, numbers, results = state
        present = jnp.minimum(positions, N - 1)
        draw_keys = jax.vmap(jax.random.fold_in)(keys[present], numbers)
        draws = jax.vmap(draw)(draw_keys, numbers, jax.tree.map(lambda leaf: leaf[present], items))
        is_done = jax.vmap(is_valid)(draws) | (numbers >= max_draws)
        places = jnp.where(is_done, positions, N)  # beyond the end, where nothing is written
        results = jax.tree.map(lambda leaf, new: leaf.at[places].set(new, mode="drop"), results, draws)
        return jnp.where(is_done, positions + num_lanes, positions), jnp.where(is_done, 0, numbers + 1), results

    start = (jnp.arange(num_lanes), jnp.zeros(num_lanes, jnp.int32), blank)
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < N), draw_once, start)[2]
