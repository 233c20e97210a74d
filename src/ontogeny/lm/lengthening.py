"""Lengthening of a finished training in its own folder, to a larger number of steps.

`spec.json` stays as it is, because checkpoints name its digest; `lengthening.json` lists the numbers of steps that were
requested later. The learning rate follows the schedule of a training that had the larger number of steps from the
beginning, from the step on at which the run had ended; the moments of the optimizer go on. The weights of the finished
run count until the longer training ends, so that nothing is lost where it is killed, refused or diverges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontogeny.errors import BadInput
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.report.formatting import pluralize
from ontogeny.runs import checkpoint
from ontogeny.runs.files import read_json, write_json
from ontogeny.runs.folder import RunDescription, has_kind, read_spec
from ontogeny.runs.formats import FORMATS, LANGUAGE_MODEL_RUN, SPEC_FILE
from ontogeny.runs.recorder import CHECKPOINT_NAME
from ontogeny.validation import validate

FILE = "lengthening.json"
WEIGHTS = "weights"  # name of the last weights of a run, whose presence marks it as finished


def read_stages(folder: Path) -> list[dict[str, int]]:
    """Read the later parts of a training, each with `first_step` and `num_steps`; none for a run as it was begun.

    Raises:
        BadInput: The file of a run is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    stages = read_json(path).get("stages")
    try:
        assert isinstance(stages, list)
        return [{name: int(stage[name]) for name in ("first_step", "num_steps")} for stage in stages]
    except (AssertionError, KeyError, TypeError, ValueError):
        raise BadInput(f"'{path}' is damaged: it does not list numbers of steps") from None


def read_optimization(folder: Path, description: RunDescription) -> OptimizerConfig:
    """Read the config of the optimizer of a run, with the number of steps to which it was lengthened last."""
    config = validate(OptimizerConfig, description.details["optimization"], "optimization")
    stages = read_stages(folder)
    return config.model_copy(update={"num_steps": stages[-1]["num_steps"]}) if stages else config


def original_spec(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a finished run, where the requested spec differs from it in the number of steps alone.

    Args:
        folder: Of the run.
        spec: The requested spec; its other settings are checked when the folder is claimed.

    Raises:
        BadInput: The folder holds no finished training, or no number of steps is requested.
    """
    if not (folder / SPEC_FILE).exists() or not has_kind(folder, LANGUAGE_MODEL_RUN):
        raise BadInput(f"'{folder}' holds no training that --lengthen could continue")
    if not checkpoint.exists(folder, WEIGHTS):
        raise BadInput(f"the run in '{folder}' is not finished; rerun its command before you lengthen it")
    if spec["num_steps"] is None:
        raise BadInput("--lengthen requires --num-steps, the number of steps of the longer training")
    return dict(spec) | {"num_steps": read_spec(folder).spec.get("num_steps")}


def refuse_finished(folder: Path, spec: Mapping[str, Any]) -> None:
    """Raise `BadInput` for a finished run that `--lengthen` could continue to the number of steps of a spec."""
    if not has_kind(folder, LANGUAGE_MODEL_RUN) or not checkpoint.exists(folder, WEIGHTS):
        return
    num_steps, present = checkpoint.read_metadata(folder, WEIGHTS)["num_steps"], read_spec(folder).spec
    if (spec["num_steps"] or 0) > num_steps and dict(spec) | {"num_steps": present.get("num_steps")} == present:
        raise BadInput(
            f"the folder '{folder}' holds a finished run of {pluralize(num_steps, 'step')}; --lengthen continues it"
        )


def begin(folder: Path, num_steps: int) -> None:
    """Record that a finished run of this process is to have more steps; a lengthening that was killed goes on.

    Raises:
        BadInput: The run has as many steps already, is being lengthened to another number, or lacks its checkpoint.
    """
    stages, num_finished = read_stages(folder), checkpoint.read_metadata(folder, WEIGHTS)["num_steps"]
    if stages and stages[-1]["num_steps"] > num_finished:
        if num_steps != stages[-1]["num_steps"]:
            begun = stages[-1]["num_steps"]
            raise BadInput(
                f"the run in '{folder}' is being lengthened to {pluralize(begun, 'step')}; finish this first"
            )
        return
    if num_steps <= num_finished:
        raise BadInput(
            f"the run in '{folder}' has {pluralize(num_finished, 'step')}; --lengthen requires a larger --num-steps"
        )
    if not checkpoint.exists(folder, CHECKPOINT_NAME):
        raise BadInput(f"the run in '{folder}' lacks its last checkpoint, from which it could be lengthened")
    stage = {"first_step": num_finished, "num_steps": num_steps}
    write_json(folder / FILE, {"format": FORMATS[LANGUAGE_MODEL_RUN], "stages": [*stages, stage]})
