"""A choice leads along a chain of links to a payout, and single links change while only they are observed.

After the revaluation tasks of Momennejad et al. 2017 (Nat Hum Behav 1:680) and Wimmer and Shohamy 2012, with every link
drawn per lifetime. A trial is one choice of two, then two or three more steps that no action influences, then a payout
of +1 or -1. A link leads to the same or to the other side: it crosses sides with probability `crossing_probability`,
fixed for the lifetime, and fails in a step with `failure_probability`. After `num_trials` trials, `num_exposures`
exposures show a link alone: its place (for the first link, an action that is forced) and the place to which it leads;
only exposures of the last link pay. The link may have changed. Then `num_test_trials` trials follow, the first choice
of which shows whether the agent combines the changed link with the links that it knew.

In training one link per lifetime is exposed, and it has changed in half of the lifetimes. `exposed_links` and
`changed_links` set this by hand, as digits of links ("13"), or `exposed_links` as "pairs", two random links; changes of
two links and chains of four are for tests. Lifetimes of the same key differ in nothing but what was changed. An
exposure ends as by a time limit.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments.base import Revaluation, first_feature, initial_time_step
from ontogeny.errors import BadInput, require_at_least, require_between
from ontogeny.types import HIDDEN_OBSERVATION, Environment, EnvSpec, FeaturePrior, Key, Prior, Steering, TimeStep

MAX_LINKS = 4  # an agent for one length fits all others, because the observations are the same
NUM_EXPOSURES, TRIALS_BEFORE_EXPOSURES = 12, 40  # where planning is tested
START, BLANK = 0, 2 * MAX_LINKS - 1  # observations; the two places of level l = 1, 2, 3 are 2 l - 1 and 2 l


class ChainTask(NamedTuple):
    """The links, 0 or 1: whether a link crosses sides; L links, E exposed ones."""

    crosses_before: Array  # [L] int32
    crosses_after: Array  # [L] from the first exposure on
    exposed_links: Array  # [E] int32, in the order of their exposures
    first_side: Array  # [] int32, of the first exposure; the sides alternate


class ChainState(NamedTuple):
    """The state of the environment."""

    task: ChainTask
    step: Array  # [] int32, steps since the lifetime began
    side: Array  # [] int32, of the agent's place


class ChainParams(NamedTuple):
    """The settings that the dynamics need."""

    num_links: int
    num_exposed: int  # links that are exposed in a lifetime
    num_exposures: int  # of each of these
    first_exposure: int  # the step at which the exposures begin
    first_test: int  # the step at which the trials after them begin
    failure_probability: float
    crossing_probability: float
    exposed_links: tuple[int, ...] | None  # None: random
    changed_links: tuple[int, ...] | None


class Phase(NamedTuple):
    """The position of a lifetime in the sequence of trials and exposures."""

    is_exposure: Array  # [] bool
    link: Array  # [] int32, the link of this step; L or more where an exposure has shown the place behind the last link
    exposure: Array  # [] int32, the number of the exposure


def reset(params: ChainParams, key: Key) -> tuple[ChainState, TimeStep]:
    """Draws the links, the exposed ones and the changed ones."""
    map_key, link_key, change_key, side_key = jax.random.split(key, 4)
    L = params.num_links
    crosses = jax.random.bernoulli(map_key, params.crossing_probability, (L,)).astype(jnp.int32)
    exposed = jax.random.permutation(link_key, L)[: params.num_exposed]
    if params.exposed_links is not None:
        exposed = jnp.array(params.exposed_links, jnp.int32)
    # Each exposed link changes with probability 0.5, unless the setting names the links that change.
    changed, changes = exposed, jax.random.bernoulli(change_key, shape=(params.num_exposed,)).astype(jnp.int32)
    if params.changed_links is not None:
        changed, changes = jnp.array(params.changed_links, jnp.int32), jnp.int32(1)
    first_side = jax.random.bernoulli(side_key).astype(jnp.int32)
    crosses_after = (crosses + jnp.zeros(L, jnp.int32).at[changed].set(changes)) % 2
    task = ChainTask(crosses, crosses_after, exposed.astype(jnp.int32), first_side)
    state = ChainState(task, jnp.int32(0), jnp.int32(0))
    return state, initial_time_step(observation(params, state), 1)


def step(params: ChainParams, key: Key, state: ChainState, action: Array) -> tuple[ChainState, TimeStep]:
    """Follows one link; during exposures the environment forces the action."""
    task, last_link = state.task, params.num_links - 1
    is_exposure, link, exposure = phase_of(params, state)
    ends_exposure = is_exposure & ((state.step - params.first_exposure) % 2 == 1)
    chooses_side = is_exposure & (link == 0)
    chosen_side = jnp.where(chooses_side, state.side, action)
    side = jnp.where(link == 0, chosen_side, state.side)
    crosses = jnp.where(state.step < params.first_exposure, task.crosses_before, task.crosses_after)
    fails = (jax.random.uniform(key) < params.failure_probability).astype(jnp.int32)
    next_side = (side + crosses[jnp.minimum(link, last_link)] + fails) % 2
    is_paid = (link == last_link) & ~ends_exposure
    payout = jnp.where(is_paid, 2.0 * next_side - 1, 0.0)
    is_over = ends_exposure | (~is_exposure & (link == last_link))
    next_state = ChainState(task, state.step + 1, next_side.astype(jnp.int32))
    # An episode that begins with an exposure begins on the side whose turn it is.
    next_phase = phase_of(params, next_state)
    turn = (task.first_side + next_phase.exposure) % 2
    start_side = jnp.where(is_over & next_phase.is_exposure, turn, next_state.side).astype(jnp.int32)
    next_state = next_state._replace(side=start_side)
    discount = jnp.where(is_over & ~ends_exposure, 0.0, 1.0)
    # Where the action of an exposure has no effect, both actions are forced in turn, so that both values are relearned.
    alternating = jnp.where(is_exposure, (exposure // 2) % 2, -1)
    forced_action = jnp.where(chooses_side, chosen_side, alternating).astype(jnp.int32)
    emitted = observation(params, next_state)
    final_observation = jnp.where(ends_exposure, HIDDEN_OBSERVATION, emitted).astype(jnp.int32)
    return next_state, TimeStep(emitted, final_observation, payout[None], is_over, discount, forced_action)


def phase_of(params: ChainParams, state: ChainState) -> Phase:
    """The phase of the lifetime in which the next step falls."""
    t = state.step
    is_exposure = (t >= params.first_exposure) & (t < params.first_test)
    exposure = (t - params.first_exposure) // 2
    exposed_index = jnp.clip(exposure // max(params.num_exposures, 1), 0, params.num_exposed - 1)
    # An exposure has two steps: the place of the link, then the place behind it, as if the next link followed.
    exposed_link = state.task.exposed_links[exposed_index] + (t - params.first_exposure) % 2
    trial_link = jnp.where(t < params.first_exposure, t, t - params.first_test) % params.num_links
    return Phase(is_exposure, jnp.where(is_exposure, exposed_link, trial_link), exposure)


def observation(params: ChainParams, state: ChainState) -> Array:
    """The agent's place, or `BLANK` behind the last link, [] int32."""
    link = phase_of(params, state).link
    place = jnp.where(link == 0, START, 2 * link - 1 + state.side)
    return jnp.where(link >= params.num_links, BLANK, place).astype(jnp.int32)


def expose(env: Environment, steering: Steering, exposed: Array, is_changed: Array) -> Environment:
    """A chain that exposes some links and changes some.

    Args:
        env: A chain with as many exposed links.
        steering: Not read; payouts are sought.
        exposed: Numbers of the exposed links, [E] int.
        is_changed: Whether each link has changed, 0 or 1, [L] int.
    """
    del steering

    def reset_exposed(key: Key) -> tuple[ChainState, TimeStep]:
        state, time_step = env.reset(key)
        task = state.task._replace(crosses_after=(state.task.crosses_before + is_changed) % 2, exposed_links=exposed)
        return state._replace(task=task), time_step

    return env._replace(reset=reset_exposed)


def build_revaluation(train_spec: EnvSpec, num_links: int = 3) -> Revaluation:
    """How a test of planning exposes and changes single links.

    Args:
        train_spec: Of the environment in which the subject was trained, which may be another one.
        num_links: Steps of a trial, L.
    """
    del train_spec
    links = tuple(f"link {link + 1}" for link in range(num_links))
    phases = {"num_trials": TRIALS_BEFORE_EXPOSURES, "num_exposures": NUM_EXPOSURES, "num_test_trials": 1}

    def make_env(num_exposed: int) -> Environment:
        digits = "".join(str(link + 1) for link in range(num_exposed))
        return build(num_links=num_links, exposed_links=digits, changed_links="none", **phases)

    def is_former_best(state: ChainState, actions: Array) -> Array:
        return actions[-num_links] == (1 + jnp.sum(state.task.crosses_before)) % 2

    return Revaluation(links, make_env, expose, is_former_best)


def build(
    *,
    num_trials: int = 40,
    num_exposures: int = 12,
    num_test_trials: int = 8,
    num_links: int = 3,
    failure_probability: float = 0.1,
    crossing_probability: float = 0.5,
    exposed_links: str = "random",
    changed_links: str = "random",
) -> Environment:
    """Builds the environment.

    Args:
        num_trials: Trials before the exposures, at least 1.
        num_exposures: Exposures of each exposed link, at least 0.
        num_test_trials: Trials after the exposures, at least 1.
        num_links: Steps of a trial, from 2 to 4.
        failure_probability: Probability that a link leads to the other side in one step, from 0 to 0.5.
        crossing_probability: Probability that a link crosses sides, from 0 to 1.
        exposed_links: Digits of links, "random" for one random link or "pairs" for two.
        changed_links: Digits of links, "none", or "random" for each exposed link with probability 0.5.
    """
    require_at_least(1, num_trials=num_trials, num_test_trials=num_test_trials)
    require_at_least(0, num_exposures=num_exposures)
    require_between(2, MAX_LINKS, num_links=num_links)
    require_between(0, 0.5, failure_probability=failure_probability)
    require_between(0, 1, crossing_probability=crossing_probability)
    exposed = _parse_links("exposed_links", exposed_links, num_links)
    num_exposed = 2 if exposed_links == "pairs" else 1 if exposed is None else len(exposed)
    first_exposure = num_trials * num_links
    first_test = first_exposure + 2 * num_exposures * num_exposed
    params = ChainParams(
        num_links=num_links, num_exposed=num_exposed, num_exposures=num_exposures, first_exposure=first_exposure,
        first_test=first_test, failure_probability=failure_probability, crossing_probability=crossing_probability,
        exposed_links=exposed, changed_links=_parse_links("changed_links", changed_links, num_links),
    )  # fmt: skip
    spec = EnvSpec(
        name="chain", num_actions=2, num_observations=2 * MAX_LINKS, observation_shape=(),
        outcome_features=("payout",), num_steps=first_test + num_test_trials * num_links, horizon=num_links,
        drives=(("payout", 1.0),),
        prior=Prior(0.1, (FeaturePrior("normal", 0.0, 0.6, noise=0.8),), visit_forgetting_rate=0.35),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), first_feature)


def _parse_links(setting: str, text: str, num_links: int) -> tuple[int, ...] | None:
    """`"13"` -> links 0 and 2; None where the links are random."""
    if text == "random" or (text == "pairs" and setting == "exposed_links"):
        return None
    digits = "" if text == "none" else text
    other_choice = "'pairs'" if setting == "exposed_links" else "'none'"
    if not all(digit.isdigit() and 1 <= int(digit) <= num_links for digit in digits) or len(set(digits)) < len(digits):
        choices = f"'random', {other_choice} or digits of links from 1 to {num_links}"
        raise BadInput(f"the setting '{setting}' is {choices}, not '{text}'")
    if setting == "exposed_links" and not digits:
        raise BadInput("the setting 'exposed_links' must name a link or be 'random'")
    return tuple(int(digit) - 1 for digit in digits)
