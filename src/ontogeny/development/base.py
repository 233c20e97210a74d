"""The record that every outer loop returns, and the population's lives, judged."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.types import Genome, Info, Key, Life, PyTree, World


class Development(NamedTuple):
    """How a genome comes about. All that a killed run needs to go on is in the state, a pytree of arrays.

    What `step` does is a pure function of the state; whatever is random in generation g is drawn from the
    state's seed key and g, so that a run resumed anywhere ends in the same bits.
    """

    init: Callable[[Key], PyTree]
    step: Callable[
        [PyTree], tuple[PyTree, Info]
    ]  # one dispatch; Info: dict of arrays [G], one entry a generation
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now
    num_dispatches: int
    generations: int  # G per dispatch
    num_steps: int  # agent-environment steps of one generation


def total_score(world: World, life: Life) -> Array:
    """What the designers meant, summed over a life: [] (fitness is read outside the agent)."""
    return jnp.sum(jax.vmap(world.score)(life.outcome))
