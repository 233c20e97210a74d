"""No search: deploys the genome that people wrote, and records the fitness of its lives.

An outer loop with P = 1 whose every question is the agent's own genome, so that an agent whose genome is a
learning algorithm travels the same road as one that is evolved. Its lives cost steps and change nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny import rng
from ontogeny.development.base import Development, fitness_of_life
from ontogeny.errors import require_at_least
from ontogeny.types import Agent, Environment, Genome, Info, Key, OuterLoop, PyTree, Steering


class State(NamedTuple):
    seed: Key
    generation: Array  # [] int32
    loop: PyTree


def as_written() -> OuterLoop:
    """The outer loop that always asks for the genome it was begun with, P = 1, and is not moved by fitness."""

    def init(key: Key, genome: Genome) -> Genome:
        del key
        return genome

    def ask(key: Key, state: Genome) -> tuple[PyTree, Genome]:
        del key
        return jax.tree.map(lambda leaf: leaf[None], state), state

    def tell(key: Key, state: Genome, population: PyTree, fitness: Array) -> Genome:
        del key, population, fitness
        return state

    return OuterLoop(init, ask, tell, best=lambda state: state)


def build(
    agent: Agent, env: Environment, steering: Steering, *, num_lifetimes: int = 64, generations: int = 1
) -> Development:
    require_at_least(1, num_lifetimes=num_lifetimes, generations=generations)
    loop = as_written()

    def init(key: Key) -> State:
        genome_key, loop_key, seed = jax.random.split(key, 3)
        genome = jax.tree.map(jnp.asarray, agent.genome(genome_key))
        return State(seed, jnp.int32(0), loop.init(loop_key, genome))

    @jax.jit
    def step(state: State) -> tuple[State, Info]:
        ask_key, lives_key, tell_key = jax.random.split(jax.random.fold_in(state.seed, state.generation), 3)
        population, asked = loop.ask(ask_key, state.loop)
        keys = rng.sample_lifetime_keys(lives_key, num_lifetimes, "training")

        genome = jax.tree.map(lambda leaf: leaf[0], population)
        fitness = jax.vmap(lambda key: fitness_of_life(key, agent, env, steering, genome))(keys)  # [lives]
        mean = jnp.mean(fitness)
        told = loop.tell(tell_key, asked, population, mean[None])
        info = {"fitness": mean[None], "fitness_std": jnp.std(fitness)[None]}
        return State(state.seed, state.generation + 1, told), info

    return Development(
        init,
        step,
        genome=lambda state: loop.best(state.loop),
        num_dispatches=generations,
        generations=1,
        num_steps=num_lifetimes * env.spec.num_steps,
    )
