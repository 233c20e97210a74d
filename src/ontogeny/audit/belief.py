"""Tests whether an agent's beliefs cause its choices: the belief alone is exchanged between twin lifetimes.

Secondary, and the only test of mechanism. Twin lifetimes of the chain, as in the test `plans`, share all random keys
and expose one link, which has changed in the donor and not in the host. Before the next choice the host receives the
donor's activations, but only within the belief subspace: the directions in which activations of OTHER lifetimes vary
with the direction of each single link (linear regression on the links, main effects alone, so that values of whole ways
do not enter). Weights are frozen, and the percept is the host's own. The control exchanges activations of equal norm
within a random subspace of equal dimension, orthogonal to the belief, in which each number is weighted by its spread
over other lifetimes; another control exchanges everything but the belief. Interchange interventions: Geiger et al. 2021
(NeurIPS, arXiv 2106.02997).

The dose is the share of the way from host to donor. The effect is how often the choice is the donor's best action, and
every link must have one. An agent that computes its plans in advance (Dyna) plans and fails this test: its beliefs
about links do not act when it chooses. Letters: D numbers of activations, L links, K doses, k directions.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit import base, decisions
from ontogeny.environments import chain
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Key, Percept, PyTree, State

TEST = ("belief", "mechanism", False)
NUM_LINKS = 3
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_FIT_LIFETIMES = 256
NUM_RANDOM_SUBSPACES = 64
NUM_CHOICES = 8  # from one state, for agents with stochastic choices
THRESHOLDS = decisions.Thresholds(z=2.33, min_effect=0.10, min_competence=0.75)  # shares of choices
EXPECTED = base.expected_results(
    positive="planner",
    negative="dyna td_zero td_lambda td_one successor latent_state_learner latent_state_fixed reward_as_cue win_stay "
    "memoryless open_loop perseverator planner_in_weights",
)


class ChoicePoint(NamedTuple):
    """A lifetime before the choice that follows the exposures."""

    state: State
    percept: Percept
    links: Array  # [L] 1 or -1, whether each link crosses
    best: Array  # [] int32, the best action


def build(*, num_lifetimes: int = 100) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Pairs of twin lifetimes per audit and link.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS, EXPECTED)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns how often the choice is the donor's best: `belief`, `random` [N, L, K] by dose, `all`, `rest` [N, L]."""
    revaluation = chain.build_revaluation(subject.train_env.spec, NUM_LINKS)
    prepared = base.prepare_subject(subject, revaluation.make_env(1))
    activations, links = base.map_lifetimes(
        partial(_random_choice_point, prepared), base.unrelated_keys(keys, NUM_FIT_LIFETIMES)
    )
    subspace = belief_subspace(activations, links)
    random = random_subspaces(subspace, activations.std(axis=0))

    def measure_lifetime(key: Key, subspace: Array, random: Array) -> dict[str, Array]:
        return jax.vmap(partial(_measure_link, prepared, key, subspace, random))(jnp.arange(NUM_LINKS))

    return base.map_lifetimes(
        measure_lifetime, keys, jnp.asarray(subspace, jnp.float32), jnp.asarray(random, jnp.float32)
    )


def _rollout_to_choice(prepared: base.PreparedSubject, key: Key, flips: Array, link: Array) -> ChoicePoint:
    """Runs a lifetime that exposes one link up to the choice after the exposures."""
    env = chain.expose(prepared.env, prepared.steering, link[None], flips)
    task = env.reset(split_lifetime_key(key).task)[0].task
    state, trajectory = base.rollout_subject(key, prepared._replace(env=env), num_steps=env.spec.num_steps - NUM_LINKS)
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    start = jnp.zeros_like(last.observation)
    percept = Percept(start, last.action, last.reward, last.outcome, jnp.bool_(True), last.discount)
    links = 1.0 - 2 * task.crosses_after
    best = (1 + jnp.sum(task.crosses_after)) % 2  # each crossed link swaps the sides, and side 1 pays
    return ChoicePoint(state, percept, links, best)


def _random_choice_point(prepared: base.PreparedSubject, key: Key) -> tuple[Array, Array]:
    """Returns activations [D] and links [L] of a lifetime in which a random link is exposed and may have changed."""
    link_key, flip_key = jax.random.split(jax.random.fold_in(key, 1))
    link = jax.random.randint(link_key, (), 0, NUM_LINKS)
    flips = jax.nn.one_hot(link, NUM_LINKS, dtype=jnp.int32) * jax.random.bernoulli(flip_key).astype(jnp.int32)
    point = _rollout_to_choice(prepared, key, flips, link)
    return real_activations(point.state.activations), point.links


def _measure_link(
    prepared: base.PreparedSubject, key: Key, subspace: Array, random: Array, link: Array
) -> dict[str, Array]:
    """Exchanges activations between the twins of one exposed link.

    Args:
        prepared: The subject in the chain.
        key: Key of both twins.
        subspace: Belief subspace [D, k].
        random: Random subspaces [`NUM_RANDOM_SUBSPACES`, D, k].
        link: Index of the exposed link, [] int32.
    """
    flip = jax.nn.one_hot(link, NUM_LINKS, dtype=jnp.int32)
    host, donor = (_rollout_to_choice(prepared, key, flips, link) for flips in (0 * flip, flip))
    start = real_activations(host.state.activations)
    difference = real_activations(donor.state.activations) - start
    change = subspace @ (subspace.T @ difference)
    random_subspace = random[jax.random.randint(jax.random.fold_in(key, 2), (), 0, NUM_RANDOM_SUBSPACES)]
    control = random_subspace @ (random_subspace.T @ difference)
    control = control * jnp.linalg.norm(change) / jnp.maximum(jnp.linalg.norm(control), 1e-9)

    def follows(activations: PyTree) -> Array:
        """Returns how often the host's choice is the donor's best action."""
        state = State(host.state.weights, activations)
        keys = jax.random.split(jax.random.fold_in(key, 3), NUM_CHOICES)
        actions = jax.vmap(lambda choice_key: prepared.agent.act(choice_key, state, host.percept)[0])(keys)
        return jnp.mean(actions == donor.best)

    def follows_after(direction: Array, dose: Array | float) -> Array:
        return follows(with_real_activations(host.state.activations, start + dose * direction))

    doses = jnp.array(DOSES)
    return {
        "belief": jax.vmap(partial(follows_after, change))(doses),
        "random": jax.vmap(partial(follows_after, control))(doses),
        "rest": follows_after(difference - change, 1.0),
        "all": follows(donor.state.activations),
    }


def belief_subspace(activations: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Returns orthonormal directions [D, k] in which activations [M, D] vary with links [M, L]: main effects alone."""
    X = np.concatenate([np.ones((len(links), 1)), links], axis=1)
    main_effects = np.linalg.lstsq(X, activations.astype(np.float64), rcond=None)[0][1:]  # [L, D]
    _, singular_values, directions = np.linalg.svd(main_effects, full_matrices=False)
    return directions[singular_values > 1e-6].T  # without the directions that are zero up to rounding


def random_subspaces(subspace: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Samples subspaces of the same dimension that are orthogonal to the given one.

    Args:
        subspace: Orthonormal directions [D, k].
        spread: Standard deviations of the activations [D]; a constant number takes no part in any subspace.

    Returns:
        Orthonormal directions [`NUM_RANDOM_SUBSPACES`, D, k].
    """
    samples = np.random.default_rng(0).normal(size=(NUM_RANDOM_SUBSPACES, *subspace.shape)) * spread[:, None]
    return np.linalg.qr(samples - subspace @ (subspace.T @ samples))[0]


def real_activations(activations: PyTree) -> Array:
    """Returns a zero followed by the real numbers of the activations, [D]; clocks, indices and flags are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(activations) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros(1), *(jnp.ravel(leaf) for leaf in leaves)])


def with_real_activations(activations: PyTree, values: Array) -> PyTree:
    """Returns the activations with their real numbers replaced by values [D]."""
    leaves, structure = jax.tree.flatten(activations)
    start, replaced = 1, []
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            replaced.append(values[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            start += leaf.size
        else:
            replaced.append(leaf)
    return jax.tree.unflatten(structure, replaced)


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where the belief moves the choice more than a random subspace does, for every link."""
    belief, random = np.asarray(measurements["belief"], float), np.asarray(measurements["random"], float)
    L, undisturbed = belief.shape[1], belief[:, :, 0]
    links = {
        f"link {link + 1}": decisions.estimate_paired_difference(belief[:, link, -1], random[:, link, -1])
        for link in range(L)
    }
    at_rest = undisturbed.mean(axis=1)
    curves = {"belief": _dose_curve(belief), "random": _dose_curve(random)}
    effects = links | {f"belief, dose {dose:g}": part for dose, part in zip(DOSES, curves["belief"], strict=True)}
    competence = decisions.estimate_share(1 - undisturbed.mean(axis=1))
    controls = {f"random, dose {dose:g}": part for dose, part in zip(DOSES, curves["random"], strict=True)}
    controls |= {
        "all but the belief": decisions.estimate_paired_difference(measurements["rest"].mean(axis=1), at_rest),
        "all activations": decisions.estimate_paired_difference(measurements["all"].mean(axis=1), at_rest),
        "host's best choice, undisturbed": competence,
    }
    details = {"doses": DOSES, **curves}
    if reason := decisions.incompetence(competence, thresholds, "makes the best choice", "without a change"):
        return decisions.competence_failed(TEST, reason, effects, controls, details=details)
    shift = {
        f"link {link + 1}": decisions.estimate_paired_difference(measurements["all"][:, link], undisturbed[:, link])
        for link in range(L)
    }
    verdict, p_value = decisions.decide_all(links, thresholds)
    if verdict == "yes":
        summary = "a few directions of its activations hold its beliefs about single links, and its choice follows them"
    elif decisions.decide_all(shift, thresholds)[0] == "no":
        verdict, summary = "no", "not even all of the donor's activations change its choice for every link"
    elif verdict == "no":
        verdict = "undetermined"
        summary = "its activations change its choice, but not along the directions of single links"
    else:
        summary = decisions.NOT_SIGNIFICANT
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls, details=details)


def _dose_curve(follows: np.ndarray) -> list[decisions.Effect]:
    """[N, L, K] -> by dose, how much more often the choice is the donor's than without a dose, over links."""
    return [
        decisions.estimate_paired_difference(follows[:, :, k].mean(axis=1), follows[:, :, 0].mean(axis=1))
        for k in range(follows.shape[2])
    ]
