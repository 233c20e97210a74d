"""Environments of Craftax, `craftax:ID[,setting=value...]`, such as `craftax:Craftax-Classic-Symbolic-v1`.

Matthews et al. 2024 (arXiv 2402.16801), version 1.6 (extra `craftax`). Their base class neither tells truncations from
terminations nor keeps the final observation; the adapter does both. Each episode has a new map; with `same_layout`,
all episodes of a lifetime have the same one. The score is the reward of Craftax; the achievements of an episode can be
outcome features.
"""

from typing import Any

import jax.numpy as jnp

from ontogeny.environments import functional, providers
from ontogeny.plugins import unknown_name_error
from ontogeny.types import Environment, Key, PyTree

TAKES_ID = True

IDS = ("Craftax-Classic-Symbolic-v1", "Craftax-Symbolic-v1", "Craftax-Classic-Pixels-v1", "Craftax-Pixels-v1")
NO_LIMIT = 2**31 - 1


class CraftaxFunctions:
    """An environment of Craftax with the functions of gymnax 1.0."""

    def __init__(self, env: Any) -> None:
        """Wrap an environment of Craftax that does not begin episodes by itself."""
        self.env = env

    def reset_env(self, key: Key, params: Any) -> tuple[Any, PyTree]:
        """Draws a map."""
        return self.env.reset_env(key, params)

    def step_env(self, key: Key, state: PyTree, action: Any, params: Any) -> tuple[Any, PyTree, Any, Any, Any]:
        """Takes a step; the time limit alone terminates nothing."""
        observation, state, reward, _, info = self.env.step_env(key, state, action, params)
        terminated = self.env.is_terminal(state, params.replace(max_timesteps=NO_LIMIT))
        return observation, state, reward, terminated, info

    def is_truncated(self, state: PyTree, params: Any) -> Any:
        """Whether the time limit has been reached."""
        return jnp.greater_equal(state.timestep, params.max_timesteps)


def build(
    *,
    id: str = "",
    episodes: int = 10,
    steps: int = 0,
    parameters: tuple[str, ...] = (),
    vary: tuple[str, ...] = (),
    drift: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    same_layout: bool = False,
) -> Environment:
    """Builds the environment.

    Args:
        id: ID of the environment, such as Craftax-Classic-Symbolic-v1; written after the colon.
        episodes: Episodes of a lifetime, at least 1. Their time limit is high, 10,000 or 100,000 steps: lower it by
            parameters=max_timesteps:1000, or use `steps`.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`.
        parameters: Fixed parameters, PARAMETER:NUMBER, such as max_timesteps:1000; several are joined by +.
        vary: Parameters that each lifetime draws uniformly, PARAMETER:LOW..HIGH, such as day_length:100..500.
        drift: Parameters that change within a lifetime, PARAMETER:LOW..HIGH:STEPS; STEPS is the number of steps that
            the change takes, or FIRST..LAST, and it takes effect where an episode begins.
        features: Numeric entries of `info` that become outcome features, such as Achievements/collect_wood, which
            Craftax states at the end of an episode.
        same_layout: Whether all episodes of a lifetime have the same map.
    """
    providers.require_id("craftax", id, IDS[0])
    package = providers.import_package("craftax", module="craftax.craftax_env")
    if id not in IDS:
        raise unknown_name_error("environment of craftax", id, IDS)
    name = f"craftax:{id}"
    library_env = package.make_craftax_env_from_name(id, auto_reset=False)
    env = CraftaxFunctions(library_env)
    defaults = functional.replace_parameters(name, library_env.default_params, providers.parse_parameters(parameters))
    observations = providers.describe_observations(name, library_env.observation_space(defaults))
    actions = providers.describe_actions(name, library_env.action_space(defaults))
    settings = functional.FunctionalSettings(episodes, steps, vary, drift, features)
    return functional.build_environment(
        name, env, defaults, observations, actions, settings, lambda highest: highest["max_timesteps"],
        same_layout=same_layout, lazy_reset=True,
    )  # fmt: skip


def list_ids() -> list[str]:
    """The IDs of all environments of Craftax, with a shorter time limit, so that episodes end in the checks."""
    providers.import_package("craftax", module="craftax.craftax_env")
    return [f"{id},parameters=max_timesteps:100" for id in IDS]
