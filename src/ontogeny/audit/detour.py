"""Does it find another way where a wall was put into the shortest one? Twin layouts of the environment `beacon`.

Supporting. Tolman & Honzik 1930: who knows only moves that paid walks into the new wall. One life is one layout, and
its twin has one wall more, which leaves a way that is longer by two steps at least; before, a way as the crow flies was
open, so that a taxis arrives. Goal and beacon stand together, so nothing depends on which of them is wanted. Everything
is in view: this asks for search, not for memory, and a reflex that follows walls would do. It stands in `beacon`, not
in `foraging`, where a new wall is not seen but bumped into: a learner that rightly takes layouts for fixed unlearns an
open way as slowly as it was sure of it, plan or no plan. Beside the subject, on the same layouts: a planner, an agent
that goes to whatever object is nearest, a taxis, a random walk.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit.base import (
    Finding,
    Subject,
    Test,
    effect,
    largest_p,
    lived,
    organism,
    over_lives,
    predicted,
    three_way,
)
from ontogeny.environments.beacon import distances, moved, pick, side_of
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Environment, Key, TimeStep

SLACK = 4  # steps beyond the shortest way
BESIDE = ("intention_planner", "nearest_object", "beacon_taxis", "wanderer")
PREDICTED = predicted(
    "intention_planner proxy_planner nearest_object",
    "beacon_taxis go_right wanderer",
)


class Thresholds(NamedTuple):
    z: float = 2.0
    arrives: float = 0.70  # of lives with the new wall
    competent: float = 0.75  # of lives without it


def build(*, num_lifetimes: int = 100, walls: float = 0.15) -> Test:
    def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
        return measured(subject, keys, walls)

    return Test("plans", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measured(subject: Subject, keys: Key, walls: float) -> Mapping[str, np.ndarray]:
    """Who arrives in time, [N, 2] of 0 and 1, without and with the new wall, and where that was asked, [N] bool."""
    home = subject.home
    size = side_of(jnp.zeros(home.spec.observation_shape[0] - 10)) if home.spec.name == "beacon" else 9
    env = plugins.build("environments", "beacon", size=size, walls=walls, episodes=1)
    walkers = {"subject": subject} | {name: organism(name, env) for name in BESIDE}
    built = {name: who.build(env) for name, who in walkers.items()}

    def one(key: Key) -> dict[str, Array]:
        state, _ = env.reset(split_lifetime_key(key).task)
        wall, asked = barrier(jax.random.fold_in(key, 1), state.task.walls, state.cell, state.task.goal)

        def arrives(name: str, walled: Array) -> Array:
            there = with_wall(env, wall, walled)
            agent, drives = built[name]
            genome = walkers[name].genome(agent, there, drives)
            _, trajectory = lived(walkers[name], key, agent, there, drives, genome)
            layout = state.task.walls.at[wall].max(walled)
            in_time = jnp.arange(len(trajectory.outcome)) < distances(layout, state.task.goal)[state.cell] + SLACK
            return jnp.any((trajectory.outcome[:, 0] > 0) & in_time & (jnp.cumsum(trajectory.first) == 1))

        found = {name: jax.vmap(partial(arrives, name))(jnp.array([False, True])) for name in walkers}
        return {name: each.astype(jnp.float32) for name, each in found.items()} | {"asked": asked}

    return over_lives(one, keys)


def barrier(key: Key, walls: Array, start: Array, goal: Array) -> tuple[Array, Array]:
    """The cell of a new wall, and whether there is one that makes an open way as the crow flies longer."""
    cells = walls.shape[0]
    n = side_of(walls)
    crow = jnp.abs(start // n - goal // n) + jnp.abs(start % n - goal % n)
    from_start, to_goal = distances(walls, start), distances(walls, goal)
    on_way = (from_start + to_goal == from_start[goal]) & (jnp.arange(cells) != start) & (jnp.arange(cells) != goal)
    longer = jax.vmap(lambda cell: distances(walls.at[cell].set(True), goal)[start])(jnp.arange(cells))
    fits = on_way & (longer > from_start[goal]) & (longer < cells) & (from_start[goal] == crow)
    return pick(key, fits), jnp.any(fits)


def with_wall(env: Environment, wall: Array, walled: Array) -> Environment:
    """The same environment with a new wall there, if so."""

    def reset(key: Key) -> tuple[object, TimeStep]:
        state, time_step = env.reset(key)
        walls = state.task.walls.at[wall].max(walled)
        blocked = jnp.stack([moved(walls, state.cell, action) == state.cell for action in range(4)])
        seen = (
            time_step.observation.at[wall].set(walls[wall].astype(jnp.float32)).at[-4:].set(blocked.astype(jnp.float32))
        )
        return state._replace(task=state.task._replace(walls=walls)), time_step._replace(observation=seen)

    return env._replace(reset=reset)


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    asked = found["asked"]
    if np.sum(asked) < 20:
        gate = f"a wall could be put into the way in {np.sum(asked)} layouts: too few"
        return Finding("detour", "plans", False, "undetermined", gate, 1.0, {}, {}, gate)
    effects = {
        "arrives, the way open": effect(found["subject"][asked, 0]),
        "arrives, a wall in the way": effect(found["subject"][asked, 1]),
        "more often than a taxis does": effect(found["subject"][asked, 1] - found["beacon_taxis"][asked, 1]),
    }
    controls = {f"{name}, a wall in the way": effect(found[name][asked, 1]) for name in BESIDE}
    open_, walled, beyond = effects.values()
    if open_.low <= thresholds.competent and open_.mean <= thresholds.competent:
        gate = f"it arrives in {open_.mean:.0%} of lives where the way is open: too few to ask more of it"
        return Finding("detour", "plans", False, "undetermined", gate, 1.0, effects, controls, gate)
    passed = walled.mean > thresholds.arrives and beyond.z > thresholds.z
    verdict = three_way(passed, {"walled": walled}, {"walled": thresholds.arrives})
    told = {
        "yes": "it finds another way where a wall stands in the shortest one; so does one that prefers neither object",
        "no": "it does not find another way where a wall stands in the shortest one",
        "undetermined": "whether it finds another way was not told",
    }[verdict]
    p = largest_p({"beyond": beyond}) if passed else 1.0
    return Finding("detour", "plans", False, verdict, told, p, effects, controls)
