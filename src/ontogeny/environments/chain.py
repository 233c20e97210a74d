"""A choice leads along a chain of links to a payout, and single links change out of sight of the others.

The revaluation tasks of Momennejad et al. 2017 (Nat Hum Behav 1:680) and Wimmer & Shohamy 2012, with every link drawn
per life. A trial is one choice of two, then a walk of two or three more steps that no action moves, then a payout of +1
or -1; a link crosses sides with probability `crossed`, and fails in a step with `noise`. After `trials` trials,
`exposures` show a link ALONE: a place, or for the first link an action that is forced, and where it leads; nothing
else, and no payout but for the last link. The link may have changed. Then `after` more trials: the first choice of
these shows whether what was seen apart is put together.

The training family exposes one link per life, changed in half of them. `exposed` and `changed` set it by hand, as
digits of links ("13"), or `exposed` as "pairs", two links drawn; changes of two links and chains of four are for tests.
Everything but what was changed is the same in lives of the same key: twins. A payout that is not shown is 0, and an
exposure ends as by a time limit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import BadInput, Environment, EnvSpec, FeaturePrior, Key, Prior, TimeStep

MOST_LINKS = 4  # so that an agent for one length fits the others
START, CURTAIN = 0, 2 * MOST_LINKS - 1  # observations; the two places of level l = 1, 2, 3 are 2 l - 1 and 2 l


class Task(NamedTuple):
    before: Array  # [L] int32, 0 or 1: whether a link crosses sides
    after: Array  # [L] the same from the first exposure on
    exposed: Array  # [E] int32, the links that are shown alone, one after the other
    side: Array  # [] int32, the side of the first exposure; they take turns


class State(NamedTuple):
    task: Task
    step: Array  # [] int32, steps lived
    side: Array  # [] int32, of the place where the agent is


def build(
    *,
    trials: int = 40,
    exposures: int = 12,
    after: int = 8,
    links: int = 3,
    noise: float = 0.1,
    crossed: float = 0.5,
    exposed: str = "drawn",
    changed: str = "drawn",
) -> Environment:
    require_at_least(1, trials=trials, after=after)
    require_at_least(0, exposures=exposures)
    if not 2 <= links <= MOST_LINKS:
        raise BadInput(f"the setting 'links' must lie between 2 and {MOST_LINKS}, not {links}")
    if not 0 <= noise <= 0.5:
        raise BadInput(f"the setting 'noise' must lie between 0 and 0.5, not {noise}")
    if not 0 <= crossed <= 1:
        raise BadInput(f"the setting 'crossed' is a probability, not {crossed}")
    shown, flipped = named("exposed", exposed, links), named("changed", changed, links)
    L, num_exposed = links, 2 if exposed == "pairs" else 1 if shown is None else len(shown)
    begin_exposures = trials * L
    begin_after = begin_exposures + 2 * exposures * num_exposed
    spec = EnvSpec(
        name="chain",
        num_actions=2,
        num_observations=2 * MOST_LINKS,
        observation_shape=(),
        outcome_features=("payout",),
        num_steps=begin_after + after * L,
        horizon=L,
        drives=(("payout", 1.0),),
        prior=Prior(transitions=0.1, outcome_features=(FeaturePrior("normal", 0.0, 0.6, noise=0.8),), renewed=0.35),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        map_key, link_key, change_key, side_key = jax.random.split(key, 4)
        before = jax.random.bernoulli(map_key, crossed, (L,)).astype(jnp.int32)
        links_shown = jax.random.permutation(link_key, L)[:num_exposed]
        links_shown = links_shown if shown is None else jnp.array(shown, jnp.int32)
        change = jnp.zeros(L, jnp.int32)
        if flipped is None:
            change = change.at[links_shown].set(
                jax.random.bernoulli(change_key, shape=(num_exposed,)).astype(jnp.int32)
            )
        else:
            change = change.at[jnp.array(flipped, jnp.int32)].set(1)
        task = Task(
            before,
            (before + change) % 2,
            links_shown.astype(jnp.int32),
            jax.random.bernoulli(side_key).astype(jnp.int32),
        )
        state = State(task, jnp.int32(0), jnp.int32(0))
        return state, TimeStep(observe(state), jnp.zeros(1), jnp.bool_(True), jnp.float32(1), jnp.int32(-1))

    def stage(state: State) -> tuple[Array, Array, Array]:
        """Where a life stands: whether a link is being shown, which link is walked now, which exposure this is."""
        t = state.step
        shows = (t >= begin_exposures) & (t < begin_after)
        number = (t - begin_exposures) // 2
        which = jnp.clip(number // max(exposures, 1), 0, num_exposed - 1)
        alone = state.task.exposed[which] + (t - begin_exposures) % 2
        free = jnp.where(t < begin_exposures, t, t - begin_after) % L
        return shows, jnp.where(shows, alone, free), number

    def observe(state: State) -> Array:
        _, link, _ = stage(state)
        place = jnp.where(link == 0, START, 2 * link - 1 + state.side)
        return jnp.where(link >= L, CURTAIN, place).astype(jnp.int32)

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        task = state.task
        shows, link, number = stage(state)
        ends_exposure = shows & ((state.step - begin_exposures) % 2 == 1)
        force = shows & (link == 0)
        took = jnp.where(force, state.side, action)
        side = jnp.where(link == 0, took, state.side)
        crosses = jnp.where(state.step < begin_exposures, task.before, task.after)[jnp.minimum(link, L - 1)]
        failed = (jax.random.uniform(key) < noise).astype(jnp.int32)
        to = (side + crosses + failed) % 2
        pays = (link == L - 1) & ~ends_exposure
        payout = jnp.where(pays, 2.0 * to - 1, 0.0)
        over = ends_exposure | (~shows & (link == L - 1))
        onward = State(task, state.step + 1, to.astype(jnp.int32))
        # Where an episode begins with a link that is shown alone, it begins on the side whose turn it is.
        shows_next, _, next_number = stage(onward)
        turn = (task.side + next_number) % 2
        onward = onward._replace(side=jnp.where(over & shows_next, turn, onward.side).astype(jnp.int32))
        discount = jnp.where(over & ~ends_exposure, 0.0, 1.0)
        # Further on no action matters; both are carried out in turn, so that neither keeps what it knew before.
        forced = jnp.where(force, took, jnp.where(shows, (number // 2) % 2, -1)).astype(jnp.int32)
        return onward, TimeStep(observe(onward), payout[None], over, discount, forced)

    def score(outcome: Array) -> Array:
        return outcome[0]

    return Environment(spec, reset, step, score)


def probe_step(trials: int = 40, exposures: int = 12, links: int = 3, exposed: int = 1) -> int:
    """The step at which the first choice after the exposures is made, counted from 0."""
    return trials * links + 2 * exposures * exposed


def named(setting: str, digits: str, links: int) -> tuple[int, ...] | None:
    """`"13"` -> links 0 and 2; None where they are drawn."""
    if digits == "drawn" or (digits == "pairs" and setting == "exposed"):
        return None
    text = "" if digits == "none" else digits
    other = "'pairs'" if setting == "exposed" else "'none'"
    if not all(digit.isdigit() and 1 <= int(digit) <= links for digit in text) or len(set(text)) < len(text):
        raise BadInput(
            f"the setting '{setting}' is 'drawn', {other} or digits of links from 1 to {links}, not '{digits}'"
        )
    if setting == "exposed" and not text:
        raise BadInput("the setting 'exposed' must name a link or be 'drawn'")
    return tuple(int(digit) - 1 for digit in text)
