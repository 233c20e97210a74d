"""What the providers of environments of other libraries share: observations, actions, lifetimes and tasks.

A lifetime is a number of episodes and takes at most so many times the time limit. Where its episodes end earlier, so
does the lifetime: otherwise every lifetime in an environment that pays each step would have the same score.
The score is the environment's own reward, which is also the first outcome feature, `env_reward`. A task is the
environment as it is, or one draw of the parameters that the setting `vary` names; parameters that the setting `drift`
names change from episode to episode.
"""

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ontogeny.environments.ranges import Range, parse_range
from ontogeny.errors import BadInput, require_at_least
from ontogeny.optional_packages import import_optional
from ontogeny.plugins import suggest_names, unknown_name_error
from ontogeny.types import EnvSpec

REWARD_FEATURE = "env_reward"
NO_BOUND = 1e30  # bounds beyond it, such as the largest number of float32, are none
MAX_COMBINATIONS = 1024  # of actions that are tuples of choices
ACTIONS_SUPPORTED = (
    "ontogeny supports discrete actions: whole numbers, and tuples or dictionaries of whole numbers with at most "
    f"{MAX_COMBINATIONS:,} combinations"
)


class ObservationLayout(NamedTuple):
    """How observations of a space become one array."""

    num_observations: int  # where they are whole numbers, else 0
    shape: tuple[int, ...]  # () where they are whole numbers
    encode: Callable[[Any, Any], Any]  # (observation, `numpy` or `jax.numpy`) -> array
    bounds: tuple[float, float] = (-math.inf, math.inf)  # of every number of an array


class ActionLayout(NamedTuple):
    """How a whole number becomes an action of a space."""

    num_actions: int
    decode: Callable[[Any, Any], Any]  # (whole number, `numpy` or `jax.numpy`) -> action


def import_package(package: str, *, module: str = "", requirement: str = "") -> ModuleType:
    """The optional package of a provider, or one of its modules.

    Args:
        package: Which is also the name of the extra.
        module: A module of the package that is imported in place of the whole package.
        requirement: What the message says is needed, where this is not just the package.

    Raises:
        BadInput: The package is not installed.
    """
    return import_optional(module or package, package, f"environments of {package}", requirement)


def import_user_module(module: str) -> None:
    """Imports a module of the user, which registers environments; the working directory comes first.

    Args:
        module: Its name; empty for none.

    Raises:
        BadInput: It cannot be imported.
    """
    if not module:
        return
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(module)
    except Exception as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        hint = "; install its package, or run the command in the folder of its file" if is_absent else ""
        reason = f"{type(error).__name__}: {first_line(error)}{hint}"
        raise BadInput(f"the module '{module}' cannot be imported: {reason}") from None
    finally:
        sys.path.remove(str(Path.cwd()))


def require_id(provider: str, id: str, example: str) -> None:
    """Raises `BadInput` if the name of an environment of a provider lacks its ID."""
    if not id:
        raise BadInput(f"name an environment of {provider} by its ID, such as {provider}:{example}")


def describe_observations(name: str, space: Any) -> ObservationLayout:
    """The layout of observations: whole numbers and arrays stay as they are, dictionaries and tuples become a vector.

    Args:
        name: Of the environment, for messages.
        space: A space of Gymnasium or gymnax.
    """
    if _is_discrete(space):
        start = int(getattr(space, "start", 0))
        return ObservationLayout(int(space.n), (), lambda observation, xp: xp.asarray(observation - start, xp.int32))
    if _parts_of(space) is None and len(shape := _array_shape(name, space)) > 0:
        bounds = _bounds([space])
        return ObservationLayout(0, shape, lambda observation, xp: _to_numbers(space, observation, xp), bounds)
    length = sum(math.prod(_leaf_shape(name, leaf)) for leaf in _leaves_of(space))

    def encode(observation: Any, xp: Any) -> Any:
        pairs = zip(_leaves_of(space), _entries_of(space, observation), strict=True)
        return xp.concatenate([_flatten(leaf, entry, xp) for leaf, entry in pairs])

    return ObservationLayout(0, (length,), encode, _bounds(_leaves_of(space)))


def describe_actions(name: str, space: Any) -> ActionLayout:
    """The layout of actions; those of a tuple of choices are numbered, the last choice varying fastest.

    Args:
        name: Of the environment, for messages.
        space: A space of Gymnasium or gymnax.

    Raises:
        BadInput: Actions are continuous, or there are too many combinations.
    """
    if _is_discrete(space):
        start = int(getattr(space, "start", 0))
        return ActionLayout(int(space.n), lambda action, xp: action + start if start else action)
    parts = _parts_of(space)
    sizes, starts = _choices(space) if parts is None else ([], [])
    if parts is not None and all(_is_discrete(part) for part in parts.values()):
        sizes = [int(part.n) for part in parts.values()]
        starts = [int(getattr(part, "start", 0)) for part in parts.values()]
    if not sizes:
        kind = "continuous actions" if type(space).__name__ in ("Box", "Continuous") else "actions of another kind"
        raise BadInput(f"environment '{name}' has {kind}, {space}; {ACTIONS_SUPPORTED}")
    num_actions = math.prod(sizes)
    if num_actions > MAX_COMBINATIONS:
        raise BadInput(f"environment '{name}' has {num_actions:,} combinations of actions; {ACTIONS_SUPPORTED}")

    def decode(action: Any, xp: Any) -> Any:
        chosen = [part + start for part, start in zip(xp.unravel_index(action, sizes), starts, strict=True)]
        if parts is None:
            return xp.stack(chosen).reshape(space.shape).astype(space.dtype)
        return dict(zip(parts, chosen, strict=True)) if isinstance(space.spaces, Mapping) else tuple(chosen)

    return ActionLayout(num_actions, decode)


def make_spec(
    name: str,
    actions: ActionLayout,
    observations: ObservationLayout,
    features: Sequence[str],
    *,
    episodes: int,
    steps: int,
    horizon: int | None,
) -> EnvSpec:
    """The spec of an environment of a provider.

    Args:
        name: `PROVIDER:ID`.
        features: Numeric entries of `info` that become outcome features beside the reward.
        episodes: Episodes of a lifetime.
        steps: Steps per lifetime; 0 for as many as `episodes` needs.
        horizon: The largest number of steps in an episode; None where there is no limit.

    Raises:
        BadInput: A setting is out of range, an environment without a time limit lacks `steps`, or its episodes have no
            steps.
    """
    require_at_least(1, episodes=episodes)
    require_at_least(0, steps=steps)
    if horizon is not None and horizon < 1:
        raise BadInput(f"an episode of environment '{name}' must have at least 1 step, not {horizon}")
    if not steps and horizon is None:
        raise BadInput(f"environment '{name}' has no time limit: the setting 'steps' must be the steps of a lifetime")
    num_steps = steps or episodes * (horizon or 0)
    return EnvSpec(
        name=name, num_actions=actions.num_actions, num_observations=observations.num_observations,
        observation_shape=observations.shape, outcome_features=(REWARD_FEATURE, *features), num_steps=num_steps,
        horizon=num_steps if horizon is None else horizon, drives=((REWARD_FEATURE, 1.0),),
        observation_bounds=observations.bounds,
    )  # fmt: skip


def check_features(name: str, features: Sequence[object], known_names: Collection[str]) -> tuple[str, ...]:
    """The names of the outcome features that the setting `features` adds; each must be a numeric entry of `info`."""
    for feature in features:
        if feature not in known_names:
            hint = suggest_names(str(feature), sorted(known_names))
            raise BadInput(f"the `info` of environment '{name}' has no number '{feature}'{hint}")
    return tuple(str(feature) for feature in features)


def parse_parameters(texts: Sequence[object]) -> dict[str, Any]:
    """`('size:20', 'map_name:8x8')` -> `{'size': 20, 'map_name': '8x8'}`, the setting `parameters`."""
    parameters: dict[str, Any] = {}
    for text in texts:
        name, colon, chosen = str(text).partition(":")
        if not colon or not name.strip().isidentifier():
            raise BadInput(f"the setting 'parameters' is of the form PARAMETER:NUMBER, joined by '+', not '{text}'")
        parameters[name.strip()] = _read_literal(chosen.strip())
    return parameters


def parse_ranges(
    name: str, vary: Sequence[object], drift: Sequence[object], known_names: Collection[str]
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """The ranges of the settings `vary` and `drift`.

    Args:
        name: Of the environment, for messages.
        vary: The parameters that are drawn once per lifetime.
        drift: The parameters that change within a lifetime.
        known_names: The numeric parameters of the environment.

    Raises:
        BadInput: A text is no range, or a parameter is unknown or named twice.
    """
    varied = tuple(parse_range(text, "vary") for text in vary)
    drifting = tuple(parse_range(text, "drift", has_steps=True) for text in drift)
    names = [parameters.parameter for parameters in (*varied, *drifting)]
    for parameter in names:
        if parameter not in known_names:
            raise unknown_name_error(f"number among the parameters of '{name}' named", parameter, sorted(known_names))
        if names.count(parameter) > 1:
            raise BadInput(f"the settings 'vary' and 'drift' name the parameter '{parameter}' twice")
    return varied, drifting


def require_whole_bounds(name: str, intervals: Sequence[Range], parameters: Mapping[str, object]) -> None:
    """Raises `BadInput` if the range of a parameter that is a whole number has other bounds.

    Args:
        name: Of the environment, for messages.
        intervals: The ranges.
        parameters: The default of every parameter, by name.
    """
    for parameter, low, high, *_ in intervals:
        if isinstance(parameters[parameter], int) and not (low.is_integer() and high.is_integer()):
            raise BadInput(f"the parameter '{parameter}' of '{name}' is a whole number: so must be its bounds")


@contextlib.contextmanager
def explain_errors(message: str) -> Generator[None]:
    """A context that turns any error of another library into one sentence.

    Args:
        message: The beginning of the sentence.

    Raises:
        BadInput: There was an error; one that is a `BadInput` already passes unchanged.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{message}: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error; without any, the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _read_literal(text: str) -> Any:
    """A number, a truth value, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _is_discrete(space: Any) -> bool:
    """Whether a space holds single whole numbers."""
    return type(space).__name__ == "Discrete"


def _parts_of(space: Any) -> dict[Any, Any] | None:
    """The spaces in a dictionary or tuple by their keys; None for any other space."""
    spaces = getattr(space, "spaces", None)
    if spaces is None:
        return None
    return dict(spaces) if isinstance(spaces, Mapping) else dict(enumerate(spaces))


def _leaves_of(space: Any) -> list[Any]:
    """The spaces without parts in a nested space, in order."""
    parts = _parts_of(space)
    return [space] if parts is None else [leaf for part in parts.values() for leaf in _leaves_of(part)]


def _entries_of(space: Any, observation: Any) -> list[Any]:
    """The parts of an observation of a nested space, in the order of `_leaves_of`."""
    parts = _parts_of(space)
    if parts is None:
        return [observation]
    return [entry for key, part in parts.items() for entry in _entries_of(part, observation[key])]


def _array_shape(name: str, space: Any) -> tuple[int, ...]:
    """The shape of the arrays of a space."""
    shape = getattr(space, "shape", None)
    if shape is None:
        raise BadInput(f"environment '{name}' has observations of the space {space}, which are not arrays of numbers")
    return tuple(int(length) for length in shape)


def _leaf_shape(name: str, space: Any) -> tuple[int, ...]:
    """The shape of a part of a vector: whole numbers become indicators."""
    return (int(space.n),) if _is_discrete(space) else _array_shape(name, space)


def _flatten(space: Any, entry: Any, xp: Any) -> Any:
    """A part of an observation as a vector; whole numbers become indicators."""
    if _is_discrete(space):
        start = int(getattr(space, "start", 0))
        return xp.asarray(xp.arange(int(space.n)) == entry - start, xp.float32)
    return xp.ravel(_to_numbers(space, entry, xp))


def _bounds(spaces: Sequence[Any]) -> tuple[float, float]:
    """The lowest and highest number in arrays of spaces, as these declare them."""
    lows, highs = [], []
    for space in spaces:
        low, high = (0, 1) if _is_discrete(space) else (getattr(space, name, None) for name in ("low", "high"))
        scale = 255 if getattr(space, "dtype", None) == np.uint8 else 1
        lows.append(-math.inf if low is None else float(np.min(low)) / scale)
        highs.append(math.inf if high is None else float(np.max(high)) / scale)
    low, high = min(lows), max(highs)
    return low if low > -NO_BOUND else -math.inf, high if high < NO_BOUND else math.inf


def _to_numbers(space: Any, entry: Any, xp: Any) -> Any:
    """An array of real numbers; bytes, as in images, are scaled to the range from 0 to 1."""
    numbers = xp.asarray(entry, xp.float32)
    return numbers / 255 if np.dtype(space.dtype) == np.uint8 else numbers


def _choices(space: Any) -> tuple[list[int], list[int]]:
    """The sizes and first values of the choices in an array of whole numbers; empty for any other space."""
    kind = type(space).__name__
    if kind == "MultiDiscrete":
        sizes = [int(size) for size in np.ravel(space.nvec)]
        return sizes, [int(start) for start in np.ravel(getattr(space, "start", np.zeros_like(space.nvec)))]
    if kind == "MultiBinary":
        count = math.prod(np.atleast_1d(space.n))
        return [2] * count, [0] * count
    if kind == "Box" and np.issubdtype(space.dtype, np.integer):
        lows, highs = (np.broadcast_to(bound, space.shape).ravel().tolist() for bound in (space.low, space.high))
        return [int(high) - int(low) + 1 for low, high in zip(lows, highs, strict=True)], [int(low) for low in lows]
    return [], []
