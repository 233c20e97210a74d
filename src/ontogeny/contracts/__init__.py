"""The contracts of environments, agents and developments, as checks that can be run on any of them.

Each check raises `ContractViolation` with one sentence that names the violation, the rule and what to change. The
commands check the first steps of every agent and environment from outside of the package before any work is done
(`check_env_first_steps`, `check_agent_first_steps`); `ontogeny check` and the tests run the whole suite. Both use the
same functions, and `tests/test_contracts.py` shows that each of them detects a planted violation.
"""

from ontogeny.contracts.agents import check_agent as check_agent
from ontogeny.contracts.agents import check_agent_lifetimes as check_agent_lifetimes
from ontogeny.contracts.agents import check_agent_steps as check_agent_steps
from ontogeny.contracts.developments import check_development as check_development
from ontogeny.contracts.environments import EnvCheckResult as EnvCheckResult
from ontogeny.contracts.environments import EnvReport as EnvReport
from ontogeny.contracts.environments import check_env as check_env
from ontogeny.contracts.environments import run_env_checks as run_env_checks
from ontogeny.contracts.first_steps_of_agents import check_agent_first_steps as check_agent_first_steps
from ontogeny.contracts.first_steps_of_environments import check_env_first_steps as check_env_first_steps
from ontogeny.contracts.host_environments import check_host_env as check_host_env
from ontogeny.contracts.host_environments import make_traceable as make_traceable
from ontogeny.contracts.outside_plugins import check_outside_agent as check_outside_agent
from ontogeny.contracts.outside_plugins import check_outside_env as check_outside_env
from ontogeny.contracts.specs import check_spec as check_spec
