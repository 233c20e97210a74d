"""A walled gridworld with food, water, thorns and a home, whose outcomes are facts that steering must weigh.

Of the laboratory's own making. One life is one layout: walls, food, water, thorns and home stay where they are. An
episode begins at the start; food and water can each be had once per episode; entering home gives energy and
ends it, else the time limit does. Every step costs a little energy. The observation tells where one is and what one has
had, so the task is a tabular decision problem, S = 4 * size^2. The facts: food, water, pain, energy.
Walls never shut off a place: a layout in which they do is drawn again. The layout is `WorldState.task`: a test of
revaluation, of a detour, of proxy against intention replaces it there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import BadInput, Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # north, east, south, west
EFFORT = 0.05  # energy that a step costs
DRAWS = 50  # layouts tried before the walls are left out


class Task(NamedTuple):
    """A layout. Cells are numbered row by row; `size` cells to a side."""

    walls: Array  # [cells] bool
    thorns: Array  # [cells] bool, entering hurts
    food: Array  # [] int32, a cell
    water: Array  # []
    home: Array  # []
    start: Array  # []


class State(NamedTuple):
    task: Task
    cell: Array  # [] int32
    fed: Array  # [] bool, in this episode
    drunk: Array  # [] bool
    steps: Array  # [] int32, taken in this episode


def build(*, size: int = 5, walls: float = 0.15, thorns: int = 2, horizon: int = 20, episodes: int = 20) -> Environment:
    require_at_least(3, size=size)
    require_at_least(0, thorns=thorns)
    require_at_least(1, horizon=horizon, episodes=episodes)
    if not 0 <= walls <= 0.5:
        raise BadInput(f"the setting 'walls' is the share of walled cells, from 0 to 0.5, not {walls}")
    cells = size * size
    num_walls = int(walls * cells)
    if 4 + thorns + num_walls > cells:
        raise BadInput(f"{cells} cells cannot hold {thorns} thorns and {num_walls} walls beside the four places")
    spec = EnvSpec(
        name="foraging",
        num_actions=4,
        num_observations=4 * cells,
        observation_shape=(),
        outcome_features=("food", "water", "pain", "energy"),
        num_steps=horizon * episodes,
        horizon=horizon,
        drives=(("food", 1.0), ("water", 1.0), ("pain", -1.0), ("energy", 1.0)),
        prior=Prior(
            transitions=0.5 / (4 * cells),
            # Most cells hold nothing; the standard deviation was chosen on lives of the stage `validation` (LOG.md).
            outcome_features=(
                *(FeaturePrior("normal", 0.02, 0.05, noise=0.01),) * 3,
                FeaturePrior("normal", -EFFORT, 0.05, noise=0.01),
            ),
        ),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        def shut(drawn: tuple[Array, Task]) -> Array:
            return (drawn[0] < DRAWS) & ~connected(drawn[1])

        def again(drawn: tuple[Array, Task]) -> tuple[Array, Task]:
            number = drawn[0] + 1
            task = draw(jax.random.fold_in(key, number))
            return number, task._replace(walls=task.walls & (number < DRAWS))

        _, task = jax.lax.while_loop(shut, again, (jnp.int32(0), draw(jax.random.fold_in(key, 0))))
        state = awake(task)
        return state, TimeStep(observe(state), jnp.zeros(4), jnp.bool_(True), jnp.float32(1))

    def draw(key: Key) -> Task:
        order = jax.random.permutation(key, cells)
        food, water, home, start = order[:4]
        marked = jnp.zeros(cells, bool)
        return Task(
            walls=marked.at[order[4 + thorns : 4 + thorns + num_walls]].set(True),
            thorns=marked.at[order[4 : 4 + thorns]].set(True),
            food=food,
            water=water,
            home=home,
            start=start,
        )

    def connected(task: Task) -> Array:
        """Whether food, water and home can be reached from the start, [] bool."""
        beside = jax.vmap(lambda cell: jax.vmap(lambda action: moved(task, cell, action))(jnp.arange(4)))
        neighbours = beside(jnp.arange(cells))  # [cells, 4]; a way that is blocked leads back

        def spread(_: int, reached: Array) -> Array:
            return reached | jnp.any(reached[neighbours], axis=1)

        reached = jax.lax.fori_loop(0, cells, spread, jnp.arange(cells) == task.start)
        return reached[task.food] & reached[task.water] & reached[task.home]

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        del key  # the chance is all in the layout
        task = state.task
        cell = moved(task, state.cell, action)
        entered = cell != state.cell
        eats = (cell == task.food) & ~state.fed
        drinks = (cell == task.water) & ~state.drunk
        hurt = entered & task.thorns[cell]
        arrived = cell == task.home
        outcome = jnp.stack([eats, drinks, hurt, arrived]).astype(jnp.float32).at[3].add(-EFFORT)
        steps = state.steps + 1
        over = arrived | (steps == horizon)
        onward = State(task, cell, state.fed | eats, state.drunk | drinks, steps)
        state = jax.tree.map(lambda new, old: jnp.where(over, new, old), awake(task), onward)
        return state, TimeStep(observe(state), outcome, over, 1 - arrived.astype(jnp.float32))

    def moved(task: Task, cell: Array, action: Array) -> Array:
        row, column = cell // size, cell % size
        by = jnp.array(MOVES)[action]
        to_row, to_column = row + by[0], column + by[1]
        inside = (to_row >= 0) & (to_row < size) & (to_column >= 0) & (to_column < size)
        to = jnp.where(inside, to_row * size + to_column, cell)
        return jnp.where(task.walls[to], cell, to).astype(jnp.int32)

    def awake(task: Task) -> State:
        return State(task, task.start.astype(jnp.int32), jnp.bool_(False), jnp.bool_(False), jnp.int32(0))

    def observe(state: State) -> Array:
        return state.cell + cells * (state.fed + 2 * state.drunk.astype(jnp.int32))

    def score(outcome: Array) -> Array:
        return outcome[0] + outcome[1] - outcome[2] + outcome[3]

    def reveal_task(state: State) -> TabularTask:
        def at(observation: Array, action: Array) -> tuple[Array, Array, Array]:
            fed, drunk = (observation // cells) % 2 == 1, observation // (2 * cells) == 1
            here = State(state.task, observation % cells, fed, drunk, jnp.int32(-1))
            then, time_step = step(jax.random.key(0), here, action)
            ends = 1 - time_step.discount
            return jax.nn.one_hot(observe(then), 4 * cells), time_step.outcome, ends

        over_actions = jax.vmap(at, in_axes=(None, 0))
        transitions, outcomes, ends = jax.vmap(over_actions, in_axes=(0, None))(jnp.arange(4 * cells), jnp.arange(4))
        return TabularTask(transitions, outcomes, ends, horizon - state.steps)

    return Environment(spec, reset, step, score, reveal_task)
