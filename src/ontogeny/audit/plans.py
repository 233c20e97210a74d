"""Does it plan? Every link of a chain changes ALONE, out of sight of the others, and the next choice must follow.

Deciding. Twin lives on one tape: the same task, the same chance, the same exposures of single links; in one of them the
link that is shown has changed. The effect of a link is how much rarer the first choice afterwards is the one that was
best before. All links must count: learners that store values, successors or hidden states each fail one of them, and
the pattern of ones and zeros names them (100 temporal differences, 101 successor representation, 001 latent state,
111 model-based; Momennejad et al. 2017, Nat Hum Behav 1:680; Russek et al. 2017, PLoS Comput Biol 13:e1005768).

Then pairs: two links are shown, and both have changed, or the first alone. Two changes cancel, so who plans goes back
to the first choice; who has only come to leave it when something is odd does not. Lives with two changes are in no
training family. A competence gate comes first: without a change, the best choice must be made most of the time.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit.base import Effect, Finding, Subject, Test, effect, largest_p, lived, over_lives, three_way
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Environment, Key, TimeStep

PATTERNS = {
    "000": "no link counts: whole returns or hidden states",
    "100": "temporal differences",
    "101": "successor representation",
    "001": "latent state",
    "111": "model-based",
}
EXPOSURES, TRIALS = 12, 40


class Thresholds(NamedTuple):
    z: float = 2.0
    smallest: float = 0.10  # the effect that counts
    competent: float = 0.75  # share of best choices without a change


def build(*, num_lifetimes: int = 50, links: int = 3) -> Test:
    def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
        return measured(subject, keys, links)

    return Test("plans", True, num_lifetimes, measure, judge, Thresholds())


def measured(subject: Subject, keys: Key, links: int) -> Mapping[str, np.ndarray]:
    """`choices` of N lives."""
    return over_lives(lambda key: choices(key, subject, links), keys)


def choices(key: Key, subject: Subject, links: int) -> dict[str, Array]:
    """Whether the choice after the exposures is the old best one, 0 or 1, in all twin lives of one key.

    `single` [L, 2]: by the link shown, and whether it had changed. `pair` [P, 2]: by the pair shown, where the first
    had changed and where both had.
    """
    L = links
    singles = [((link,), (), (link,)) for link in range(L)]
    pairs = [((i, j), (i,), (i, j)) for i, j in combinations(range(L), 2)]

    def chosen(shown: tuple[int, ...], key: Key, flips: Array, exposed: Array) -> Array:
        env = plugins.build(
            "environments", "chain", trials=TRIALS, exposures=EXPOSURES, after=1, links=L,
            exposed="".join(str(link + 1) for link in shown), changed="none",
        )  # fmt: skip
        agent, steering = subject.build(env)
        given = subject.genome(agent, env, steering)
        env = changed(env, flips, exposed)
        state, _ = env.reset(split_lifetime_key(key).task)
        _, trajectory = lived(subject, key, agent, env, steering, given)
        best = (1 + jnp.sum(state.task.before)) % 2
        return (trajectory.action[-L] == best).astype(jnp.float32)

    def over(cases: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], key: Key) -> Array:
        """All cases of one number of links shown, [cases, 2], in one piece of code."""
        exposed = jnp.array([shown for shown, _, _ in cases])
        flips = jnp.array([[[link in case for link in range(L)] for case in others] for _, *others in cases], jnp.int32)
        shown = cases[0][0]
        return jax.vmap(lambda e, f: jax.vmap(lambda one: chosen(shown, key, one, e))(f))(exposed, flips)

    return {"single": over(singles, key), "pair": over(pairs, key)}


def changed(env: Environment, flips: Array, exposed: Array) -> Environment:
    """The chain in which these links [E] are shown and those with a 1 in `flips` [L] have changed."""

    def reset(key: Key) -> tuple[object, TimeStep]:
        state, time_step = env.reset(key)
        task = state.task._replace(after=(state.task.before + flips) % 2, exposed=exposed)
        return state._replace(task=task), time_step

    return env._replace(reset=reset)


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    single, pair = np.asarray(found["single"], float), np.asarray(found["pair"], float)
    L = single.shape[1]
    links = {f"link {link + 1}": effect(single[:, link, 0] - single[:, link, 1]) for link in range(L)}
    names = [f"links {i + 1} and {j + 1}" for i, j in combinations(range(L), 2)]
    pairs = {name: effect(pair[:, p, 1] - pair[:, p, 0]) for p, name in enumerate(names)}
    competence = effect(single[:, :, 0].mean(axis=1))

    def counts(part: Effect) -> bool:
        return part.z > thresholds.z and part.mean > thresholds.smallest

    pattern = "".join("1" if counts(part) else "0" for part in links.values())
    like = PATTERNS.get(pattern, "") if L == 3 else ""
    controls = {"best choice without a change": competence}
    parts = links | pairs
    if competence.low <= thresholds.competent and competence.mean <= thresholds.competent:
        gate = f"it makes the best choice in {competence.mean:.0%} of lives without a change: too few to ask more of it"
        return Finding("plans", "plans", True, "undetermined", gate, 1.0, parts, controls, gate, pattern)
    passed = all(counts(part) for part in parts.values())
    verdict = three_way(passed, parts, dict.fromkeys(parts, thresholds.smallest))
    if verdict == "yes":
        told = "it plans: a change of any single link, seen apart, turns its next choice, and two changes turn it back"
    elif pattern == "1" * L:
        told = "every single link turns its choice, but two changes do not turn it back: it leaves what is odd"
    elif verdict == "no":
        told = f"it does not plan: not every link that changed out of sight turns its choice{like and f' ({like})'}"
    else:
        told = "not told"
    p = largest_p(parts) if passed else 1.0
    return Finding("plans", "plans", True, verdict, told, p, parts, controls, "", pattern)
