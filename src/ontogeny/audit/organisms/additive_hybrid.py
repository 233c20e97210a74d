"""Takes half of its choices from weights and half from activations, without exchange between the two memories.

Each memory learns from its own choices alone, so the gains of the two add up without interaction.
"""

import jax

from ontogeny.audit.organisms.base import build_hybrid
from ontogeny.types import Agent, EnvSpec, Steering

GROUND_TRUTH = {"attribution": "both"}


def build(spec: EnvSpec, steering: Steering) -> Agent:
    """Builds the organism."""
    return build_hybrid("additive_hybrid", spec, steering, lambda key, *_: jax.random.bernoulli(key), is_shared=False)
