"""Does it learn in its life? Yoked rewards, wiped activations, and gains that accumulate, all in the same tasks.

Deciding. Three lives of each task: as it is; with activations restored at every episode; and yoked, where the agent is
shown the outcomes of a life in another task in place of its own (a yoked control: Church 1964, Psychological Bulletin
62:122) while its score stays its own. A learner loses by both, and its score goes on rising after the first steps.
Repeating what paid and leaving what did not is one bit of memory for reward: that loses by both as well, accumulates
nothing, and is named as that. Where weights learn they are not wiped, and only the other two parts are asked for.
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
    effect,
    largest_p,
    lived,
    over_lives,
    three_way,
    unbroken,
)
from ontogeny.rollouts import ObservationOverride
from ontogeny.types import Agent, Environment, Genome, Key, State, Steering

EARLY, LATE = (0.05, 0.2), 0.75  # shares of a life


class Thresholds(NamedTuple):
    z: float = 2.33
    smallest: float = 0.05  # the effect that counts, in standard deviations of the score of one step


def build(*, num_lifetimes: int = 600) -> Test:
    """200 lives find a gain of .05 standard deviations, the smallest that counts, in one audit of two only."""
    return Test("learns", True, num_lifetimes, measure, judge, Thresholds())


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """Mean scores per step [N] of each of the three lives, of the early and late steps of the first, and the spread."""
    env = unbroken(subject.home)
    agent, steering = subject.build(env)
    genome = subject.genome(agent, env, steering)
    found = over_lives(lambda key: three_lives(key, subject, agent, env, steering, genome), keys)
    return found | {"online": np.full(len(keys), subject.online)}


def three_lives(
    key: Key, subject: Subject, agent: Agent, env: Environment, steering: Steering, given: Genome | State
) -> dict[str, Array]:
    """What `measure` says of one task."""
    T = env.spec.num_steps
    steps = np.arange(T) / T
    early, late = (steps >= EARLY[0]) & (steps < EARLY[1]), steps >= LATE

    def scores(key: Key, **how) -> tuple[Array, Array]:
        _, trajectory = lived(subject, key, agent, env, steering, given, **how)
        return jax.vmap(env.score)(trajectory.outcome), trajectory.outcome

    # One piece of code for both: a life is most of what there is to compile.
    both, outcomes = jax.vmap(scores)(jnp.stack([key, another_life(key, 1)]))
    intact, of_another = both[0], outcomes[1]
    wiped, _ = scores(key, reset_each_episode=True)
    yoked, _ = scores(
        key, observation_override=ObservationOverride(lambda other, step: step._replace(outcome=other), of_another)
    )
    return {
        "intact": jnp.mean(intact),
        "wiped": jnp.mean(wiped),
        "yoked": jnp.mean(yoked),
        "early": jnp.mean(intact[early]),
        "late": jnp.mean(intact[late]),
        "first": intact[0],
        "next": jnp.mean(intact[1:6]),
        "square": jnp.mean(intact**2),
    }


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    online = bool(found["online"][0])
    spread = float(np.sqrt(max(found["square"].mean() - found["intact"].mean() ** 2, 0.0)))
    smallest = thresholds.smallest * spread
    effects = {
        "yoked": effect(found["intact"] - found["yoked"]),
        "wiped": effect(found["intact"] - found["wiped"]),
        "accumulates": effect(found["late"] - found["early"]),
        "from the first steps on": effect(found["next"] - found["first"]),
    }
    parts = {name: effects[name] for name in (("yoked",) if online else ("yoked", "wiped"))}
    remembers = all(part.z > thresholds.z and part.mean > smallest for part in parts.values())
    rises = effects["accumulates"].z > thresholds.z and effects["accumulates"].mean > 0
    verdict = three_way(remembers and rises, parts, dict.fromkeys(parts, smallest))
    if verdict == "yes":
        told = "it learns: rewards of another task serve it worse, and its score goes on rising"
    elif verdict == "no" and effects["yoked"].z > thresholds.z and effects["yoked"].mean > smallest:
        told = "it uses the last reward alone, which it is shown: one bit of memory, and nothing that accumulates"
    elif verdict == "no":
        told = "it does not learn: with the rewards of another task it does as well"
    elif remembers:
        told = "it has a memory for reward; that what it remembers accumulates was not seen"
    else:
        told = "not told"
    p = largest_p(parts | {"accumulates": effects["accumulates"]}) if verdict == "yes" else 1.0
    return Finding("learns", "learns", True, verdict, told, p, effects, {})
