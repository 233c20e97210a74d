"""Evolution strategies of evosax (Lange 2022, arXiv 2212.04180) as outer loops."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import trees
from ontogeny.errors import BadInput
from ontogeny.types import Genome, Key, OuterLoop, PyTree

EVOSAX_STRATEGIES = ("SNES", "Sep_CMA_ES", "CR_FM_NES", "LM_MA_ES", "CMA_ES")


def evosax_loop(strategy: str, template: Genome, population_size: int, sigma: Any) -> OuterLoop:
    """A strategy of evosax as an outer loop that maximizes fitness; its proposal is the population.

    Args:
        strategy: Name of the evolution strategy, one of `EVOSAX_STRATEGIES`.
        template: A genome, or its shapes.
        population_size: Members of a generation (P), even and at least 4.
        sigma: Initial standard deviation of the perturbations.
    """
    algorithm, parameters = _make_algorithm(strategy, template, population_size, sigma)

    def init(key: Key, genome: Genome) -> PyTree:
        # Some numbers in evosax's state are Python's; as arrays, a state has the same types before and after a step.
        state = algorithm.init(key, genome, parameters)
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), state)

    def ask(key: Key, state: PyTree) -> tuple[PyTree, PyTree]:
        return algorithm.ask(key, state, parameters)

    def members(population: PyTree, first: Array, count: int) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), population)

    def tell(key: Key, state: PyTree, population: PyTree, fitness: Array) -> PyTree:
        cost = -fitness  # evosax minimizes; this is the one place where the sign changes
        return algorithm.tell(key, population, cost, state, parameters)[0]

    return OuterLoop(init, ask, members, 0, tell, genome=algorithm.get_mean)


def _make_algorithm(strategy: str, template: Genome, population_size: int, sigma: Any) -> tuple[Any, Any]:
    """evosax's algorithm and its parameters."""
    num_parameters = trees.num_elements(template)
    if strategy == "LM_MA_ES" and population_size > 2 * num_parameters:
        # Its evolution path decays by 1 - population / parameters per generation; evosax takes a root of 2 minus that.
        raise BadInput(
            f"the strategy 'LM_MA_ES' takes a population of at most twice the {num_parameters} parameters of this "
            f"genome, not {population_size}"
        )
    from evosax import algorithms  # takes two seconds to import

    solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    algorithm = getattr(algorithms, strategy)(population_size, solution)
    parameters = algorithm.default_params
    if hasattr(parameters, "std_init"):
        parameters = parameters.replace(std_init=sigma)
    return algorithm, parameters
