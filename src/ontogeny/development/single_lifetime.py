"""No search: deploys the agent's hand-written genome and records the fitness of its lifetimes.

An outer loop with a population of one that always proposes the agent's own genome, so that an agent whose genome is a
learning algorithm is developed by the same program as one that is evolved. Its lifetimes cost environment steps and
change nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import rng
from ontogeny.development.base import lifetime_fitness
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, Development, Environment, Genome, Info, Key, OuterLoop, PyTree, Steering


class SingleLifetimeState(NamedTuple):
    """The state of the development."""

    seed: Key
    generation: Array  # [] int32
    loop: PyTree


def constant_loop() -> OuterLoop:
    """The outer loop that always proposes its initial genome, P = 1, and ignores fitness."""

    def init(key: Key, genome: Genome) -> Genome:
        del key
        return genome

    def ask(key: Key, state: Genome) -> tuple[PyTree, Genome]:
        del key
        return jax.tree.map(lambda leaf: leaf[None], state), state

    def tell(key: Key, state: Genome, population: PyTree, fitness: Array) -> Genome:
        del key, population, fitness
        return state

    return OuterLoop(init, ask, tell, genome=lambda state: state)


def build(
    agent: Agent, env: Environment, steering: Steering, *, num_lifetimes: int = 64, num_generations: int = 1
) -> Development:
    """Builds the development.

    Args:
        agent: The agent whose genome is deployed.
        num_lifetimes: Lifetimes per generation, at least 1.
        num_generations: At least 1; all generations differ in their tasks only.
    """
    require_at_least(1, num_lifetimes=num_lifetimes, num_generations=num_generations)
    loop = constant_loop()

    def init(key: Key) -> SingleLifetimeState:
        genome_key, loop_key, seed = jax.random.split(key, 3)
        genome = jax.tree.map(jnp.asarray, agent.genome(genome_key))
        return SingleLifetimeState(seed, jnp.int32(0), loop.init(loop_key, genome))

    @jax.jit
    def step(state: SingleLifetimeState) -> tuple[SingleLifetimeState, Info]:
        key = jax.random.fold_in(state.seed, state.generation)
        ask_key, lifetimes_key, tell_key = jax.random.split(key, 3)
        population, loop_state = loop.ask(ask_key, state.loop)
        keys = rng.sample_lifetime_keys(lifetimes_key, num_lifetimes, "training")
        genome = jax.tree.map(lambda leaf: leaf[0], population)
        fitness = jax.vmap(lambda key: lifetime_fitness(key, agent, env, steering, genome))(keys)  # [B]
        mean = jnp.mean(fitness)
        loop_state = loop.tell(tell_key, loop_state, population, mean[None])
        info = {"fitness": mean[None], "fitness_std": jnp.std(fitness)[None]}
        return SingleLifetimeState(state.seed, state.generation + 1, loop_state), info

    return Development(
        init,
        step,
        genome=lambda state: loop.genome(state.loop),
        num_calls=num_generations,
        generations_per_call=1,
        steps_per_generation=num_lifetimes * env.spec.num_steps,
    )
