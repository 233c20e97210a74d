"""The model of a deployment: which of the weights in a folder are served, and how they are kept in memory."""

from pathlib import Path
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm import weight_types
from ontogeny.lm.model import LanguageModel
from ontogeny.runs import kinds
from ontogeny.runs.formats import LANGUAGE_MODEL_RUN
from ontogeny.stages.session import AgentSession

FINAL = "final"


class ServedModel(NamedTuple):
    """A model with the name of its checkpoint.

    Attributes:
        model: An agent or a language model.
        checkpoint_name: `final`, or which weights of a run of a language model it has.
    """

    model: AgentSession | LanguageModel
    checkpoint_name: str


def load_served_model(folder: Path, best: bool, weights: str = weight_types.AS_IN_FILE, *, learns: bool) -> ServedModel:
    """Loads the model in a folder; of a run of a language model that was stopped, the weights of its last checkpoint.

    Args:
        folder: As `ontogeny.load` takes it.
        best: Whether to take the weights of the lowest held-out loss of a run of a language model.
        weights: The type in which the matrices of a language model that does not learn are kept.
        learns: Whether the weights learn; they are kept in float32 whatever `weights` says.

    Raises:
        BadInput: The folder holds no model that can be served, or its weights cannot be kept as requested.
    """
    kind = kinds.require_loadable(folder)
    if kind.name not in (LANGUAGE_MODEL_RUN, models.HUGGING_FACE_FOLDER):
        if best:
            raise BadInput(f"'{folder}' is no run of `ontogeny lm train`, so it has no weights of the lowest loss")
        agent = kinds.load(folder)
        assert isinstance(agent, AgentSession)
        return ServedModel(agent, FINAL)
    steps = models.read_checkpoint_step(folder)
    model = models.load(folder, best=best, allow_unfinished=True, weights=None if learns else weights)
    if best:
        return ServedModel(model, "with the lowest held-out loss")
    if steps is None:
        return ServedModel(model, FINAL)
    return ServedModel(model, f"after step {steps[0]:,} of {steps[1]:,} of a run that is not finished")
