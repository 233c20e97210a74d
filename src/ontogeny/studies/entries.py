"""The entries of a study: an environment, and an agent with its development, as the study file describes them."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ontogeny import plugins
from ontogeny.audit.attribution import MIN_TASKS
from ontogeny.errors import BadInput
from ontogeny.renamed import renamed_hint
from ontogeny.stages.spec import DriveWeight
from ontogeny.validation import FrozenModel, Seed

MAX_NAME_BYTES = 100  # two names and a seed form the name of a file


def _check_name(name: str) -> str:
    """A validator of names that tables show and paths contain."""
    if not name.isprintable() or not any(letter.isalnum() for letter in name):
        raise ValueError(f"must be one line that contains a letter or a digit, not {name!r}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"must be at most {MAX_NAME_BYTES} bytes long, not {len(name.encode())}")
    return name


def _check_approach(approach: object) -> object:
    """A validator that answers a former name of an approach with the present one."""
    hint = renamed_hint("study value", str(approach))
    if hint:
        raise ValueError(f"is unknown: {hint}")
    return approach


def _plugin_check(kind: str) -> Callable[[str], str]:
    """A validator of `name:setting=value,...`, which checks that the plugin and its settings exist."""

    def check(text: str) -> str:
        try:
            name, settings = plugins.parse(text)
            defaults = plugins.default_settings(kind, name)
            for key in settings:
                if key not in defaults:
                    raise plugins.unknown_name_error(f"setting of '{name}' named", key, list(defaults))
        except BadInput as error:
            raise ValueError(f"is invalid: {error}") from None
        return text

    return check


def check_unique(values: Sequence[Hashable]) -> Sequence[Hashable]:
    """A validator of sequences without repeated values."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"contains {value!r} twice")
    return values


def _check_attribution(num_tasks: int) -> int:
    """A validator of the number of tasks of an attribution."""
    if 0 < num_tasks < MIN_TASKS:
        raise ValueError(f"must be 0 or at least {MIN_TASKS}, not {num_tasks}")
    return num_tasks


def _accept_table(choice: object) -> object:
    """A validator that reads a table with a name and settings as the text of the same choice."""
    if not isinstance(choice, dict):
        return choice
    try:
        return plugins.format_choice(*plugins.parse_table(choice))
    except BadInput as error:
        raise ValueError(f"is invalid: {error}") from None


Name = Annotated[str, AfterValidator(_check_name)]
EnvironmentText = Annotated[str, BeforeValidator(_accept_table), AfterValidator(_plugin_check("environments"))]
AgentText = Annotated[str, BeforeValidator(_accept_table), AfterValidator(_plugin_check("agents"))]
DevelopmentText = Annotated[str, BeforeValidator(_accept_table), AfterValidator(_plugin_check("development"))]
NumTasks = Annotated[int, Field(ge=2, le=plugins.MAX_INT)]  # an interval needs two
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, strict=False), AfterValidator(check_unique)]


class StudyEnvironment(FrozenModel):
    """An environment of a study.

    Attributes:
        name: As tables show it.
        env: As the command line takes it, such as `bandit:num_arms=5,num_pulls=10`.
        num_tasks: Held-out tasks on which every agent is evaluated, unless the agent's entry sets another number.
        record_lifetime: Whether one lifetime of each agent is recorded step by step.
        drives: Weights of outcome features, over those that the environment proposes.
        num_attribution_tasks: Held-out tasks of the attribution of every agent that is no baseline; 0 for none.
    """

    name: Name
    env: EnvironmentText
    num_tasks: NumTasks
    record_lifetime: bool = True
    num_attribution_tasks: Annotated[int, Field(ge=0, le=plugins.MAX_INT), AfterValidator(_check_attribution)] = 0
    drives: dict[str, DriveWeight] = Field(default_factory=dict)


class StudyAgent(FrozenModel):
    """An agent of a study: how it is developed and where it is evaluated.

    Attributes:
        name: As tables show it; by default the name of the agent.
        agent: As the command line takes it, such as `recurrent:hidden_size=48`.
        approach: `evolution` (every weight is evolved), `ml_code` (the genome is a learning algorithm) or `baseline`.
        development: The outer loop with its settings.
        environments: Names of the environments in which the agent is evaluated.
        train_env: Name of the environment of its development; by default each environment in which it is evaluated.
        seeds: One development each.
        num_tasks: Held-out tasks; by default those of the environment.
        drives: Weights of outcome features, over those of the environment.
    """

    agent: AgentText
    environments: Names
    name: Name = ""
    approach: Annotated[Literal["evolution", "ml_code", "baseline"], BeforeValidator(_check_approach)] = "baseline"
    development: DevelopmentText = "single_lifetime"
    train_env: str | None = None
    seeds: Seeds = (0,)
    num_tasks: NumTasks | None = None
    drives: dict[str, DriveWeight] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_after_agent(cls, data: Any) -> Any:
        """An entry without a name is named after its agent."""
        if not isinstance(data, dict) or "name" in data:
            return data
        agent = data.get("agent")
        agent = agent.get("name") if isinstance(agent, dict) else agent
        return data | {"name": Path(agent.partition(":")[0]).stem} if isinstance(agent, str) else data

    def train_env_for(self, env: str) -> str:
        """The environment in which the agent was developed that is evaluated in `env`."""
        return self.train_env or env
