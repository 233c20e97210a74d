"""The contract of a development, as a check that can be run on any of them."""

import jax
import jax.numpy as jnp

from ontogeny.contracts.base import require
from ontogeny.trees import bitwise_equal
from ontogeny.types import Agent, Development


def check_development(development: Development, agent: Agent, seed: int = 0) -> None:
    """Checks that a compiled call is a pure function of its state, and that the agent accepts the genome.

    Args:
        development: The development of `agent`.
        seed: Draws the initial state.

    Raises:
        ContractViolation: The development violates the contract.
    """
    state, info = development.step(development.init(jax.random.key(seed)))
    repeated, _ = development.step(development.init(jax.random.key(seed)))
    require(bitwise_equal(state, repeated), "`step` is not a pure function of its state")
    require("fitness" in info, "the info of `step` must hold the `fitness`")
    for name, values in info.items():
        has_entries = jnp.shape(values)[:1] == (development.generations_per_call,)
        require(has_entries, f"'{name}' must have one entry per generation")
    genome, initial = development.genome(state), agent.genome(jax.random.key(seed))
    is_same = jax.tree.structure(genome) == jax.tree.structure(initial)
    require(is_same, "the genome has another structure than the agent's")
    for leaf, expected in zip(jax.tree.leaves(genome), jax.tree.leaves(initial), strict=True):
        require(jnp.shape(leaf) == jnp.shape(expected), "the genome has other shapes than the agent's")
