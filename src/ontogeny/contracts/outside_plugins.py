"""The first check of plugins from outside of the package: mistakes are named before any work is done.

Files of the user and plugins of installed packages are checked wherever they are loaded, once for each combination in a
process. The tests check those of this package.
"""

import contextlib
from collections.abc import Generator, Sequence

from ontogeny import plugins
from ontogeny.contracts.first_steps_of_agents import check_agent_first_steps
from ontogeny.contracts.first_steps_of_environments import check_env_first_steps
from ontogeny.contracts.host_environments import check_host_env, make_traceable
from ontogeny.contracts.specs import check_spec
from ontogeny.errors import ContractViolation
from ontogeny.tracing import build_once, is_tracing
from ontogeny.types import Agent, AnyEnvironment, HostEnvironment, Steering


def check_outside_env(name: str, env: AnyEnvironment) -> None:
    """Check the spec of an environment and, where it is from outside of the package, its first steps.

    Args:
        name: Of the plugin, or the path of a file.

    Raises:
        BadInput: The environment violates its contract, or one of its functions fails.
    """
    files = plugins.outside_files(environments=name)
    with _name_files(files):
        if isinstance(env, HostEnvironment):
            check_host_env(env) if files else check_spec(env.spec)
        elif files and not is_tracing():
            check_env_first_steps(env, files)
        else:
            check_spec(env.spec)


def check_outside_agent(kind: str, name: str, agent: Agent, env: AnyEnvironment, steering: Steering) -> None:
    """Check the first steps of an agent that is from outside of the package; any other passes.

    Args:
        kind: `agents` or `organisms`.
        name: Of the plugin, or the path of a file.
        env: An environment in which it can act.

    Raises:
        BadInput: The agent violates its contract, or one of its functions fails.
    """
    files = plugins.outside_files(**{kind: name})
    if files and not is_tracing():
        build_once(_check_agent, agent, env, steering, tuple(files))


def _check_agent(agent: Agent, env: AnyEnvironment, steering: Steering, files: tuple[str, ...]) -> None:
    """The check, without a result; a violation is raised at each call."""
    with _name_files(files):
        check_agent_first_steps(agent, make_traceable(env), steering, files)


@contextlib.contextmanager
def _name_files(files: Sequence[str]) -> Generator[None]:
    """Name the files in the message of a violation."""
    try:
        yield
    except ContractViolation as error:
        if not files:
            raise
        names = " and ".join(f"'{file}'" for file in files)
        raise ContractViolation(f"with {names}, {error}") from None
