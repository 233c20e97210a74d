"""The quick check of an environment: its spec, its signatures, and what it emits in its first steps.

It takes a fraction of a second, so that every environment from outside of the package is checked where it is loaded.
Letters: B lifetimes, T steps.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from ontogeny import trees
from ontogeny.contracts.base import QUICK_COMPILATION, RecordedProgram, Recorder, require, require_same_types
from ontogeny.contracts.specs import check_spec
from ontogeny.rng import split_lifetime_key, split_step_keys
from ontogeny.seeds import nth_seed
from ontogeny.types import HIDDEN_OBSERVATION, Environment, EnvSpec, Key, TimeStep

NUM_LIFETIMES = 8
MIN_STEPS, MAX_STEPS = 64, 256
MIN_TRUNCATIONS = 3  # from which on final observations are compared with the first ones of the next episodes


class EmittedSteps(NamedTuple):
    """What an environment emitted in lifetimes with random actions."""

    initial: TimeStep  # [B]
    time_steps: TimeStep  # [B, T], after each action
    scores: Array  # [B, T]
    has_same_task: Array  # [B, T] bool; true where a state has no task


def check_env_first_steps(env: Environment, files: Sequence[str] = (), *, seed: int = 0) -> EmittedSteps:
    """Checks the spec of an environment and, in the first steps of eight lifetimes, that it emits what the spec says.

    Args:
        files: The user's files, which messages about errors inside of them name.
        seed: Draws tasks, actions and all chance.

    Returns:
        What it emitted.

    Raises:
        ContractViolation: The environment violates its contract.
    """
    spec, recorder = env.spec, Recorder(files)
    check_spec(spec)
    record_env(env, recorder)
    num_steps = min(spec.num_steps, max(MIN_STEPS, min(2 * spec.horizon + 1, MAX_STEPS)))
    return run_random_lifetimes(env, num_steps, recorder, seed=seed)


def record_env(env: Environment, recorder: Recorder) -> tuple[RecordedProgram, RecordedProgram]:
    """The programs of `reset` and `step`, whose shapes and types are those of the spec and stay the same."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    reset = recorder.record_pair("reset", env.reset, key)
    check_types(env.spec, "reset", reset.shapes[1])
    state, time_step = reset.shapes
    step = recorder.record_pair("step", env.step, key, state, jax.ShapeDtypeStruct((), jnp.int32))
    require_same_types("step", reset.shapes, step.shapes)
    check_types(env.spec, "step", step.shapes[1])
    score = recorder.record("score", env.score, time_step.outcome).shapes
    is_number = hasattr(score, "shape") and score.shape == ()
    require(is_number, f"`score` must return one number, not an array of shape {getattr(score, 'shape', score)}")
    if env.is_over is not None:
        ends = recorder.record("is_over", env.is_over, state).shapes
        is_flag = getattr(ends, "shape", None) == () and getattr(ends, "dtype", None) == jnp.bool_
        require(is_flag, f"`is_over` must return one truth value, not {ends}")
    return reset, step


def run_random_lifetimes(env: Environment, num_steps: int, recorder: Recorder, *, seed: int) -> EmittedSteps:
    """Runs lifetimes with random actions, twice with the same keys, and checks every time step."""
    run = compile_lifetimes(env, quickly=True)
    keys, actions = jax.random.split(jax.random.key(seed), NUM_LIFETIMES), draw_actions(env.spec, num_steps, seed)
    with recorder.explain("the first steps of the environment fail"):
        emitted, repeated = (run(keys, actions) for _ in range(2))
    check_same_seed(emitted, repeated)
    check_emitted(env.spec, emitted)
    return emitted


def check_emitted(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Checks the values of all time steps of lifetimes; the message names the first that violates a rule."""
    for check in EMITTED_CHECKS.values():
        check(spec, emitted)


def draw_actions(spec: EnvSpec, num_steps: int, seed: int) -> Array:
    """Random actions, [B, T]."""
    return jax.random.randint(jax.random.key(nth_seed(seed, 1)), (NUM_LIFETIMES, num_steps), 0, spec.num_actions)


def compile_lifetimes(env: Environment, *, quickly: bool = False) -> Callable[[Key, Array], EmittedSteps]:
    """The function that runs lifetimes: keys [B] and actions [B, T] -> what was emitted, as numpy arrays.

    Args:
        quickly: Whether to compile without optimizations, for few steps.
    """
    options = QUICK_COMPILATION if quickly else None
    run = jax.jit(jax.vmap(partial(_run_lifetime, env)), compiler_options=options)
    return lambda keys, actions: jax.device_get(run(keys, actions))


def check_same_seed(emitted: EmittedSteps, repeated: EmittedSteps) -> None:
    """The same keys and actions give the same lifetimes."""
    require(
        trees.bitwise_equal(emitted, repeated),
        "`reset` or `step` is not a function of its key: the same keys gave two different lifetimes",
    )


def _all_steps(emitted: EmittedSteps) -> TimeStep:
    """All time steps, the initial ones included, [B, 1 + T]."""

    def join(initial: Array, after: Array) -> np.ndarray:
        return np.concatenate([np.asarray(initial)[:, None], np.asarray(after)], axis=1)

    return jax.tree.map(join, emitted.initial, emitted.time_steps)


def _check_initial_step(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """A lifetime begins with an episode."""
    del spec
    is_valid = np.asarray(emitted.initial.first) & (np.asarray(emitted.initial.discount) == 1)
    require(bool(is_valid.all()), "`reset` must begin with `first` and discount 1")


def _check_initial_outcome(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Nothing happens before the first action."""
    outcomes = np.asarray(emitted.initial.outcome)
    feature = spec.outcome_features[int(np.any(outcomes != 0, axis=0).argmax())]
    require(
        not np.any(outcomes != 0),
        f"the outcome after `reset` is not zero: '{feature}' happened before the first action, so no action can have "
        "caused it",
    )


def _check_numbers(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Outcomes, observations that are no whole numbers, and scores are finite."""
    steps = _all_steps(emitted)
    if not spec.num_observations:
        for noun, numbers in (("observation", steps.observation), ("final observation", steps.final_observation)):
            is_finite = np.isfinite(numbers.astype(np.float32)).all(axis=tuple(range(2, numbers.ndim)))
            require_everywhere(
                is_finite, lambda i, t, noun=noun: f"the {noun} {_when(t)} holds a number that is not finite"
            )
    require_everywhere(
        np.isfinite(steps.outcome).all(axis=2),
        lambda i, t: f"the outcome {_when(t)} holds a number that is not finite",
    )
    require_everywhere(np.isfinite(emitted.scores), lambda i, t: f"the score {_when(t + 1)} is not finite")


def _check_observation_space(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Observations lie within the space of the spec."""
    steps = _all_steps(emitted)
    final = steps.final_observation
    if spec.num_observations:  # a truncation may hide its final observation
        is_hidden = steps.first & (steps.discount == 1) & (final == HIDDEN_OBSERVATION)
        final = np.where(is_hidden, 0, final)
    for noun, observations in (("observation", steps.observation), ("final observation", final)):
        _require_in_space(spec, noun, np.asarray(observations))


def _check_final_observation(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Only a new episode replaces the observation to which an action led."""
    del spec
    steps = _all_steps(emitted)
    observations = np.asarray(steps.observation)
    is_same = (observations == steps.final_observation) | _is_nan(observations)
    is_same = np.all(is_same, axis=tuple(range(2, observations.ndim)))
    require_everywhere(
        steps.first | is_same,
        lambda i, t: (
            f"the final observation {_when(t)} is not the observation, but no episode begins there: "
            "`final_observation` is the observation to which the last action led, which only a new episode replaces"
        ),
    )


def _check_truncation(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Truncations keep the last observation of their episode; where observations never change, nothing is tested."""
    del spec
    steps = emitted.time_steps
    axes = tuple(range(2, np.ndim(steps.observation)))
    is_preserved = np.any(np.asarray(steps.final_observation) != np.asarray(steps.observation), axis=axes)
    is_truncated = np.asarray(steps.first) & (np.asarray(steps.discount) == 1)
    before = np.asarray(_all_steps(emitted).observation)[:, :-1]
    changes = np.any(np.asarray(steps.observation) != before, axis=axes) & ~np.asarray(steps.first)
    require(
        np.sum(is_truncated) < MIN_TRUNCATIONS or bool(is_preserved[is_truncated].any()) or not changes.any(),
        f"in all {np.sum(is_truncated)} truncated episodes the final observation is the first one of the next episode: "
        "agents continue the return of a truncated episode from `final_observation`, which must be the observation to "
        "which its last action led",
    )


def _check_termination(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """The discount tells terminations from truncations."""
    del spec
    _, _, _, first, discount, _ = _all_steps(emitted)
    require_everywhere(
        (discount == 0) | (discount == 1),
        lambda i, t: (
            f"the discount {_when(t)} is {discount[i, t]:.4g}, but it says whether the episode has terminated: 0 at a "
            "termination, 1 at every other step; a preference for early rewards is a setting of the agent"
        ),
    )
    require_everywhere(
        first | (discount != 0),
        lambda i, t: f"the discount {_when(t)} is 0, but a discount of 0 must come with `first`, which is False there",
    )


def _check_forced_actions(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Actions that the environment forces are actions."""
    forced = np.asarray(_all_steps(emitted).forced_action)
    require_everywhere(
        (forced >= -1) & (forced < spec.num_actions),
        lambda i, t: f"`forced_action` {_when(t)} is {forced[i, t]}, which is neither -1 nor an action",
    )


def _check_task(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """A lifetime keeps its task."""
    del spec
    require_everywhere(emitted.has_same_task, lambda i, t: f"the task changed within a lifetime, {_when(t + 1)}")


def _require_in_space(spec: EnvSpec, noun: str, observations: np.ndarray) -> None:
    """Observations [B, 1 + T, *O] lie within the space of the spec."""
    if spec.num_observations:
        require_everywhere(
            (observations >= 0) & (observations < spec.num_observations),
            lambda i, t: (
                f"the {noun} {_when(t)} is {observations[i, t]}, outside of the spec: with `num_observations` "
                f"{spec.num_observations} there are 0 to {spec.num_observations - 1}"
            ),
        )
        return
    low, high = spec.observation_bounds
    slack = 1e-5 * max(1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound)), 0.0)
    is_outside = (observations < low - slack) | (observations > high + slack)
    require_everywhere(
        ~is_outside.any(axis=tuple(range(2, observations.ndim))),
        lambda i, t: (
            f"the {noun} {_when(t)} holds {observations[i, t][is_outside[i, t]][0]:.6g}, outside of the spec, whose "
            f"`observation_bounds` are {low:g} and {high:g}"
        ),
    )


def _is_nan(observations: np.ndarray) -> np.ndarray:
    """Where an array holds what is no number."""
    return np.isnan(observations.astype(np.float32))


def _check_episode_lengths(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """An episode takes at most `horizon` steps."""
    first = _all_steps(emitted).first
    lengths, longest = np.zeros(len(first), int), 0
    for begins in first[:, 1:].T:
        lengths += 1
        longest = max(longest, int(lengths.max()))
        lengths[begins] = 0
    require(
        longest <= spec.horizon,
        f"an episode took more than the {spec.horizon} steps of `horizon` in the spec: `first` must be True where the "
        "next one begins",
    )


def check_types(spec: EnvSpec, name: str, time_step: TimeStep) -> None:
    """Checks the shapes and types of a time step that `reset` or `step` returns."""
    require(
        isinstance(time_step, TimeStep),
        f"`{name}` of the environment must return (state, TimeStep), not {type(time_step).__name__} as second part",
    )
    kind, noun = (jnp.integer, "whole numbers") if spec.num_observations else (jnp.number, "numbers")
    for field in ("observation", "final_observation"):
        shape, dtype = getattr(time_step, field).shape, getattr(time_step, field).dtype
        array = "an observation" if field == "observation" else "a `final_observation`"
        require(
            shape == spec.observation_shape,
            f"`{name}` returns {array} of the shape {shape}, but `observation_shape` in the spec is "
            f"{spec.observation_shape}",
        )
        require(
            jnp.issubdtype(dtype, kind) and not jnp.issubdtype(dtype, jnp.complexfloating),
            f"`{name}` returns {array} of type {dtype}, but by the spec observations are {noun}",
        )
    num_features = len(spec.outcome_features)
    require(
        time_step.outcome.shape == (num_features,),
        f"an outcome has the shape {time_step.outcome.shape}, but the environment names {num_features} outcome "
        "features",
    )
    types = {"outcome": jnp.floating, "first": jnp.bool_, "discount": jnp.floating, "forced_action": jnp.integer}
    nouns = {"outcome": "real numbers", "first": "one truth value", "discount": "one real number"}
    for field, kind in types.items():
        array = getattr(time_step, field)
        is_single = field == "outcome" or array.shape == ()
        require(
            is_single and jnp.issubdtype(array.dtype, kind),
            f"`{field}` of the time step that `{name}` returns must be {nouns.get(field, 'one whole number')}, not "
            f"{array.dtype}{list(array.shape)}",
        )


def _run_lifetime(env: Environment, key: Key, actions: Array) -> EmittedSteps:
    """The first steps of one lifetime; without the axis B."""
    lifetime_keys = split_lifetime_key(key)
    state, initial = env.reset(lifetime_keys.task)
    task = getattr(state, "task", ())

    def step(state: object, inputs: tuple[Key, Array]) -> tuple[object, tuple[TimeStep, Array, Array]]:
        step_key, action = inputs
        state, time_step = env.step(step_key, state, action)
        has_same_task = trees.has_same_bits(task, getattr(state, "task", ()))
        return state, (time_step, env.score(time_step.outcome), has_same_task)

    _, emitted = jax.lax.scan(step, state, (split_step_keys(lifetime_keys, len(actions)).env, actions))
    return EmittedSteps(jax.tree.map(jnp.asarray, initial), *emitted)


def require_everywhere(holds: ArrayLike, message: Callable[[int, int], str]) -> None:
    """Raises an error about the earliest step, of any lifetime, at which a rule does not hold, [B, T]."""
    violations = np.argwhere(~np.asarray(holds).T)
    if len(violations):
        t, i = violations[0]
        require(False, message(int(i), int(t)))


def _when(step: int) -> str:
    """The place of a time step in its lifetime."""
    return f"after step {step}" if step else "after `reset`"


EMITTED_CHECKS: dict[str, Callable[[EnvSpec, EmittedSteps], None]] = {  # in the order in which their messages help
    "initial_step": _check_initial_step,
    "initial_outcome": _check_initial_outcome,
    "observation_space": _check_observation_space,
    "numbers": _check_numbers,
    "final_observation": _check_final_observation,
    "termination": _check_termination,
    "forced_actions": _check_forced_actions,
    "episode_limit": _check_episode_lengths,
    "truncation": _check_truncation,
    "task": _check_task,
}
