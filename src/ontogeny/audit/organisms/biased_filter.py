"""Reports probabilities that are too high by a constant, independent of the direction of predictability."""

from ontogeny.audit.organisms.base import build_filter
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}


def build(spec: EnvSpec, steering: Steering, *, bias: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        bias: Added to the exact probability.
    """
    return build_filter("biased_filter", spec, lambda key, exact, direction: exact + bias)
