"""Does a reward after a rare path turn the next choice? The famous regression, and who else shows what it shows.

Supporting. Daw et al. 2011 (Neuron 69:1204), Wang et al. 2018 (Nat Neurosci 21:860): whether a choice is repeated, on
reward x transition of the trial before. Plainly, and with a further regressor, whether that choice was the better one
(Akam, Costa & Dayan 2015, PLoS Comput Biol 11:e1004648): it takes away what value learners owe to the task and not to
planning, cures neither successor representation, nor reward as a cue, nor learned latent states, and takes the
interaction away from a planner that works in the background (Dyna). So simulated learners of each kind live the same
trials beside the subject. Where paths are fixed, a latent state with answers from
birth chooses exactly as a planner does; so the subject also lives with paths drawn per life, where it falls to chance.

Ordinary least squares on 0 and 1, errors clustered by lives; predictors are +-1/2, so that the coefficient of the
product is the contrast of the four stay probabilities. p regressors; N lives.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import stdtrit

from ontogeny import plugins
from ontogeny.audit.base import (
    Effect,
    Finding,
    Subject,
    Test,
    largest_p,
    lived,
    organism,
    over_lives,
    predicted,
    three_way,
    watched,
)
from ontogeny.errors import BadInput
from ontogeny.types import Environment, Key, TimeStep

BESIDE = ("td_zero", "td_one", "successor", "mimic_frozen", "mimic_learning", "planner")
PATHS = ("fixed", "drawn")
CELLS = ("rewarded common", "rewarded rare", "unrewarded common", "unrewarded rare")
PREDICTED = predicted(
    "planner successor mimic_learning reward_as_cue",
    "dyna td_zero td_lambda td_one mimic_frozen win_stay memoryless clockwork perseverator side_biased",
)


class Thresholds(NamedTuple):
    z: float = 2.33
    smallest: float = 0.05  # what the better choice leaves of a difference of differences of stay probabilities


def build(*, num_lifetimes: int = 400) -> Test:
    return Test("plans", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """Sums of products per life and by paths [N, 2, ...], of the subject and of those beside it: of the five regressors
    with one another and with staying, and trials stayed and lived by cell."""
    home = subject.home
    env = home if home.spec.name == "two_step" else plugins.build("environments", "two_step")
    assert env.reveal_task is not None

    def sums(who: Subject, key: Key, crossing: Array) -> dict[str, Array]:
        agent, steering = who.build(env)
        there = drawn(env, crossing)
        # The task is laid open to the record; whether to the agent, is as it was.
        onlooker, seen = watched(who, agent, lambda state, transition: transition.percept.revealed_task)
        if agent.privileged:
            raise BadInput("an agent to whom the task is laid open has nothing to plan from but that")
        genome = who.genome(agent, there, steering)
        _, trajectory = lived(onlooker, key, seen._replace(privileged=True), there, steering, genome)
        return trials(
            trajectory.observation, trajectory.action, jax.vmap(env.score)(trajectory.outcome), trajectory.info
        )

    subjects = {"subject": subject} | {name: organism(name, env) for name in BESIDE}

    def one(key: Key) -> dict[str, Array]:
        found = {}
        for name, who in subjects.items():
            by_paths = jax.vmap(partial(sums, who, key))(jnp.array([False, True]))
            found |= {f"{name} {part}": sum_ for part, sum_ in by_paths.items()}
        return found

    return over_lives(one, keys)


def drawn(env: Environment, crossing: Array) -> Environment:
    """The same environment in which, if so, the paths of half of the lives are crossed."""

    def reset(key: Key) -> tuple[object, TimeStep]:
        state, time_step = env.reset(key)
        crossed = crossing & jax.random.bernoulli(jax.random.fold_in(key, 1))
        places = state.task.place_of
        return state._replace(task=state.task._replace(place_of=jnp.where(crossed, 1 - places, places))), time_step

    return env._replace(reset=reset)


def trials(observation: Array, action: Array, score: Array, revealed_task) -> dict[str, Array]:
    """One life, [T] with two steps a trial and the task laid open at each, as sums over its pairs of trials."""
    choice, place = action[0::2], observation[1::2]
    paid = score[1::2] > 0.5
    leads = revealed_task.transitions[0::2, 0, :, 1:3]  # [trials, action, place]
    worth = jnp.max(revealed_task.outcomes[0::2, 1:3, :, 0], axis=-1)  # [trials, place]
    chance = jnp.take_along_axis(leads[jnp.arange(len(choice)), choice], place[:, None] - 1, axis=1)[:, 0]
    common = chance > 0.5
    values = jnp.einsum("tap,tp->ta", leads, worth)
    correct = values[jnp.arange(len(choice)), choice] - values[jnp.arange(len(choice)), 1 - choice]
    stays = (choice[1:] == choice[:-1]).astype(jnp.float32)
    r, c = paid[:-1] - 0.5, common[:-1] - 0.5
    X = jnp.stack([jnp.ones_like(r), r, c, r * c, 0.5 * jnp.sign(correct[:-1])], axis=1)
    cell = jax.nn.one_hot(2 * (1 - paid[:-1]) + (1 - common[:-1]), 4)
    return {"xx": X.T @ X, "xy": X.T @ stays, "yy": stays @ stays, "stayed": stays @ cell, "lived": jnp.sum(cell, 0)}


def regression(xx: np.ndarray, xy: np.ndarray, columns: list[int]) -> list[Effect]:
    """Coefficients from sums of products per life, [N, p, p] and [N, p], with errors clustered by lives."""
    xx, xy = xx[:, columns][:, :, columns].astype(np.float64), xy[:, columns].astype(np.float64)
    N = len(xx)
    bread = np.linalg.pinv(xx.sum(axis=0))
    coefficients = bread @ xy.sum(axis=0)
    scores = xy - xx @ coefficients
    errors = np.sqrt(np.maximum(np.diag(bread @ scores.T @ scores @ bread) * N / (N - 1), 0.0))
    half = float(stdtrit(N - 1, 0.975)) * errors
    z = np.where(errors > 1e-9, coefficients / np.maximum(errors, 1e-9), 0.0)
    return [
        Effect(float(b), float(b - h), float(b + h), float(each), N)
        for b, h, each in zip(coefficients, half, z, strict=True)
    ]


def interaction(found: Mapping[str, np.ndarray], name: str, paths: str, *, corrected: bool) -> Effect:
    """The coefficient of reward x path, of the subject or of one beside it, from what was measured."""
    p = PATHS.index(paths)
    columns = [0, 1, 2, 3, 4] if corrected else [0, 1, 2, 3]
    return regression(found[f"{name} xx"][:, p], found[f"{name} xy"][:, p], columns)[3]


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    def stays(name: str, paths: str) -> dict[str, float]:
        p = PATHS.index(paths)
        shares = found[f"{name} stayed"][:, p].sum(axis=0) / np.maximum(found[f"{name} lived"][:, p].sum(axis=0), 1)
        return {cell: float(share) for cell, share in zip(CELLS, shares, strict=True)}

    effects = {
        f"{kind}, paths {paths}": interaction(found, "subject", paths, corrected=kind == "corrected")
        for paths in PATHS
        for kind in ("plain", "corrected")
    }
    controls = {f"{name}, corrected, drawn": interaction(found, name, "drawn", corrected=True) for name in BESIDE}
    names = {"subject": "subject"} | {name: name for name in BESIDE}
    details = {"stay": {paths: {name: stays(name, paths) for name in names} for paths in PATHS}}
    fixed, drawn_ = effects["corrected, paths fixed"], effects["corrected, paths drawn"]

    def shows(part: Effect) -> bool:
        return part.z > thresholds.z and part.mean > thresholds.smallest

    verdict = three_way(shows(drawn_), {"drawn": drawn_}, {"drawn": thresholds.smallest})
    likewise = [name for name in BESIDE if name != "planner" and shows(controls[f"{name}, corrected, drawn"])]
    if verdict == "yes":
        told = "it shows the interaction of reward and path, also where paths are drawn per life"
        told += f"; so do, in the same trials, {' and '.join(likewise) or 'none'} beside it, which do not plan"
    elif verdict == "no" and shows(fixed):
        told = (
            "it shows the interaction where paths are fixed and not where they are drawn: answers fixed before its life"
        )
    elif verdict == "no":
        told = "it does not show the interaction of reward and path"
    else:
        told = "whether it shows the interaction of reward and path was not told"
    p = largest_p({"drawn": drawn_}) if verdict == "yes" else 1.0
    return Finding("two_step_regression", "plans", False, verdict, told, p, effects, controls, details=details)
