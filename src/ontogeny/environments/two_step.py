"""The two-step task: a first choice leads to one of two places by a common or a rare transition; one place pays better.

Daw et al. 2011 (Neuron 69:1204): a second choice among two options, payout probabilities on Gaussian walks
(`rewards="drifting"`, `has_second_choice=True`, `common_probability=0.7`). Wang et al. 2018 (Nat Neurosci 21:860): no
second choice, one place pays with probability 0.9 and the other with 0.1, and they swap with probability 0.025 per
trial (`rewards="switching"`, `common_probability=0.8`). With `transitions="random"` each lifetime draws the place to
which each first action commonly leads.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments.base import first_feature, initial_time_step
from ontogeny.errors import require_at_least, require_between, require_one_of
from ontogeny.types import Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep

SWAP = 0.025  # probability per trial (Wang et al. 2018)
GOOD = 0.9  # payout probability of the better place
DRIFT = 0.025  # standard deviation per trial (Daw et al. 2011)
LOW, HIGH = 0.25, 0.75  # reflecting bounds of the walks


class TwoStepTask(NamedTuple):
    """The common transitions."""

    common_place: Array  # [2] int32, the place (0 or 1) to which each first action commonly leads


class TwoStepState(NamedTuple):
    """The state of the environment."""

    task: TwoStepTask
    probabilities: Array  # [2, 2] of a payout, by place and second action
    position: Array  # [] int32: 0 first choice, 1 and 2 the two places


class TwoStepParams(NamedTuple):
    """The settings of `build` that the dynamics need."""

    common_probability: float
    rewards: str
    has_second_choice: bool
    transitions: str


def reset(params: TwoStepParams, key: Key) -> tuple[TwoStepState, TimeStep]:
    """Draws the common transitions and the first payout probabilities."""
    path_key, reward_key = jax.random.split(key)
    is_crossed = jax.random.bernoulli(path_key) & (params.transitions == "random")
    task = TwoStepTask(jnp.where(is_crossed, jnp.array([1, 0]), jnp.array([0, 1])))
    if params.rewards == "switching":
        first_is_good = jax.random.bernoulli(reward_key)
        by_place = jnp.where(first_is_good, jnp.array([GOOD, 1 - GOOD]), jnp.array([1 - GOOD, GOOD]))
        probabilities = jnp.repeat(by_place[:, None], 2, axis=1)
    else:
        probabilities = _join_choices(params, jax.random.uniform(reward_key, (2, 2), minval=LOW, maxval=HIGH))
    state = TwoStepState(task, probabilities, jnp.int32(0))
    return state, initial_time_step(state.position, 1)


def step(params: TwoStepParams, key: Key, state: TwoStepState, action: Array) -> tuple[TwoStepState, TimeStep]:
    """The first choice leads to a place; the second step may pay and ends the trial."""
    path_key, reward_key, change_key = jax.random.split(key, 3)
    is_first_choice = state.position == 0
    common_place = state.task.common_place[action]
    is_common = jax.random.uniform(path_key) < params.common_probability
    place = jnp.where(is_common, common_place, 1 - common_place)
    probability = state.probabilities[jnp.maximum(state.position - 1, 0), action]
    is_paid = ~is_first_choice & (jax.random.uniform(reward_key) < probability)
    changed = _change_probabilities(params, change_key, state.probabilities)
    probabilities = jnp.where(is_first_choice, state.probabilities, changed)
    state = TwoStepState(state.task, probabilities, jnp.where(is_first_choice, 1 + place, 0).astype(jnp.int32))
    payout = is_paid.astype(jnp.float32)[None]
    discount = is_first_choice.astype(jnp.float32)
    return state, TimeStep(state.position, state.position, payout, ~is_first_choice, discount)


def reveal_task(params: TwoStepParams, state: TwoStepState) -> TabularTask:
    """The task as tables, with the present payout probabilities."""
    outward = jax.nn.one_hot(1 + state.task.common_place, 3) * params.common_probability
    outward += jax.nn.one_hot(2 - state.task.common_place, 3) * (1 - params.common_probability)
    back = jnp.broadcast_to(jax.nn.one_hot(0, 3), (2, 2, 3))
    payouts = jnp.concatenate([jnp.zeros((1, 2)), state.probabilities])
    return TabularTask(
        transitions=jnp.concatenate([outward[None], back]),
        outcomes=payouts[..., None],
        termination_probabilities=jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
        remaining_steps=jnp.where(state.position == 0, 2, 1),
    )


def _change_probabilities(params: TwoStepParams, key: Key, probabilities: Array) -> Array:
    """The payout probabilities after a trial: swapped now and then, or after a step of a random walk between bounds."""
    if params.rewards == "switching":
        return jnp.where(jax.random.uniform(key) < SWAP, probabilities[::-1], probabilities)
    walk = probabilities + DRIFT * jax.random.normal(key, (2, 2))
    walk = jnp.where(walk > HIGH, 2 * HIGH - walk, walk)
    return _join_choices(params, jnp.where(walk < LOW, 2 * LOW - walk, walk))


def _join_choices(params: TwoStepParams, probabilities: Array) -> Array:
    """Without a second choice both second actions pay with the same probability."""
    return probabilities if params.has_second_choice else jnp.repeat(probabilities[:, :1], 2, axis=1)


def build(
    *,
    num_trials: int = 100,
    common_probability: float = 0.8,
    rewards: str = "switching",
    has_second_choice: bool = False,
    transitions: str = "fixed",
) -> Environment:
    """Builds the environment.

    Args:
        num_trials: Trials per lifetime, at least 1; a trial has two steps.
        common_probability: Probability of the common transition, from 0 to 1.
        rewards: How the reward probabilities change: "switching" or "drifting".
        has_second_choice: Whether the two second actions pay with probabilities of their own.
        transitions: "fixed", or "random" where each lifetime draws the common transitions.
    """
    require_at_least(1, num_trials=num_trials)
    require_between(0, 1, common_probability=common_probability)
    require_one_of(("switching", "drifting"), rewards=rewards)
    require_one_of(("fixed", "random"), transitions=transitions)
    params = TwoStepParams(common_probability, rewards, has_second_choice, transitions)
    # Per step, of two in a trial: the probability of a swap; or the asymptotic gain of a Kalman filter, which is the
    # walk's standard deviation over that of a payout (1/2), for four options of which each trial shows one.
    forgetting_rate = SWAP / 2 if rewards == "switching" else DRIFT / 0.5 / 8
    spec = EnvSpec(
        name="two_step", num_actions=2, num_observations=3, observation_shape=(), outcome_features=("payout",),
        num_steps=2 * num_trials, horizon=2, drives=(("payout", 1.0),),
        prior=Prior(1.0, (FeaturePrior("bernoulli", 1.0, 1.0),), outcome_forgetting_rate=forgetting_rate),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), first_feature, partial(reveal_task, params))
