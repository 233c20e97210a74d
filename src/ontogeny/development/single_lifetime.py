"""No search: deploys the agent's hand-written genome and records the fitness of its lifetimes.

An agent whose genome is a learning algorithm is thus developed by the same program as one that is evolved. Its
lifetimes cost environment steps and change nothing. What `learn` reports has to be finite in all of them: in contrast
to a search, which goes on with other genomes, a development of one genome ends where its learning diverges.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import rng
from ontogeny.development.base import LifetimeFitness, host_fitness, lifetime_fitness
from ontogeny.errors import require_at_least
from ontogeny.lifetimes import compile_around, require_finite_lifetimes
from ontogeny.types import Agent, AnyEnvironment, Development, Genome, HostEnvironment, Info, Key, Steering


class SingleLifetimeState(NamedTuple):
    """The state of the development."""

    seed: Key  # the random keys of every generation derive from it
    generation: Array  # [] int32
    genome: Genome  # never changes


def build(
    agent: Agent, env: AnyEnvironment, steering: Steering, *, num_lifetimes: int = 64, num_generations: int = 1
) -> Development:
    """Builds the development.

    Args:
        agent: The agent whose genome is deployed.
        num_lifetimes: Lifetimes per generation, at least 1.
        num_generations: Evaluations of the fixed genome, at least 1; they differ in their tasks only.
    """
    require_at_least(1, num_lifetimes=num_lifetimes, num_generations=num_generations)

    def init(key: Key) -> SingleLifetimeState:
        genome_key, _, generations_key = jax.random.split(key, 3)
        return SingleLifetimeState(generations_key, jnp.int32(0), jax.tree.map(jnp.asarray, agent.genome(genome_key)))

    def evaluate(keys: Key, genome: Genome) -> LifetimeFitness:
        if isinstance(env, HostEnvironment):
            return host_fitness(keys, genome, agent, env, steering)
        fitness = partial(lifetime_fitness, agent=agent, env=env, steering=steering, genome=genome)
        return jax.vmap(fitness)(keys)  # [B]

    def generation(state: SingleLifetimeState) -> tuple[SingleLifetimeState, Info, dict[str, Array]]:
        _, lifetimes_key, _ = jax.random.split(jax.random.fold_in(state.seed, state.generation), 3)
        keys = rng.sample_lifetime_keys(lifetimes_key, num_lifetimes, "training")
        fitness, num_steps, num_finite_steps = evaluate(keys, state.genome)
        # The leading axis is that of the generations of a call, here one.
        info = {
            "fitness": jnp.mean(fitness)[None],
            "fitness_std": jnp.std(fitness)[None],
            "env_steps": num_steps[None],
        }
        return state._replace(generation=state.generation + 1), info, num_finite_steps

    run_generation = compile_around(env, generation)

    def step(state: SingleLifetimeState) -> tuple[SingleLifetimeState, Info]:
        state, info, num_finite_steps = run_generation(state)
        require_finite_lifetimes(num_finite_steps, env.spec.num_steps)
        return state, info

    def genome(state: SingleLifetimeState) -> Genome:
        return state.genome

    return Development(init, step, genome, num_generations, 1, num_lifetimes * env.spec.num_steps)
