"""A study as data: which agents are developed where, on which unseen tasks they are measured, with which seeds.

A spec is a small TOML file; docs/study.md describes every key. `default.toml` beside this file is the default study.

    title, question, seed, [includes]
    [[environments]]   name, environment ("bandit:num_arms=5,num_pulls=10"), tasks, [replay, drives]
    [[agents]]   agent ("recurrent:hidden_size=48"), environments, [name, model, development, developed_on, seeds, tasks, drives]

The order of environments is the order in which results appear. An agent's `model` says which model of development it
stands for: "evolution" (every weight is evolved), "code" (the genome is a learning algorithm) or "reference".
`drives` weigh facts in the reward, over those that the environment proposes; an agent's go over its environment's.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.stages.spec import MAX_SEED
from ontogeny.studies.kinds import study_kinds

DEFAULT = Path(__file__).with_name("default.toml")
KEYS = {
    "study": ("title", "question", "seed", "includes"),
    "env": ("name", "env", "tasks", "replay", "drives"),
    "agent": ("agent", "environments", "name", "model", "development", "developed_on", "seeds", "tasks", "drives"),
}
MODELS = ("evolution", "code", "reference")
LONGEST = 100  # bytes of a name: two of them and a seed make the name of a file


@dataclass(frozen=True)
class EnvironmentRow:
    """An environment under the name by which tables show it."""

    name: str
    env: str  # as `registry.parse` reads it
    tasks: int  # unseen tasks that every agent is measured on, unless the agent's row says otherwise
    replay: bool = True  # whether one life of each agent is recorded step by step
    drives: tuple[tuple[str, float], ...] = ()  # facts and weights, over those that the environment proposes


@dataclass(frozen=True)
class AgentRow:
    """An agent, how it is developed, and where it is measured."""

    name: str
    agent: str
    model: str
    development: str
    environments: tuple[str, ...]
    developed_on: str | None = None  # None: developed anew for each environment that it is measured in
    seeds: tuple[int, ...] = (0,)  # one development each
    tasks: int | None = None
    drives: tuple[tuple[str, float], ...] = ()  # over those of the environment

    def home(self, env: str) -> str:
        """The environment in which the agent that is measured in `environment` was developed."""
        return self.developed_on or env


@dataclass(frozen=True)
class Study:
    """A whole study; `text` is the TOML that it was read from."""

    title: str
    question: str
    seed: int
    environments: tuple[EnvironmentRow, ...]
    agents: tuple[AgentRow, ...]
    text: str
    includes: tuple[tuple[str, str], ...] = ()  # registered studies that are run as a part of it, each with its size

    @property
    def digest(self) -> str:
        """SHA-256 of text and seed: equal digests mean equal records, on one machine with the same versions."""
        return hashlib.sha256(f"{self.seed}\n{self.text}".encode()).hexdigest()

    def env(self, name: str) -> EnvironmentRow:
        return next(row for row in self.environments if row.name == name)


def read(path: str | Path | None = None, seed: int | None = None) -> Study:
    """Reads a spec, the default one without a path; `seed` goes over its own. `BadInput` says where it is wrong."""
    path = DEFAULT if path is None else Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"the spec '{path.name}' cannot be read: {reason}") from None
    return parse(text, path.name, seed)


def parse(text: str, source: str = "spec", seed: int | None = None) -> Study:
    """The study that a TOML text describes; `source` names it in messages."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOML's own errors, whole numbers without end, brackets without end
        raise BadInput(f"{source} is not valid TOML: {error}") from None
    _keys(
        data,
        source,
        required={"title", "question", "environments", "agents"},
        known=(*KEYS["study"], "environments", "agents"),
    )
    environments = tuple(
        _env(row, f"{source}, environments[{i}]") for i, row in enumerate(_rows(data, "environments", source))
    )
    _unique([row.name for row in environments], "env", source)
    known = [row.name for row in environments]
    agents = tuple(_agent(row, f"{source}, agents[{i}]", known) for i, row in enumerate(_rows(data, "agents", source)))
    _unique([f"{agent.name} in {env}" for agent in agents for env in agent.environments], "measurement of", source)
    _one_development_each(agents, source)
    given = _seed(data.get("seed", 0), f"{source}, seed")
    given = given if seed is None else _seed(seed, "--seed")
    return Study(
        title=_text(data["title"], f"{source}, title"),
        question=_text(data["question"], f"{source}, question"),
        seed=given,
        environments=environments,
        agents=agents,
        text=text,
        includes=_includes(data.get("includes", {}), f"{source}, includes"),
    )


def _includes(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    for name, size in _of(dict, value, where).items():
        if name not in study_kinds():
            raise BadInput(f"{where}: {plugins.unknown_name_error('registered study', name, list(study_kinds()))}")
        sizes = study_kinds()[name].sizes
        if size not in sizes:
            raise BadInput(f"{where}: {plugins.unknown_name_error(f'size of the study {name} named', str(size), list(sizes))}")
    return tuple(value.items())


def _env(row: dict[str, Any], where: str) -> EnvironmentRow:
    _keys(row, where, required={"name", "env", "tasks"}, known=KEYS["env"])
    text = _of(str, row["env"], f"{where}, environment")
    _room("environments", text, f"{where}, environment")
    return EnvironmentRow(
        _name(row["name"], f"{where}, name"),
        text,
        _tasks(row["tasks"], f"{where}, tasks"),
        _of(bool, row.get("replay", True), f"{where}, replay"),
        _drives(row.get("drives", {}), f"{where}, drives"),
    )


def _agent(row: dict[str, Any], where: str, environments: list[str]) -> AgentRow:
    _keys(row, where, required={"agent", "environments"}, known=KEYS["agent"])
    agent = _of(str, row["agent"], f"{where}, agent")
    room = _room("agents", agent, f"{where}, agent")
    development = _of(str, row.get("development", "single_lifetime"), f"{where}, development")
    _room("development", development, f"{where}, development")
    model = _of(str, row.get("model", "reference"), f"{where}, model")
    if model not in MODELS:
        raise BadInput(f"{where}, model: {plugins.unknown_name_error('model of development', model, list(MODELS))}")
    lived = _list(str, row["environments"], f"{where}, environments")
    home = row.get("developed_on")
    for name in [*lived, *([home] if home is not None else [])]:
        if name not in environments:
            key = "environments" if name in lived else "developed_on"
            raise BadInput(
                f"{where}, {key}: {plugins.unknown_name_error('environment in this spec named', str(name), environments)}"
            )
    seeds = _list(int, row.get("seeds", [0]), f"{where}, seeds")
    for seed in seeds:
        _seed(seed, f"{where}, seeds")
    _unique([str(seed) for seed in seeds], "seed", where)
    return AgentRow(
        name=_name(row.get("name", room), f"{where}, name"),
        agent=agent,
        model=model,
        development=development,
        environments=lived,
        developed_on=home,
        seeds=seeds,
        tasks=None if "tasks" not in row else _tasks(row["tasks"], f"{where}, tasks"),
        drives=_drives(row.get("drives", {}), f"{where}, drives"),
    )


def _one_development_each(agents: tuple[AgentRow, ...], source: str) -> None:
    """Rows may share a development, by name and home; what they say of it must then be the same."""
    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(agents):
        for home in dict.fromkeys(row.home(env) for env in row.environments):
            other = agents[first.setdefault((row.name, home), i)]
            for key in ("agent", "model", "development", "drives"):
                if getattr(row, key) != getattr(other, key):
                    raise BadInput(
                        f"{source}, agents[{i}]: '{row.name}' is developed in '{home}' by "
                        f"agents[{agents.index(other)}] too, with another {key}; give one of them another name"
                    )


def _room(family: str, text: str, where: str) -> str:
    """The name in `name:setting=value,...`, checked against the rooms and settings that there are."""
    try:
        name, given = plugins.parse(text)
        known = plugins.default_settings(family, name)
        for key in given:
            if key not in known:
                raise plugins.unknown_name_error(f"setting of '{name}' named", key, list(known))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return Path(name).stem


def _keys(data: dict[str, Any], where: str, required: set[str], known: tuple[str, ...]) -> None:
    for key in data:
        if key not in known:
            raise BadInput(f"{where}: {plugins.unknown_name_error('key', key, sorted(known))}")
    for key in sorted(required):
        if key not in data:
            raise BadInput(f"{where}: the key '{key}' is missing")


def _rows(data: dict[str, Any], key: str, source: str) -> list[dict[str, Any]]:
    rows = data[key]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{source}, {key}: write at least one [[{key}]] table")
    return rows


def _of(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise BadInput(f"{where} must be of type {kind.__name__}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number that Python does not write out, or tables without end
        return "a value that long"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any, where: str) -> str:
    """A text on one line that says something."""
    text = " ".join(_of(str, value, where).split())
    if not text:
        raise BadInput(f"{where} must not be empty")
    return text


def _name(value: Any, where: str) -> str:
    """A name that can stand in a table and, with what no file name holds taken out, name a file."""
    name = _of(str, value, where)
    if not name.isprintable() or not any(letter.isalnum() for letter in name):
        raise BadInput(f"{where} must be one line with a letter or a digit in it, not {_shown(name)}")
    if len(name.encode()) > LONGEST:
        raise BadInput(f"{where} must be at most {LONGEST} bytes long, not {len(name.encode())}: {_shown(name)}")
    return name


def _list(kind: type, value: Any, where: str) -> tuple:
    if not isinstance(value, list) or not value or not all(type(item) is kind for item in value):
        raise BadInput(f"{where} must be a list of at least one {kind.__name__}, not {_shown(value)}")
    return tuple(value)


def _drives(value: Any, where: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, dict):
        raise BadInput(f"{where} must be a table of facts and weights, not {_shown(value)}")
    for feature, weight in value.items():
        if type(weight) not in (int, float):
            raise BadInput(f"{where}: the weight of '{feature}' must be a number, not {_shown(weight)}")
    return tuple(
        (feature, plugins.finite_float(weight, f"{where}: the weight of '{feature}'")) for feature, weight in value.items()
    )


def _seed(value: Any, where: str) -> int:
    if not 0 <= _of(int, value, where) <= MAX_SEED:
        raise BadInput(f"{where} must be from 0 to {MAX_SEED}, not {_shown(value)}")
    return value


def _tasks(value: Any, where: str) -> int:
    if _of(int, value, where) < 2:
        raise BadInput(f"{where} must be at least 2 for an interval, not {_shown(value)}")
    if value > plugins.MAX_INT:
        raise BadInput(f"{where} must be at most {plugins.MAX_INT}, not {_shown(value)}")
    return value


def _unique(names: list[str], what: str, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{where}: the {what} '{name}' is there twice")
