"""Tests whether an agent learns within its lifetime: whether the outcomes of earlier episodes raise its score.

Primary. Two copies of the subject, with the same random keys, are forced to take the same actions in two tasks A and B,
those that the subject itself chose in A; the copies differ in nothing but what they observe. Both then observe the same
last episode, and both act freely for one episode in the same task with the same random keys. The effect is the score
of the copy that met this task before minus that of the copy that met the other one. It is averaged over the four cases
in which the last episode, and the episode in which they act, are from A or from B.

An agent that remembers nothing but the last outcome (win-stay lose-shift), repeats itself, follows a clock or has no
memory acts exactly alike in both copies. An agent that has learned acts better after the history of the present task,
however early the learning was completed. The effect of the last episode, which was exchanged independently, is reported
beside it: it shows a memory of one outcome. Exchanged histories are yoked controls (Church 1964, Psychological
Bulletin 62:122). Letters: H steps of history, L steps of an episode, K free episodes per case.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit import base, decisions
from ontogeny.rng import StepKeys, split_lifetime_key, split_step_keys
from ontogeny.rollouts import Carry, begin_lifetime, initial_carry, perceive, rollout_step
from ontogeny.types import Environment, EnvState, Key, PyTree, TimeStep, Trajectory

TEST = ("learns", "learns", True)
COPIES = "copies"  # name of the axis of copies
EARLIER, LAST = "outcomes of earlier episodes", "outcomes of the last episode"
ENVIRONMENTS = ("bandit", "chain", "two_step", "random_mdp", "foraging", "stream", "beacon", "relay")
THRESHOLDS = decisions.Thresholds(z=2.33, min_effect=0.02)  # in standard deviations of the score of an episode
MIN_SPREAD = 1e-9  # stands for that of a score that never varies


class EpisodeStart(NamedTuple):
    """A task where an episode begins."""

    env_state: EnvState
    time_step: TimeStep  # with the outcome of the last step of the episode before


def build(*, num_lifetimes: int = 400) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Pairs of tasks per audit.
    """
    expected = base.expected_results(positive="q_learning", negative="random")
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS, expected, ENVIRONMENTS)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns the arrays of `measure_lifetime` for all keys [N]."""
    return base.map_lifetimes(_measure_one(subject), keys)


@lru_cache(maxsize=256)
def _measure_one(subject: base.Subject) -> Callable[[Key], dict[str, Array]]:
    """`measure_lifetime` of a subject, the same function at each call, so that it is compiled once."""
    limited_env = base.learning_env(subject.train_env)
    env = base.without_early_end(limited_env)  # the free episodes come after the last one of a limited lifetime
    prepared = base.prepare_subject(subject, env)
    return partial(measure_lifetime, prepared=prepared, counts_one_episode=env is not limited_env)


def measure_lifetime(key: Key, prepared: base.PreparedSubject, *, counts_one_episode: bool = False) -> dict[str, Array]:
    """Returns both effects on the mean score of a step, and mean and mean square of this score in free episodes.

    Args:
        key: Of the subject and of task A; task B has another key. In shapes, C are copies of the subject.
        prepared: The subject, built for the environment.
        counts_one_episode: Whether a free episode that ends early is scored alone, rather than with those that begin
            in the rest of its L steps.
    """
    prepared = base.with_sampled_state(key, prepared)
    agent, env, steering, genome, _ = prepared
    L = env.spec.horizon
    H = env.spec.num_steps - 2 * L
    K = max(1, round(env.spec.num_steps / (8 * L)))  # a few more free episodes raise the power more than tasks do
    tasks = [split_lifetime_key(lifetime) for lifetime in (key, base.unrelated_key(key, 1))]
    keys = split_step_keys(tasks[0], H + L + K * L)
    env_keys = jnp.stack([keys.env, split_step_keys(tasks[1], H + L + K * L).env])  # [2, T]
    state = begin_lifetime(key, agent, genome)
    carries = jax.vmap(lambda task: initial_carry(task, agent, env, steering, state))(_stack(*(t.task for t in tasks)))
    carries = _act_alike(prepared, carries, _keys_of_steps(keys, env_keys, slice(H)))
    episode_starts = jax.vmap(partial(_begin_episode, env))(env_keys[:, H], carries)
    history, last = jnp.indices((2, 2)).reshape(2, 4)
    carries = jax.vmap(partial(_enter, prepared))(
        _take(carries, history), _take(episode_starts, history), _take(episode_starts, last)
    )
    carries = _act_alike(prepared, carries, _keys_of_steps(keys, env_keys[last], slice(H, H + L)))
    episode_starts = jax.vmap(partial(_begin_episode, env))(env_keys[last, H + L], carries)
    case, present = jnp.indices((4, 2)).reshape(2, 8)
    # The copies 0 and 1 have the same history, and their last episodes are from A and from B.
    starts = jax.vmap(partial(_enter, prepared))(
        _take(carries, case), _take(episode_starts, case), _take(episode_starts, present)
    )

    def act_freely(carry: Carry, keys: StepKeys) -> Array:
        """Returns the mean score of a step in one free episode."""
        _, trajectory = jax.lax.scan(partial(_step, prepared), carry, keys)
        scores = jax.vmap(env.score)(trajectory.outcome)
        if counts_one_episode:
            scores = jnp.where(jnp.cumsum(trajectory.first) <= 1, scores, 0.0)
        return jnp.mean(scores)

    free_keys = jax.tree.map(lambda leaf: leaf[H + L :].reshape(K, L), keys)
    scores = jax.vmap(jax.vmap(act_freely, (None, 0)), (0, None))(starts, free_keys).reshape(2, 2, 2, K)
    of_history = jnp.stack([scores[0, :, 0] - scores[1, :, 0], scores[1, :, 1] - scores[0, :, 1]])
    of_last = jnp.stack([scores[:, 0, 0] - scores[:, 1, 0], scores[:, 1, 1] - scores[:, 0, 1]])
    return {
        EARLIER: jnp.mean(of_history),
        LAST: jnp.mean(of_last),
        "score": jnp.mean(scores),
        "mean_square": jnp.mean(scores**2),
    }


def _step(prepared: base.PreparedSubject, carry: Carry, keys: StepKeys) -> tuple[Carry, Trajectory]:
    """One step of the subject."""
    agent, env, steering, _, learning = prepared
    carry, trajectory = rollout_step(keys, agent, env, steering, carry, learning)
    return carry, trajectory._replace(info=())


def _act_alike(prepared: base.PreparedSubject, carries: Carry, keys: StepKeys) -> Carry:
    """Several steps of copies [C] that all take the actions of the first one; `keys.env` is [C, T], the others [T]."""
    env = prepared.env

    def step(key: Key, env_state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        action = jax.lax.all_gather(action, COPIES)[0]
        env_state, time_step = env.step(key, env_state, action)
        is_forced = jnp.greater_equal(time_step.forced_action, 0)
        return env_state, time_step._replace(forced_action=jnp.where(is_forced, time_step.forced_action, action))

    alike = prepared._replace(env=env._replace(step=step))

    def act(carry: Carry, env_keys: Key) -> Carry:
        return jax.lax.scan(partial(_step, alike), carry, keys._replace(env=env_keys))[0]

    return jax.vmap(act, axis_name=COPIES)(carries, keys.env)


def _keys_of_steps(keys: StepKeys, env_keys: Key, steps: slice) -> StepKeys:
    """The keys of some of all steps, with those of several environments [C, T]."""
    return StepKeys(env_keys[:, steps], keys.act[steps], keys.learn[steps])


def _begin_episode(env: Environment, key: Key, carry: Carry) -> EpisodeStart:
    """Steps a task unobserved until an episode begins; the subject observes that the present one is truncated."""
    percept = carry.percept

    def has_begun(steps: tuple[Array, EnvState, Array, Array]) -> Array:
        number, _, _, first = steps
        return first | (number >= env.spec.horizon)

    def step(steps: tuple[Array, EnvState, Array, Array]) -> tuple[Array, EnvState, Array, Array]:
        number, env_state, _, _ = steps
        env_state, time_step = env.step(jax.random.fold_in(key, number), env_state, jnp.int32(0))
        return number + 1, env_state, time_step.observation, time_step.first

    start = (jnp.int32(0), carry.env_state, percept.observation, percept.first)
    _, env_state, observation, _ = jax.lax.while_loop(lambda steps: ~has_begun(steps), step, start)
    discount = jnp.where(percept.first, percept.discount, 1.0)
    return EpisodeStart(env_state, TimeStep(observation, observation, percept.outcome, jnp.bool_(True), discount))


def _enter(prepared: base.PreparedSubject, carry: Carry, experienced: EpisodeStart, start: EpisodeStart) -> Carry:
    """A copy with the outcome that it has `experienced`, at the `start` of an episode in any task."""
    agent, env, steering, _, _ = prepared
    observation = start.time_step.observation
    time_step = experienced.time_step._replace(observation=observation, final_observation=observation)
    percept = perceive(agent, env, steering, start.env_state, time_step, carry.percept.action)
    return Carry(carry.state, start.env_state, percept)


def _stack(first: PyTree, second: PyTree) -> PyTree:
    """Two trees as one, with a leading axis of 2."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)


def _take(tree: PyTree, index: Array | int) -> PyTree:
    """One or several entries of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def spread_of_score(measurements: decisions.Measurements) -> float:
    """Returns the standard deviation of the score of a free episode, in which effects are expressed."""
    variance = float(measurements["mean_square"].mean() - measurements["score"].mean() ** 2)
    return max(variance, 0.0) ** 0.5 or MIN_SPREAD


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where the outcomes of earlier episodes raise the score."""
    spread = spread_of_score(measurements)
    effects = {
        name: decisions.estimate_effect(measurements[name] / spread, max_magnitude=decisions.MAX_EFFECT)
        for name in (EARLIER, LAST)
    }
    verdict, p_value = decisions.decide_all({EARLIER: effects[EARLIER]}, thresholds)
    if verdict == "yes":
        summary = "it learns: the outcomes of earlier episodes raise its score"
    elif verdict == "no" and effects[EARLIER].high < -thresholds.min_effect:
        summary = "it does not learn to score higher: the outcomes of earlier episodes lower its score"
    elif verdict == "no" and thresholds.is_met(effects[LAST]):
        summary = "it uses the outcome of the last episode alone, one bit of memory: nothing accumulates"
    elif verdict == "no":
        summary = "it does not learn: after the outcomes of another task it scores as high"
    else:
        summary = decisions.NOT_SIGNIFICANT
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, {})
