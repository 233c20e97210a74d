"""Reports the exact posterior predictive with noise."""

import jax

from ontogeny.audit.organisms.base import build_filter
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"learns": "yes", "objective": "no"}


def build(spec: EnvSpec, steering: Steering, *, noise: float = 0.1) -> Agent:
    """Builds the organism.

    Args:
        noise: Standard deviation of the report, a probability.
    """
    return build_filter("noisy_filter", spec, lambda key, exact, direction: exact + noise * jax.random.normal(key))
