"""What a run is about, as data: which agent, in which environment, with which drives, developed how, from which seed.

A spec is written as JSON: `{"env": "bandit:arms=5", "agent": {"name": "random", "settings": {}}, "seed": 0}`.
A room is its name, with settings behind a colon or in a table of their own. Nothing here trains, evaluates or deploys.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny import plugins
from ontogeny.errors import BadInput

MAX_SEED = 2**32 - 1


class Room(NamedTuple):
    """An environment, agent or development by name, with the settings that were given."""

    name: str
    settings: Mapping[str, Any]


class RunSpec(NamedTuple):
    """All that determines a run, on one machine with one version of everything."""

    env: Room
    agent: Room
    development: Room
    drives: Mapping[str, float]  # weights of facts, put over those that the environment's designers propose
    seed: int


class Subject(NamedTuple):
    """An agent, the environment that it is built for, and the steering that judges outcomes for it."""

    agent: Any
    env: Any
    steering: Any


def room(text: str) -> Room:
    """`'bandit:arms=5,pulls=100'` -> the room and its settings."""
    return Room(*plugins.parse(text))


def parse(data: Any, where: str = "run") -> RunSpec:
    """A spec from a dict as JSON or TOML gives it; `BadInput` says where it is wrong."""
    if not isinstance(data, Mapping):
        raise BadInput(f"[{where}] must be a table of keys, not {data!r}")
    _known_keys(data, list(RunSpec._fields), where)
    for key in ("env", "agent"):
        if key not in data:
            raise BadInput(f"[{where}] lacks the key '{key}'")
    drives = data.get("drives", {})
    if not isinstance(drives, Mapping):
        raise BadInput(f"[{where}.drives] must be a table of facts and weights, not {drives!r}")
    for feature, weight in drives.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise BadInput(f"'{feature}' in [{where}.drives] must be a number, not {weight!r}")
    return RunSpec(
        env=_room(data["env"], f"{where}.environment"),
        agent=_room(data["agent"], f"{where}.agent"),
        development=_room(data.get("development", "single_lifetime"), f"{where}.development"),
        drives={
            feature: plugins.real(weight, f"'{feature}' in [{where}.drives]") for feature, weight in drives.items()
        },
        seed=checked_seed(data.get("seed", 0), where),
    )


def to_json(spec: RunSpec) -> dict[str, Any]:
    """The inverse of `parse`, as plain dicts, lists and numbers."""
    rooms = {key: getattr(spec, key) for key in ("env", "agent", "development")}
    plain = {key: {"name": room.name, "settings": dict(room.settings)} for key, room in rooms.items()}
    return json.loads(json.dumps(plain | {"drives": dict(spec.drives), "seed": spec.seed}))


def complete(spec: RunSpec) -> RunSpec:
    """The spec with every default written out, so that a default that changes later does not change an old run."""

    def completed(family: str, room: Room) -> Room:
        known = plugins.settings(family, room.name)
        return Room(room.name, known | {k: _like(known.get(k), v) for k, v in room.settings.items()})

    return spec._replace(
        env=completed("environments", spec.env),
        agent=completed("agents", spec.agent),
        development=completed("development", spec.development),
    )


def assemble(spec: RunSpec) -> Subject:
    """Builds environment, steering and agent. Unknown names, settings and drives, and faulty files, raise `BadInput`."""
    from ontogeny import steering
    from ontogeny.agents.base import needs_open_tasks

    own = [str(path) for key, path in own_files(spec) if key != "development"]
    env = plugins.build("environments", spec.env.name, **spec.env.settings)
    with plugins.blaming(own, f"agent '{spec.agent.name}' and environment '{spec.env.name}' do not go together"):
        drives = steering.build(env.spec, spec.drives)
        agent = plugins.build("agents", spec.agent.name, env.spec, drives, **spec.agent.settings)
    needs_open_tasks(spec.agent.name, agent, env)
    if own:
        from ontogeny.stages import trial

        trial.look_at(agent, env, drives, own)
    return Subject(agent, env, drives)


def own_files(spec: RunSpec) -> list[tuple[str, Path]]:
    """The rooms of a spec that are files of somebody's own, by their keys."""
    rooms = {key: getattr(spec, key).name for key in ("env", "agent", "development")}
    return [(key, Path(name)) for key, name in rooms.items() if name.endswith(".py")]


def develop(spec: RunSpec, subject: Subject) -> Any:
    """The outer loop of a spec, ready to run: a `Development`."""
    return plugins.build("development", spec.development.name, *subject, **spec.development.settings)


def checked_seed(seed: Any, where: str = "run") -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise BadInput(f"'seed' in [{where}] must be a whole number from 0 to {MAX_SEED}, not {seed!r}")
    return seed


def _room(value: Any, where: str) -> Room:
    if isinstance(value, str):
        return room(value)
    if not isinstance(value, Mapping):
        raise BadInput(f"[{where}] must be a name or a table with 'name' and 'settings', not {value!r}")
    _known_keys(value, ["name", "settings"], where)
    name, settings = value.get("name"), value.get("settings", {})
    if not isinstance(name, str):
        raise BadInput(f"'name' in [{where}] must be a text, not {name!r}")
    if not isinstance(settings, Mapping):
        raise BadInput(f"[{where}.settings] must be a table, not {settings!r}")
    return Room(name, dict(settings))


def _known_keys(data: Mapping, known: list[str], where: str) -> None:
    for key in data:
        if key not in known:
            near = str(plugins.unknown("key", str(key), known)).partition(";")[2]
            raise BadInput(f"unknown key '{key}' in [{where}];{near}")


def _like(default: Any, value: Any) -> Any:
    """A whole number given for a real setting is written as the real number that it becomes."""
    return float(value) if isinstance(default, float) and type(value) is int else value
