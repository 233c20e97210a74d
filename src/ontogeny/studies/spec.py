"""A study as data: which agents are developed where, on which held-out tasks they are evaluated, with which seeds.

A spec is a TOML file; `default.toml` beside this module is the default study. The order of environments is the order in
which results appear. Drives weigh outcome features in the reward; they replace those that the environment proposes, and
an agent's replace its environment's.
"""

import hashlib
import tomllib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ontogeny import plugins
from ontogeny.audit.attribution import MIN_TASKS
from ontogeny.errors import BadInput
from ontogeny.plugins import suggest_names
from ontogeny.renamed import renamed_hint
from ontogeny.seeds import check_seed
from ontogeny.stages.spec import DriveWeight
from ontogeny.studies.kinds import study_kinds
from ontogeny.validation import FrozenModel, Seed, validate

DEFAULT_SPEC = Path(__file__).with_name("default.toml")
MAX_NAME_BYTES = 100  # two names and a seed form the name of a file


def _check_name(name: str) -> str:
    """A validator of names that tables show and paths contain."""
    if not name.isprintable() or not any(letter.isalnum() for letter in name):
        raise ValueError(f"must be one line that contains a letter or a digit, not {name!r}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"must be at most {MAX_NAME_BYTES} bytes long, not {len(name.encode())}")
    return name


def _check_text(text: str) -> str:
    """A validator of texts, which joins their lines."""
    if not text.strip():
        raise ValueError("must not be empty")
    return " ".join(text.split())


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


def _check_unique(values: Sequence[Hashable]) -> Sequence[Hashable]:
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
Text = Annotated[str, AfterValidator(_check_text)]
NumTasks = Annotated[int, Field(ge=2, le=plugins.MAX_INT)]  # an interval needs two
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


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
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False), AfterValidator(_check_unique)] = (0,)
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


class StudyFile(FrozenModel):
    """The content of a study's TOML file.

    Attributes:
        title: Heading of the page.
        question: Printed below the title.
        seed: All random keys of the study derive from it.
        includes: Registered studies that run as a part of this one, each with its size, such as `{mesa = "brief"}`.
        environments: In the order in which they run.
        agents: The same agent may have several entries.
    """

    title: Text
    question: Text
    seed: Seed = 0
    includes: dict[str, str] = Field(default_factory=dict)
    environments: Annotated[tuple[StudyEnvironment, ...], Field(min_length=1, strict=False)]
    agents: Annotated[tuple[StudyAgent, ...], Field(min_length=1, strict=False)]

    @field_validator("includes")
    @classmethod
    def _check_includes(cls, includes: dict[str, str]) -> dict[str, str]:
        """Each included study and its size must exist."""
        for name, size in includes.items():
            if name not in study_kinds():
                raise ValueError(f"names an unknown study '{name}'{suggest_names(name, list(study_kinds()))}")
            sizes = study_kinds()[name].sizes
            if size not in sizes:
                raise ValueError(f"names an unknown size '{size}' of the study '{name}'{suggest_names(size, sizes)}")
        return includes

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        """Names are unique, and every environment that an agent names is in the study."""
        names = [env.name for env in self.environments]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"names the environment '{name}' twice")
        evaluations = [(agent.name, env) for agent in self.agents for env in agent.environments]
        for agent, env in evaluations:
            if evaluations.count((agent, env)) > 1:
                raise ValueError(f"evaluates '{agent}' in '{env}' twice")
        for i, agent in enumerate(self.agents):
            for key, envs in (("environments", agent.environments), ("train_env", [agent.train_env or names[0]])):
                for env in envs:
                    if env not in names:
                        raise ValueError(
                            f"names an unknown environment '{env}' in agents.{i}.{key}{suggest_names(env, names)}"
                        )
        _check_shared_developments(self.agents)
        return self


class StudySpec(StudyFile):
    """A whole study.

    Attributes:
        text: The TOML from which it was read.
    """

    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of text and seed: equal digests mean equal records, on one machine with the same versions."""
        return hashlib.sha256(f"{self.seed}\n{self.text}".encode()).hexdigest()

    def find_env(self, name: str) -> StudyEnvironment:
        """The environment with a name."""
        return next(env for env in self.environments if env.name == name)


def read_spec(path: str | Path | None = None, seed: int | None = None) -> StudySpec:
    """Read a spec from a file.

    Args:
        path: A TOML file; by default the study that comes with the package.
        seed: Replaces the seed in the file.

    Raises:
        BadInput: If the file cannot be read or is no spec; the message names the place of the mistake.
    """
    path = DEFAULT_SPEC if path is None else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"the spec '{path.name}' cannot be read: {reason}") from None
    return parse_spec(text, path.name, seed)


def parse_spec(text: str, source: str = "spec", seed: int | None = None) -> StudySpec:
    """Parse the TOML text of a spec.

    Args:
        text: TOML.
        source: Name of the text in messages.
        seed: Replaces the seed in the text.

    Raises:
        BadInput: If the text is no spec; the message names the place of the mistake.
    """
    try:
        data: Mapping[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # syntax, or numbers and brackets without end
        raise BadInput(f"{source} is not valid TOML: {error}") from None
    file = validate(StudyFile, data, source, "study key")
    seed = file.seed if seed is None else check_seed(seed)
    return StudySpec.model_construct(**dict(file) | {"seed": seed, "text": text})


def _check_shared_developments(agents: Sequence[StudyAgent]) -> None:
    """Entries with the same name and train_env share a development, so they must describe the same one."""
    first_index: dict[tuple[str, str], int] = {}
    for i, agent in enumerate(agents):
        for env in dict.fromkeys(map(agent.train_env_for, agent.environments)):
            first = first_index.setdefault((agent.name, env), i)
            for key in ("agent", "approach", "development", "drives"):
                if getattr(agent, key) != getattr(agents[first], key):
                    raise ValueError(
                        f"gives another {key} in agents.{i} than in agents.{first} for '{agent.name}', which both "
                        f"develop in '{env}'; give one of them another name"
                    )
