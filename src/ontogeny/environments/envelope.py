"""Environments of jax-envelope, `envelope:SUITE::ID[,setting=value...]`, such as `envelope:jumanji::Snake-v1`.

jax-envelope 0.6 (https://pypi.org/project/jax-envelope, extra `envelope`, Python 3.12 or later) gives one interface to
suites of environments in JAX, each of which needs a package of its own: brax, craftax, gymnax, jumanji, kinetix, navix,
mujoco_playground, and what other packages register. Those whose actions are discrete are supported.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from ontogeny.environments import functional, providers
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Environment, Key, PyTree

TAKES_ID = True

EXAMPLE = "jumanji::Snake-v1"
REQUIREMENT = "jax-envelope (Python 3.12 or later)"


class EnvelopeState(NamedTuple):
    """The state of an episode."""

    inner: PyTree  # of jax-envelope
    is_truncated: Any


@dataclasses.dataclass(frozen=True)
class NoParameters:
    """The parameters of an environment without any."""

    def replace(self) -> "NoParameters":
        """The same parameters."""
        return self


class EnvelopeFunctions:
    """An environment of jax-envelope with the functions of gymnax 1.0."""

    def __init__(self, env: Any) -> None:
        """Wrap an environment."""
        self.env = env

    def reset_env(self, key: Key, params: NoParameters) -> tuple[Any, PyTree]:
        """Begins an episode, as the first one of a lifetime of jax-envelope."""
        del params
        inner, info = self.env.init(key)
        return info.obs, EnvelopeState(inner, info.truncated)

    def step_env(self, key: Key, state: PyTree, action: Any, params: NoParameters) -> tuple[Any, PyTree, Any, Any, Any]:
        """Takes a step; all chance is in the state."""
        del key, params
        inner, info = self.env.step(state.inner, action)
        return info.obs, EnvelopeState(inner, info.truncated), info.reward, info.terminated, {}

    def is_truncated(self, state: PyTree, params: NoParameters) -> Any:
        """Whether the time limit has been reached."""
        del params
        return state.is_truncated


def build(
    *, id: str = "", episodes: int = 10, steps: int = 0, max_episode_steps: int = 0, same_layout: bool = False
) -> Environment:
    """Builds the environment.

    Args:
        id: ID of the environment with its suite, such as jumanji::Snake-v1; written after the colon.
        episodes: Episodes of a lifetime, at least 1. A lifetime takes at most so many times the time limit.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`; required where an
            environment has no time limit.
        max_episode_steps: Time limit of an episode; by default, 0, that of the environment.
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
    settings = functional.FunctionalSettings(episodes, steps, (), (), ())
    return functional.build_environment(
        name, EnvelopeFunctions(library_env), NoParameters(), observations, actions, settings, lambda _: horizon,
        same_layout=same_layout,
    )  # fmt: skip


def list_ids() -> list[str]:
    """The IDs of all environments in those suites whose packages are installed."""
    package = providers.import_package("envelope", requirement=REQUIREMENT)
    return [id for suite in package.registered_suites() for id in package.registered_environments(suite)]


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
