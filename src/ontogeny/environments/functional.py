"""Lifetimes in environments of other libraries that are written in JAX: episodes, tasks, drifting parameters.

An environment of such a library has the functions `reset_env` and `step_env` of gymnax, which a lifetime calls itself,
so that it keeps its task: what the setting `vary` draws, and the parts of the state that the library draws in
`reset_env` and that belong to the task.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments import providers
from ontogeny.environments.base import choose_tree, first_feature
from ontogeny.environments.ranges import Range
from ontogeny.errors import BadInput
from ontogeny.plugins import unknown_name_error
from ontogeny.tracing import lazy_cond
from ontogeny.types import Environment, Key, PyTree, TimeStep


@runtime_checkable
class FunctionalEnv(Protocol):
    """The functions of an environment, whose parameters `params` are a record with the method `replace`."""

    def reset_env(self, key: Key, params: Any) -> tuple[Any, PyTree]:
        """Begins an episode: the observation and the state."""
        ...

    def step_env(self, key: Key, state: PyTree, action: Any, params: Any) -> tuple[Any, PyTree, Any, Any, Any]:
        """Takes a step: observation, state, reward, whether the episode has terminated, and `info`."""
        ...

    def is_truncated(self, state: PyTree, params: Any) -> Any:
        """Whether the time limit has been reached."""
        ...


class FunctionalTask(NamedTuple):
    """What is drawn once per lifetime."""

    parameters: dict[str, PyTree]  # by name, those of the setting `vary` and of `draw_parameters`
    state_parts: dict[str, Array]  # parts of the state, `task_fields`
    layout: Array | tuple[()] = ()  # numbers of the key with which every episode begins, where all begin alike


class FunctionalState(NamedTuple):
    """The state of the environment."""

    task: FunctionalTask
    drifting: dict[str, Array]  # parameters by name, as in this episode
    env_state: PyTree  # of the library
    num_steps: Array  # [] int32, since the lifetime began
    num_episodes: Array  # [] int32, that have ended


class FunctionalParams(NamedTuple):
    """What the dynamics need."""

    env: FunctionalEnv
    defaults: Any  # its parameters
    observations: providers.ObservationLayout
    actions: providers.ActionLayout
    features: tuple[str, ...]
    varied: tuple[Range, ...] = ()
    drifting: tuple[Range, ...] = ()
    task_fields: tuple[str, ...] = ()  # parts of the state that `reset_env` draws and that a lifetime keeps
    observe: Callable[..., Any] | None = (
        None  # (key, state, None, parameters) -> observation, where there are such parts
    )
    derive: Callable[[Any], dict[str, Any]] | None = None  # parameters that follow from others
    draw_parameters: Callable[[Key], dict[str, PyTree]] | None = None  # parameters that a lifetime draws and keeps
    lazy_reset: bool = False  # whether `reset_env` is costly: it is then called only where an episode ends in a batch
    same_layout: bool = False  # whether `reset_env` gets the same key in all episodes of a lifetime


class FunctionalSettings(NamedTuple):
    """The settings that all environments of this kind share; `build` of a provider explains them."""

    episodes: int
    steps: int
    vary: tuple[str, ...]
    drift: tuple[str, ...]
    features: tuple[str, ...]


def build_environment(
    name: str,
    env: FunctionalEnv,
    defaults: Any,
    observations: providers.ObservationLayout,
    actions: providers.ActionLayout,
    settings: FunctionalSettings,
    horizon: Callable[[Mapping[str, float | int]], float | int | None],
    **task: Any,
) -> Environment:
    """An environment of a library.

    Args:
        name: `PROVIDER:ID`.
        env: With the functions of gymnax.
        defaults: Its parameters.
        observations: How its observations become one array.
        actions: How a whole number becomes an action.
        settings: Of the user.
        horizon: Largest value of each parameter by its name -> the largest number of steps in an episode, None where
            there is no limit.
        **task: Fields of `FunctionalParams` that make the task.

    Raises:
        BadInput: A setting is out of range or unknown to the environment.
    """
    numbers = [field for field, number in vars(defaults).items() if is_number(number)]
    varied, drifting = providers.parse_ranges(name, settings.vary, settings.drift, numbers)
    providers.require_whole_bounds(name, (*varied, *drifting), vars(defaults))
    with providers.explain_errors(f"environment '{name}' cannot be used with these parameters"):
        infos = numbers_in_info(env, defaults, actions)
    features = providers.check_features(name, settings.features, infos)
    highest = {field: getattr(defaults, field) for field in numbers}
    highest |= {interval.parameter: max(interval.low, interval.high) for interval in (*varied, *drifting)}
    episodes, steps = settings.episodes, settings.steps
    longest = horizon(highest)
    length = None if longest is None else int(longest)
    spec = providers.make_spec(
        name,
        actions,
        observations,
        features,
        episodes=episodes,
        steps=steps,
        horizon=None if length is None else int(length),
    )
    params = FunctionalParams(env, defaults, observations, actions, features, varied, drifting, **task)
    ends_early = None if steps else partial(is_over, episodes)
    return Environment(spec, partial(reset, params), partial(step, params), first_feature, is_over=ends_early)


def replace_parameters(name: str, defaults: Any, parameters: Mapping[str, Any]) -> Any:
    """The parameters of an environment, some of which are replaced by those of the setting `parameters`.

    Raises:
        BadInput: A parameter is unknown, or not of the type of its default.
    """
    fields = sorted(field for field, number in vars(defaults).items() if is_number(number) or isinstance(number, bool))
    for parameter, chosen in parameters.items():
        if parameter not in fields:
            raise unknown_name_error(f"parameter of '{name}' named", parameter, fields)
        default = getattr(defaults, parameter)
        is_flag = isinstance(default, bool)
        if isinstance(chosen, str) or isinstance(chosen, bool) != is_flag:
            expected = "a truth value" if is_flag else "a number"
            raise BadInput(
                f"the parameter '{parameter}' of '{name}' must be {expected}, such as {default}, not {chosen}"
            )
    return defaults.replace(**parameters)


def is_number(parameter: object) -> bool:
    """Whether a parameter is a single number."""
    return isinstance(parameter, int | float) and not isinstance(parameter, bool)


def reset(params: FunctionalParams, key: Key) -> tuple[FunctionalState, TimeStep]:
    """Draws a task and begins its first episode."""
    draw_key, reset_key = jax.random.split(key)
    keys = jax.random.split(draw_key, max(len(params.varied), 1))
    task_parameters = {
        interval.parameter: _draw(key, interval, getattr(params.defaults, interval.parameter))
        for key, interval in zip(keys, params.varied, strict=False)
    }
    if params.draw_parameters is not None:
        task_parameters |= params.draw_parameters(jax.random.fold_in(draw_key, len(keys)))
    task = FunctionalTask(task_parameters, {}, jax.random.key_data(reset_key) if params.same_layout else ())
    drifting = _drift(params, jnp.int32(0))
    observation, env_state = _reset_env(params, reset_key, task, drifting)
    state_parts = {field: getattr(env_state, field) for field in params.task_fields}
    state = FunctionalState(task._replace(state_parts=state_parts), drifting, env_state, jnp.int32(0), jnp.int32(0))
    outcome = jnp.zeros(1 + len(params.features))
    return state, TimeStep(observation, observation, outcome, jnp.bool_(True), jnp.float32(1))


def step(params: FunctionalParams, key: Key, state: FunctionalState, action: Array) -> tuple[FunctionalState, TimeStep]:
    """Takes one step; where the episode is over, the next one begins in the same task."""
    step_key, reset_key = jax.random.split(key)
    env_params = _parameters(params, state.task, state.drifting)
    observed, env_state, reward, terminated, info = params.env.step_env(
        step_key, state.env_state, params.actions.decode(action, jnp), env_params
    )
    truncated = params.env.is_truncated(env_state, env_params)
    has_ended = jnp.logical_or(terminated, truncated)
    num_steps = state.num_steps + 1
    drifting = _drift(params, num_steps)
    final_observation = params.observations.encode(observed, jnp)
    if params.lazy_reset:
        reset_env = partial(_reset_env_of, params)
        operand = (jax.random.key_data(reset_key), state.task, drifting)
        continued = (final_observation, _with_types_of(state.env_state, env_state))
        first_observation, next_env_state = lazy_cond(has_ended, reset_env, operand, continued)
    else:
        first_observation, next_env_state = _reset_env(params, reset_key, state.task, drifting)
    num_episodes = state.num_episodes + has_ended
    begun = FunctionalState(state.task, drifting, next_env_state, num_steps, num_episodes)
    env_state = _with_types_of(next_env_state, env_state)
    continued = FunctionalState(state.task, state.drifting, env_state, num_steps, num_episodes)
    observation = jnp.where(has_ended, first_observation, final_observation)
    outcome = jnp.stack([jnp.asarray(number, jnp.float32) for number in (reward, *(info[f] for f in params.features))])
    discount = 1 - jnp.asarray(terminated, jnp.float32)
    time_step = TimeStep(observation, final_observation, outcome, has_ended, discount)
    return choose_tree(has_ended, begun, continued), time_step


def is_over(max_episodes: int, state: FunctionalState) -> Array:
    """Whether the last episode of the lifetime has ended."""
    return state.num_episodes >= max_episodes


def _reset_env(
    params: FunctionalParams, key: Key, task: FunctionalTask, drifting: Mapping[str, Array]
) -> tuple[Array, PyTree]:
    """The first observation and state of an episode, in which the parts that belong to the task stay the same."""
    env_params = _parameters(params, task, drifting)
    if not isinstance(task.layout, tuple):
        key = jax.random.wrap_key_data(task.layout)
    observed, env_state = params.env.reset_env(key, env_params)
    if params.observe is not None and task.state_parts:
        env_state = env_state.replace(**task.state_parts)
        observed = params.observe(key, env_state, None, env_params)
    return params.observations.encode(observed, jnp), _with_types_of(env_state, env_state)


def _reset_env_of(
    params: FunctionalParams, operand: tuple[Array, FunctionalTask, Mapping[str, Array]]
) -> tuple[Array, PyTree]:
    """`_reset_env` as a function of one operand, with the numbers of the key in place of the key."""
    key_data, task, drifting = operand
    return _reset_env(params, jax.random.wrap_key_data(key_data), task, drifting)


def _parameters(params: FunctionalParams, task: FunctionalTask, drifting: Mapping[str, Array]) -> Any:
    """The parameters of the library in one episode."""
    env_params = params.defaults.replace(**task.parameters, **drifting)
    return env_params if params.derive is None else env_params.replace(**params.derive(env_params))


def _draw(key: Key, interval: Range, default: float | int) -> Array:
    """A value of a parameter: real numbers from the interval, whole numbers with both bounds included."""
    if isinstance(default, int):
        return jax.random.randint(key, (), int(interval.low), int(interval.high) + 1)
    return jax.random.uniform(key, (), minval=interval.low, maxval=interval.high)


def _drift(params: FunctionalParams, num_steps: Array) -> dict[str, Array]:
    """The drifting parameters in an episode that begins after `num_steps` steps of the lifetime."""
    drifted = {}
    for interval in params.drifting:
        elapsed = num_steps - interval.first_step
        share = jnp.clip(elapsed / interval.num_steps, 0, 1) if interval.num_steps else (elapsed >= 0).astype(float)
        number = interval.low + share * (interval.high - interval.low)
        is_whole = isinstance(getattr(params.defaults, interval.parameter), int)
        drifted[interval.parameter] = jnp.round(number).astype(jnp.int32) if is_whole else number
    return drifted


def _with_types_of(example: PyTree, tree: PyTree) -> PyTree:
    """The tree with the types of another one of the same structure, none of them weak."""

    def convert(old: Any, new: Any) -> Array:
        is_key = isinstance(old, Array) and jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        return new if is_key else jnp.asarray(new).astype(jnp.result_type(old))

    return jax.tree.map(convert, example, tree)


def numbers_in_info(env: FunctionalEnv, defaults: Any, actions: providers.ActionLayout) -> set[str]:
    """The names of the entries of `info` that are single numbers."""

    def first_info(key: Key) -> Any:
        state = env.reset_env(key, defaults)[1]
        return env.step_env(key, state, actions.decode(jnp.int32(0), jnp), defaults)[4]

    info = jax.eval_shape(first_info, jax.eval_shape(lambda: jax.random.key(0)))
    return {name for name, number in info.items() if getattr(number, "shape", None) == ()}
