"""What the provider `gymnasium` adds to environments of MiniGrid (Chevalier-Boisvert et al. 2023, arXiv 2306.13831).

Their observations hold a mission in words. The flattening wrapper of that package joins the agent's view of 7 x 7
cells and the characters of the mission to one vector. Its numbers are codes, so they are not scaled as bytes of an
image. Their time limit is an attribute of the environment.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium import Env
else:  # an optional dependency, which is imported where it is used
    Env = Any

PACKAGE = "minigrid"


def flatten_mission(env: Env) -> Env:
    """An environment of MiniGrid with its flattening wrapper; any other one is returned as it is."""
    parts = getattr(env.observation_space, "spaces", {})
    if not _is_of_minigrid(env) or "mission" not in parts:
        return env
    import numpy as np
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation

    flat = importlib.import_module(f"{PACKAGE}.wrappers").FlatObsWrapper(env)
    space = Box(0, 255, flat.observation_space.shape, np.float32)
    return TransformObservation(flat, lambda observation: np.asarray(observation, np.float32), space)


def own_time_limit(env: Env) -> int | None:
    """The steps after which an environment of MiniGrid truncates an episode by itself; None for any other one."""
    return int(getattr(env.unwrapped, "max_steps", 0)) or None if _is_of_minigrid(env) else None


def list_minigrid_ids() -> list[str]:
    """The IDs of MiniGrid without those of BabyAI, `minigrid:ID`; none where the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return []
    importlib.import_module(PACKAGE)
    registry = importlib.import_module("gymnasium").registry
    return [f"{PACKAGE}:{id}" for id in registry if id.startswith("MiniGrid-")]


def _is_of_minigrid(env: Env) -> bool:
    """Whether the class of an environment belongs to MiniGrid."""
    return any(kind.__module__.partition(".")[0] == PACKAGE for kind in type(env.unwrapped).__mro__)
