"""Named sizes of language models, from which the shape, the batch and the length of training follow."""

from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.plugins import unknown_name_error


class ModelSize(NamedTuple):
    """The defaults that a size gives; the fields are those of `config.TrainConfig`."""

    num_layers: int
    num_heads: int
    width: int
    context_length: int
    batch_size: int
    learning_rate: float


SIZES = {
    "pico": ModelSize(2, 2, 64, 64, 16, 3e-3),  # trains in a minute
    "nano": ModelSize(4, 4, 128, 64, 12, 2e-3),  # minutes on a laptop; nanoGPT's model for a CPU
    "micro": ModelSize(6, 6, 192, 128, 16, 1e-3),
    "small": ModelSize(6, 6, 384, 256, 32, 1e-3),  # nanoGPT's model for Shakespeare's characters on a GPU
    "medium": ModelSize(12, 8, 512, 512, 32, 6e-4),
    "large": ModelSize(12, 12, 768, 1024, 32, 6e-4),  # GPT-2
}
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, arXiv 2203.15556, table 3
MAX_EPOCHS = 8  # Muennighoff et al. 2023, arXiv 2305.16264: up to 4 epochs are worth as much as new text
MIN_STEPS = 200


def find_size(name: str) -> ModelSize:
    """Look up a size.

    Raises:
        BadInput: There is no size of this name.
    """
    if name not in SIZES:
        raise unknown_name_error("size", name, list(SIZES))
    return SIZES[name]


def count_steps(num_parameters: int, num_tokens: int, tokens_per_step: int) -> int:
    """Choose the number of training steps: 20 tokens per parameter, at most 8 epochs, at least 200 steps.

    Args:
        num_parameters: Of the model.
        num_tokens: Of the training text.
        tokens_per_step: At least 1.
    """
    if tokens_per_step < 1:
        raise BadInput("a step takes at least one token")
    budget = min(TOKENS_PER_PARAMETER * num_parameters, MAX_EPOCHS * num_tokens)
    return max(MIN_STEPS, budget // tokens_per_step)
