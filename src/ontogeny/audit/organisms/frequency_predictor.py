"""Reports how often items were 1 in this segment, and ignores predictabilities and directions."""

from ontogeny.audit.organisms.base import build_counter
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_counter("frequency_predictor", spec, bias=0.0)
