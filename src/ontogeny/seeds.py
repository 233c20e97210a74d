"""The definition of a seed, the same for commands, specs, Python and HTTP.

The module imports no JAX, so that the command line can check a seed before it configures JAX. Seeds of the sampling of
text alone have 64 bits, as in the API of OpenAI (`ontogeny.engine.sampling`).
"""

import operator

from ontogeny.errors import BadInput

MAX_SEED = 2**32 - 1  # JAX would silently use the lower 32 bits of a larger one
NUM_SAMPLING_SEEDS = 2**64  # of the sampling of text
MIN_SAMPLING_SEED = -(2**63)  # a negative one, as the API of OpenAI allows it, wraps around


def check_seed(seed: object, subject: str = "the seed") -> int:
    """Converts a seed to an int.

    Args:
        seed: A whole number of any type but a truth value.
        subject: The subject of the message.

    Raises:
        BadInput: It is no whole number from 0 to `MAX_SEED`.
    """
    text = repr(seed) if not isinstance(seed, int) or abs(seed) < 10**20 else "a number that long"
    if not isinstance(seed, bool) and hasattr(type(seed), "__index__"):
        number = operator.index(seed)  # type: ignore[arg-type]
        if 0 <= number <= MAX_SEED:
            return number
    raise BadInput(f"{subject} must be a whole number from 0 to {MAX_SEED}, not {text}")


def nth_seed(seed: int, number: int) -> int:
    """Returns the seed that lies `number` after another one; after the largest follows zero."""
    return (seed + number) % (MAX_SEED + 1)
