"""A sweep: settings that vary over lists of values, as a grid, in one study; `[sweep]` in the study file.

Every combination of values is a cell. `expand` turns the cells into ordinary agents and environments of the study,
named after the entry and its values: `cells num_generations=5, population_size=16`.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.plugins import suggest_names
from ontogeny.studies.entries import MAX_NAME_BYTES, Names, Seeds, StudyAgent, StudyEnvironment, check_unique
from ontogeny.validation import FrozenModel, shorten

MAX_DEVELOPMENTS = 10_000  # of one study with a sweep
PLUGIN_KINDS = {"agent": "agents", "development": "development", "env": "environments"}  # by the table of the sweep


def _check_values(values: Sequence[Any]) -> Sequence[Any]:
    """A validator of the values of one setting: texts, numbers, truth values or lists of them, none of them twice."""
    for choice in values:
        if not isinstance(choice, str | int | float | bool | list):
            raise ValueError(f"must list texts, numbers, truth values or lists, not {shorten(choice)}")
    return check_unique(values)


Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False), AfterValidator(_check_values)]


class Sweep(FrozenModel):
    """Settings that vary.

    Attributes:
        agents: Names of the agents that vary; by default all but baselines.
        agent: Values of the agents' settings, such as `{ hidden_size = [16, 32] }`.
        development: Values of the settings of their developments.
        environments: Names of the environments that vary; by default all.
        env: Values of the environments' settings.
        seeds: Seeds of development of every agent that varies, in place of its own.
        num_seeds: A number of seeds, counted from 0, in place of `seeds`.
    """

    agents: Names | None = None
    agent: dict[str, Values] = Field(default_factory=dict)
    development: dict[str, Values] = Field(default_factory=dict)
    environments: Names | None = None
    env: dict[str, Values] = Field(default_factory=dict)
    seeds: Seeds | None = None
    num_seeds: Annotated[int, Field(ge=1, le=MAX_DEVELOPMENTS)] | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        """Something varies, and no key is without effect."""
        if self.seeds is not None and self.num_seeds is not None:
            raise ValueError("must not have both 'seeds' and 'num_seeds'")
        if not (self.agent or self.development or self.env or self.seeds or self.num_seeds):
            raise ValueError("must name settings in 'agent', 'development' or 'env', or 'seeds'")
        if self.environments is not None and not self.env:
            raise ValueError("names 'environments' but no setting of them in 'env'")
        return self


class SweepCell(NamedTuple):
    """One agent in one environment, where the sweep varies either.

    Attributes:
        env: Its name in the study.
        agent: Its name in the study.
        entry: The name of the agent in the file.
        env_entry: The name of the environment in the file.
        settings: The values of this cell by the name of the setting.
        seeds: One development each.
    """

    env: str
    agent: str
    entry: str
    env_entry: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]


class Expansion(NamedTuple):
    """The environments and agents of a study after its sweep was expanded, and the cells."""

    environments: tuple[StudyEnvironment, ...]
    agents: tuple[StudyAgent, ...]
    cells: tuple[SweepCell, ...]


class _Variant(NamedTuple):
    """An environment or an agent with the values of one cell."""

    entry: Any
    settings: dict[str, Any]


def expand(sweep: Sweep, environments: Sequence[StudyEnvironment], agents: Sequence[StudyAgent]) -> Expansion:
    """Expand a sweep.

    Args:
        sweep: The settings that vary.
        environments: As in the file.
        agents: As in the file; the environments that they name exist.

    Returns:
        Environments and agents in the order of the file, the cells of one entry in the order of its values.

    Raises:
        BadInput: A name or setting does not exist, a name of a cell is too long, or there are too many cells.
    """
    names = _names_of_varied_agents(sweep, agents)
    env_names = _chosen_names("environments", sweep.environments, [env.name for env in environments])
    _check_number(sweep, [agent for agent in agents if agent.name in names], env_names if sweep.env else set())
    envs = {env.name: [_Variant(env, {})] for env in environments}
    if sweep.env:
        envs |= {env.name: list(_vary(sweep, env, ("env",))) for env in environments if env.name in env_names}
    expanded: list[StudyAgent] = []
    cells: dict[tuple[str, str], SweepCell] = {}
    for agent in agents:
        is_varied = agent.name in names
        variants = _vary(sweep, agent, ("agent", "development")) if is_varied else [_Variant(agent, {})]
        for variant, settings in variants:
            if is_varied and (sweep.seeds or sweep.num_seeds):
                variant = variant.model_copy(update={"seeds": sweep.seeds or tuple(range(sweep.num_seeds or 0))})
            expanded += _place(variant, envs)
            for env_name in agent.environments:
                for env, env_settings in envs[env_name]:
                    if is_varied or env_settings:
                        cells[env.name, variant.name] = SweepCell(
                            env.name, variant.name, agent.name, env_name, settings | env_settings, variant.seeds
                        )
    return Expansion(
        tuple(env for of_env in envs.values() for env, _ in of_env), tuple(expanded), tuple(cells.values())
    )


def _names_of_varied_agents(sweep: Sweep, agents: Sequence[StudyAgent]) -> set[str]:
    """The names of the agents whose settings or seeds the sweep varies."""
    if not (sweep.agent or sweep.development or sweep.seeds or sweep.num_seeds):
        if sweep.agents is not None:
            raise BadInput("[sweep] names 'agents' but no setting of them in 'agent' or 'development', and no seeds")
        return set()
    names = _chosen_names("agents", sweep.agents, list(dict.fromkeys(agent.name for agent in agents)))
    if sweep.agents is None:
        names = {agent.name for agent in agents if agent.approach != "baseline"}
        if not names:
            raise BadInput("[sweep] must name the 'agents' that vary, because all agents of the study are baselines")
    return names


def _chosen_names(key: str, chosen: Sequence[str] | None, existing: Sequence[str]) -> set[str]:
    """The names that a key of the sweep chooses, by default all."""
    for name in chosen or ():
        if name not in existing:
            raise BadInput(f"'{key}' in [sweep] names an unknown entry '{name}'{suggest_names(name, existing)}")
    return set(existing if chosen is None else chosen)


def _check_number(sweep: Sweep, agents: Sequence[StudyAgent], varied_envs: set[str]) -> None:
    """Raises `BadInput` if there are too many developments, before any is listed."""
    num_variants = math.prod(len(values) for values in (sweep.agent | sweep.development).values())
    num_env_variants = math.prod(len(values) for values in sweep.env.values())
    num_seeds = len(sweep.seeds or ()) or sweep.num_seeds
    num_developments = sum(
        num_variants * (num_seeds or len(agent.seeds)) * (num_env_variants if env in varied_envs else 1)
        for agent in agents
        for env in {agent.train_env_for(name) for name in agent.environments}
    )
    if max(num_developments, num_env_variants) > MAX_DEVELOPMENTS:
        raise BadInput(
            f"[sweep] describes {max(num_developments, num_env_variants):,} developments or environments; one study "
            f"has at most {MAX_DEVELOPMENTS:,}"
        )


def _vary(sweep: Sweep, entry: StudyAgent | StudyEnvironment, tables: Sequence[str]) -> Iterator[_Variant]:
    """The variants of an entry, one for each combination of the values in some tables of the sweep."""
    keys = [(table, key) for table in tables for key in getattr(sweep, table)]
    choices = {table: plugins.parse(getattr(entry, table)) for table in dict.fromkeys(table for table, _ in keys)}
    for table, key in keys:
        name = choices[table][0]
        defaults = plugins.default_settings(PLUGIN_KINDS[table], name)
        if key not in defaults:
            raise BadInput(
                f"'{key}' in [sweep.{table}] is no setting of '{name}', which '{entry.name}' uses"
                f"{suggest_names(key, list(defaults))}"
            )
        for choice in getattr(sweep, table)[key]:
            _check_notation(key, choice)
    labels = _labels(sweep)
    for values in itertools.product(*(getattr(sweep, table)[key] for table, key in keys)):
        settings = {labels[key]: choice for key, choice in zip(keys, values, strict=True)}
        update: dict[str, Any] = {"name": _cell_name(entry.name, settings)}
        for table, (name, of_entry) in choices.items():
            of_table = {key: choice for (t, key), choice in zip(keys, values, strict=True) if t == table}
            update[table] = plugins.format_choice(name, of_entry | of_table)
        yield _Variant(entry.model_copy(update=update if keys else {}), settings)


def _check_notation(key: str, choice: Any) -> None:
    """Raises `BadInput` unless a value can be written behind its setting as the command line takes it."""
    text = plugins.format_choice("", {key: choice})
    with contextlib.suppress(BadInput):
        if list(plugins.parse(text)[1]) == [key]:
            return
    raise BadInput(f"[sweep] cannot write the value {shorten(choice)} of '{key}' as a setting")


def _labels(sweep: Sweep) -> dict[tuple[str, str], str]:
    """The name of each varied setting on the page: that of the setting, with its table where two share a name."""
    keys = [(table, key) for table in PLUGIN_KINDS for key in getattr(sweep, table)]
    names = [key for _, key in keys]
    return {(table, key): key if names.count(key) == 1 else f"{table}.{key}" for table, key in keys}


def _cell_name(entry: str, settings: Mapping[str, Any]) -> str:
    """The name of an entry with the values of a cell."""
    values = [plugins.format_choice("", {label: choice}).removeprefix(":") for label, choice in settings.items()]
    name = f"{entry} {', '.join(values)}"
    if len(name.encode()) > MAX_NAME_BYTES or not name.isprintable():
        raise BadInput(
            f"[sweep] makes the name '{name}', which must be printable and have at most {MAX_NAME_BYTES} bytes; "
            f"shorten the name '{entry}' or vary fewer settings"
        )
    return name


def _place(agent: StudyAgent, envs: Mapping[str, Sequence[_Variant]]) -> Iterator[StudyAgent]:
    """An agent in the variants of its environments; one entry for each variant of its training environment."""
    train_variants = envs[agent.train_env] if agent.train_env else []
    if not any(settings for _, settings in train_variants):
        names = tuple(env.name for name in agent.environments for env, _ in envs[name])
        yield agent.model_copy(update={"environments": names})
        return
    for name in agent.environments:
        if not envs[name][0].settings:
            raise BadInput(
                f"[sweep] varies '{agent.train_env}', in which '{agent.name}' is developed, but not '{name}', in which "
                "it is evaluated; name both in 'environments'"
            )
    for i, (train_env, _) in enumerate(train_variants):
        names = tuple(envs[name][i].entry.name for name in agent.environments)
        yield agent.model_copy(update={"environments": names, "train_env": train_env.name})
