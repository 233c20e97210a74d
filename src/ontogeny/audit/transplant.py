"""Does what was learned travel with the activations? A life goes on with those of another one, in its task or not.

Supporting. A donor lives half a life, in the same task with other chance, or in another task; its activations are given
to a host at birth, whose weights are as at birth. What is learned and held in activations serves the host in the
donor's own task and not in another. The whole of the activations is moved, habits and clocks among them, which is why
the donor of another task is what it is measured against. One bit of memory for reward travels too, but is soon written
over: over a quarter of a life it stays below the smallest effect that counts, which was set so that it does (LOG.md).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.base import (
    Finding,
    Subject,
    Test,
    another_life,
    born,
    effect,
    largest_p,
    lived,
    over_lives,
    predicted,
    three_way,
    unbroken,
)
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Key, State

PREDICTED = predicted(
    "td_zero td_one planner successor dyna thompson",
    "memoryless clockwork perseverator side_biased win_stay planner_in_weights",
)


class Thresholds(NamedTuple):
    z: float = 2.33
    smallest: float = 0.10  # the effect that counts, in standard deviations of the score of one step


def build(*, num_lifetimes: int = 200) -> Test:
    return Test("learns", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """Mean scores per step [N] of hosts in the first quarter of a life, by donor, and the mean square of one step's."""
    env = unbroken(subject.home)
    agent, steering = subject.build(env)
    genome, half = subject.genome(agent, env, steering), env.spec.num_steps // 2

    def one(key: Key) -> dict[str, Array]:
        same_task = env._replace(reset=lambda _: env.reset(split_lifetime_key(key).task))
        newborn = born(key, agent, genome)

        def hosted(activations) -> Array:
            state = State(newborn.weights, activations)
            _, trajectory = lived(subject, key, agent, env, steering, state, steps=half)
            return jax.vmap(env.score)(trajectory.outcome)[: max(1, half // 2)]

        of_same, _ = lived(subject, another_life(key, 1), agent, same_task, steering, genome, steps=half)
        of_other, _ = lived(subject, another_life(key, 2), agent, env, steering, genome, steps=half)
        same, other, fresh = (hosted(state.activations) for state in (of_same, of_other, newborn))
        means = {"same": jnp.mean(same), "other": jnp.mean(other), "fresh": jnp.mean(fresh)}
        return means | {"square": jnp.mean(fresh**2)}

    return over_lives(one, keys)


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    spread = float(np.sqrt(max(found["square"].mean() - found["fresh"].mean() ** 2, 0.0)))
    smallest = thresholds.smallest * spread
    parts = {
        "of the same task, not of another": effect(found["same"] - found["other"]),
        "of the same task, not a newborn's": effect(found["same"] - found["fresh"]),
    }
    controls = {"of another task, not a newborn's": effect(found["other"] - found["fresh"])}
    passed = all(part.z > thresholds.z and part.mean > smallest for part in parts.values())
    verdict = three_way(passed, parts, dict.fromkeys(parts, smallest))
    told = {
        "yes": "what it learned travels with its activations",
        "no": "nothing that serves in its task travels with its activations",
        "undetermined": "whether what serves in its task travels with its activations was not told",
    }[verdict]
    p = largest_p(parts) if passed else 1.0
    return Finding("transplant", "learns", False, verdict, told, p, parts, controls)
