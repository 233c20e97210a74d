"""Dynamics that several environments share: moves on a walled grid, random layouts, the start of new episodes."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.types import Key, PyTree

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of the actions north, east, south and west
MAX_LAYOUTS = 50  # layouts that are drawn before the walls are left out

Layout = TypeVar("Layout")


def first_feature(outcome: Float[Array, "F"]) -> Float[Array, ""]:
    """The score of an environment whose designers meant its first outcome feature."""
    return outcome[0]


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


def draw_layout(key: Key, draw: Callable[[Key], Layout], is_valid: Callable[[Layout], Array]) -> Layout:
    """The first valid layout; after `MAX_LAYOUTS` invalid ones, a layout without walls.

    Args:
        key: Determines all draws.
        draw: Draws a NamedTuple with a field `walls`.
        is_valid: Whether the layout may be used, [] bool.
    """

    def is_rejected(attempt: tuple[Array, Layout]) -> Array:
        return (attempt[0] < MAX_LAYOUTS) & ~is_valid(attempt[1])

    def draw_next(attempt: tuple[Array, Layout]) -> tuple[Array, Layout]:
        number = attempt[0] + 1
        layout = draw(jax.random.fold_in(key, number))
        return number, layout._replace(walls=layout.walls & (number < MAX_LAYOUTS))  # pyright: ignore[reportAttributeAccessIssue]

    return jax.lax.while_loop(is_rejected, draw_next, (jnp.int32(0), draw(jax.random.fold_in(key, 0))))[1]
