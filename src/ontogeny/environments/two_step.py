"""The two-step task: a first choice leads to one of two places by a common or a rare path, and one of them pays better.

Daw et al. 2011 (Neuron 69:1204): a second choice among two options, payout probabilities on Gaussian walks
(`rewards="drifting"`, `second_choice=True`, `common=0.7`). Wang et al. 2018 (Nat Neurosci 21:860): no second choice,
one place pays with probability 0.9 and the other with 0.1, and they swap with probability 0.025 per trial
(`rewards="switching"`, `common=0.8`). With `paths="drawn"` each life draws which first action commonly leads where.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import BadInput, Environment, EnvSpec, FeaturePrior, Key, Prior, TabularTask, TimeStep

SWAP = 0.025  # probability per trial (Wang et al. 2018)
GOOD = 0.9
DRIFT = 0.025  # standard deviation per trial (Daw et al. 2011)
LOW, HIGH = 0.25, 0.75  # reflecting bounds of the walks


class Task(NamedTuple):
    place_of: Array  # [2] int32, the place (0 or 1) to which each first action commonly leads


class State(NamedTuple):
    task: Task
    probabilities: Array  # [2, 2] of a payout, by place and second action
    position: Array  # [] int32: 0 first choice, 1 and 2 the two places


def build(
    *,
    trials: int = 100,
    common: float = 0.8,
    rewards: str = "switching",
    second_choice: bool = False,
    paths: str = "fixed",
) -> Environment:
    require_at_least(1, trials=trials)
    if not 0 <= common <= 1:
        raise BadInput(f"the setting 'common' is a probability, not {common}")
    for name, value, known in (
        ("rewards", rewards, ("switching", "drifting")),
        ("paths", paths, ("fixed", "drawn")),
    ):
        if value not in known:
            raise BadInput(f"the setting '{name}' must be one of {', '.join(known)}, not '{value}'")
    # Per step, of two in a trial: the chance of a swap; or the gain of a Kalman filter in the long run, which is the
    # walk's standard deviation over that of a payout (1/2), for each of four options that are seen one trial in four.
    lost = SWAP / 2 if rewards == "switching" else DRIFT / 0.5 / 8
    spec = EnvSpec(
        name="two_step",
        num_actions=2,
        num_observations=3,
        observation_shape=(),
        outcome_features=("payout",),
        num_steps=2 * trials,
        horizon=2,
        drives=(("payout", 1.0),),
        prior=Prior(transitions=1.0, outcome_features=(FeaturePrior("bernoulli", 1.0, 1.0),), lost=lost),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        path_key, reward_key = jax.random.split(key)
        crossed = jax.random.bernoulli(path_key) & (paths == "drawn")
        task = Task(jnp.where(crossed, jnp.array([1, 0]), jnp.array([0, 1])))
        if rewards == "switching":
            first_is_good = jax.random.bernoulli(reward_key)
            by_place = jnp.where(first_is_good, jnp.array([GOOD, 1 - GOOD]), jnp.array([1 - GOOD, GOOD]))
            probabilities = jnp.repeat(by_place[:, None], 2, axis=1)
        else:
            probabilities = one_choice(jax.random.uniform(reward_key, (2, 2), minval=LOW, maxval=HIGH))
        state = State(task, probabilities, jnp.int32(0))
        return state, TimeStep(state.position, jnp.zeros(1), jnp.bool_(True), jnp.float32(1))

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        path_key, reward_key, change_key = jax.random.split(key, 3)
        choosing = state.position == 0
        place = jnp.where(
            jax.random.uniform(path_key) < common,
            state.task.place_of[action],
            1 - state.task.place_of[action],
        )
        chance = state.probabilities[jnp.maximum(state.position - 1, 0), action]
        paid = ~choosing & (jax.random.uniform(reward_key) < chance)
        state = State(
            state.task,
            jnp.where(choosing, state.probabilities, change(change_key, state.probabilities)),
            jnp.where(choosing, 1 + place, 0).astype(jnp.int32),
        )
        payout = paid.astype(jnp.float32)[None]
        return state, TimeStep(state.position, payout, ~choosing, choosing.astype(jnp.float32))

    def change(key: Key, probabilities: Array) -> Array:
        if rewards == "switching":
            return jnp.where(jax.random.uniform(key) < SWAP, probabilities[::-1], probabilities)
        walked = probabilities + DRIFT * jax.random.normal(key, (2, 2))
        walked = jnp.where(walked > HIGH, 2 * HIGH - walked, walked)
        return one_choice(jnp.where(walked < LOW, 2 * LOW - walked, walked))

    def one_choice(probabilities: Array) -> Array:
        """Without a second choice both second actions are the same one."""
        return probabilities if second_choice else jnp.repeat(probabilities[:, :1], 2, axis=1)

    def score(outcome: Array) -> Array:
        return outcome[0]

    def reveal_task(state: State) -> TabularTask:
        lead = jax.nn.one_hot(1 + state.task.place_of, 3) * common
        lead += jax.nn.one_hot(2 - state.task.place_of, 3) * (1 - common)
        back = jnp.broadcast_to(jax.nn.one_hot(0, 3), (2, 2, 3))
        payouts = jnp.concatenate([jnp.zeros((1, 2)), state.probabilities])
        return TabularTask(
            transitions=jnp.concatenate([lead[None], back]),
            outcomes=payouts[..., None],
            ends=jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
            remaining=jnp.where(state.position == 0, 2, 1),
        )

    return Environment(spec, reset, step, score, reveal_task)
