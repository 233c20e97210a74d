"""The plan of a study: all measurements in their order, and a check that each of them can be carried out.

The module knows names, seeds and paths; it measures nothing and writes nothing.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import plugins, steering
from ontogeny.errors import BadInput
from ontogeny.stages.assembly import Assembly, assemble, build_development, make_env
from ontogeny.stages.spec import RunSpec, parse_plugin_choice
from ontogeny.studies import upper_bounds
from ontogeny.studies.entries import StudyAgent, StudyEnvironment
from ontogeny.studies.pairwise import MAX_AGENTS_COMPARED
from ontogeny.studies.spec import StudySpec
from ontogeny.types import Agent, AnyEnvironment, Development

APPROACH_ORDER = ("baseline", "ml_code", "evolution")  # the quickest first


class Measurement(NamedTuple):
    """One measurement of a study; it leaves one record with the same id and kind."""

    id: str
    kind: str
    env: StudyEnvironment  # under which it is listed
    agent: StudyAgent | None = None
    seed: int = 0  # of the development
    other_agent: StudyAgent | None = None
    train_env: StudyEnvironment | None = None  # of a development; it may come later in the list than `env`


class AgentSize(NamedTuple):
    """The size of an agent in an environment, from which the cost of its measurements is estimated."""

    num_parameters: int  # of the genome
    num_steps: int  # of a lifetime
    num_training_env_steps: int = 0  # of its development in this environment, where it has one


Sizes = dict[tuple[str, str], AgentSize]  # by the names of agent and environment


def list_measurements(spec: StudySpec) -> Iterator[Measurement]:
    """All measurements of a study in their order: environment by environment, quick agents first."""
    developed: set[str] = set()
    cells = {(cell.env, cell.agent) for cell in spec.cells}
    for env in spec.environments:
        yield Measurement(f"environment/{env.name}", "environment", env)
        agents = [agent for agent in spec.agents if env.name in agent.environments]
        agents.sort(key=lambda agent: APPROACH_ORDER.index(agent.approach))
        for agent in agents:
            for seed in agent.seeds:
                development = development_id(agent, env.name, seed)
                if development not in developed:
                    developed.add(development)
                    train_env = spec.find_env(agent.train_env_for(env.name))
                    yield Measurement(development, "development", env, agent, seed, train_env=train_env)
                yield Measurement(evaluation_id(agent, env.name, seed), "evaluation", env, agent, seed)
            if env.record_lifetime:
                name = f"recorded_lifetime/{env.name}/{agent.name}"
                yield Measurement(name, "recorded_lifetime", env, agent, agent.seeds[0])
        for agent in agents:
            if env.num_attribution_tasks and agent.approach != "baseline":
                name = f"attribution/{env.name}/{agent.name}"
                yield Measurement(name, "attribution", env, agent, agent.seeds[0])
        for i, agent in enumerate(agents):
            for other_agent in agents[:i]:
                if len(agents) > MAX_AGENTS_COMPARED and cells >= {(env.name, a.name) for a in (agent, other_agent)}:
                    continue  # of very many cells only the differences from agents that do not vary are measured
                name = f"difference/{env.name}/{agent.name}/{other_agent.name}"
                yield Measurement(name, "difference", env, agent, other_agent=other_agent)
        if _has_exact_upper_bound(env):
            yield Measurement(f"upper_bound/{env.name}", "upper_bound", env)


def development_id(agent: StudyAgent, env: str, seed: int) -> str:
    """The id of the development of an agent that is evaluated in `env`."""
    return f"development/{agent.train_env_for(env)}/{agent.name}/{seed}"


def evaluation_id(agent: StudyAgent, env: str, seed: int) -> str:
    """The id of the evaluation of a development in `env`."""
    return f"evaluation/{env}/{agent.name}/{seed}"


def dependencies(measurement: Measurement) -> list[str]:
    """The ids of the measurements whose results a measurement reads."""
    env, agent, other_agent = measurement.env.name, measurement.agent, measurement.other_agent
    if agent is None or measurement.kind == "development":
        return []
    if other_agent is not None:
        return [evaluation_id(a, env, seed) for a in (agent, other_agent) for seed in a.seeds]
    return [development_id(agent, env, measurement.seed)]


def check_study(spec: StudySpec) -> Sizes:
    """Build every environment, agent and development of a study, so that no study fails halfway.

    Returns:
        The size of each agent in each environment in which it is developed or evaluated.

    Raises:
        BadInput: If one of them cannot be built, or two results would have the same path.
    """
    sizes: Sizes = {}
    developed: set[tuple[str, str]] = set()
    for i, env in enumerate(spec.environments):
        with _at(f"environments[{i}], '{env.name}'" if not spec.cells else f"environment '{env.name}'"):
            steering.build(build_env(env).spec, env.drives)
    for i, agent in enumerate(spec.agents):
        place = f"agents[{i}], '{agent.name}'" if not spec.cells else f"agent '{agent.name}'"
        for name in agent.environments:
            train_env = agent.train_env_for(name)
            with _at(f"{place} in '{train_env}'"):
                run_spec = make_run_spec(spec, agent, spec.find_env(train_env), agent.seeds[0])
                trained = assemble(run_spec)
                if (agent.name, train_env) not in developed:
                    developed.add((agent.name, train_env))
                    development = build_development(run_spec, trained)
                    sizes[agent.name, train_env] = _agent_size(trained, development if is_trained(agent) else None)
            if name != train_env:
                with _at(f"{place} in '{name}'"):
                    evaluated = assemble(make_run_spec(spec, agent, spec.find_env(name), agent.seeds[0]))
                    if _genome_shapes(evaluated.agent) != _genome_shapes(trained.agent):
                        raise BadInput(
                            f"its genome has other shapes there than in '{train_env}', where it is developed"
                        )
                    sizes.setdefault((agent.name, name), _agent_size(evaluated, None))
    _check_distinct_paths(spec)
    return sizes


def _agent_size(assembly: Assembly, development: Development | None) -> AgentSize:
    """The size of an agent in an environment, with the steps of its development there."""
    num_parameters = sum(math.prod(shape) for shape, _ in _genome_shapes(assembly.agent)[1])
    num_training_env_steps = 0
    if development is not None:
        num_generations = development.num_calls * development.generations_per_call
        num_training_env_steps = num_generations * development.steps_per_generation
    return AgentSize(num_parameters, assembly.env.spec.num_steps, num_training_env_steps)


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the message of a `BadInput` with the place in the spec."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None


def _genome_shapes(agent: Agent) -> Any:
    """Structure, shapes and types of the genome of an agent."""
    genome = jax.eval_shape(agent.genome, jax.random.key(0))
    return jax.tree.structure(genome), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(genome)]


def _check_distinct_paths(spec: StudySpec) -> None:
    """Raises `BadInput` if two measurements share a path, as names do that differ in punctuation or case alone."""
    owners: dict[str, Measurement] = {}
    for measurement in list_measurements(spec):
        paths = [measurement.id]
        agent, seed = measurement.agent, measurement.seed
        if measurement.train_env is not None and agent is not None:
            paths.append(str(agent_folder(Path(), agent, measurement.train_env.name, seed)))
        if measurement.kind == "evaluation" and agent is not None:
            paths.append(str(scores_path(Path(), measurement.env, agent, seed)))
        for path in paths:
            owner = owners.setdefault(path, measurement)
            if owner is not measurement:
                raise BadInput(
                    f"'{owner.id}' and '{measurement.id}' would both be saved as '{path}': change one of the names"
                )


def is_saved(agent: StudyAgent) -> bool:
    """Whether a development leaves a run in the study's folder; a baseline without training leaves none."""
    return is_trained(agent) or agent.approach != "baseline"


def is_trained(agent: StudyAgent) -> bool:
    """Whether an outer loop changes the genome."""
    return parse_plugin_choice(agent.development).name != "single_lifetime"


def make_run_spec(spec: StudySpec, agent: StudyAgent, env: StudyEnvironment, seed: int) -> RunSpec:
    """The spec of one development as a run; its seed derives from the seeds of the study and of the development."""
    run_seed = int(np.random.SeedSequence([spec.seed, seed]).generate_state(1)[0])
    return RunSpec(
        env=parse_plugin_choice(env.env),
        agent=parse_plugin_choice(agent.agent),
        development=parse_plugin_choice(agent.development),
        drives=env.drives | agent.drives,
        seed=run_seed,
    )


def build_env(env: StudyEnvironment) -> AnyEnvironment:
    """Build an environment of a study."""
    choice = parse_plugin_choice(env.env)
    return make_env(choice.name, **choice.settings)


def complete_settings(env: StudyEnvironment) -> dict[str, Any]:
    """All settings of an environment, defaults included."""
    choice = parse_plugin_choice(env.env)
    return plugins.default_settings("environments", choice.name) | choice.settings


def _has_exact_upper_bound(env: StudyEnvironment) -> bool:
    """Whether the Bayes-optimal score of the environment can be computed."""
    if parse_plugin_choice(env.env).name != "bandit":
        return False
    settings = complete_settings(env)
    return upper_bounds.is_tractable(settings["num_arms"], settings["num_pulls"])


def agent_folder(out: Path, agent: StudyAgent, train_env: str, seed: int) -> Path:
    """The folder of a development, a run that can be evaluated and deployed."""
    return out / "agents" / f"{_slug(agent.name)}-{_slug(train_env)}-{seed}"


def scores_path(out: Path, env: StudyEnvironment, agent: StudyAgent, seed: int) -> Path:
    """The file with the scores of an evaluation, one per task."""
    return out / "scores" / f"{_slug(env.name)}-{_slug(agent.name)}-{seed}.npy"


def _slug(name: str) -> str:
    """A name as a part of a path: lower case, with dashes for everything but letters and digits."""
    name = name.lower().replace("=-", "=minus-")  # the cells of a sweep over -1 and 1 have distinct paths
    return re.sub(r"[^\w]+", "-", name).strip("-")
