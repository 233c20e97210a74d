"""Environments of jax-envelope, `envelope:SUITE::ID[,setting=value...]`, such as `envelope:jumanji::Snake-v1`.

jax-envelope 0.6 (https://pypi.org/project/jax-envelope, extra `envelope`, Python 3.12 or later) gives one interface to
suites of environments in JAX, each of which needs a package of its own: brax, craftax, gymnax, jumanji, kinetix, navix,
mujoco_playground, and what other packages register. Those whose actions are discrete are supported. Parameters can vary
and drift where jax-envelope hands them on: in its record `env_params`, which gymnax, Craftax and Kinetix have, or as
numbers that are fields of an environment of another suite.
"""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny.environments import functional, providers
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Environment, Key, PyTree

TAKES_ID = True

EXAMPLE = "jumanji::Snake-v1"
REQUIREMENT = "jax-envelope (Python 3.12 or later)"
RECORD = "env_params"  # the field in which an environment keeps the parameters of its library


class EnvelopeState(NamedTuple):
    """The state of an episode."""

    inner: PyTree  # of jax-envelope
    is_truncated: Any


class EnvelopeParameters(SimpleNamespace):
    """The parameters of an environment, by name."""

    def replace(self, **changes: Any) -> "EnvelopeParameters":
        """The same parameters, some of which have other values."""
        return EnvelopeParameters(**(vars(self) | changes))


class EnvelopeFunctions:
    """An environment of jax-envelope with the functions of gymnax 1.0."""

    def __init__(self, env: Any) -> None:
        """Wrap an environment."""
        self.env = env
        self.defaults = EnvelopeParameters(**_read_parameters(env.unwrapped))

    def reset_env(self, key: Key, params: EnvelopeParameters) -> tuple[Any, PyTree]:
        """Begins an episode, as the first one of a lifetime of jax-envelope."""
        inner, info = self._with_parameters(params).init(key)
        return info.obs, EnvelopeState(inner, info.truncated)

    def step_env(
        self, key: Key, state: PyTree, action: Any, params: EnvelopeParameters
    ) -> tuple[Any, PyTree, Any, Any, Any]:
        """Takes a step; all chance is in the state."""
        del key
        inner, info = self._with_parameters(params).step(state.inner, action)
        return info.obs, EnvelopeState(inner, info.truncated), info.reward, info.terminated, {}

    def is_truncated(self, state: PyTree, params: EnvelopeParameters) -> Any:
        """Whether the time limit has been reached."""
        del params
        return state.is_truncated

    def _with_parameters(self, params: EnvelopeParameters) -> Any:
        """The environment in which parameters have other values than by default."""
        defaults = vars(self.defaults)
        return _replace_numbers(
            self.env, {p: number for p, number in vars(params).items() if number is not defaults[p]}
        )


def build(
    *,
    id: str = "",
    episodes: int = 10,
    steps: int = 0,
    max_episode_steps: int = 0,
    vary: tuple[str, ...] = (),
    drift: tuple[str, ...] = (),
    same_layout: bool = False,
) -> Environment:
    """Builds the environment.

    Args:
        id: ID of the environment with its suite, such as jumanji::Snake-v1; written after the colon.
        episodes: Episodes of a lifetime, at least 1. A lifetime takes at most so many times the time limit.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`; required where an
            environment has no time limit.
        max_episode_steps: Time limit of an episode; by default, 0, that of the environment.
        vary: Parameters that each lifetime draws uniformly, PARAMETER:LOW..HIGH, such as length:0.3..0.8 of
            gymnax::CartPole-v1. The suites brax, jumanji, mujoco_playground and navix have none.
        drift: Parameters that change within a lifetime, PARAMETER:LOW..HIGH:STEPS; STEPS is the number of steps that
            the change takes, or FIRST..LAST, and it takes effect where an episode begins.
        same_layout: Whether all episodes of a lifetime begin with the same random key.
    """
    providers.require_id("envelope", id, EXAMPLE)
    require_at_least(0, max_episode_steps=max_episode_steps)
    package = providers.import_package("envelope", requirement=REQUIREMENT)
    name = f"envelope:{id}"
    limit = {"max_episode_steps": max_episode_steps} if max_episode_steps else {}
    if "::" not in id:
        raise BadInput(f"environment '{name}' must name its suite, such as envelope:{EXAMPLE}")
    with providers.explain_errors(f"environment '{name}' cannot be made"):
        library_env = package.create(id, **limit)
        observations = _describe_observations(name, library_env.observation_space)
        actions = providers.describe_actions(name, _as_gymnasium_space(library_env.action_space))
    horizon = max_episode_steps or library_env.default_max_steps
    env = EnvelopeFunctions(library_env)
    if (vary or drift) and not vars(env.defaults):
        raise BadInput(
            f"environment '{name}' takes neither 'vary' nor 'drift', because jax-envelope hands on no numeric "
            f"parameters of the suite '{id.partition('::')[0]}'"
        )
    settings = functional.FunctionalSettings(episodes, steps, vary, drift, ())
    return functional.build_environment(
        name, env, env.defaults, observations, actions, settings, lambda _: horizon,
        same_layout=same_layout,
    )  # fmt: skip


def list_ids() -> list[str]:
    """The IDs of all environments in those suites whose packages are installed."""
    package = providers.import_package("envelope", requirement=REQUIREMENT)
    return [id for suite in package.registered_suites() for id in package.registered_environments(suite)]


def _read_parameters(env: Any) -> dict[str, float | int]:
    """The numbers by name that an environment without wrappers keeps as data, which JAX traces.

    A number that is not finite is a time limit that jax-envelope has taken over.
    """
    fields = {name for name, field in env.__dataclass_fields__.items() if field.metadata.get("pytree_node", True)}
    leaves = {name: getattr(env, name) for name in fields if not name.startswith("_")} | _record_of(env)
    numbers = {name: _as_number(leaf) for name, leaf in leaves.items()}
    return {name: number for name, number in numbers.items() if number is not None and math.isfinite(number)}


def _replace_numbers(env: Any, numbers: dict[str, Any]) -> Any:
    """The environment, with its wrappers, in which some numbers of `_read_parameters` have other values."""
    if not numbers:
        return env
    if env is not env.unwrapped:
        return env.replace(env=_replace_numbers(env.env, numbers))
    in_record = {name: number for name, number in numbers.items() if name in _record_of(env)}
    changes: dict[str, Any] = {name: number for name, number in numbers.items() if name not in in_record}
    if in_record:
        changes[RECORD] = getattr(env, RECORD).replace(**in_record)
    return env.replace(**changes)


def _record_of(env: Any) -> dict[str, Any]:
    """What the record of parameters of an environment holds; nothing where there is none."""
    return vars(getattr(env, RECORD, SimpleNamespace()))


def _as_number(leaf: Any) -> float | int | None:
    """A single number, also one that is an array; None for anything else."""
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic) and leaf.shape == () and leaf.dtype.kind in "fiu"
    number: Any = leaf.item() if is_array else leaf
    return number if functional.is_number(number) else None


def _describe_observations(name: str, space: Any) -> providers.ObservationLayout:
    """The layout of observations; those with parts of any structure become one vector of their leaves."""
    if not hasattr(space, "tree"):
        return providers.describe_observations(name, _as_gymnasium_space(space))
    leaves = jax.tree.leaves(space.tree, is_leaf=lambda part: hasattr(part, "contains"))
    spaces = dict(enumerate(map(_as_gymnasium_space, leaves)))
    layout = providers.describe_observations(name, SimpleNamespace(spaces=spaces))
    return layout._replace(encode=lambda observation, xp: layout.encode(jax.tree.leaves(observation), xp))


def _as_gymnasium_space(space: Any) -> Any:
    """A space of jax-envelope in the form of Gymnasium's, where the two have different ones."""
    if type(space).__name__ != "Discrete" or space.shape == ():
        return space
    return MultiDiscrete(space.n, space.dtype)


class MultiDiscrete:
    """The form of Gymnasium's space of this name: choices of these sizes, from 0 on."""

    def __init__(self, sizes: Any, dtype: Any) -> None:
        """Keep the sizes."""
        self.nvec, self.shape, self.dtype = sizes, sizes.shape, dtype
        self.low, self.high = 0, sizes - 1
