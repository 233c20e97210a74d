"""A saved agent: the folder of an agent run, or of a deployment that was saved.

Both hold `spec.json`, and a copy of each plugin that is a file of the user: such a folder carries code, which is run
when the folder is read. A run holds the genome that was developed, from which a lifetime begins; a saved deployment
holds the state (weights and activations) at which a lifetime continues.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ontogeny import rng, trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.runs import checkpoint
from ontogeny.runs.files import new_folder
from ontogeny.runs.folder import describe, read_spec, write_spec
from ontogeny.runs.formats import AGENT_RUN, SAVED_DEPLOYMENT
from ontogeny.runs.kinds import require_kind
from ontogeny.stages.assembly import Assembly, assemble
from ontogeny.stages.spec import PluginChoice, RunSpec, parse_run_spec, spec_to_json, user_files
from ontogeny.types import Genome, Key, State

GENOME, STATE = "genome", "state"  # names of the saved trees


class SavedAgent(NamedTuple):
    """An agent as it was saved, built and ready to run.

    Attributes:
        genome: Of a run; of a saved deployment None.
        state: Of a saved deployment; of a run None.
    """

    spec: RunSpec
    assembly: Assembly
    genome: Genome
    state: State | None


def initial_agent(spec: RunSpec) -> SavedAgent:
    """An agent that no development has changed: built from a spec, with the genome that its seed draws."""
    assembly = assemble(spec)
    return SavedAgent(spec, assembly, assembly.agent.genome(rng.key_from_seed(spec.seed)), None)


def read_saved_agent(folder: Path | str, *, env: PluginChoice | None = None) -> SavedAgent:
    """Read an agent run or a saved deployment.

    Args:
        folder: The folder of a finished run or of a saved deployment.
        env: Another environment than the one in which the agent was developed.

    Raises:
        BadInput: The folder is absent, unfinished, damaged or of another kind, or the agent does not fit `env`.
    """
    folder = Path(folder)
    spec = read_run_spec(folder)
    if env is not None:
        is_same = Path(env.name).name == Path(spec.env.name).name  # a run's own copy of a file lies elsewhere
        spec = spec.model_copy(update={"env": env, "drives": spec.drives if is_same else {}})
    assembly = assemble(spec)
    key = rng.key_from_seed(spec.seed)
    genome = jax.eval_shape(assembly.agent.genome, key)
    if checkpoint.exists(folder, STATE):
        template = jax.eval_shape(assembly.agent.init, key, genome)
        return SavedAgent(spec, assembly, None, checkpoint.load(folder, STATE, template))
    if checkpoint.exists(folder, GENOME):
        return SavedAgent(spec, assembly, checkpoint.load(folder, GENOME, genome), None)
    raise BadInput(f"the run in '{folder}' is not finished; rerun the same command to resume it")


def save_deployment(folder: Path | str, spec: RunSpec, state: State, *, mode: str, num_steps: int) -> Path:
    """Save the state of a lifetime in a new folder, whole or not at all.

    Args:
        mode: `frozen` or `online`, the mode in which the lifetime went so far.
        num_steps: Steps taken in the lifetime so far.

    Raises:
        BadInput: The folder exists or cannot be written.
    """
    folder = Path(folder)
    portable, files = portable_spec(spec)
    with new_folder(folder) as temporary:
        description = describe(SAVED_DEPLOYMENT, portable, files)
        write_spec(temporary, description, files)
        metadata = {"mode": mode, "num_steps": num_steps}
        checkpoint.save(temporary, STATE, state, metadata, write_once=True)
    return folder


def initial_state(saved_agent: SavedAgent, seed: int) -> tuple[Key, State]:
    """The key of a lifetime in deployment and the state with which it begins.

    Args:
        saved_agent: From a run, the state is drawn from the genome; from a saved deployment, it is the saved one.
        seed: From 0 to 2**32 - 1.
    """
    key = rng.sample_lifetime_keys(rng.key_from_seed(seed), 1, "deployment")[0]
    if saved_agent.state is not None:
        return key, saved_agent.state
    return key, saved_agent.assembly.agent.init(rng.split_lifetime_key(key).init, saved_agent.genome)


def portable_spec(spec: RunSpec) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """A spec as JSON whose user's files are named by their copies in the folder, and these files by these names."""
    plain, files = spec_to_json(spec), {}
    for key, path in user_files(spec):
        name = f"files/{key}/{path.name}"
        plain[key]["name"], files[name] = name, path
    return plain, files


def read_run_spec(folder: Path) -> RunSpec:
    """The spec of an agent run or saved deployment, with paths to its copies of the user's files."""
    require_kind(folder, AGENT_RUN, SAVED_DEPLOYMENT)
    description = read_spec(folder)
    try:
        spec = parse_run_spec(description.spec)
    except BadInput as error:
        raise BadInput(f"'{folder / 'spec.json'}' is damaged: {error}") from None
    changes = {}
    for key, path in user_files(spec):
        if path.as_posix() not in description.files:
            raise BadInput(f"'{folder / path}' is absent or not the file with which the run began")
        changes[key] = getattr(spec, key).model_copy(update={"name": str(folder / path)})
    return spec.model_copy(update=changes)


def check_frozen(digest: str, state: State) -> None:
    """Raise `ContractViolation` where the weights have another digest than at the start of a frozen lifetime."""
    digest_now = trees.digest(state.weights)
    if digest_now != digest:
        raise ContractViolation(
            f"the weights changed while frozen, from {digest[:16]} to {digest_now[:16]}: "
            "`act` may change activations only"
        )
