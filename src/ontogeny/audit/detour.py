"""Tests whether an agent finds another way after a wall was put into the shortest one, in twin layouts of `beacon`.

Secondary. Tolman & Honzik 1930: an agent that repeats rewarded moves walks into the new wall. One lifetime is one
layout, and its twin has one more wall, which leaves a way that is at least two steps longer; before, a way of Manhattan
length was open, so that a taxis arrives. Goal and beacon share a cell, so nothing depends on the preferred object.
Everything is observed: the test requires search, not memory, and a wall-following reflex would pass. The environment is
`beacon`, not `foraging`, where a new wall is not observed until it is touched: a learner that correctly treats layouts
as fixed unlearns an open way as slowly as it was certain of it, with or without a plan. Reference subjects in the same
layouts: a planner, an agent that moves to the nearest object, a taxis and a random walk.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit import base, decisions
from ontogeny.environments import beacon
from ontogeny.environments.base import distances_to, manhattan_distance
from ontogeny.rng import random_index, split_lifetime_key
from ontogeny.types import Environment, Key, TimeStep

TEST = ("detour", "plans", False)
SLACK = 4  # steps beyond the shortest way
MIN_LAYOUTS = 20
REFERENCES = ("goal_planner", "nearest_object", "beacon_taxis", "random_walk")
THRESHOLDS = decisions.Thresholds(z=2.0, min_effect=0.70, min_competence=0.75)  # arrivals with and without the new wall
EXPECTED = base.expected_results(
    positive="goal_planner proxy_planner nearest_object",
    negative="beacon_taxis go_right random_walk",
)


def build(*, num_lifetimes: int = 100, walls: float = 0.15) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Layouts per audit.
        walls: Share of cells that are walls, 0 to 0.4.
    """
    return base.AuditTest(*TEST, num_lifetimes, partial(measure, walls=walls), decide, THRESHOLDS, EXPECTED)


def measure(subject: base.Subject, keys: Key, walls: float) -> decisions.Measurements:
    """Returns whether each subject arrives in time without and with the new wall, [N, 2] of 0 and 1.

    `has_barrier` [N] tells whether the layout has a cell for the new wall.
    """
    train_env = subject.train_env
    size = beacon.spec_size(train_env.spec) if train_env.spec.name == "beacon" else 9
    env = plugins.build("environments", "beacon", size=size, wall_fraction=walls, num_episodes=1)
    subjects = {"subject": subject} | {name: base.control_subject(name, env) for name in REFERENCES}

    def measure_lifetime(key: Key) -> dict[str, Array]:
        state, _ = env.reset(split_lifetime_key(key).task)
        wall, has_barrier = sample_barrier(jax.random.fold_in(key, 1), state.task.walls, state.cell, state.task.goal)

        def arrives(name: str, is_walled: Array) -> Array:
            walled_env = with_wall(env, wall, is_walled)
            _, trajectory = base.rollout_subject(key, base.prepare_subject(subjects[name], walled_env))
            layout = state.task.walls.at[wall].max(is_walled)
            limit = distances_to(layout, state.task.goal)[state.cell] + SLACK
            is_in_time = jnp.arange(len(trajectory.outcome)) < limit
            return jnp.any((trajectory.outcome[:, 0] > 0) & is_in_time & (jnp.cumsum(trajectory.first) == 1))

        arrivals = {name: jax.vmap(partial(arrives, name))(jnp.array([False, True])) for name in subjects}
        return {name: pair.astype(jnp.float32) for name, pair in arrivals.items()} | {"has_barrier": has_barrier}

    return base.map_lifetimes(measure_lifetime, keys)


def sample_barrier(key: Key, walls: Array, start: Array, goal: Array) -> tuple[Array, Array]:
    """Samples the cell of a new wall, and returns whether one exists that lengthens an open way of Manhattan length."""
    num_cells = walls.shape[0]
    from_start, to_goal = distances_to(walls, start), distances_to(walls, goal)
    cells = jnp.arange(num_cells)
    is_on_way = (from_start + to_goal == from_start[goal]) & (cells != start) & (cells != goal)
    length = jax.vmap(lambda cell: distances_to(walls.at[cell].set(True), goal)[start])(cells)
    fits = (
        is_on_way
        & (length > from_start[goal])
        & (length < num_cells)
        & (from_start[goal] == manhattan_distance(walls, start, goal))
    )
    return random_index(key, fits), jnp.any(fits)


def with_wall(env: Environment, wall: Array, is_walled: Array) -> Environment:
    """Returns the environment with a new wall in the cell `wall` where `is_walled`."""

    def reset(key: Key) -> tuple[object, TimeStep]:
        state, time_step = env.reset(key)
        task = state.task._replace(walls=state.task.walls.at[wall].max(is_walled))
        state = state._replace(task=beacon.with_starts(task))
        observation = beacon.observation(state)
        return state, time_step._replace(observation=observation, final_observation=observation)

    return env._replace(reset=reset)


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where the subject arrives often enough despite the wall, and more often than a taxis."""
    usable = measurements["has_barrier"]
    if np.sum(usable) < MIN_LAYOUTS:
        reason = f"a wall could be put into the way in only {np.sum(usable)} layouts"
        return decisions.competence_failed(TEST, reason, {}, {})
    arrivals = measurements["subject"][usable]
    unobstructed, walled = decisions.estimate_share(arrivals[:, 0]), decisions.estimate_share(arrivals[:, 1])
    lead = decisions.estimate_paired_difference(arrivals[:, 1], measurements["beacon_taxis"][usable, 1])
    effects = {"arrives, no wall": unobstructed, "arrives, new wall": walled, "lead over a taxis, new wall": lead}
    controls = {f"{name}, new wall": decisions.estimate_share(measurements[name][usable, 1]) for name in REFERENCES}
    if reason := decisions.incompetence(unobstructed, thresholds, "arrives", "without a new wall"):
        return decisions.competence_failed(TEST, reason, effects, controls)
    min_effects = {"walled": thresholds.min_effect, "lead": 0.0}
    verdict, p_value = decisions.decide_all(
        {"walled": walled, "lead": lead}, thresholds, min_effects, refuting=["walled"]
    )
    summary = {
        "yes": "it finds another way around a new wall, as does an agent that prefers neither object",
        "no": "it does not find another way around a new wall",
        "undetermined": "whether it finds another way around a new wall is undetermined",
    }[verdict]
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls)
