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

from ontogeny import plugins, steering
from ontogeny.errors import BadInput
from ontogeny.stages.assembly import assemble, build_development
from ontogeny.stages.spec import RunSpec, parse_plugin_choice
from ontogeny.studies import upper_bounds
from ontogeny.studies.spec import AgentRow, EnvironmentRow, Study
from ontogeny.types import Agent, Environment

ORDER = ("reference", "code", "evolution")  # what is quick comes first


class Step(NamedTuple):
    """One measurement to make: its records' ids are known beforehand."""

    id: str
    what: str  # a kind of record
    env: EnvironmentRow  # under which it is listed
    agent: AgentRow | None = None
    seed: int = 0
    other: AgentRow | None = None
    home: EnvironmentRow | None = (
        None  # of a development: the environment that it is in, which may come later in the list
    )


def plan(study: Study) -> Iterator[Step]:
    """All measurements of a study in their order: environment by environment, cheap agents first."""
    developed: set[str] = set()
    for env in study.environments:
        yield Step(f"environment/{env.name}", "env", env)
        rows = [row for row in study.agents if env.name in row.environments]
        rows.sort(key=lambda row: ORDER.index(row.model))
        for row in rows:
            for seed in row.seeds:
                name = development_id(row, env.name, seed)
                if name not in developed:
                    developed.add(name)
                    yield Step(name, "development", env, row, seed, home=study.env(row.home(env.name)))
                yield Step(f"evaluation/{env.name}/{row.name}/{seed}", "evaluation", env, row, seed)
            if env.replay:
                yield Step(f"replay/{env.name}/{row.name}", "replay", env, row, row.seeds[0])
        for i, row in enumerate(rows):
            for other in rows[:i]:
                if row.model != "reference":
                    yield Step(f"difference/{env.name}/{row.name}/{other.name}", "difference", env, row, other=other)
        if _bounded(env):
            yield Step(f"bound/{env.name}", "bound", env)


def development_id(row: AgentRow, env: str, seed: int) -> str:
    return f"development/{row.home(env)}/{row.name}/{seed}"


def check(study: Study) -> None:
    """Builds every agent in every environment of the study, and every development, so that no study stops halfway."""
    for i, env in enumerate(study.environments):
        with _placed(f"environments[{i}], '{env.name}'"):
            steering.build(build_env(env).spec, dict(env.drives))
    for i, row in enumerate(study.agents):
        for name in row.environments:
            home = row.home(name)
            with _placed(f"agents[{i}], '{row.name}' in '{home}'"):
                run_spec = as_run(study, row, study.env(home), row.seeds[0])
                subject = assemble(run_spec)
                build_development(run_spec, subject)
            with _placed(f"agents[{i}], '{row.name}' in '{name}'"):
                measured = assemble(as_run(study, row, study.env(name), row.seeds[0]))
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
            places.append(str(scores_file(Path(), step.env, step.agent, step.seed)))
        for place in places:
            other = taken.setdefault(place, step)
            if other is not step:
                raise BadInput(f"'{other.id}' and '{step.id}' would both be kept as '{place}': change one of the names")


def is_kept(row: AgentRow) -> bool:
    """Whether a development leaves a run in the folder; a reference that nobody develops leaves none."""
    return is_searched(row) or row.model != "reference"


def is_searched(row: AgentRow) -> bool:
    return parse_plugin_choice(row.development).name != "single_lifetime"


def as_run(study: Study, row: AgentRow, env: EnvironmentRow, seed: int) -> RunSpec:
    """An agent in an environment as a run of its own, with a seed that no other study's runs are likely to have."""
    own = int(np.random.SeedSequence([study.seed, seed]).generate_state(1)[0])
    drives = dict(env.drives) | dict(row.drives)
    return RunSpec(
        env=parse_plugin_choice(env.env),
        agent=parse_plugin_choice(row.agent),
        development=parse_plugin_choice(row.development),
        drives=dict(drives),
        seed=own,
    )


def build_env(row: EnvironmentRow) -> Environment:
    name, settings = plugins.parse(row.env)
    return plugins.build("environments", name, **settings)


def settings_of(row: EnvironmentRow) -> dict[str, Any]:
    """All settings of an environment, defaults written out."""
    name, given = plugins.parse(row.env)
    return plugins.default_settings("environments", name) | dict(given)


def _bounded(row: EnvironmentRow) -> bool:
    if parse_plugin_choice(row.env).name != "bandit":
        return False
    settings = settings_of(row)
    return upper_bounds.is_exact(settings["num_arms"], settings["num_pulls"])


def run_folder(out: Path, row: AgentRow, home: str, seed: int) -> Path:
    return out / "agents" / f"{_slug(row.name)}-{_slug(home)}-{seed}"


def scores_file(out: Path, env: EnvironmentRow, row: AgentRow, seed: int) -> Path:
    return out / "scores" / f"{_slug(env.name)}-{_slug(row.name)}-{seed}.npy"


def _slug(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")
