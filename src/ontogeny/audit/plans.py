"""Tests whether an agent plans: single links change, each unseen from the others, and the choice must follow.

Primary. Twin lifetimes share the task, all random keys and the exposures of single links; in one of them the exposed
link has changed. The effect of a link is the fall in how often the first choice afterwards is the action that was best
before. Every link must have an effect: learners of values, successor representations or latent states each fail one of
them, and the pattern identifies them (in `chain` 100 temporal differences, 101 successor representation, 001 latent
state, 111 model-based; Momennejad et al. 2017, Nat Hum Behav 1:680; Russek et al. 2017, PLoS Comput Biol 13:e1005768).
Its digits are 1 where an effect surely exceeds the smallest that counts, 0 where it surely lies below, and otherwise a
question mark. Effects are differences of pairs of 0 and 1, whose bounds need no approximation for many lifetimes
(`bounded`).

Two links are then exposed, and both or only the first have changed. Two changes cancel, so a planner returns to its
first choice; an agent that merely leaves an option after a surprise does not. In `chain`, no training environment
contains lifetimes with two changes. A competence check comes first: without a change, the agent must mostly choose the
best action, for its steering.

The environment in which the subject was trained offers the lifetimes (`environments.base.Revaluation`); a subject of
any other environment is tested in `chain`. In `relay`, where each state offers a choice, a link is one of a layer, and
the best action is that of the best later choices. A link of the last layer is expected where it is the best one of its
state. A successor representation of the best policy follows it, and does not follow an unexpected one that becomes the
best, which takes another later choice (policy revaluation). Letters: L links, P pairs of links.
"""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit import base, decisions
from ontogeny.environments.base import Revaluation
from ontogeny.rng import split_lifetime_key
from ontogeny.types import Key

TEST = ("plans", "plans", True)
DEFAULT_ENV = "chain"  # for subjects of environments without links that can be exposed alone
OFFER = "build_revaluation"  # by the module of an environment
CHAIN_LINKS = ("link 1", "link 2", "link 3")
PATTERNS = {  # algorithms by the names of the links and the pattern of their effects
    CHAIN_LINKS: {
        "000": "no link has an effect: whole returns or latent states",
        "100": "temporal differences",
        "101": "successor representation",
        "001": "latent state",
        "111": "model-based",
    },
    ("link 1", "link 2 (expected)", "link 2 (unexpected)"): {
        "000": "no link has an effect: whole returns",
        "100": "temporal differences",
        "110": "successor representation",
        "111": "model-based",
    },
    ("link 1", "link 2", "link 3 (expected)", "link 3 (unexpected)"): {
        "0000": "no link has an effect: whole returns",
        "1000": "temporal differences",
        "1010": "successor representation",
        "1111": "model-based",
    },
}
DIGITS = {"yes": "1", "no": "0", "undetermined": "?"}
THRESHOLDS = decisions.Thresholds(z=2.0, min_effect=0.10, min_competence=0.75)  # shares of choices
ChangeCase = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The links that are exposed, and the links that have changed in each of the two twin lifetimes."""


def build(*, num_lifetimes: int = 100, num_links: int = 3, env: str = "") -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit and condition.
        num_links: Links of the chain, L.
        env: Environment of the test; by default that of the subject if it offers the test, else `chain`.
    """
    measure_links = partial(measure, num_links=num_links, env=env)
    return base.AuditTest(*TEST, num_lifetimes, measure_links, decide, THRESHOLDS, environments=(DEFAULT_ENV, "relay"))


def measure(subject: base.Subject, keys: Key, num_links: int, env: str = "") -> decisions.Measurements:
    """Returns the arrays of `measure_lifetime` for all keys [N], and the names of the links, `links` [N, L]."""
    train_env = plugins.build("environments", env) if env else subject.train_env
    offer = base.find_offer(train_env, OFFER) or plugins.get_attribute("environments", DEFAULT_ENV, OFFER)
    revaluation = offer(train_env.spec, num_links)
    measurements = base.map_lifetimes(lambda key: measure_lifetime(key, subject, revaluation), keys)
    return measurements | {"links": np.tile(np.array(revaluation.links), (len(keys), 1))}


def measure_lifetime(key: Key, subject: base.Subject, revaluation: Revaluation) -> dict[str, Array]:
    """Returns whether the choice after the exposures is the formerly best one, 0 or 1, in all twin lifetimes.

    Args:
        key: Key that all twin lifetimes share.
        subject: The agent under audit.
        revaluation: How the environment of the test exposes and changes links.

    Returns:
        `single` [L, 2]: by exposed link, unchanged and changed. `pair` [P, 2]: by exposed pair, where the first link
        has changed and where both have.
    """
    num_links = len(revaluation.links)
    singles = [((link,), (), (link,)) for link in range(num_links)]
    pairs = [((i, j), (i,), (i, j)) for i, j in combinations(range(num_links), 2)]

    def measure_cases(cases: list[ChangeCase]) -> Array:
        """Traces one rollout for all cases with the same number of exposed links; [cases, 2]."""
        prepared = base.prepare_subject(subject, revaluation.make_env(len(cases[0][0])))
        exposed = jnp.array([links_exposed for links_exposed, _, _ in cases])
        flips = jnp.array([[is_changed(links_changed) for links_changed in twins] for _, *twins in cases], jnp.int32)
        measure_twin = partial(_chooses_former_best, key, prepared, revaluation)
        return jax.vmap(jax.vmap(measure_twin, in_axes=(0, None)))(flips, exposed)

    def is_changed(links_changed: tuple[int, ...]) -> list[bool]:
        return [link in links_changed for link in range(num_links)]

    return {"single": measure_cases(singles), "pair": measure_cases(pairs)}


def _chooses_former_best(
    key: Key, prepared: base.PreparedSubject, revaluation: Revaluation, flips: Array, exposed: Array
) -> Array:
    """Returns whether the first choice after the exposures is the action that was best before, 0 or 1."""
    env = revaluation.expose(prepared.env, prepared.steering, exposed, flips)
    initial = env.reset(split_lifetime_key(key).task)
    env = env._replace(reset=lambda key: initial)  # drawn once
    _, trajectory = base.rollout_subject(key, prepared._replace(env=env))
    return revaluation.is_former_best(initial[0], trajectory.action).astype(jnp.float32)


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where every single link and every pair of links has its effect."""
    single, pair = np.asarray(measurements["single"], float), np.asarray(measurements["pair"], float)
    L = single.shape[1]
    names = tuple(measurements["links"][0]) if "links" in measurements else tuple(f"link {i + 1}" for i in range(L))
    links = {
        name: decisions.estimate_paired_difference(single[:, link, 0], single[:, link, 1])
        for link, name in enumerate(names)
    }
    pair_names = [f"links {i.removeprefix('link ')} and {j.removeprefix('link ')}" for i, j in combinations(names, 2)]
    pairs = {
        name: decisions.estimate_paired_difference(pair[:, p, 1], pair[:, p, 0]) for p, name in enumerate(pair_names)
    }
    effects = links | pairs
    competence = decisions.estimate_share(single[:, :, 0].mean(axis=1))
    controls = {"best choice without a change": competence}
    pattern = "".join(DIGITS[decisions.decide_all({"": effect}, thresholds)[0]] for effect in links.values())
    if reason := decisions.incompetence(competence, thresholds, "makes the best choice", "without a change"):
        return decisions.competence_failed(TEST, reason, effects, controls, pattern=pattern)
    verdict, p_value = decisions.decide_all(effects, thresholds)
    algorithms = PATTERNS.get(names, {})
    algorithm = f" ({algorithms[pattern]})" if pattern in algorithms else ""
    if verdict == "yes":
        summary = "it plans: a change of any single link reverses its next choice, and two changes restore it"
    elif verdict == "no" and pattern == "1" * L:
        summary = "every single link reverses its choice, but two changes do not restore it: it avoids surprises"
    elif verdict == "no":
        summary = f"it does not plan: not every unseen change of a link reverses its choice{algorithm}"
    else:
        summary = decisions.NOT_SIGNIFICANT
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls, pattern=pattern)
