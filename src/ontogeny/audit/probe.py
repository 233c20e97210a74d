"""Do its activations hold what a Bayesian would know of the arms? A linear probe, against control tasks.

Supporting. A ridge regression from activations to the posterior means of a bandit's arms, fitted on other lives, read
at every step. Control tasks after Hewitt & Liang 2019 (EMNLP, arXiv 1909.03368), made for lives: the label is what
ANOTHER life held at the same step, since steps of one life resemble each other and a clock must gain nothing.
Selectivity is what is explained of the one minus of the other. A second control for agents with a genome: the same
network with its genome before development, led through the same history, because random recurrent networks echo what
they are fed. What can be read out need not be used: only `belief` asks that.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.audit.base import (
    Finding,
    Subject,
    Test,
    another_life,
    bandit_of,
    born,
    effect,
    flat,
    largest_p,
    lived,
    other_lives,
    over_lives,
    predicted,
    three_way,
    watched,
)
from ontogeny.content import arm_counts
from ontogeny.types import Environment, Key, TimeStep

FITTED = 100  # lives
RIDGE = 1e-3  # of the mean variance of an activation
PREDICTED = predicted(
    "gittins thompson td_zero td_one planner successor dyna",
    "memoryless clockwork perseverator side_biased win_stay",
)


class Thresholds(NamedTuple):
    z: float = 2.33
    smallest: float = 0.30  # selectivity, a share of the variance


class Read(NamedTuple):
    """What one life shows at each step."""

    held: Array  # [T, D] activations
    untrained: Array  # [T, D] of the network before development; nought where there is none
    means: Array  # [T, A] of the posteriors


class Linear(NamedTuple):
    """A probe that is fitted: [T, D] -> [T, A]."""

    weights: Array  # [D, A]
    start: Array  # [D]
    goal: Array  # [A]

    def __call__(self, seen: Array) -> Array:
        return (seen - self.start) @ self.weights + self.goal


def build(*, num_lifetimes: int = 100) -> Test:
    return Test("learns", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """Squares of the labels about their mean, and what probes leave of them, [N] per life."""
    env = bandit_of(subject)
    agent, steering = subject.build(env)
    genome = subject.genome(agent, env, steering)
    arms = arm_counts.arms(env.spec, steering)
    onlooker, seen = watched(subject, agent, lambda state, transition: flat(state.activations))
    fresh = agent.genome(jax.random.key(0))
    echoes = trees.size(fresh) > 0 and not agent.learning

    def read(key: Key) -> Read:
        _, trajectory = lived(onlooker, key, seen, env, steering, genome)
        held, untrained = trajectory.info, jnp.zeros((env.spec.num_steps, 1))
        if echoes:
            led = scripted(env, trajectory.action)
            _, echo = lived(onlooker, key, seen, led, steering, born(key, agent, fresh))
            untrained = echo.info
        pulled = jax.nn.one_hot(trajectory.action, arms.num_arms)
        hits = (trajectory.reward - arms.worst) / ((arms.best - arms.worst) or 1.0)
        before = [jnp.cumsum(each, axis=0) - each for each in (pulled, pulled * hits[:, None])]
        means = jax.vmap(lambda *counts: arm_counts.mean(arms, arm_counts.Counts(*counts)))(*before)
        return Read(held, untrained, means)

    fit = over_lives(read, other_lives(keys, FITTED))
    elsewhere = np.roll(fit.means, 1, axis=0)
    probes = {
        "held": fitted(fit.held, fit.means),
        "control": fitted(fit.held, elsewhere),
        "untrained": fitted(fit.untrained, fit.means),
    }
    middle = fit.means.mean(axis=(0, 1))

    def one(key: Key, probes: dict[str, Linear]) -> dict[str, Array]:
        mine, other = read(key), read(another_life(key, 1))
        left = {
            "held": probes["held"](mine.held) - mine.means,
            "control": probes["control"](mine.held) - other.means,
            "untrained": probes["untrained"](mine.untrained) - mine.means,
        }
        squares = {"all": mine.means - middle, "all of control": other.means - middle} | left
        return {name: jnp.sum(each**2) for name, each in squares.items()}

    return over_lives(one, keys, probes) | {"echoes": np.full(len(keys), echoes)}


def scripted(env: Environment, actions: Array) -> Environment:
    """The environment in which actions [T] are carried out, whatever the agent would do."""

    def reset(key: Key) -> tuple[tuple[object, Array], TimeStep]:
        state, time_step = env.reset(key)
        return (state, jnp.int32(0)), time_step

    def step(key: Key, at: tuple[object, Array], action: Array) -> tuple[tuple[object, Array], TimeStep]:
        state, t = at
        state, time_step = env.step(key, state, actions[t])
        return (state, t + 1), time_step._replace(forced=actions[t])

    return env._replace(reset=reset, step=step)


def fitted(held: np.ndarray, labels: np.ndarray) -> Linear:
    """A ridge regression on lives, [M, T, D] -> [M, T, A]."""
    rows, targets = held.reshape(-1, held.shape[-1]).astype(np.float64), labels.reshape(-1, labels.shape[-1])
    middle, aim = rows.mean(axis=0), targets.mean(axis=0)
    rows, targets = rows - middle, targets - aim
    gram = rows.T @ rows + (RIDGE * float(np.mean(rows**2)) * len(rows) + 1e-12) * np.eye(rows.shape[1])
    weights = np.linalg.solve(gram, rows.T @ targets)
    return Linear(*(jnp.asarray(each, jnp.float32) for each in (weights, middle, aim)))


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    def explained(name: str, of: str = "all") -> np.ndarray:
        """Per life, so that the mean over lives is the share of all variance."""
        return (found[of] - found[name]) / max(found[of].mean(), 1e-9)

    held, control = explained("held"), explained("control", "all of control")
    effects = {"selectivity": effect(held - control), "explained of the posterior means": effect(held)}
    controls = {"explained of another life's": effect(control)}
    parts = {"selectivity": effects["selectivity"]}
    if found["echoes"][0]:
        untrained = explained("untrained")
        controls["explained by it before development"] = effect(untrained)
        effects["more than before development"] = effect(held - untrained)
        parts["more than before development"] = effects["more than before development"]
    selects = parts["selectivity"]
    passed = all(part.z > thresholds.z for part in parts.values()) and selects.mean > thresholds.smallest
    smallest = {"selectivity": thresholds.smallest} | dict.fromkeys(parts.keys() - {"selectivity"}, 0.0)
    verdict = three_way(passed, parts, smallest)
    if verdict == "yes":
        told = f"its activations hold {held.mean():.0%} of what a Bayesian would know of the arms, linearly"
    elif selects.high < thresholds.smallest:
        told = f"its activations hold {max(held.mean(), 0):.0%} of what a Bayesian would know of the arms, linearly"
    elif verdict == "no":
        told = "its activations hold no more of the arms than an undeveloped network's echo of the same history"
    else:
        told = "whether its activations hold more of the arms than an echo was not told"
    p = largest_p(parts) if passed else 1.0
    return Finding("probe", "learns", False, verdict, told, p, effects, controls)
