"""From a spec to the agent, environment and steering that it names.

Equal names and settings give the same agent and the same environment, so that JAX compiles their programs once. Their
functions are traced once where they are called outside of `jax.jit`, as in a loop of the user's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ontogeny import plugins
from ontogeny.contracts import check_outside_agent, check_outside_env
from ontogeny.rng import require_32_bits
from ontogeny.rollouts import require_revealable_tasks
from ontogeny.stages.spec import RunSpec
from ontogeny.steering import build as build_steering
from ontogeny.tracing import build_once, trace_fields
from ontogeny.types import Agent, AnyEnvironment, Development, EnvSpec, HostEnvironment, Steering

Settings = tuple[tuple[str, Any], ...]  # names and values


class Assembly(NamedTuple):
    """An agent, the environment for which it was built, and its steering."""

    agent: Agent
    env: AnyEnvironment
    steering: Steering


def assemble(spec: RunSpec) -> Assembly:
    """Build environment, steering and agent of a spec.

    Raises:
        BadInput: A name, setting or drive is unknown, a file of the user is faulty, or JAX computes in 64 bits.
    """
    require_32_bits()
    env = make_env(spec.env.name, **spec.env.settings)
    reward_function = build_steering(env.spec, spec.drives)
    files = plugins.outside_files(environments=spec.env.name, agents=spec.agent.name)
    message = f"agent '{spec.agent.name}' and environment '{spec.env.name}' do not go together"
    with plugins.explain_plugin_errors(files, message):
        agent = make_agent(spec.agent.name, env, reward_function, **spec.agent.settings)
    return Assembly(agent, env, reward_function)


def build_development(spec: RunSpec, assembly: Assembly) -> Development:
    """The outer loop of a spec, ready to run; developments that differ in their seeds share their compiled programs."""
    name, settings = spec.development.name, spec.development.settings
    build = plugins.get_attribute("development", name, "build")
    return build_once(_build_new_development, build, name, assembly, tuple(settings.items()))


def make_env(name: str, **settings: Any) -> AnyEnvironment:
    """Build an environment.

    Args:
        name: A name that `ontogeny list environments` prints, or the path of a Python file with a `build` function.
        settings: As `ontogeny list environments NAME` prints them.

    Returns:
        Pure functions (`reset`, `step`, `score`) and the spec of observations, actions and outcome features.

    Raises:
        BadInput: The name or a setting is unknown, or a value is out of range.
    """
    return build_once(
        _build_new_env, plugins.get_attribute("environments", name, "build"), name, tuple(settings.items())
    )


def make_steering(env: AnyEnvironment, **drives: float) -> Steering:
    """Build a reward function for an environment.

    Args:
        env: Its spec names the outcome features and proposes a drive for each.
        drives: Weights of outcome features that replace the proposed ones.

    Returns:
        A function from outcome features [F] to a reward [].

    Raises:
        BadInput: A drive names no outcome feature of the environment, or its weight is not finite.
    """
    return build_steering(env.spec, drives)


def make_agent(name: str, env: AnyEnvironment, steering: Steering | None = None, **settings: Any) -> Agent:
    """Build an agent for an environment.

    Args:
        name: A name that `ontogeny list agents` prints, or the path of a Python file with a `build` function.
        env: The environment in which the agent will act.
        steering: Its reward function; by default the one that the environment proposes.
        settings: As `ontogeny list agents NAME` prints them.

    Returns:
        Pure functions (`init`, `act`, `learn`, `reset`, `genome`) for `rollout` and `evaluate`.

    Raises:
        BadInput: The name or a setting is unknown, a value is out of range, or the agent does not fit the environment.
    """
    reward_function = build_steering(env.spec) if steering is None else steering
    agent = _build_agent(name, env.spec, reward_function, settings)
    require_revealable_tasks(name, agent, env)
    check_outside_agent("agents", name, agent, env, reward_function)
    return agent


def _build_agent(name: str, spec: EnvSpec, steering: Steering, settings: Mapping[str, Any]) -> Agent:
    """The agent of these settings."""
    build = plugins.get_attribute("agents", name, "build")
    return build_once(_build_new_agent, build, name, spec, steering, tuple(settings.items()))


def _build_new_agent(
    _: Callable[..., Agent], name: str, spec: EnvSpec, steering: Steering, settings: Settings
) -> Agent:
    """A new agent of these settings."""
    agent = plugins.build("agents", name, spec, steering, **dict(settings))
    return trace_fields(agent, "genome", "init", "reset", "act", "learn")


def _build_new_development(
    _: Callable[..., Development], name: str, assembly: Assembly, settings: Settings
) -> Development:
    """A new development of these settings."""
    return plugins.build("development", name, *assembly, **dict(settings))


def _build_new_env(_: Callable[..., AnyEnvironment], name: str, settings: Settings) -> AnyEnvironment:
    """A new environment of these settings."""
    env = plugins.build("environments", name, **dict(settings))
    check_outside_env(name, env)
    if isinstance(env, HostEnvironment):
        return env
    functions = ("reset", "step", "score", "reveal_task", "is_over")
    return trace_fields(env, *(field for field in functions if getattr(env, field)))
