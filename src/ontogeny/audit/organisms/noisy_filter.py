"""Reports the exact posterior predictive with noise."""

import jax

from ontogeny.audit.organisms.base import filterer
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"objective": "no"}


def build(spec: EnvSpec, steering: Steering, *, noise: float = 0.1) -> Agent:
    del steering
    return filterer("noisy_filter", spec, lambda key, exact, direction: exact + noise * jax.random.normal(key))
