"""The quick check of an environment: its spec, its signatures, and what it emits in its first steps.

It takes a fraction of a second, so that every environment from outside of the package is checked where it is loaded.
Letters: B lifetimes, T steps.
"""

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
from ontogeny.types import HIDDEN_OBSERVATION, Environment, EnvSpec, Key, TimeStep

NUM_LIFETIMES = 8
MIN_STEPS, MAX_STEPS = 64, 256


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
    return reset, step


def run_random_lifetimes(env: Environment, num_steps: int, recorder: Recorder, *, seed: int) -> EmittedSteps:
    """Runs lifetimes with random actions, twice with the same keys, and checks every time step."""
    keys = jax.random.split(jax.random.key(seed), NUM_LIFETIMES)
    run = jax.jit(jax.vmap(partial(_run_lifetime, env, num_steps)), compiler_options=QUICK_COMPILATION)
    with recorder.explain("the first steps of the environment fail"):
        emitted, repeated = (jax.device_get(run(keys)) for _ in range(2))
    require(
        trees.bitwise_equal(emitted, repeated),
        "`reset` or `step` is not a function of its key: the same keys gave two different lifetimes",
    )
    check_emitted(env.spec, emitted)
    return emitted


def check_emitted(spec: EnvSpec, emitted: EmittedSteps) -> None:
    """Checks the values of all time steps of lifetimes; the message names the first that violates a rule."""
    initial, time_steps, scores, has_same_task = emitted
    initial_is_valid = initial.first & (initial.discount == 1)
    require(bool(initial_is_valid.all()), "`reset` must begin with `first` and discount 1")
    everything = jax.tree.map(lambda a, b: np.concatenate([a[:, None], b], axis=1), initial, time_steps)
    observations, final_observations, outcomes, first, discount, forced = (np.asarray(part) for part in everything)
    _check_observations(spec, "observation", observations)
    checked = final_observations
    if spec.num_observations:
        checked = np.where(first & (discount == 1) & (checked == HIDDEN_OBSERVATION), 0, checked)
    _check_observations(spec, "final observation", checked)
    is_same = np.all(observations == final_observations, axis=tuple(range(2, observations.ndim)))
    _require_everywhere(
        first | is_same,
        lambda i, t: (
            f"the final observation {_when(t)} is not the observation, but no episode begins there: "
            "`final_observation` is the observation to which the last action led, which only a new episode replaces"
        ),
    )
    _require_everywhere(
        np.isfinite(outcomes).all(axis=2), lambda i, t: f"the outcome {_when(t)} holds a number that is not finite"
    )
    _require_everywhere(
        (discount == 0) | (discount == 1),
        lambda i, t: (
            f"the discount {_when(t)} is {discount[i, t]:.4g}, but it says whether the episode has terminated: 0 at a "
            "termination, 1 at every other step; a preference for early rewards is a setting of the agent"
        ),
    )
    _require_everywhere(
        first | (discount == 1),
        lambda i, t: f"the discount {_when(t)} is 0, but a discount of 0 must come with `first`, which is False there",
    )
    _require_everywhere(
        (forced >= -1) & (forced < spec.num_actions),
        lambda i, t: f"`forced_action` {_when(t)} is {forced[i, t]}, which is neither -1 nor an action",
    )
    _check_episode_lengths(spec, first)
    _require_everywhere(np.isfinite(scores), lambda i, t: f"the score {_when(t + 1)} is not finite")
    _require_everywhere(has_same_task, lambda i, t: f"the task changed within a lifetime, {_when(t + 1)}")


def _check_observations(spec: EnvSpec, noun: str, observations: np.ndarray) -> None:
    """Observations [B, 1 + T, *O] lie within the spec, or are finite."""
    if spec.num_observations:
        _require_everywhere(
            (observations >= 0) & (observations < spec.num_observations),
            lambda i, t: (
                f"the {noun} {_when(t)} is {observations[i, t]}, outside of the spec: with `num_observations` "
                f"{spec.num_observations} there are 0 to {spec.num_observations - 1}"
            ),
        )
    else:
        axes = tuple(range(2, observations.ndim))
        is_finite = np.isfinite(observations.astype(np.float32)).all(axis=axes)
        _require_everywhere(is_finite, lambda i, t: f"the {noun} {_when(t)} holds a number that is not finite")


def _check_episode_lengths(spec: EnvSpec, first: np.ndarray) -> None:
    """An episode takes at most `horizon` steps; `first` is [B, 1 + T]."""
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


def _run_lifetime(env: Environment, num_steps: int, key: Key) -> EmittedSteps:
    """The first steps of one lifetime with random actions; without the axis B."""
    reset_key, step_key, action_key = jax.random.split(key, 3)
    state, initial = env.reset(reset_key)
    task = getattr(state, "task", ())
    actions = jax.random.randint(action_key, (num_steps,), 0, env.spec.num_actions)

    def step(state: object, inputs: tuple[Key, Array]) -> tuple[object, tuple[TimeStep, Array, Array]]:
        step_key, action = inputs
        state, time_step = env.step(step_key, state, action)
        has_same_task = trees.has_same_bits(task, getattr(state, "task", ()))
        return state, (time_step, env.score(time_step.outcome), has_same_task)

    _, emitted = jax.lax.scan(step, state, (jax.random.split(step_key, num_steps), actions))
    return EmittedSteps(jax.tree.map(jnp.asarray, initial), *emitted)


def _require_everywhere(holds: ArrayLike, message: Callable[[int, int], str]) -> None:
    """Raises an error about the earliest step, of any lifetime, at which a rule does not hold, [B, T]."""
    violations = np.argwhere(~np.asarray(holds).T)
    if len(violations):
        t, i = violations[0]
        require(False, message(int(i), int(t)))


def _when(step: int) -> str:
    """The place of a time step in its lifetime."""
    return f"after step {step}" if step else "after `reset`"
