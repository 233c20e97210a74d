"""Environments of gymnax, `gymnax:ID[,setting=value...]`, such as `gymnax:Catch-bsuite` (extra `gymnax`).

Lange 2022 (https://github.com/RobertTLange/gymnax), version 1.0. All environments of that package are supported whose
actions are discrete and which need no data set; an environment that a module of yours registers is
`gymnax:MODULE:ID`. The adapter calls `step_env` and `reset_env` itself, so that a lifetime keeps its task:

- DeepSea-bsuite draws its action map once per lifetime, and SimpleBandit-bsuite the payout of each arm, as in bsuite.
  gymnax alone draws the payouts anew in every step, and uses one map in all lifetimes or a new one in every episode.
- Parameters that `vary` names are drawn once per lifetime. Those that `drift` names change from episode to episode.
- In CartPole, what follows from length and masses is computed from them, which gymnax does for the default values only.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.environments import providers
from ontogeny.environments.base import choose_tree, first_feature
from ontogeny.errors import BadInput
from ontogeny.plugins import Range, unknown_name_error
from ontogeny.types import Environment, Key, PyTree, TimeStep

TAKES_ID = True

UNSUPPORTED = {"MNISTBandit-bsuite": "it downloads a data set"}
TASK_FIELDS = {  # parts of the state that `reset_env` draws and that a lifetime keeps
    "DeepSea-bsuite": ("action_mapping",),
    "SimpleBandit-bsuite": ("rewards",),
}
TASK_PARAMETERS: dict[str, dict[str, Any]] = {"DeepSea-bsuite": {"sample_action_map": True}}  # so that these are drawn
# ID -> parameters that gymnax states beside those from which they follow
DERIVED_PARAMETERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "CartPole-v1": lambda params: {
        "total_mass": params.masscart + params.masspole,
        "polemass_length": params.masspole * params.length,
    },
}
# Their observations leave the space that gymnax declares: -1 is no lower bound of it, though they contain it.
UNDECLARED_SPACES = ("MemoryChain-bsuite", "GaussianBandit-misc")
# ID -> steps of an episode where the environment itself ends each one far below its time limit. The arguments are the
# environment and a function from the name of a parameter to its largest value.
EPISODE_LENGTHS: dict[str, Callable[[Any, Callable[[str], float]], float]] = {
    "Catch-bsuite": lambda env, highest: env.rows - 1,
    "DeepSea-bsuite": lambda env, highest: env.size,
    "MemoryChain-bsuite": lambda env, highest: highest("memory_length") + 1,
    "UmbrellaChain-bsuite": lambda env, highest: highest("chain_length"),
    "SimpleBandit-bsuite": lambda env, highest: 1,
}


class GymnaxTask(NamedTuple):
    """What is drawn once per lifetime."""

    parameters: dict[str, Array]  # by name, those of the setting `vary`
    state_parts: dict[str, Array]  # parts of the state of gymnax, `TASK_FIELDS`


class GymnaxState(NamedTuple):
    """The state of the environment."""

    task: GymnaxTask
    drifting: dict[str, Array]  # parameters by name, as in this episode
    env_state: PyTree  # of gymnax
    num_steps: Array  # [] int32, since the lifetime began
    num_episodes: Array  # [] int32, that have ended


class GymnaxParams(NamedTuple):
    """What the dynamics need."""

    id: str
    env: Any  # of gymnax
    defaults: Any  # parameters of gymnax
    observations: providers.ObservationLayout
    actions: providers.ActionLayout
    features: tuple[str, ...]
    varied: tuple[Range, ...]
    drifting: tuple[Range, ...]


def reset(params: GymnaxParams, key: Key) -> tuple[GymnaxState, TimeStep]:
    """Draws a task and begins its first episode."""
    draw_key, reset_key = jax.random.split(key)
    keys = jax.random.split(draw_key, max(len(params.varied), 1))
    task_parameters = {
        interval.parameter: _draw(key, interval, getattr(params.defaults, interval.parameter))
        for key, interval in zip(keys, params.varied, strict=False)
    }
    drifting = _drift(params, jnp.int32(0))
    observation, env_state = _reset_env(params, reset_key, GymnaxTask(task_parameters, {}), drifting)
    state_parts = {field: getattr(env_state, field) for field in TASK_FIELDS.get(params.id, ())}
    state = GymnaxState(GymnaxTask(task_parameters, state_parts), drifting, env_state, jnp.int32(0), jnp.int32(0))
    outcome = jnp.zeros(1 + len(params.features))
    return state, TimeStep(observation, observation, outcome, jnp.bool_(True), jnp.float32(1))


def step(params: GymnaxParams, key: Key, state: GymnaxState, action: Array) -> tuple[GymnaxState, TimeStep]:
    """Takes one step in gymnax; where the episode is over, the next one begins in the same task."""
    step_key, reset_key = jax.random.split(key)
    gymnax_params = _parameters(params, state.task, state.drifting)
    observed, env_state, reward, terminated, info = params.env.step_env(
        step_key, state.env_state, params.actions.decode(action, jnp), gymnax_params
    )
    truncated = params.env.is_truncated(env_state, gymnax_params)
    is_over = jnp.logical_or(terminated, truncated)
    num_steps = state.num_steps + 1
    drifting = _drift(params, num_steps)
    first_observation, next_env_state = _reset_env(params, reset_key, state.task, drifting)
    final_observation = params.observations.encode(observed, jnp)
    num_episodes = state.num_episodes + is_over
    begun = GymnaxState(state.task, drifting, next_env_state, num_steps, num_episodes)
    env_state = _with_types_of(next_env_state, env_state)
    continued = GymnaxState(state.task, state.drifting, env_state, num_steps, num_episodes)
    observation = jnp.where(is_over, first_observation, final_observation)
    outcome = jnp.stack([jnp.asarray(number, jnp.float32) for number in (reward, *(info[f] for f in params.features))])
    discount = 1 - jnp.asarray(terminated, jnp.float32)
    time_step = TimeStep(observation, final_observation, outcome, is_over, discount)
    return choose_tree(is_over, begun, continued), time_step


def is_over(max_episodes: int, state: GymnaxState) -> Array:
    """Whether the last episode of the lifetime has ended."""
    return state.num_episodes >= max_episodes


def _reset_env(params: GymnaxParams, key: Key, task: GymnaxTask, drifting: Mapping[str, Array]) -> tuple[Array, PyTree]:
    """The first observation and state of an episode, in which the parts that belong to the task stay the same."""
    gymnax_params = _parameters(params, task, drifting)
    observed, env_state = params.env.reset_env(key, gymnax_params)
    if task.state_parts:
        env_state = env_state.replace(**task.state_parts)
        observed = params.env.observe(key, env_state, None, gymnax_params)
    return params.observations.encode(observed, jnp), _with_types_of(env_state, env_state)


def _parameters(params: GymnaxParams, task: GymnaxTask, drifting: Mapping[str, Array]) -> Any:
    """The parameters of gymnax in one episode."""
    gymnax_params = params.defaults.replace(**task.parameters, **drifting)
    derive = DERIVED_PARAMETERS.get(params.id)
    return gymnax_params if derive is None else gymnax_params.replace(**derive(gymnax_params))


def _draw(key: Key, interval: Range, default: float | int) -> Array:
    """A value of a parameter: real numbers from the interval, whole numbers with both bounds included."""
    if isinstance(default, int):
        return jax.random.randint(key, (), int(interval.low), int(interval.high) + 1)
    return jax.random.uniform(key, (), minval=interval.low, maxval=interval.high)


def _drift(params: GymnaxParams, num_steps: Array) -> dict[str, Array]:
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
    return jax.tree.map(lambda old, new: jnp.asarray(new).astype(jnp.result_type(old)), example, tree)


def build(
    *,
    id: str = "",
    episodes: int = 10,
    steps: int = 0,
    parameters: tuple[str, ...] = (),
    vary: tuple[str, ...] = (),
    drift: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
) -> Environment:
    """Builds the environment.

    Args:
        id: ID of the environment, such as Catch-bsuite; written after the colon.
        episodes: Episodes of a lifetime, at least 1. A lifetime takes at most so many times the longest episode; after
            its last episode the agent neither acts nor learns.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`.
        parameters: Fixed parameters, PARAMETER:NUMBER, such as size:20; several are joined by +.
        vary: Parameters that each lifetime draws uniformly, PARAMETER:LOW..HIGH, such as length:0.3..0.8.
        drift: Parameters that change within a lifetime, PARAMETER:LOW..HIGH:STEPS; STEPS is the number of steps that
            the change takes, or FIRST..LAST, and it takes effect where an episode begins.
        features: Numeric entries of `info` that become outcome features.
    """
    providers.require_id("gymnax", id, "Catch-bsuite")
    package = providers.import_package("gymnax")
    module, _, gymnax_id = id.rpartition(":")
    providers.import_user_module(module)
    name = f"gymnax:{id}"
    _require_supported(package, name, gymnax_id)
    env, defaults = _make(package, name, gymnax_id, providers.parse_parameters(parameters))
    numbers = [field for field, number in vars(defaults).items() if _is_number(number)]
    varied, drifting = providers.parse_ranges(name, vary, drift, numbers)
    providers.require_whole_bounds(name, (*varied, *drifting), vars(defaults))
    with providers.explain_errors(f"environment '{name}' cannot be used with these parameters"):
        observations = providers.describe_observations(name, env.observation_space(defaults))
        actions = providers.describe_actions(name, env.action_space(defaults))
        infos = _numbers_in_info(env, defaults, actions)
    if gymnax_id in UNDECLARED_SPACES:
        observations = observations._replace(bounds=(-math.inf, math.inf))
    names = providers.check_features(name, features, infos)
    highest = {field: getattr(defaults, field) for field in numbers}
    highest |= {interval.parameter: max(interval.low, interval.high) for interval in (*varied, *drifting)}
    length = EPISODE_LENGTHS.get(gymnax_id, lambda env, highest: highest("max_steps_in_episode"))
    horizon = int(min(length(env, highest.__getitem__), highest["max_steps_in_episode"]))
    spec = providers.make_spec(name, actions, observations, names, episodes=episodes, steps=steps, horizon=horizon)
    params = GymnaxParams(gymnax_id, env, defaults, observations, actions, names, varied, drifting)
    ends_early = None if steps else partial(is_over, episodes)
    return Environment(spec, partial(reset, params), partial(step, params), first_feature, is_over=ends_early)


def list_ids() -> list[str]:
    """The IDs of all environments of gymnax, the unsupported ones included."""
    return list(providers.import_package("gymnax").registered_envs)


def _require_supported(package: Any, name: str, id: str) -> None:
    """Raises `BadInput` if gymnax has no such environment, or if it cannot be used."""
    if id in UNSUPPORTED:
        raise BadInput(f"environment '{name}' is not supported: {UNSUPPORTED[id]}")
    if id not in package.registered_envs:
        raise unknown_name_error("environment of gymnax", id, package.registered_envs)


def _make(package: Any, name: str, id: str, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    """The environment and its parameters, some of which the setting `parameters` replaces."""
    env, defaults = package.make(id)
    fields = {field.name for field in dataclasses.fields(defaults)}
    accepted = set(inspect.signature(type(env).__init__).parameters) - {"self", "args", "kwargs"}
    for parameter in parameters:
        if parameter not in fields | accepted:
            raise unknown_name_error(f"parameter of '{name}' named", parameter, sorted(fields | accepted))
    with providers.explain_errors(f"environment '{name}' cannot be made"):
        env, defaults = package.make(id, **{p: chosen for p, chosen in parameters.items() if p in accepted - fields})
    replaced = TASK_PARAMETERS.get(id, {}) | {p: chosen for p, chosen in parameters.items() if p in fields}
    for parameter, chosen in replaced.items():
        default = getattr(defaults, parameter)
        is_flag = isinstance(default, bool)
        if not (_is_number(default) or is_flag) or isinstance(chosen, str) or isinstance(chosen, bool) != is_flag:
            expected = "a truth value" if is_flag else "a number"
            raise BadInput(
                f"the parameter '{parameter}' of '{name}' must be {expected}, such as {default}, not {chosen}"
            )
    return env, defaults.replace(**replaced)


def _is_number(parameter: object) -> bool:
    """Whether a parameter is a single number."""
    return isinstance(parameter, int | float) and not isinstance(parameter, bool)


def _numbers_in_info(env: Any, defaults: Any, actions: providers.ActionLayout) -> set[str]:
    """The names of the entries of `info` that are single numbers."""

    def first_info(key: Key) -> Any:
        state = env.reset_env(key, defaults)[1]
        return env.step_env(key, state, actions.decode(jnp.int32(0), jnp), defaults)[4]

    info = jax.eval_shape(first_info, jax.eval_shape(lambda: jax.random.key(0)))
    return {name for name, number in info.items() if getattr(number, "shape", None) == ()}
