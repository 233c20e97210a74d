"""The spec of a run as data: agent, environment, development, drives and seed.

A spec is written as JSON: `{"env": "bandit:num_arms=5", "agent": {"name": "random", "settings": {}}, "seed": 0}`.
A plugin is chosen by its name, with settings behind a colon, or by a table with its name and its settings.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.validation import FrozenModel, Seed, validate

PLUGIN_KINDS = {"env": "environments", "agent": "agents", "development": "development"}  # by the key of a spec


class PluginChoice(FrozenModel):
    """An environment, agent or development by name, with the settings that a user chose."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, data: object) -> object:
        """Accept the text form, `name:setting=value,...`, in place of a table, and settings beside the name."""
        if isinstance(data, str):
            name, settings = plugins.parse(data)
            return {"name": name, "settings": settings}
        if isinstance(data, dict) and "settings" not in data and plugins.takes_id(str(data.get("name"))):
            name, settings = plugins.parse_table(data)
            return {"name": name, "settings": settings}
        if not isinstance(data, dict | PluginChoice):
            raise ValueError(f"must be a name or a table with 'name' and 'settings', not {data!r}")
        return data


def _check_drive(weight: object) -> float:
    """A drive as a finite number; pydantic reports the message of a `ValueError`."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"must be a number, not {weight!r}")
    try:
        return plugins.finite_float(weight, "")  # pydantic puts the subject before the message
    except BadInput as error:
        raise ValueError(str(error).strip()) from None


DriveWeight = Annotated[float, BeforeValidator(_check_drive)]


class RunSpec(FrozenModel):
    """Everything that determines a run, on one machine with one version of every library.

    Attributes:
        drives: Weights of outcome features; they replace those that the environment proposes.
        seed: From 0 to 2**32 - 1; all random keys of the run derive from it.
    """

    env: PluginChoice
    agent: PluginChoice
    development: PluginChoice = PluginChoice(name="single_lifetime")
    drives: dict[str, DriveWeight] = Field(default_factory=dict)
    seed: Seed = 0


class UserFile(NamedTuple):
    """A plugin of a spec that is a file of the user."""

    key: str  # of the spec: env, agent or development
    path: Path


def parse_plugin_choice(text: str) -> PluginChoice:
    """Read `'bandit:num_arms=5,num_pulls=100'` as a name and its settings."""
    name, settings = plugins.parse(text)
    return PluginChoice(name=name, settings=settings)


def parse_run_spec(data: object, place: str = "run") -> RunSpec:
    """Build a spec from a mapping as JSON or TOML gives it; a mistake raises `BadInput` with its place."""
    return validate(RunSpec, data, place, "spec key")


def spec_to_json(spec: RunSpec) -> dict[str, Any]:
    """The inverse of `parse_run_spec`, as plain dicts, lists and numbers."""
    return spec.model_dump(mode="json")


def complete_spec(spec: RunSpec) -> RunSpec:
    """Write out every default setting, so that a default that changes later does not change an old run."""
    completed = {}
    for key, kind in PLUGIN_KINDS.items():
        choice: PluginChoice = getattr(spec, key)
        defaults = plugins.default_settings(kind, choice.name)
        settings = defaults | {k: _as_type_of(defaults.get(k), v) for k, v in choice.settings.items()}
        completed[key] = PluginChoice(name=choice.name, settings=settings)
    return spec.model_copy(update=completed)


def user_files(spec: RunSpec) -> list[UserFile]:
    """The plugins of a spec that are files of the user."""
    choices = {key: getattr(spec, key).name for key in PLUGIN_KINDS}
    return [UserFile(key, Path(name)) for key, name in choices.items() if name.endswith(".py")]


def _as_type_of(default: object, value: Any) -> Any:
    """Convert a whole number to a real one where the default is real."""
    return float(value) if isinstance(default, float) and type(value) is int else value
