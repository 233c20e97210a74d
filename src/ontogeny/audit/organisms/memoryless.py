"""Always takes the first action: nothing is seen, held or learned."""

import jax.numpy as jnp

from ontogeny.agents.base import no_genome, unchanging
from ontogeny.types import Agent, Spec, Steering

TRUTH = {"attribution": "no gain"}


def build(spec: Spec, steering: Steering) -> Agent:
    return unchanging(no_genome, tuple, lambda key, state, percept: (jnp.int32(0), state))
