"""Environments of XLand-MiniGrid, `xminigrid:ID[,setting=value...]`, such as `xminigrid:MiniGrid-FourRooms`.

Nikulin et al. 2023 (arXiv 2312.12044), version 0.9 (extra `xminigrid`). An observation is the agent's view of its
surroundings, the number of the object and of the color in each cell. Each episode has a new layout; with `same_layout`,
all episodes of a lifetime have the same one. In the environments XLand-MiniGrid-*, a lifetime draws a ruleset, the goal
and the rules of its task, from a `benchmark`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ontogeny.environments import functional, providers
from ontogeny.errors import BadInput
from ontogeny.plugins import unknown_name_error
from ontogeny.types import Environment, Key, PyTree

TAKES_ID = True

WITH_RULESETS = "XLand-"  # the IDs of environments that have no goal of their own


class XMinigridFunctions:
    """An environment of XLand-MiniGrid with the functions of gymnax 1.0; its state is a time step of that package."""

    def __init__(self, env: Any) -> None:
        """Wrap an environment."""
        self.env = env

    def reset_env(self, key: Key, params: Any) -> tuple[Any, PyTree]:
        """Draws a layout."""
        time_step = self.env.reset(params, key)
        return time_step.observation, time_step

    def step_env(self, key: Key, state: PyTree, action: Any, params: Any) -> tuple[Any, PyTree, Any, Any, Any]:
        """Takes a step; all chance is in the state."""
        del key
        time_step = self.env.step(params, state, action)
        return time_step.observation, time_step, time_step.reward, time_step.discount == 0, {}

    def is_truncated(self, state: PyTree, params: Any) -> Any:
        """Whether the episode is over; where it has not terminated, by its time limit."""
        del params
        return state.last()


def build(
    *,
    id: str = "",
    episodes: int = 10,
    steps: int = 0,
    parameters: tuple[str, ...] = (),
    benchmark: str = "",
    same_layout: bool = False,
) -> Environment:
    """Builds the environment.

    Args:
        id: ID of the environment, such as MiniGrid-FourRooms; written after the colon.
        episodes: Episodes of a lifetime, at least 1. A lifetime takes at most so many times the time limit.
        steps: Steps of a lifetime, however many episodes they hold, in place of `episodes`.
        parameters: Fixed parameters, PARAMETER:NUMBER, such as view_size:5+max_steps:50.
        benchmark: Where the environment has rulesets, the name of a benchmark, such as trivial-21k, which the package
            downloads at its first use, or the path of a file of rulesets. The package reads such a file by pickle,
            which can run any code: name none that you do not trust.
        same_layout: Whether all episodes of a lifetime begin in the same layout.
    """
    providers.require_id("xminigrid", id, "MiniGrid-FourRooms")
    package = providers.import_package("xminigrid")
    if id not in package.registered_environments():
        raise unknown_name_error("environment of xminigrid", id, package.registered_environments())
    name = f"xminigrid:{id}"
    library_env, defaults = package.make(id)
    defaults = functional.replace_parameters(name, defaults, providers.parse_parameters(parameters))
    env = XMinigridFunctions(library_env)
    constants = providers.import_package("xminigrid", module="xminigrid.core.constants")
    highest_code = float(max(constants.NUM_TILES, constants.NUM_COLORS) - 1)
    observations = providers.ObservationLayout(
        0,
        library_env.observation_shape(defaults),
        lambda observed, xp: xp.asarray(observed, xp.float32),
        (0.0, highest_code),
    )
    actions = providers.ActionLayout(library_env.num_actions(defaults), lambda action, xp: action)
    settings = functional.FunctionalSettings(episodes, steps, (), (), ())
    return functional.build_environment(
        name, env, defaults, observations, actions, settings, lambda highest: highest["max_steps"],
        draw_parameters=_draw_rulesets(name, id, benchmark), same_layout=same_layout,
    )  # fmt: skip


def list_ids() -> list[str]:
    """The IDs of all environments of XLand-MiniGrid, those included that need a benchmark."""
    return list(providers.import_package("xminigrid").registered_environments())


def _draw_rulesets(name: str, id: str, benchmark: str) -> Callable[[Key], dict[str, PyTree]] | None:
    """The function that draws the ruleset of a lifetime; None for environments without rulesets."""
    if not id.startswith(WITH_RULESETS):
        if benchmark:
            raise BadInput(f"environment '{name}' has no rulesets, so it takes no 'benchmark'")
        return None
    package = providers.import_package("xminigrid", module="xminigrid.benchmarks")
    known_names = package.registered_benchmarks()
    if not benchmark:
        raise BadInput(
            f"environment '{name}' has no goal of its own: the setting 'benchmark' must name the rulesets of its "
            f"tasks, {', '.join(known_names)} or a file"
        )
    if benchmark not in known_names and not Path(benchmark).is_file():
        raise unknown_name_error("benchmark or file", benchmark, known_names)
    load = package.load_benchmark if benchmark in known_names else package.load_benchmark_from_path
    with providers.explain_errors(f"the benchmark '{benchmark}' cannot be loaded"):
        rulesets = load(benchmark)
    return lambda key: {"ruleset": rulesets.sample_ruleset(key)}
