"""The record that every outer loop returns, and the fitness of one life."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.lifetime import whole_life
from ontogeny.types import Agent, Genome, Info, Key, PyTree, Steering, World


class Development(NamedTuple):
    """How a genome comes about. All that a killed run needs to go on is in the state, a pytree of arrays.

    What `step` does is a pure function of the state; whatever is random in generation g is drawn from the
    state's seed key and g, so that a run resumed anywhere ends in the same bits.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[PyTree], tuple[PyTree, Info]]  # one dispatch, jitted; Info: dict of arrays [G], one per generation
    genome: Callable[[PyTree], Genome]  # the genome that would be deployed now
    num_dispatches: int
    generations: int  # G, generations per dispatch
    num_steps: int  # agent-environment steps of one generation, all members and lives together


def fitness_of_life(key: Key, agent: Agent, world: World, steering: Steering, genome: Genome) -> Array:
    """What the designers meant, summed over a whole life from birth: []. Read outside the agent, never by it.

    Agents that learn by weights (`agent.learns`) do so in their life; all others live on activations.
    """
    _, life = whole_life(key, agent, world, steering, genome, learning=agent.learns)
    return jnp.sum(jax.vmap(world.score)(life.outcome))
