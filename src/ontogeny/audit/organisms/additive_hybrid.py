"""Half of its choices come from what weights hold, half from activations, and neither tells the other.

Each memory learns from its own choices alone, so what the two gain adds up and there is no interaction.
"""

import jax

from ontogeny.audit.organisms.base import hybrid
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"attribution": "both"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    return hybrid("additive_hybrid", spec, steering, lambda key, held, kept: jax.random.bernoulli(key), shared=False)
