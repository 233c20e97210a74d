"""A walled gridworld with food, water, thorns and a home, whose outcome features the steering must weigh.

The environment is original to this project. One lifetime is one layout: walls, food, water, thorns and home keep their
cells. An episode begins at the start; food and water can each be had once per episode; entering home gives energy and
ends it, else the time limit does. Every step costs a little energy. The observation holds the cell and whether food and
water have been had, so the task is a tabular decision problem with S = 4 * size^2. Outcome features: food, water, pain,
energy. Layouts whose walls separate a place from the start are drawn again. The layout is `ForagingState.task`; a test
that changes the layout replaces it there.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.environments.base import MOVES, choose_tree, draw_layout, initial_time_step, next_cell
from ontogeny.errors import BadInput, require_at_least, require_between
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep

EFFORT = 0.05  # energy that a step costs


class ForagingTask(NamedTuple):
    """A layout; cells are numbered row by row."""

    walls: Array  # [cells] bool
    thorns: Array  # [cells] bool, entering hurts
    food: Array  # [] int32, a cell
    water: Array  # []
    home: Array  # []
    start: Array  # []


class ForagingState(NamedTuple):
    """The state of the environment."""

    task: ForagingTask
    cell: Array  # [] int32
    has_eaten: Array  # [] bool, in this episode
    has_drunk: Array  # [] bool
    steps: Array  # [] int32, taken in this episode


class ForagingParams(NamedTuple):
    """The settings of `build` that the dynamics need."""

    num_cells: int
    num_walls: int
    num_thorns: int
    horizon: int


def reset(params: ForagingParams, key: Key) -> tuple[ForagingState, TimeStep]:
    """Draws a layout in which food, water and home can be reached from the start."""
    state = _begin_episode(draw_layout(key, partial(_draw_task, params), _is_connected))
    return state, initial_time_step(observation(state), 4)


def step(params: ForagingParams, key: Key, state: ForagingState, action: Array) -> tuple[ForagingState, TimeStep]:
    """Moves the agent; entering home terminates the episode, the horizon truncates it."""
    del key  # only the layout is random
    task = state.task
    cell = next_cell(task.walls, state.cell, action)
    eats = (cell == task.food) & ~state.has_eaten
    drinks = (cell == task.water) & ~state.has_drunk
    is_hurt = (cell != state.cell) & task.thorns[cell]
    is_home = cell == task.home
    outcome = jnp.stack([eats, drinks, is_hurt, is_home]).astype(jnp.float32).at[3].add(-EFFORT)
    steps = state.steps + 1
    is_over = is_home | (steps == params.horizon)
    continued = ForagingState(task, cell, state.has_eaten | eats, state.has_drunk | drinks, steps)
    next_state = choose_tree(is_over, _begin_episode(task), continued)
    discount = 1 - is_home.astype(jnp.float32)
    return next_state, TimeStep(observation(next_state), observation(continued), outcome, is_over, discount)


def observation(state: ForagingState) -> Array:
    """The cell, and whether food and water have been had in this episode, as one number: []."""
    num_cells = state.task.walls.shape[0]
    return state.cell + num_cells * (state.has_eaten + 2 * state.has_drunk.astype(jnp.int32))


def score(outcome: Float[Array, "F"]) -> Float[Array, ""]:
    """Food, water and energy minus pain."""
    return outcome[0] + outcome[1] - outcome[2] + outcome[3]


def reveal_task(params: ForagingParams, state: ForagingState) -> TabularTask:
    """The task as tables, by one step from every observation with every action."""
    num_cells = params.num_cells

    def entry(index: Array, action: Array) -> tuple[Array, Array, Array]:
        has_eaten, has_drunk = (index // num_cells) % 2 == 1, index // (2 * num_cells) == 1
        before = ForagingState(state.task, index % num_cells, has_eaten, has_drunk, jnp.int32(-1))
        after, time_step = step(params, jax.random.key(0), before, action)
        return jax.nn.one_hot(observation(after), 4 * num_cells), time_step.outcome, 1 - time_step.discount

    over_actions = jax.vmap(entry, in_axes=(None, 0))
    tables = jax.vmap(over_actions, in_axes=(0, None))(jnp.arange(4 * num_cells), jnp.arange(len(MOVES)))
    return TabularTask(*tables, params.horizon - state.steps)


def _draw_task(params: ForagingParams, key: Key) -> ForagingTask:
    """Draws a layout at random; walls may separate its places, so the caller must check that they are connected."""
    order = jax.random.permutation(key, params.num_cells)
    food, water, home, start = order[:4]
    first_wall = 4 + params.num_thorns
    none = jnp.zeros(params.num_cells, bool)
    walls = none.at[order[first_wall : first_wall + params.num_walls]].set(True)
    thorns = none.at[order[4:first_wall]].set(True)
    return ForagingTask(walls, thorns, food, water, home, start)


def _is_connected(task: ForagingTask) -> Array:
    """Whether food, water and home can be reached from the start, [] bool."""
    cells = jnp.arange(task.walls.shape[0])
    over_actions = jax.vmap(partial(next_cell, task.walls), in_axes=(None, 0))
    neighbors = jax.vmap(over_actions, in_axes=(0, None))(cells, jnp.arange(len(MOVES)))  # [cells, 4]

    def extend(_: Array, is_reached: Array) -> Array:
        return is_reached | jnp.any(is_reached[neighbors], axis=1)

    is_reached = jax.lax.fori_loop(0, len(cells), extend, cells == task.start)
    return is_reached[task.food] & is_reached[task.water] & is_reached[task.home]


def _begin_episode(task: ForagingTask) -> ForagingState:
    """The agent at the start, with nothing had."""
    return ForagingState(task, task.start.astype(jnp.int32), jnp.bool_(False), jnp.bool_(False), jnp.int32(0))


def build(
    *, size: int = 5, wall_fraction: float = 0.15, num_thorns: int = 2, horizon: int = 20, num_episodes: int = 20
) -> Environment:
    """Builds the environment.

    Args:
        size: Cells to a side, at least 3.
        wall_fraction: Share of walled cells, from 0 to 0.5, rounded down to whole cells.
        num_thorns: Cells with thorns, at least 0.
        horizon: Steps per episode at most, at least 1.
        num_episodes: Episodes of full length per lifetime, at least 1.
    """
    require_at_least(3, size=size)
    require_at_least(0, num_thorns=num_thorns)
    require_at_least(1, horizon=horizon, num_episodes=num_episodes)
    require_between(0, 0.5, wall_fraction=wall_fraction)
    num_cells = size**2
    num_walls = int(wall_fraction * num_cells)
    if 4 + num_thorns + num_walls > num_cells:
        raise BadInput(
            f"{num_cells} cells cannot hold {num_thorns} thorns, {num_walls} walls, food, water, home and start"
        )
    params = ForagingParams(num_cells, num_walls, num_thorns, horizon)
    # Most cells hold nothing; the standard deviation was chosen on lifetimes of the stage `validation`.
    rare, energy = (FeaturePrior("normal", mean, 0.05, noise=0.01) for mean in (0.02, -EFFORT))
    spec = EnvSpec(
        name="foraging", num_actions=len(MOVES), num_observations=4 * num_cells, observation_shape=(),
        outcome_features=("food", "water", "pain", "energy"), num_steps=horizon * num_episodes, horizon=horizon,
        drives=(("food", 1.0), ("water", 1.0), ("pain", -1.0), ("energy", 1.0)),
        prior=Prior(transitions=0.5 / (4 * num_cells), outcome_features=(rare, rare, rare, energy)),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), score, partial(reveal_task, params))
