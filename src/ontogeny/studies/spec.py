"""A study as data: which agents are developed where, on which held-out tasks they are evaluated, with which seeds.

A spec is a TOML file; `default.toml` beside this module is the default study. The order of environments is the order in
which results appear. Drives weigh outcome features in the reward; they replace those that the environment proposes, and
an agent's replace its environment's.
"""

import hashlib
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ontogeny.errors import BadInput
from ontogeny.plugins import suggest_names
from ontogeny.seeds import check_seed
from ontogeny.studies.entries import StudyAgent, StudyEnvironment
from ontogeny.studies.kinds import study_kinds
from ontogeny.studies.sweep import Expansion, Sweep, SweepCell, expand
from ontogeny.validation import FrozenModel, Seed, validate

DEFAULT_SPEC = Path(__file__).with_name("default.toml")


def _check_text(text: str) -> str:
    """A validator of texts, which joins their lines."""
    if not text.strip():
        raise ValueError("must not be empty")
    return " ".join(text.split())


Text = Annotated[str, AfterValidator(_check_text)]


class StudyFile(FrozenModel):
    """The content of a study's TOML file.

    Attributes:
        title: Heading of the page.
        question: Printed below the title.
        seed: All random keys of the study derive from it.
        includes: Registered studies that run as a part of this one, each with its size, such as `{mesa = "brief"}`.
        environments: In the order in which they run.
        agents: The same agent may have several entries.
        sweep: Settings that vary.
    """

    title: Text
    question: Text
    seed: Seed = 0
    includes: dict[str, str] = Field(default_factory=dict)
    environments: Annotated[tuple[StudyEnvironment, ...], Field(min_length=1, strict=False)]
    agents: Annotated[tuple[StudyAgent, ...], Field(min_length=1, strict=False)]
    sweep: Sweep | None = None

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
        _check_entries(self.environments, self.agents)
        return self


class StudySpec(StudyFile):
    """A whole study, with its sweep expanded: every cell is an agent in an environment.

    Attributes:
        text: The TOML from which it was read.
        cells: The cells of the sweep.
    """

    text: str
    cells: tuple[SweepCell, ...] = ()

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
    expansion = Expansion(file.environments, file.agents, ())
    if file.sweep is not None:
        expansion = expand(file.sweep, file.environments, file.agents)
        try:
            _check_entries(expansion.environments, expansion.agents)
        except ValueError as error:
            raise BadInput(f"[{source}.sweep] makes a study that {error}") from None
    return StudySpec.model_construct(**dict(file) | expansion._asdict() | {"seed": seed, "text": text})


def _check_entries(environments: Sequence[StudyEnvironment], agents: Sequence[StudyAgent]) -> None:
    """Raises `ValueError` unless names are unique and every environment that an agent names is among the entries."""
    names = [env.name for env in environments]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"names the environment '{name}' twice")
    evaluations = Counter((agent.name, env) for agent in agents for env in agent.environments)
    for (agent, env), count in evaluations.items():
        if count > 1:
            raise ValueError(f"evaluates '{agent}' in '{env}' twice")
    for i, agent in enumerate(agents):
        for key, envs in (("environments", agent.environments), ("train_env", [agent.train_env or names[0]])):
            for env in envs:
                if env not in names:
                    raise ValueError(
                        f"names an unknown environment '{env}' in agents.{i}.{key}{suggest_names(env, names)}"
                    )
    _check_shared_developments(agents)


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
