"""Is it the belief it holds that it acts on? The belief alone is exchanged between twins; the choice must follow.

Supporting, and the only test that looks inside: what "mechanism shown" rests on. Twin lives of the chain as in `plans`:
one tape, one link shown alone, which has changed in the donor and not in the host. Before the next choice the host is
given the donor's activations, but only within the belief subspace: the directions in which activations differ, on OTHER
lives, with which way each single link leads (linear regression on the links, nothing but main effects, so that values
of whole ways do not enter). Weights are frozen, the percept is the host's own. The control is an exchange of equal norm
within a random subspace of equal size, orthogonal to the belief, in which each number weighs by its spread over other
lives; and beside it the exchange of everything but the belief. Interchange interventions: Geiger et al. 2021 (NeurIPS,
arXiv 2106.02997).

The dose is the share of the way from host to donor. What counts is how often the choice is the donor's best. Every link
must count. An agent that works its plans out beforehand (Dyna) plans and fails: what it holds of the links does not act
when it chooses. D numbers, L links, K doses.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit.base import (
    Effect,
    Finding,
    Subject,
    Test,
    effect,
    largest_p,
    lived,
    other_lives,
    over_lives,
    predicted,
    three_way,
)
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Key, Percept, PyTree, State

LINKS, EXPOSURES, TRIALS = 3, 12, 40
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)
FITTED = 256  # lives
OTHERS = 64  # random subspaces, drawn among lives
DRAWS = 8  # choices from one state, for agents that choose by chance
PREDICTED = predicted(
    "planner",
    "dyna td_zero td_lambda td_one successor mimic_learning mimic_frozen reward_as_cue win_stay "
    "memoryless clockwork perseverator planner_in_weights",
)


class Thresholds(NamedTuple):
    z: float = 2.33
    smallest: float = 0.10  # how much more often the choice is the donor's, beyond the random subspace
    competent: float = 0.75  # share of best choices of a host that is left alone


class Moment(NamedTuple):
    """A life before the choice that follows the exposures."""

    state: State
    percept: Percept
    links: Array  # [L] 1 or -1, whether each crosses
    best: Array  # [] int32


def build(*, num_lifetimes: int = 100) -> Test:
    return Test("mechanism", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """How often the choice is the donor's best: `belief` and `random` [N, L, K] by dose, `whole` and `rest` [N, L]."""
    env = plugins.build(
        "environments", "chain", trials=TRIALS, exposures=EXPOSURES, after=1, exposed="1", changed="none"
    )
    changed = plugins.attribute("audit", "plans", "changed")
    agent, steering = subject.build(env)
    genome = subject.genome(agent, env, steering)

    def before_choice(key: Key, flips: Array, link: Array) -> Moment:
        there = changed(env, flips, link[None])
        task = there.reset(split_lifetime_key(key).task)[0].task
        steps = env.spec.num_steps - LINKS
        state, trajectory = lived(subject, key, agent, there, steering, genome, steps=steps)
        percept = Percept(
            jnp.zeros_like(trajectory.observation[-1]), trajectory.action[-1], trajectory.reward[-1], trajectory.outcome[-1], jnp.bool_(True),
            trajectory.discount[-1],
        )  # fmt: skip
        return Moment(state, percept, 1.0 - 2 * task.after, (1 + jnp.sum(task.after)) % 2)

    def at_random(key: Key) -> tuple[Array, Array]:
        link_key, flip_key = jax.random.split(jax.random.fold_in(key, 1))
        link = jax.random.randint(link_key, (), 0, LINKS)
        flips = jax.nn.one_hot(link, LINKS, dtype=jnp.int32) * jax.random.bernoulli(flip_key).astype(jnp.int32)
        moment = before_choice(key, flips, link)
        return reals(moment.state.activations), moment.links

    held, links = over_lives(at_random, other_lives(keys, FITTED))
    subspace = encoding(held, links)
    given = [jnp.asarray(each, jnp.float32) for each in (subspace, random_subspaces(subspace, held.std(axis=0)))]

    def of_link(key: Key, subspace: Array, others: Array, link: Array) -> dict[str, Array]:
        flip = jax.nn.one_hot(link, LINKS, dtype=jnp.int32)
        host, donor = before_choice(key, 0 * flip, link), before_choice(key, flip, link)
        mine = reals(host.state.activations)
        between = reals(donor.state.activations) - mine
        change = subspace @ (subspace.T @ between)
        other = others[jax.random.randint(jax.random.fold_in(key, 2), (), 0, OTHERS)]
        control = other @ (other.T @ between)
        control = control * jnp.linalg.norm(change) / jnp.maximum(jnp.linalg.norm(control), 1e-9)

        def follows(activations: PyTree) -> Array:
            """How often the choice is the donor's best."""
            state = State(host.state.weights, activations)
            draws = jax.random.split(jax.random.fold_in(key, 3), DRAWS)
            actions = jax.vmap(lambda draw: agent.act(draw, state, host.percept)[0])(draws)
            return jnp.mean(actions == donor.best)

        def swapped(way: Array, dose: Array | float) -> Array:
            return follows(with_reals(host.state.activations, mine + dose * way))

        doses = jnp.array(DOSES)
        return {
            "belief": jax.vmap(partial(swapped, change))(doses),
            "random": jax.vmap(partial(swapped, control))(doses),
            "rest": swapped(between - change, 1.0),
            "whole": follows(donor.state.activations),
        }

    def of_all(key: Key, subspace: Array, others: Array) -> dict[str, Array]:
        return jax.vmap(partial(of_link, key, subspace, others))(jnp.arange(LINKS))

    return over_lives(of_all, keys, *given)


def encoding(held: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Orthonormal directions [D, k] in which activations [M, D] differ with the links [M, L]: main effects alone."""
    X = np.concatenate([np.ones((len(links), 1)), links], axis=1)
    main = np.linalg.lstsq(X, held.astype(np.float64), rcond=None)[0][1:]  # [L, D]
    _, sizes, directions = np.linalg.svd(main, full_matrices=False)
    return directions[sizes > 1e-6].T


def random_subspaces(subspace: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """`OTHERS` times as many orthonormal directions [D, k], orthogonal to the subspace; a number that never changes has
    no part in them."""
    drawn = np.random.default_rng(0).normal(size=(OTHERS, *subspace.shape)) * spread[:, None]
    return np.linalg.qr(drawn - subspace @ (subspace.T @ drawn))[0]


def reals(activations: PyTree) -> Array:
    """A nought and the real numbers that activations hold, [D]; places, clocks and flags are not among them."""
    leaves = [leaf for leaf in jax.tree.leaves(activations) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros(1), *(jnp.ravel(leaf) for leaf in leaves)])


def with_reals(activations: PyTree, values: Array) -> PyTree:
    """The same activations with these real numbers [D]."""
    leaves, structure = jax.tree.flatten(activations)
    at, put = 1, []
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            put.append(values[at : at + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            at += leaf.size
        else:
            put.append(leaf)
    return jax.tree.unflatten(structure, put)


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    belief, random = np.asarray(found["belief"], float), np.asarray(found["random"], float)
    L = belief.shape[1]
    links = {f"link {link + 1}": effect(belief[:, link, -1] - random[:, link, -1]) for link in range(L)}
    curve = {"belief": risen(belief), "random": risen(random)}
    effects = links | {f"belief, dose {dose:g}": part for dose, part in zip(DOSES, curve["belief"], strict=True)}
    controls = {f"random, dose {dose:g}": part for dose, part in zip(DOSES, curve["random"], strict=True)}
    left_alone = belief[:, :, 0]
    controls |= {
        "all but the belief": effect((found["rest"] - left_alone).mean(axis=1)),
        "all activations": effect((found["whole"] - left_alone).mean(axis=1)),
        "host's best choice, left alone": effect(1 - left_alone.mean(axis=1)),
    }
    details: dict[str, Any] = {"doses": DOSES, **curve}

    def told(verdict: str, words: str, gate: str = "", p: float = 1.0) -> Finding:
        return Finding("belief", "mechanism", False, verdict, words, p, effects, controls, gate, details=details)

    competence = controls["host's best choice, left alone"]
    if competence.low <= thresholds.competent and competence.mean <= thresholds.competent:
        gate = f"it makes the best choice in {competence.mean:.0%} of lives without a change: too few to ask more of it"
        return told("undetermined", gate, gate)
    passed = all(part.z > thresholds.z and part.mean > thresholds.smallest for part in links.values())
    if passed:
        words = (
            "what it believes of single links is held along a few directions of its activations, and its choice follows"
        )
        return told("yes", words, p=largest_p(links))
    whole = {f"link {i + 1}": effect(found["whole"][:, i] - left_alone[:, i]) for i in range(L)}
    if three_way(False, whole, dict.fromkeys(whole, thresholds.smallest)) == "no":
        return told("no", "not even all of the donor's activations turn its choice for every link")
    if three_way(False, links, dict.fromkeys(links, thresholds.smallest)) == "no":
        return told("undetermined", "its activations turn its choice, but not along the directions of single links")
    return told("undetermined", "not told")


def risen(follows: np.ndarray) -> list[Effect]:
    """[N, L, K] -> by dose, how much more often than without a dose, over links."""
    return [effect((follows[:, :, k] - follows[:, :, 0]).mean(axis=1)) for k in range(follows.shape[2])]
