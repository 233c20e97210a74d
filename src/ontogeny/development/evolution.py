"""Evolution strategies over the whole genome: fitness is the return of whole lifetimes.

Open_ES (Salimans et al. 2017, arXiv 1703.03864): antithetic perturbations, ranks in place of fitness, common random
numbers. Other strategies by the name they have in evosax (Lange 2022, arXiv 2212.04180): SNES, Sep_CMA_ES, CR_FM_NES,
LM_MA_ES, CMA_ES. All members of a generation are evaluated on the same lifetimes (the same tasks and random numbers),
so that they differ by their genomes only. A member whose learning diverges in a lifetime has the fitness -inf, the
lowest rank, and the search goes on. P population size, B lifetimes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import plugins, trees
from ontogeny.development.base import (
    build_agent_from_text,
    host_fitness,
    lifetime_fitness,
    repeat_generation,
    searched_fitness,
    split_into_calls,
)
from ontogeny.errors import BadInput, require_at_least, require_positive
from ontogeny.parallel import map_in_batches, shard_over_devices
from ontogeny.rng import sample_lifetime_keys
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Development,
    Environment,
    Genome,
    HostEnvironment,
    Info,
    Key,
    OuterLoop,
    PyTree,
    Steering,
)

STRATEGIES = ("Open_ES", "SNES", "Sep_CMA_ES", "CR_FM_NES", "LM_MA_ES", "CMA_ES")

# (keys [B], genome) -> fitness and environment steps taken, [] each, or (keys [B], population) -> both, [P] each
Fitness = Callable[[Key, PyTree], tuple[Array, Array]]
MEMBERS_AT_ONCE = 16  # vectorized members: fewer leave the processor idle, more do not fit its cache


class EvolutionState(NamedTuple):
    """The state of the development."""

    seed: Key  # the random keys of every generation derive from it
    generation: Array  # [] int32, number of generations evaluated
    strategy: PyTree  # the strategy's own state


def build(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    *,
    strategy: str = "Open_ES",
    population_size: int = 256,
    num_lifetimes: int = 64,
    num_generations: int = 100,
    sigma: float = 0.05,
    learning_rate: float = 0.02,
    final_sigma_ratio: float = 1.0,
    final_learning_rate_ratio: float = 0.05,
    baseline_agent: str = "random",
    generations_per_call: int = 5,
) -> Development:
    """Builds the development.

    Args:
        agent: The agent whose genome is evolved.
        strategy: Name of the evolution strategy, one of `STRATEGIES`.
        population_size: Members of a generation (P), even and at least 4.
        num_lifetimes: Lifetimes of each member per generation (B), at least 1.
        num_generations: Generations of the search, at least 1.
        sigma: Initial standard deviation of the perturbations, greater than 0.
        learning_rate: Initial learning rate of Adam in Open_ES, at least 0; other strategies adapt sigma themselves.
        final_sigma_ratio: Share of `sigma` at which the cosine schedule of Open_ES ends, at least 0.
        final_learning_rate_ratio: Share of `learning_rate` at which the same schedule ends, at least 0.
        baseline_agent: An agent, settings after a colon; its fitness on the same lifetimes is subtracted.
        generations_per_call: Generations per compiled call at most, at least 1; in an environment of Python objects,
            each generation is a call of its own.
    """
    counts = {"num_lifetimes": num_lifetimes, "num_generations": num_generations}
    require_at_least(1, **counts, generations_per_call=generations_per_call)
    ratios = {"final_sigma_ratio": final_sigma_ratio, "final_learning_rate_ratio": final_learning_rate_ratio}
    require_at_least(0, learning_rate=learning_rate, **ratios)
    require_positive(sigma=sigma)
    if isinstance(env, HostEnvironment):
        generations_per_call = 1
    num_calls, generations_per_call = split_into_calls(num_generations, generations_per_call)
    template = jax.eval_shape(agent.genome, jax.random.key(0))
    if not jax.tree.leaves(template):
        raise BadInput("the genome of this agent has no parameters that evolution could search")
    sigmas = optax.cosine_decay_schedule(sigma, num_generations, final_sigma_ratio)
    learning_rates = optax.cosine_decay_schedule(learning_rate, num_generations, final_learning_rate_ratio)
    loop = evosax_loop(strategy, template, population_size, sigmas, learning_rates)
    baseline = build_agent_from_text(baseline_agent, env, steering)
    evaluate_population, evaluate_baseline = _make_evaluations(agent, baseline, env, steering, population_size)
    generation = _make_generation(loop, evaluate_population, baseline, evaluate_baseline, num_lifetimes, env)
    run_generations = repeat_generation(env, generation, generations_per_call)

    def init(key: Key) -> EvolutionState:
        genome_key, loop_key, generations_key = jax.random.split(key, 3)
        return EvolutionState(generations_key, jnp.int32(0), loop.init(loop_key, agent.genome(genome_key)))

    def step(state: EvolutionState) -> tuple[EvolutionState, Info]:
        # Wait, because two calls in flight can deadlock: each may occupy host threads that the other needs to
        # synchronize its devices.
        return jax.block_until_ready(run_generations(state))

    def genome(state: EvolutionState) -> Genome:
        return loop.genome(state.strategy)

    steps_per_generation = population_size * num_lifetimes * env.spec.num_steps
    return Development(init, step, genome, num_calls, generations_per_call, steps_per_generation)


def _make_evaluations(
    agent: Agent, baseline: Agent, env: AnyEnvironment, steering: Steering, population_size: int
) -> tuple[Fitness, Fitness]:
    """The evaluations of a population [P] of the agent and of one genome of the baseline."""
    if isinstance(env, HostEnvironment):

        def evaluate(keys: Key, population: PyTree) -> tuple[Array, Array]:
            shape = (population_size, len(keys))
            members, lifetimes = (index.ravel() for index in np.indices(shape))
            measured = host_fitness(keys[lifetimes], population, agent, env, steering, members)
            fitness = searched_fitness(measured, env.spec.num_steps).reshape(shape)
            return jnp.mean(fitness, axis=1), jnp.sum(measured.num_steps.reshape(shape), axis=1)

        def evaluate_baseline(keys: Key, genome: Genome) -> tuple[Array, Array]:
            measured = host_fitness(keys, genome, baseline, env, steering)
            return jnp.mean(searched_fitness(measured, env.spec.num_steps)), jnp.sum(measured.num_steps)

        return evaluate, evaluate_baseline
    evaluate_one = partial(mean_fitness, env=env, steering=steering)
    return shard_population(partial(evaluate_one, agent), population_size), partial(evaluate_one, baseline)


def _make_generation(
    loop: OuterLoop,
    evaluate: Fitness,
    baseline: Agent,
    evaluate_baseline: Fitness,
    num_lifetimes: int,
    env: AnyEnvironment,
) -> Callable[[EvolutionState], tuple[EvolutionState, Info]]:
    """One generation; `evaluate` takes a whole population."""

    def propose(state: EvolutionState) -> tuple[Key, PyTree, PyTree, Key, Genome]:
        key = jax.random.fold_in(state.seed, state.generation)
        ask_key, tell_key, lifetimes_key, baseline_key = jax.random.split(key, 4)
        keys = sample_lifetime_keys(lifetimes_key, num_lifetimes, "training")
        population, strategy = loop.ask(ask_key, state.strategy)
        return keys, population, strategy, tell_key, baseline.genome(baseline_key)

    def select(
        state: EvolutionState,
        population: PyTree,
        strategy: PyTree,
        key: Key,
        measured: tuple[Array, Array],
        baseline_fitness: Array,
    ) -> tuple[EvolutionState, Info]:
        fitness, env_steps = measured
        # Subtraction lowers the noise of the records. Ranks ignore it: the baseline is the same for all members.
        advantage = fitness - jnp.where(jnp.isfinite(baseline_fitness), baseline_fitness, 0.0)
        strategy = loop.tell(key, strategy, population, advantage)
        info = {
            "fitness": jnp.mean(fitness),
            "max_fitness": jnp.max(jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)),
            "fitness_std": jnp.std(fitness),
            "advantage_over_baseline": jnp.mean(advantage),
            "env_steps": env_steps,
        }
        return EvolutionState(state.seed, state.generation + 1, strategy), info

    if isinstance(env, HostEnvironment):
        propose, select = jax.jit(propose), jax.jit(select)

    def generation(state: EvolutionState) -> tuple[EvolutionState, Info]:
        keys, population, strategy, tell_key, baseline_genome = propose(state)
        measured, (baseline_fitness, _) = evaluate(keys, population), evaluate_baseline(keys, baseline_genome)
        return select(state, population, strategy, tell_key, measured, baseline_fitness)

    return generation


def evosax_loop(
    strategy: str, template: Genome, population_size: int, sigmas: optax.Schedule, learning_rates: optax.Schedule
) -> OuterLoop:
    """A strategy of evosax as an outer loop that maximizes fitness.

    Args:
        strategy: Name of the evolution strategy, one of `STRATEGIES`.
        template: A genome, or its shapes.
        population_size: Members of a generation (P), even and at least 4.
        sigmas: Generation -> standard deviation of the perturbations; strategies other than Open_ES use only its
            first value.
        learning_rates: Generation -> learning rate of Adam, for Open_ES.
    """
    algorithm, parameters = _make_algorithm(strategy, template, population_size, sigmas, learning_rates)

    def init(key: Key, genome: Genome) -> PyTree:
        # Some numbers in evosax's state are Python's; as arrays, a state has the same types before and after a step.
        state = algorithm.init(key, genome, parameters)
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), state)

    def ask(key: Key, state: PyTree) -> tuple[PyTree, PyTree]:
        return algorithm.ask(key, state, parameters)

    def tell(key: Key, state: PyTree, population: PyTree, fitness: Array) -> PyTree:
        cost = -fitness  # evosax minimizes; this is the one place where the sign changes
        return algorithm.tell(key, population, cost, state, parameters)[0]

    return OuterLoop(init, ask, tell, genome=algorithm.get_mean)


def _make_algorithm(
    strategy: str, template: Genome, population_size: int, sigmas: optax.Schedule, learning_rates: optax.Schedule
) -> tuple[Any, Any]:
    """evosax's algorithm and its parameters."""
    if strategy not in STRATEGIES:
        raise plugins.unknown_name_error("strategy", strategy, list(STRATEGIES))
    if population_size < 4 or population_size % 2:
        raise BadInput(f"the setting 'population_size' must be even and at least 4, not {population_size}")
    num_parameters = trees.num_elements(template)
    if strategy == "LM_MA_ES" and population_size > 2 * num_parameters:
        # Its evolution path decays by 1 - population / parameters per generation; evosax takes a root of 2 minus that.
        raise BadInput(
            f"the strategy 'LM_MA_ES' takes a population of at most twice the {num_parameters} parameters of this "
            f"genome, not {population_size}"
        )
    from evosax import algorithms  # takes two seconds to import

    options: dict[str, Any] = {}
    if strategy == "Open_ES":
        options = {"optimizer": optax.adam(learning_rates), "std_schedule": sigmas}
    solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    algorithm = getattr(algorithms, strategy)(population_size, solution, **options)
    parameters = algorithm.default_params
    if hasattr(parameters, "std_init"):
        parameters = parameters.replace(std_init=sigmas(0))
    return algorithm, parameters


def mean_fitness(
    agent: Agent, keys: Key, genome: Genome, *, env: Environment, steering: Steering
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """The mean fitness of one genome over the lifetimes that `keys` [B] determine, and the steps taken in them."""
    measured = jax.vmap(lambda key: lifetime_fitness(key, agent, env, steering, genome))(keys)
    return jnp.mean(searched_fitness(measured, env.spec.num_steps)), jnp.sum(measured.num_steps)


def shard_population(evaluate: Fitness, population_size: int) -> Fitness:
    """An evaluation of a whole population, over all local devices where their number divides the population size.

    Args:
        evaluate: (keys [B], genome) -> fitness and environment steps, [] each.
        population_size: P.

    Returns:
        (keys [B], population with leading axis P) -> fitness and environment steps, [P] each.
    """

    def evaluate_members(keys: Key, members: PyTree) -> tuple[Array, Array]:
        return map_in_batches(lambda genome: evaluate(keys, genome), members, batch_size=MEMBERS_AT_ONCE)

    if population_size % jax.local_device_count():
        return evaluate_members
    return shard_over_devices(evaluate_members, (None, 0))
