"""Environments of Gymnasium by their ID, and `MODULE:ID` for one that a module of your own registers.

Gymnasium environments are Python objects (Towers et al. 2024, arXiv 2407.17032). Each lifetime has an object of its
own, made by `gymnasium.make` and seeded once, in which episodes follow each other. The score is the environment's own
reward.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ontogeny.environments import providers
from ontogeny.environments.base import first_feature
from ontogeny.environments.minigrid_adapter import flatten_mission, list_minigrid_ids, own_time_limit
from ontogeny.environments.ranges import Range
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.types import HostEnvironment, TimeStep
from ontogeny.validation import shorten

if TYPE_CHECKING:
    from gymnasium import Env, Space
else:  # an optional dependency, which is imported where it is used
    Env = Space = Any

TAKES_ID = True
MIN_FIRST_STEPS = 20  # random steps that are checked where an environment is built
STEPS_OF_CHECK = 500  # of a lifetime in an environment without a time limit, where all are checked
MAX_FIRST_STEPS = 500  # in which each named entry of `info` must appear


class TaskParameter(NamedTuple):
    """A number of an environment that is drawn per lifetime, or that changes within it."""

    range: Range
    is_argument: bool  # of the environment's class; else it is an attribute, which is set afterwards
    is_whole: bool  # whether its values are whole numbers


class TaskSettings(NamedTuple):
    """How the object of a lifetime is made."""

    make: Callable[..., Env]
    name: str  # of the environment, for messages
    max_episodes: int | None  # after which a lifetime is over
    features: tuple[str, ...]
    varied: tuple[TaskParameter, ...]
    drifting: tuple[TaskParameter, ...]


def build(
    *,
    id: str = "",
    episodes: int = 10,
    steps: int = 0,
    features: tuple[str, ...] = (),
    parameters: tuple[str, ...] = (),
    vary: tuple[str, ...] = (),
    drift: tuple[str, ...] = (),
) -> HostEnvironment:
    """Builds the environment.

    Args:
        id: The ID of a registered environment, such as CartPole-v1; MODULE:ID imports the module first.
        episodes: Episodes of a lifetime, at least 1. It takes at most so many times the time limit of an episode.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`; required where an
            environment has no time limit.
        features: Numeric entries of `info` that are outcome features beside the reward, `x+y`; 0 where absent.
        parameters: Fixed arguments of the environment, PARAMETER:VALUE, such as is_slippery:false; several are joined
            by +.
        vary: Numbers that each lifetime draws uniformly, PARAMETER:LOW..HIGH, such as gravity:5..15; arguments of the
            environment, or its attributes.
        drift: Attributes that change within a lifetime, PARAMETER:LOW..HIGH:STEPS; STEPS is the number of steps that
            the change takes, or FIRST..LAST, and it takes effect where an episode begins.
    """
    providers.require_id("gymnasium", id, "CartPole-v1")
    make = partial(_make, id, **providers.parse_parameters(parameters))
    return from_gymnasium(
        make, f"gymnasium:{id}", episodes=episodes, steps=steps, features=features, vary=vary, drift=drift
    )


def from_gymnasium(
    make: Callable[..., Env],
    name: str,
    *,
    episodes: int = 10,
    steps: int = 0,
    features: Sequence[str] = (),
    vary: Sequence[str] = (),
    drift: Sequence[str] = (),
) -> HostEnvironment:
    """An environment whose lifetimes are objects of Gymnasium, for the `build` of a file of your own.

    Args:
        make: Returns a new object; varied arguments are passed to it by name.
        name: Of the environment.
        episodes: As of `build`, and so are the other settings.
    """
    varied, drifting = _describe_parameters(make, name, vary, drift)
    settings = TaskSettings(make, name, None if steps else episodes, tuple(features), varied, drifting)
    with contextlib.closing(_make_task(settings, 0, strict=True)) as task:
        layouts = task.actions, task.observations
        spec = providers.make_spec(
            name, *layouts, settings.features, episodes=episodes, steps=steps, horizon=_time_limit(task)
        )
        _check_first_steps(task, settings)
    return HostEnvironment(spec, partial(GymnasiumTasks, settings), first_feature)


def list_ids() -> list[str]:
    """The IDs of Gymnasium itself, those included that cannot be used, and those of MiniGrid if it is installed.

    Where an environment has no time limit, the setting `steps` follows. IDs that Gymnasium registers only to say that
    another package has them now are left out.
    """
    registry = dict(providers.import_package("gymnasium").registry)  # before MiniGrid registers its own
    specs = {id: spec for id, spec in registry.items() if str(spec.entry_point).startswith("gymnasium.")}
    limited = [id if spec.max_episode_steps else f"{id},steps={STEPS_OF_CHECK}" for id, spec in specs.items()]
    return limited + list_minigrid_ids()


class LifetimeTask:
    """The object of one lifetime, with flat observations and numbered actions; `SyncVectorEnv` steps several.

    Attributes:
        env: The environment of Gymnasium.
        features: The named entries of `info` after the last step.
        info: The `info` of the last step.
        is_over: Whether the last episode of the lifetime has ended; further steps do nothing.
    """

    render_mode = None

    def __init__(self, env: Env, settings: TaskSettings, strict: bool) -> None:
        """Wrap an environment whose varied parameters have their values."""
        from gymnasium.spaces import Box, Discrete

        self.env, self.settings, self.strict = env, settings, strict
        self.metadata: dict[str, Any] = {}
        self.observations = providers.describe_observations(settings.name, env.observation_space)
        self.actions = providers.describe_actions(settings.name, env.action_space)
        self.action_space = Discrete(self.actions.num_actions)
        self.observation_space = Box(-np.inf, np.inf, self.observations.shape, np.float32)
        if self.observations.num_observations:
            self.observation_space = Discrete(self.observations.num_observations)
        self.features = np.zeros(len(settings.features), np.float32)
        self.info: Mapping[str, Any] = {}
        self.is_over = False
        self._num_steps, self._num_episodes = 0, 0
        self._observation = np.zeros(self.observations.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        """Begin an episode; a seed begins the lifetime."""
        del options
        self._drift()
        with providers.explain_errors(f"`reset` of '{self.settings.name}' fails"):
            observation, _ = self.env.reset(seed=seed)
            if self.strict:
                self._check_observation("reset", observation)
            return self.observations.encode(observation, np), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Any]:
        """Carry out a numbered action."""
        if self.is_over:
            return self._observation, 0.0, False, False, {}
        self._num_steps += 1
        with providers.explain_errors(f"`step` of '{self.settings.name}' fails"):
            observation, reward, terminated, truncated, info = self.env.step(self.actions.decode(int(action), np))
            self.info = info
            self.features = np.array([_number(info.get(name, 0.0)) for name in self.settings.features], np.float32)
            if self.strict:
                self._check_observation("step", observation)
            self._observation = self.observations.encode(observation, np)
        self._num_episodes += bool(terminated or truncated)
        self.is_over = self._num_episodes == self.settings.max_episodes
        return self._observation, float(reward), bool(terminated), bool(truncated), {}

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def _check_observation(self, function: str, observation: Any) -> None:
        """Raise `ContractViolation` for an observation outside of the space that the environment declares."""
        space = self.env.observation_space
        if not space.contains(observation):
            raise ContractViolation(
                f"`{function}` of '{self.settings.name}' returned an observation outside of its observation space: "
                f"{shorten(observation)} of type {_type_name(observation)} is not in {space}"
            )

    def _drift(self) -> None:
        """Give each drifting attribute its value in an episode that begins now."""
        for interval, _, is_whole in self.settings.drifting:
            elapsed = self._num_steps - interval.first_step
            share = min(max(elapsed / interval.num_steps, 0.0), 1.0) if interval.num_steps else float(elapsed >= 0)
            number = interval.low + share * (interval.high - interval.low)
            setattr(self.env.unwrapped, interval.parameter, round(number) if is_whole else number)


class GymnasiumTasks:
    """The objects of several lifetimes, stepped together."""

    def __init__(self, settings: TaskSettings, seeds: Sequence[int], *, strict: bool = False) -> None:
        """Make one object for each seed; `strict` ones check each step against their spaces."""
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        self._seeds: list[int | None] = list(seeds)
        tasks = [_make_task(settings, seed, strict) for seed in seeds]
        _require_one_format(tasks)
        self._tasks = tasks
        self._vector = SyncVectorEnv(
            [partial(_same, cast("Env", task)) for task in tasks], autoreset_mode=AutoresetMode.SAME_STEP
        )
        self._dtype = np.int32 if tasks[0].observations.num_observations else np.float32

    @property
    def is_over(self) -> np.ndarray:
        """Whether the last episode of each lifetime has ended, [N] bool."""
        return np.array([task.is_over for task in self._tasks])

    def reset(self) -> TimeStep:
        """Begin all lifetimes."""
        observation, _ = self._vector.reset(seed=self._seeds)
        zeros = np.zeros(len(self._tasks), np.float32)
        return self._time_step(observation, observation, zeros, zeros == 0, zeros + 1)

    def step(self, actions: np.ndarray) -> TimeStep:
        """Carry out one action in each task, [N]."""
        observation, reward, terminated, truncated, infos = self._vector.step(actions)
        first, final = terminated | truncated, np.array(observation)
        for index in np.flatnonzero(first):
            final[index] = infos["final_obs"][index]
        return self._time_step(observation, final, reward, first, 1.0 - terminated)

    def close(self) -> None:
        """Release all tasks."""
        self._vector.close()

    def _time_step(
        self, observation: np.ndarray, final: np.ndarray, reward: np.ndarray, first: np.ndarray, discount: np.ndarray
    ) -> TimeStep:
        """A time step of all tasks, [N]."""
        features = np.stack([task.features for task in self._tasks])
        outcome = np.concatenate([reward[:, None].astype(np.float32), features], axis=1)
        fields: Any = (
            np.asarray(observation, self._dtype),
            np.asarray(final, self._dtype),
            outcome,
            first,
            discount.astype(np.float32),
            np.full(len(first), -1, np.int32),
        )
        return TimeStep(*fields)


def _same(task: Env) -> Env:
    """The task, for a place that calls a function for it."""
    return task


def _make(id: str, **keywords: Any) -> Env:
    """`gymnasium.make`, whose errors are one sentence."""
    gymnasium = providers.import_package("gymnasium")
    providers.import_user_module(id.rpartition(":")[0])
    try:
        return gymnasium.make(id, disable_env_checker=True, **keywords)
    except gymnasium.error.Error as error:
        reason = providers.first_line(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {providers.first_line(error)}"
    arguments = f" with {', '.join(keywords)}" if keywords else ""
    raise BadInput(f"Gymnasium cannot make '{id}'{arguments}: {reason}")


def _make_task(settings: TaskSettings, seed: int, strict: bool = False) -> LifetimeTask:
    """The object of the lifetime of a seed, with its varied parameters."""
    random = np.random.default_rng([seed, 1])
    draws = [(parameter, _draw(random, parameter)) for parameter in settings.varied]
    arguments = {parameter.range.parameter: number for parameter, number in draws if parameter.is_argument}
    env = _make_env(settings.make, settings.name, arguments)
    for parameter, number in draws:
        if not parameter.is_argument:
            setattr(env.unwrapped, parameter.range.parameter, number)
    return LifetimeTask(env, settings, strict)


def _make_env(make: Callable[..., Env], name: str, arguments: Mapping[str, float | int]) -> Env:
    """A new environment of Gymnasium."""
    with providers.explain_errors(f"`make` of '{name}' fails"):
        env = make(**arguments)
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        raise BadInput(f"'{name}' must make a `gymnasium.Env`, not {type(env).__name__}")
    return flatten_mission(env)


def _describe_parameters(
    make: Callable[..., Env], name: str, vary: Sequence[str], drift: Sequence[str]
) -> tuple[tuple[TaskParameter, ...], tuple[TaskParameter, ...]]:
    """The parameters of the settings `vary` and `drift`."""
    if not vary and not drift:
        return (), ()
    with contextlib.closing(_make_env(make, name, {})) as env:
        signature = inspect.signature(type(env.unwrapped)).parameters
        arguments = {key: argument.default for key, argument in signature.items() if _is_number(argument.default)}
        attributes = {key: number for key, number in vars(env.unwrapped).items() if _is_number(number)}
    numbers = attributes | arguments
    pairs = providers.parse_ranges(name, vary, drift, numbers)
    providers.require_whole_bounds(name, [*pairs[0], *pairs[1]], numbers)
    for interval in pairs[1]:
        if interval.parameter not in attributes:
            raise BadInput(f"'{interval.parameter}' of '{name}' is no attribute, so it cannot drift within a lifetime")
    varied, drifting = (
        tuple(
            TaskParameter(interval, interval.parameter in arguments, isinstance(numbers[interval.parameter], int))
            for interval in intervals
        )
        for intervals in pairs
    )
    return varied, drifting


def _draw(random: np.random.Generator, parameter: TaskParameter) -> float | int:
    """A value of a varied parameter; whole numbers include both bounds."""
    interval = parameter.range
    if parameter.is_whole:
        return int(random.integers(int(interval.low), int(interval.high), endpoint=True))
    return float(random.uniform(interval.low, interval.high))


def _time_limit(task: LifetimeTask) -> int | None:
    """The fewest steps at which a wrapper truncates an episode; None where none does."""
    from gymnasium.wrappers import TimeLimit

    env, limits = task.env, []
    if env.spec is not None and env.spec.max_episode_steps:
        limits.append(env.spec.max_episode_steps)
    while env is not env.unwrapped:
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env  # pyright: ignore[reportAttributeAccessIssue]
    limits += [limit for limit in [own_time_limit(env)] if limit is not None]
    return min(limits, default=None)


def _check_first_steps(task: LifetimeTask, settings: TaskSettings) -> None:
    """Raises `BadInput` where random steps fail, or where a named entry of `info` does not appear in them."""
    missing, names = set(settings.features), set[str]()
    random = np.random.default_rng(0)
    task.reset(seed=0)
    for number in range(MAX_FIRST_STEPS):
        if number >= MIN_FIRST_STEPS and missing <= names:
            return
        *_, terminated, truncated, _ = task.step(int(random.integers(task.actions.num_actions)))
        names |= {name for name, entry in task.info.items() if _is_number(entry) or _is_flag(entry)}
        if terminated or truncated:
            task.reset()
        if task.is_over:
            break
    providers.check_features(settings.name, settings.features, names)


def _require_one_format(tasks: Sequence[LifetimeTask]) -> None:
    """Raises `BadInput` where a varied parameter changes the shapes of observations or the number of actions."""
    formats = {(task.observations[:2], task.actions.num_actions) for task in tasks}
    if len(formats) > 1:
        raise BadInput(
            f"all lifetimes of '{tasks[0].settings.name}' must have the same observation space and the same actions, "
            "so the setting 'vary' must not change their sizes"
        )


def _type_name(entry: Any) -> str:
    """The type of a entry, or of the entries of an array with its shape."""
    return f"{entry.dtype}{list(entry.shape)}" if isinstance(entry, np.ndarray) else type(entry).__name__


def _is_number(entry: object) -> bool:
    """Whether this is one number; truth values are none."""
    return (isinstance(entry, Real) or (isinstance(entry, np.ndarray) and entry.ndim == 0)) and not isinstance(
        entry, bool
    )


def _is_flag(entry: object) -> bool:
    """Whether this is one truth value, which counts as 0 or 1."""
    return isinstance(entry, bool | np.bool_)


def _number(entry: Any) -> float:
    """An entry of `info` as a number; what is no number is 0."""
    return float(entry) if _is_flag(entry) or _is_number(entry) else 0.0
