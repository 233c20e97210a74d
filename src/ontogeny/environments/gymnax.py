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
from typing import Any

from ontogeny.environments import functional, providers
from ontogeny.errors import BadInput
from ontogeny.plugins import unknown_name_error
from ontogeny.types import Environment

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
# environment and the largest value of each parameter.
EPISODE_LENGTHS: dict[str, Callable[[Any, Mapping[str, float | int]], float | int]] = {
    "Catch-bsuite": lambda env, highest: env.rows - 1,
    "DeepSea-bsuite": lambda env, highest: env.size,
    "MemoryChain-bsuite": lambda env, highest: highest["memory_length"] + 1,
    "UmbrellaChain-bsuite": lambda env, highest: highest["chain_length"],
    "SimpleBandit-bsuite": lambda env, highest: 1,
}


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
    with providers.explain_errors(f"environment '{name}' cannot be used with these parameters"):
        observations = providers.describe_observations(name, env.observation_space(defaults))
        actions = providers.describe_actions(name, env.action_space(defaults))
    if gymnax_id in UNDECLARED_SPACES:
        observations = observations._replace(bounds=(-math.inf, math.inf))

    def horizon(highest: Mapping[str, float | int]) -> float | int:
        limit = highest["max_steps_in_episode"]
        return min(EPISODE_LENGTHS[gymnax_id](env, highest), limit) if gymnax_id in EPISODE_LENGTHS else limit

    return functional.build_environment(
        name, env, defaults, observations, actions,
        functional.FunctionalSettings(episodes, steps, vary, drift, features), horizon,
        task_fields=TASK_FIELDS.get(gymnax_id, ()), observe=env.observe if gymnax_id in TASK_FIELDS else None,
        derive=DERIVED_PARAMETERS.get(gymnax_id),
    )  # fmt: skip


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
    return env, functional.replace_parameters(name, defaults, replaced)
