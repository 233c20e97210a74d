"""Tests whether an agent plans: each link of a chain changes alone, unseen from the others, and the choice must follow.

Primary. Twin lifetimes share the task, all random keys and the exposures of single links; in one of them the exposed
link has changed. The effect of a link is the fall in how often the first choice afterwards is the action that was best
before. Every link must have an effect: learners of values, successor representations or latent states each fail one of
them, and the pattern identifies them (100 temporal differences, 101 successor representation, 001 latent state, 111
model-based; Momennejad et al. 2017, Nat Hum Behav 1:680; Russek et al. 2017, PLoS Comput Biol 13:e1005768). Its digits
are 1 where an effect surely exceeds the smallest that counts, 0 where it surely lies below, and otherwise a question
mark. Effects are differences of pairs of 0 and 1, whose bounds need no approximation for many lifetimes (`bounded`).

Two links are then exposed, and both or only the first have changed. Two changes cancel, so a planner returns to its
first choice; an agent that merely leaves an option after a surprise does not. No training environment contains
lifetimes with two changes. A competence check comes first: without a change, the agent must mostly choose the best
action. Letters: L links, P pairs of links.
"""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit import base, decisions
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Environment, Key

TEST = ("plans", "plans", True)
PATTERNS = {
    "000": "no link has an effect: whole returns or latent states",
    "100": "temporal differences",
    "101": "successor representation",
    "001": "latent state",
    "111": "model-based",
}
DIGITS = {"yes": "1", "no": "0", "undetermined": "?"}
THRESHOLDS = decisions.Thresholds(z=2.0, min_effect=0.10, min_competence=0.75)  # shares of choices
ChangeCase = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The links that are exposed, and the links that have changed in each of the two twin lifetimes."""


def build(*, num_lifetimes: int = 100, num_links: int = 3) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit and condition.
        num_links: Links of the chain, L.
    """
    return base.AuditTest(
        *TEST, num_lifetimes, partial(measure, num_links=num_links), decide, THRESHOLDS, environments=("chain",)
    )


def measure(subject: base.Subject, keys: Key, num_links: int) -> decisions.Measurements:
    """Returns the arrays of `measure_lifetime` for all keys [N]."""
    return base.map_lifetimes(lambda key: measure_lifetime(key, subject, num_links), keys)


def measure_lifetime(key: Key, subject: base.Subject, num_links: int) -> dict[str, Array]:
    """Returns whether the choice after the exposures is the formerly best one, 0 or 1, in all twin lifetimes.

    Args:
        key: Key that all twin lifetimes share.
        subject: The agent under audit.
        num_links: Links of the chain, L.

    Returns:
        `single` [L, 2]: by exposed link, unchanged and changed. `pair` [P, 2]: by exposed pair, where the first link
        has changed and where both have.
    """
    singles = [((link,), (), (link,)) for link in range(num_links)]
    pairs = [((i, j), (i,), (i, j)) for i, j in combinations(range(num_links), 2)]

    def measure_cases(cases: list[ChangeCase]) -> Array:
        """Traces one rollout for all cases with the same number of exposed links; [cases, 2]."""
        env = base.exposing_chain(cases[0][0], num_links)
        exposed = jnp.array([links_exposed for links_exposed, _, _ in cases])
        flips = jnp.array([[is_changed(links_changed) for links_changed in twins] for _, *twins in cases], jnp.int32)
        measure_twin = partial(_chooses_former_best, key, subject, env)
        return jax.vmap(jax.vmap(measure_twin, in_axes=(0, None)))(flips, exposed)

    def is_changed(links_changed: tuple[int, ...]) -> list[bool]:
        return [link in links_changed for link in range(num_links)]

    return {"single": measure_cases(singles), "pair": measure_cases(pairs)}


def _chooses_former_best(key: Key, subject: base.Subject, env: Environment, flips: Array, exposed: Array) -> Array:
    """Returns whether the first choice after the exposures is the action that was best before, 0 or 1."""
    prepared = base.prepare_subject(subject, env)
    env = base.with_changed_links(env, flips, exposed)
    state, _ = env.reset(split_lifetime_key(key).task)
    _, trajectory = base.rollout_subject(key, prepared._replace(env=env))
    best = (1 + jnp.sum(state.task.crosses_before)) % 2
    return (trajectory.action[-len(flips)] == best).astype(jnp.float32)


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where every single link and every pair of links has its effect."""
    single, pair = np.asarray(measurements["single"], float), np.asarray(measurements["pair"], float)
    L = single.shape[1]
    links = {
        f"link {link + 1}": decisions.estimate_paired_difference(single[:, link, 0], single[:, link, 1])
        for link in range(L)
    }
    names = [f"links {i + 1} and {j + 1}" for i, j in combinations(range(L), 2)]
    pairs = {name: decisions.estimate_paired_difference(pair[:, p, 1], pair[:, p, 0]) for p, name in enumerate(names)}
    effects = links | pairs
    competence = decisions.estimate_share(single[:, :, 0].mean(axis=1))
    controls = {"best choice without a change": competence}
    pattern = "".join(DIGITS[decisions.decide_all({"": effect}, thresholds)[0]] for effect in links.values())
    if reason := decisions.incompetence(competence, thresholds, "makes the best choice", "without a change"):
        return decisions.competence_failed(TEST, reason, effects, controls, pattern=pattern)
    verdict, p_value = decisions.decide_all(effects, thresholds)
    algorithm = f" ({PATTERNS[pattern]})" if L == 3 and pattern in PATTERNS else ""
    if verdict == "yes":
        summary = "it plans: a change of any single link reverses its next choice, and two changes restore it"
    elif verdict == "no" and pattern == "1" * L:
        summary = "every single link reverses its choice, but two changes do not restore it: it avoids surprises"
    elif verdict == "no":
        summary = f"it does not plan: not every unseen change of a link reverses its choice{algorithm}"
    else:
        summary = decisions.NOT_SIGNIFICANT
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls, pattern=pattern)
