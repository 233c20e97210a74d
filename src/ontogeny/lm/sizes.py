"""One dial for the size of a model: from it follow its shape, its batch and how long it is trained."""

from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.plugins import unknown_name_error


class Size(NamedTuple):
    layers: int
    heads: int
    width: int
    context: int
    batch: int
    learning_rate: float


SIZES = {
    "pico": Size(2, 2, 64, 64, 16, 3e-3),  # a minute
    "nano": Size(4, 4, 128, 64, 12, 2e-3),  # minutes on a laptop; nanoGPT's model for a CPU
    "micro": Size(6, 6, 192, 128, 16, 1e-3),
    "small": Size(6, 6, 384, 256, 32, 1e-3),  # nanoGPT's for Shakespeare's characters on a GPU
    "medium": Size(12, 8, 512, 512, 32, 6e-4),
    "large": Size(12, 12, 768, 1024, 32, 6e-4),  # GPT-2
}
PER_NUMBER = 20  # tokens per weight (Hoffmann et al. 2022, arXiv 2203.15556, table 3)
EPOCHS = 8  # the most times that a text is gone through (Muennighoff et al. 2023, arXiv 2305.16264: up to 4 as new)
LEAST = 200  # steps


def size(name: str) -> Size:
    if name not in SIZES:
        raise unknown_name_error("size", name, list(SIZES))
    return SIZES[name]


def steps(numbers: int, tokens: int, per_step: int) -> int:
    """How many steps: 20 tokens for each weight, but no text more than eight times, and some steps in any case."""
    if per_step < 1:
        raise BadInput("a step takes at least one token")
    return max(LEAST, min(PER_NUMBER * numbers, EPOCHS * tokens) // per_step)
