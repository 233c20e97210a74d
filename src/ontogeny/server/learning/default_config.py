"""What learns by default: all weights of a small model, an adapter of a large one.

`benchmarks/adapter_by_size.py` measured both (docs/results/server.md): a copy of all weights saves more on each size,
but a branch with the moments of Adam takes twelve bytes per parameter for every snapshot.
"""

from typing import NamedTuple

from ontogeny import plugins
from ontogeny.lm import online_learner
from ontogeny.lm.online_learner import OnlineConfig

MAX_COPIED_PARAMETERS = 5_000_000  # a snapshot of a branch then has at most 60 MB
ADAPTER_RANK, ADAPTER_LEARNING_RATE = 8, 3e-3


class LearningChoice(NamedTuple):
    """How a model learns online.

    Attributes:
        config: The settings of the learner.
        is_adapter_by_size: Whether an adapter learns because of the size of the model, not because of a setting.
    """

    config: OnlineConfig
    is_adapter_by_size: bool


def choose_config(settings: str, num_parameters: int) -> LearningChoice:
    """Completes the settings of online learning by the size of the model.

    Args:
        settings: Those of `--learning`, such as `chunk_size=32`; with `adapter_rank` the size decides nothing.
        num_parameters: Of the model.

    Raises:
        BadInput: A setting is unknown or out of its range.
    """
    config, names = online_learner.parse_config(settings), plugins.parse(f":{settings}")[1]
    if num_parameters <= MAX_COPIED_PARAMETERS or "adapter_rank" in names or config.needs_squared_gradients:
        return LearningChoice(config, False)
    learning_rate = config.learning_rate if "learning_rate" in names else ADAPTER_LEARNING_RATE
    adapter = {"adapter_rank": ADAPTER_RANK, "learning_rate": learning_rate}
    return LearningChoice(config.model_copy(update=adapter), True)


def describe_choice(config: OnlineConfig, num_parameters: int) -> str:
    """Says in words what learns, with the setting that chooses the other way."""
    if config.adapter_rank:
        return (
            f"an adapter of rank {config.adapter_rank} learns beside its {num_parameters:,} weights; "
            "--learning adapter_rank=0 lets all weights learn"
        )
    return (
        f"all of its {num_parameters:,} weights learn; --learning "
        f"adapter_rank={ADAPTER_RANK},learning_rate={ADAPTER_LEARNING_RATE} lets an adapter learn"
    )
