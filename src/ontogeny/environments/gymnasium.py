"""Environments of Gymnasium by their ID, and `MODULE:ID` for one that a module of your own registers.

Gymnasium environments are Python objects (Towers et al. 2024, arXiv 2407.17032). Each lifetime has an object of its
own, made by `gymnasium.make` and seeded once, in which episodes follow each other. The score is the environment's own
reward.
"""

import contextlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ontogeny import plugins
from ontogeny.environments.base import first_feature
from ontogeny.errors import BadInput, ContractViolation, require_at_least
from ontogeny.plugins import Range
from ontogeny.types import EnvSpec, HostEnvironment, TimeStep
from ontogeny.validation import shorten

if TYPE_CHECKING:
    from gymnasium import Env, Space
else:  # an optional dependency, which is imported where it is used
    Env = Space = Any

TAKES_ID = True
MAX_ACTIONS = 1024  # of an action space that combines several choices
SUPPORTED_ACTIONS = (
    f"Discrete, and MultiDiscrete and MultiBinary with at most {MAX_ACTIONS:,} combinations; for continuous actions, "
    "write a wrapper that offers some of them as a Discrete space"
)
SUPPORTED_OBSERVATIONS = "Discrete, Box, MultiBinary, MultiDiscrete, and Dict and Tuple of these"
MIN_FIRST_STEPS = 20  # random steps that are checked where an environment is built
MAX_FIRST_STEPS = 500  # in which each named entry of `info` must appear


class TaskParameter(NamedTuple):
    """A number of an environment that is drawn per lifetime, or that changes within it."""

    range: Range
    is_argument: bool  # of the environment's class; else it is an attribute, which is set afterwards
    is_whole: bool  # whether its values are whole numbers


class ObservationFormat(NamedTuple):
    """Observations of a space as arrays."""

    num_observations: int  # 0 where they are vectors
    shape: tuple[int, ...]
    encode: Callable[[Any], np.ndarray]


class ActionFormat(NamedTuple):
    """Numbered actions of a space."""

    num_actions: int
    decode: Callable[[int], Any]


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
        drift: Attributes that change within a lifetime, PARAMETER:LOW..HIGH:STEPS, where an episode begins.
    """
    if not id:
        raise BadInput("name the environment of Gymnasium: `gymnasium:CartPole-v1`")
    make = partial(_make, id, **_parse_parameters(parameters))
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
    require_at_least(1, episodes=episodes)
    require_at_least(0, steps=steps)
    varied, drifting = _describe_parameters(make, name, vary, drift)
    settings = TaskSettings(make, name, None if steps else episodes, tuple(features), varied, drifting)
    with contextlib.closing(_make_task(settings, 0, strict=True)) as task:
        observations, actions = task.observations, task.actions
        limit = _time_limit(task)
        if not steps and limit is None:
            raise BadInput(f"'{name}' has no time limit, so the length of a lifetime must be stated: `steps=1000`")
        num_steps = steps or episodes * (limit or 0)
        _check_first_steps(task, settings)
    spec = EnvSpec(
        name=name, num_actions=actions.num_actions, num_observations=observations.num_observations,
        observation_shape=observations.shape, outcome_features=("env_reward", *settings.features),
        num_steps=num_steps, horizon=min(limit or num_steps, num_steps), drives=(("env_reward", 1.0),),
    )  # fmt: skip
    return HostEnvironment(spec, partial(GymnasiumTasks, settings), first_feature)


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
        self.observations = _observation_format(env.observation_space, settings.name)
        self.actions = _action_format(env.action_space, settings.name)
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
        with _explain(self.settings.name, "reset"):
            observation, _ = self.env.reset(seed=seed)
            if self.strict:
                self._check_observation("reset", observation)
            return self.observations.encode(observation), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Any]:
        """Carry out a numbered action."""
        if self.is_over:
            return self._observation, 0.0, False, False, {}
        self._num_steps += 1
        with _explain(self.settings.name, "step"):
            observation, reward, terminated, truncated, info = self.env.step(self.actions.decode(int(action)))
            self.info = info
            self.features = np.array([_number(info.get(name, 0.0)) for name in self.settings.features], np.float32)
            if self.strict:
                self._check_observation("step", observation)
            self._observation = self.observations.encode(observation)
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
            share = min(self._num_steps / interval.num_steps, 1.0) if interval.num_steps else 1.0
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
    """`gymnasium.make`, whose errors are one sentence; a module is also found in the working directory."""
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise BadInput(
            "environments of Gymnasium need the package gymnasium: `pip install 'ontogeny[gymnasium]'`"
        ) from None
    module = id.rpartition(":")[0]
    added = [str(Path.cwd())] if module and str(Path.cwd()) not in sys.path else []
    sys.path[:0] = added
    try:
        return gymnasium.make(id, disable_env_checker=True, **keywords)
    except gymnasium.error.Error as error:
        raise BadInput(f"Gymnasium cannot make '{id}': {_first_line(error)}") from error
    except ModuleNotFoundError as error:
        raise BadInput(f"Gymnasium cannot make '{id}': {_first_line(error)}") from error
    except Exception as error:
        arguments = f" with {', '.join(keywords)}" if keywords else ""
        raise BadInput(
            f"Gymnasium cannot make '{id}'{arguments}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        for path in added:
            sys.path.remove(path)


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


def _make_env(make: Callable[..., Env], name: str, arguments: Mapping[str, float]) -> Env:
    """A new environment of Gymnasium."""
    with _explain(name, "make"):
        env = make(**arguments)
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        raise BadInput(f"'{name}' must make a `gymnasium.Env`, not {type(env).__name__}")
    return env


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
    varied, drifting = [], []
    for parameters, texts, numbers in ((varied, vary, attributes | arguments), (drifting, drift, attributes)):
        setting = "vary" if parameters is varied else "drift"
        for text in texts:
            interval = plugins.parse_range(text, setting, has_steps=setting == "drift")
            if interval.parameter not in numbers:
                noun = f"number to {setting} in '{name}' with the name"
                raise plugins.unknown_name_error(noun, interval.parameter, sorted(numbers))
            is_argument = setting == "vary" and interval.parameter in arguments
            parameters.append(TaskParameter(interval, is_argument, isinstance(numbers[interval.parameter], int)))
    return tuple(varied), tuple(drifting)


def _draw(random: np.random.Generator, parameter: TaskParameter) -> float | int:
    """A value of a varied parameter; whole numbers include both bounds."""
    interval = parameter.range
    if parameter.is_whole:
        return int(random.integers(math.ceil(interval.low), math.floor(interval.high), endpoint=True))
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
        names |= {name for name, entry in task.info.items() if _is_number(entry)}
        if terminated or truncated:
            task.reset()
        if task.is_over:
            break
    if missing <= names:
        return
    noun = f"numeric entry of `info` in random steps of '{settings.name}'"
    raise plugins.unknown_name_error(noun, min(missing - names), sorted(names))


def _require_one_format(tasks: Sequence[LifetimeTask]) -> None:
    """Raises `BadInput` where a varied parameter changes the shapes of observations or the number of actions."""
    formats = {(task.observations[:2], task.actions.num_actions) for task in tasks}
    if len(formats) > 1:
        raise BadInput(
            f"all lifetimes of '{tasks[0].settings.name}' must have the same observation space and the same actions, "
            "so the setting 'vary' must not change their sizes"
        )


def _observation_format(space: Space, name: str) -> ObservationFormat:
    """Observations as a whole number, or as an array of float32 of the shape of a box, or flattened."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        num_observations, start = int(space.n), int(space.start)
        return ObservationFormat(num_observations, (), lambda observation: np.array(int(observation) - start, np.int32))
    encode, shape = _vector_format(space, name)
    return ObservationFormat(
        0, shape or (1,), (lambda observation: encode(observation).reshape(1)) if shape == () else encode
    )


def _vector_format(space: Space, name: str) -> tuple[Callable[[Any], np.ndarray], tuple[int, ...]]:
    """An encoding of a space as an array of float32, and its shape. Bytes are scaled to the range from 0 to 1."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))
        nested: Any = space.spaces
        parts = [(key, *_vector_format(nested[key], name)) for key in keys]

        def encode_parts(observation: Any) -> np.ndarray:
            return np.concatenate([np.ravel(encode(observation[key])) for key, encode, _ in parts])

        return encode_parts, (sum(math.prod(shape) for _, _, shape in parts),)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):

        def flatten(observation: Any) -> np.ndarray:
            return np.asarray(spaces.flatten(space, observation), np.float32)

        return flatten, (spaces.flatdim(space),)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        shape = tuple(int(length) for length in space.shape)
        scale = np.float32(1 / 255 if space.dtype == np.uint8 and isinstance(space, spaces.Box) else 1)
        return lambda observation: np.asarray(observation, np.float32).reshape(shape) * scale, shape
    raise BadInput(f"'{name}' has observations in {type(space).__name__}; supported are {SUPPORTED_OBSERVATIONS}")


def _action_format(space: Space, name: str) -> ActionFormat:
    """Numbered actions."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = space.start
        return ActionFormat(int(space.n), lambda action: start + action)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        is_binary = isinstance(space, spaces.MultiBinary)
        sizes = np.full(space.shape, 2) if is_binary else space.nvec
        num_actions = math.prod(int(size) for size in sizes.ravel())
        if num_actions <= MAX_ACTIONS:
            choices = itertools.product(*(range(int(size)) for size in sizes.ravel()))
            offsets = 0 if is_binary else space.start
            table = [np.reshape(choice, sizes.shape).astype(space.dtype) + offsets for choice in choices]
            return ActionFormat(num_actions, lambda action: np.array(table[action], space.dtype))
    raise BadInput(f"'{name}' has actions in {space}; supported are {SUPPORTED_ACTIONS}")


def _parse_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """The fixed arguments of the environment."""
    parsed = {}
    for text in texts:
        name, colon, literal = text.partition(":")
        if not colon or not name.isidentifier():
            raise BadInput(f"the setting 'parameters' is of the form PARAMETER:VALUE, joined by '+', not '{text}'")
        parsed[name] = plugins.parse(f"_:{name}={literal}")[1][name]
    return parsed


def _type_name(entry: Any) -> str:
    """The type of a entry, or of the entries of an array with its shape."""
    return f"{entry.dtype}{list(entry.shape)}" if isinstance(entry, np.ndarray) else type(entry).__name__


def _is_number(entry: object) -> bool:
    """Whether this is one number."""
    return (isinstance(entry, Real) or (isinstance(entry, np.ndarray) and entry.ndim == 0)) and not isinstance(
        entry, bool
    )


def _number(entry: Any) -> float:
    """An entry of `info` as a number; what is no number is 0."""
    return float(entry) if isinstance(entry, bool | np.bool_) or _is_number(entry) else 0.0


def _first_line(error: BaseException) -> str:
    """The first line of an error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _explain(name: str, function: str) -> Generator[None]:
    """A context that turns an error of an environment into one sentence."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"`{function}` of '{name}' fails: {type(error).__name__}: {_first_line(error)}") from error
