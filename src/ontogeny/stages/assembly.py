"""From a spec to the agent, environment and steering that it names."""

from typing import NamedTuple

from ontogeny import plugins, steering
from ontogeny.agents.base import require_revealable_tasks
from ontogeny.development.base import Development
from ontogeny.stages.first_check import check_signatures
from ontogeny.stages.spec import RunSpec, user_files
from ontogeny.types import Agent, Environment, Steering


class Assembly(NamedTuple):
    """An agent, the environment for which it was built, and its steering."""

    agent: Agent
    env: Environment
    steering: Steering


def assemble(spec: RunSpec) -> Assembly:
    """Build environment, steering and agent of a spec.

    Raises:
        BadInput: A name, setting or drive is unknown, or a file of the user is faulty.
    """
    files = [str(path) for key, path in user_files(spec) if key != "development"]
    env = plugins.build("environments", spec.env.name, **spec.env.settings)
    with plugins.explain_plugin_errors(files, f"agent '{spec.agent.name}' and environment '{spec.env.name}' do not go together"):
        reward_function = steering.build(env.spec, spec.drives)
        agent = plugins.build("agents", spec.agent.name, env.spec, reward_function, **spec.agent.settings)
    require_revealable_tasks(spec.agent.name, agent, env)
    if files:
        check_signatures(agent, env, reward_function, files)
    return Assembly(agent, env, reward_function)


def build_development(spec: RunSpec, assembly: Assembly) -> Development:
    """The outer loop of a spec, ready to run."""
    return plugins.build("development", spec.development.name, *assembly, **spec.development.settings)
