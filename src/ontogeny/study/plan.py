"""The plan of a study: every measurement that it asks for, in its order, and whether all of them can be made.

Knows names, seeds and places of files; measures nothing and writes nothing.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import registry, steering
from ontogeny.errors import BadInput
from ontogeny.lifecycle.subject import RunSpec, assemble, develop, room
from ontogeny.study import bounds
from ontogeny.study.spec import AgentRow, Study, WorldRow
from ontogeny.types import Agent, World

ORDER = ("reference", "code", "evolution")  # what is quick comes first


class Step(NamedTuple):
    """One measurement to make: its records' ids are known beforehand."""

    id: str
    what: str  # a kind of record
    world: WorldRow  # under which it is listed
    agent: AgentRow | None = None
    seed: int = 0
    other: AgentRow | None = None
    home: WorldRow | None = None  # of a development: the world that it is in, which may come later in the list


def plan(study: Study) -> Iterator[Step]:
    """All measurements of a study in their order: world by world, cheap agents first."""
    developed: set[str] = set()
    for world in study.worlds:
        yield Step(f"world/{world.name}", "world", world)
        rows = [row for row in study.agents if world.name in row.worlds]
        rows.sort(key=lambda row: ORDER.index(row.model))
        for row in rows:
            for seed in row.seeds:
                name = development_id(row, world.name, seed)
                if name not in developed:
                    developed.add(name)
                    yield Step(name, "development", world, row, seed, home=study.world(row.home(world.name)))
                yield Step(f"evaluation/{world.name}/{row.name}/{seed}", "evaluation", world, row, seed)
            if world.replay:
                yield Step(f"replay/{world.name}/{row.name}", "replay", world, row, row.seeds[0])
        for i, row in enumerate(rows):
            for other in rows[:i]:
                if row.model != "reference":
                    yield Step(
                        f"difference/{world.name}/{row.name}/{other.name}", "difference", world, row, other=other
                    )
        if _bounded(world):
            yield Step(f"bound/{world.name}", "bound", world)


def development_id(row: AgentRow, world: str, seed: int) -> str:
    return f"development/{row.home(world)}/{row.name}/{seed}"


def check(study: Study) -> None:
    """Builds every agent in every world of the study, and every development, so that no study stops halfway."""
    for i, world in enumerate(study.worlds):
        with _placed(f"worlds[{i}], '{world.name}'"):
            steering.build(build_world(world).spec, dict(world.drives))
    for i, row in enumerate(study.agents):
        for name in row.worlds:
            home = row.home(name)
            with _placed(f"agents[{i}], '{row.name}' in '{home}'"):
                run_spec = as_run(study, row, study.world(home), row.seeds[0])
                subject = assemble(run_spec)
                develop(run_spec, subject)
            with _placed(f"agents[{i}], '{row.name}' in '{name}'"):
                measured = assemble(as_run(study, row, study.world(name), row.seeds[0]))
                if _shapes(measured.agent) != _shapes(subject.agent):
                    raise BadInput(f"its genome has other shapes there than in '{home}', where it is developed")
    _own_places(study)


@contextlib.contextmanager
def _placed(where: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _shapes(agent: Agent) -> Any:
    genome = jax.eval_shape(agent.genome, jax.random.key(0))
    return jax.tree.structure(genome), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(genome)]


def _own_places(study: Study) -> None:
    """Names that differ in a mark or a capital alone may stand for one file, which would then be written twice."""
    taken: dict[str, Step] = {}
    for step in plan(study):
        places = [step.id]
        if step.what == "development" and step.agent is not None and step.home is not None:
            places.append(str(run_folder(Path(), step.agent, step.home.name, step.seed)))
        if step.what == "evaluation" and step.agent is not None:
            places.append(str(scores_file(Path(), step.world, step.agent, step.seed)))
        for place in places:
            other = taken.setdefault(place, step)
            if other is not step:
                raise BadInput(f"'{other.id}' and '{step.id}' would both be kept as '{place}': change one of the names")


def is_kept(row: AgentRow) -> bool:
    """Whether a development leaves a run in the folder; a reference that nobody develops leaves none."""
    return is_searched(row) or row.model != "reference"


def is_searched(row: AgentRow) -> bool:
    return room(row.development).name != "single_lifetime"


def as_run(study: Study, row: AgentRow, world: WorldRow, seed: int) -> RunSpec:
    """An agent in a world as a run of its own, with a seed that no other study's runs are likely to have."""
    own = int(np.random.SeedSequence([study.seed, seed]).generate_state(1)[0])
    drives = dict(world.drives) | dict(row.drives)
    return RunSpec(room(world.world), room(row.agent), room(row.development), drives, own)


def build_world(row: WorldRow) -> World:
    name, settings = room(row.world)
    return registry.build("worlds", name, **settings)


def settings_of(row: WorldRow) -> dict[str, Any]:
    """All settings of a world, defaults written out."""
    name, given = room(row.world)
    return registry.settings("worlds", name) | dict(given)


def _bounded(row: WorldRow) -> bool:
    if room(row.world).name != "bandit":
        return False
    settings = settings_of(row)
    return bounds.is_exact(settings["arms"], settings["pulls"])


def run_folder(out: Path, row: AgentRow, home: str, seed: int) -> Path:
    return out / "agents" / f"{_slug(row.name)}-{_slug(home)}-{seed}"


def scores_file(out: Path, world: WorldRow, row: AgentRow, seed: int) -> Path:
    return out / "scores" / f"{_slug(world.name)}-{_slug(row.name)}-{seed}.npy"


def _slug(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")
