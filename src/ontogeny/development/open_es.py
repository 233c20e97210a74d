"""Open_ES: an evolution strategy whose population is never in memory.

Salimans et al. 2017 (arXiv 1703.03864): antithetic Gaussian perturbations of a mean genome, centered ranks in the place
of fitness, a gradient step of Adam. The noise of a pair of members is drawn from the pair's own random key wherever it
is needed: when the members are evaluated, on any device or machine, and again for the gradient. The pairs are divided
into shards, and the sums of the shards are added in their order, so that the gradient is bitwise reproducible on any
number of devices. P population size, J = P / 2 pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.development import perturbations
from ontogeny.parallel import map_shards
from ontogeny.types import Genome, Key, OuterLoop, PyTree

NOISE_BYTES = 4 * 2**20  # of the pairs whose noise is in memory at once for the gradient


class OpenESState(NamedTuple):
    """The state of the search."""

    mean: Genome
    optimizer: optax.OptState
    generation: Int32[Array, ""]


class OpenESProposal(NamedTuple):
    """What determines all members of a generation."""

    noise_key: Key
    mean: Genome
    sigma: Float[Array, ""]  # standard deviation of the perturbations


def build_open_es(
    template: Genome,
    population_size: int,
    shard_size: int,
    sigmas: optax.Schedule,
    learning_rates: optax.Schedule,
    rank: int,
) -> OuterLoop:
    """Builds the search.

    Args:
        template: A genome, or its shapes.
        population_size: P, even; members 2 i and 2 i + 1 are a pair of opposite perturbations.
        shard_size: Members of a shard, an even divisor of P.
        sigmas: Generation -> standard deviation of the perturbations.
        learning_rates: Generation -> learning rate of Adam.
        rank: Of the perturbations of large matrices; 0 for full rank.
    """
    optimizer = optax.adam(learning_rates)
    num_pairs, pairs_per_shard = population_size // 2, shard_size // 2
    pairs_at_once = largest_divisor(pairs_per_shard, NOISE_BYTES // max(1, noise_bytes(template, rank)))

    def init(key: Key, genome: Genome) -> OpenESState:
        del key
        genome = jax.tree.map(jnp.asarray, genome)
        return OpenESState(genome, optimizer.init(genome), jnp.int32(0))

    def ask(key: Key, state: OpenESState) -> tuple[OpenESProposal, OpenESState]:
        return OpenESProposal(key, state.mean, jnp.asarray(sigmas(state.generation), jnp.float32)), state

    def draw_pairs(proposal: OpenESProposal, first: Array, count: int) -> PyTree:
        """The noise of consecutive pairs, leading axis `count`."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(proposal.noise_key, first + jnp.arange(count))
        return jax.vmap(lambda key: perturbations.draw_noise(key, proposal.mean, rank))(keys)

    def members(proposal: OpenESProposal, first: Array, count: int) -> PyTree:
        noise = draw_pairs(proposal, first // 2, count // 2)
        scale = proposal.sigma * jnp.tile(jnp.array([1.0, -1.0]), count // 2)
        return perturbations.perturb(
            proposal.mean, jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), noise), scale
        )

    def sum_shard(proposal: OpenESProposal, weights: Float[Array, "J"], shard: Array) -> Genome:
        """The sum of the noise of one shard by the weights of its pairs."""

        def add_pairs(total: Genome, begin: Array) -> tuple[Genome, None]:
            first = shard * pairs_per_shard + begin
            chosen = jax.lax.dynamic_slice_in_dim(weights, first, pairs_at_once)
            noise = draw_pairs(proposal, first, pairs_at_once)
            return jax.tree.map(jnp.add, total, perturbations.weighted_sum(chosen, noise)), None

        zero = jax.tree.map(jnp.zeros_like, proposal.mean)
        return jax.lax.scan(add_pairs, zero, jnp.arange(0, pairs_per_shard, pairs_at_once))[0]

    def tell(key: Key, state: OpenESState, proposal: OpenESProposal, fitness: Float[Array, "P"]) -> OpenESState:
        del key
        ranks = centered_ranks(fitness)
        weights = ranks[0::2] - ranks[1::2]
        sums = map_shards(sum_shard, (proposal, weights), num_pairs // pairs_per_shard)
        total = jax.lax.scan(  # one after another, so that the order does not depend on the number of devices
            lambda total, part: (jax.tree.map(jnp.add, total, part), None),
            jax.tree.map(jnp.zeros_like, proposal.mean),
            sums,
        )[0]
        # The barrier keeps the compiler from rounding differently on one device and on several.
        total, scale = jax.lax.optimization_barrier((total, -1 / (population_size * proposal.sigma)))
        descent = jax.tree.map(lambda leaf: scale * leaf, total)
        updates, optimizer_state = optimizer.update(descent, state.optimizer, state.mean)
        mean = jax.tree.map(jnp.add, state.mean, updates)
        return OpenESState(mean, optimizer_state, state.generation + 1)

    axes = perturbations.member_axes(template, rank)
    return OuterLoop(init, ask, members, axes, tell, genome=lambda state: state.mean)


def centered_ranks(fitness: Float[Array, "P"]) -> Float[Array, "P"]:
    """The ranks of the fitness, from -0.5 for the lowest to 0.5; equal fitness has equal ranks, NaN the lowest."""
    comparable = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    return (jax.scipy.stats.rankdata(comparable) - 1) / (len(fitness) - 1) - 0.5


def choose_shard_size(population_size: int) -> int:
    """The default number of members of a shard, which depends on nothing but P.

    It is the least even divisor of P that is at least 16 and makes at most 64 shards; P where there is none.
    """
    sizes = (size for size in range(2, population_size + 1, 2) if population_size % size == 0)
    return next((size for size in sizes if size >= 16 and population_size <= 64 * size), population_size)


def noise_bytes(template: Genome, rank: int) -> int:
    """The size of the noise of one pair."""
    noise = jax.eval_shape(lambda: perturbations.draw_noise(jax.random.key(0), template, rank))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(noise))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that does not exceed the limit; 1 where the limit is below 1."""
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(1, limit))
