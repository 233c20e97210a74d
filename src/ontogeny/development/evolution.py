"""Evolution strategies over the whole genome: fitness is the return of whole lifetimes.

Open_ES (Salimans et al. 2017, arXiv 1703.03864; `open_es`): antithetic perturbations, ranks in place of fitness, common
random numbers. Other strategies by the name they have in evosax (Lange 2022, arXiv 2212.04180): SNES, Sep_CMA_ES,
CR_FM_NES, LM_MA_ES, CMA_ES. All members of a generation are evaluated on the same lifetimes (the same tasks and random
numbers), so that they differ by their genomes only. A member whose learning diverges in a lifetime has the fitness
-inf, the lowest rank, and the search goes on. P population size, B lifetimes, S members of a shard.
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

from ontogeny import plugins
from ontogeny.development.base import (
    HostMembers,
    LifetimeFitness,
    build_agent_from_text,
    host_fitness,
    host_fitness_bytes,
    lifetime_bytes,
    lifetime_fitness,
    repeat_generation,
    searched_fitness,
    split_into_calls,
)
from ontogeny.development.evosax_search import EVOSAX_STRATEGIES, evosax_loop
from ontogeny.development.open_es import build_open_es, choose_shard_size, largest_divisor, noise_bytes
from ontogeny.development.perturbations import form_matrices
from ontogeny.errors import BadInput, require_at_least, require_positive
from ontogeny.parallel import ReplicatedProgram, map_in_batches, map_shards
from ontogeny.rng import sample_lifetime_keys
from ontogeny.trees import num_bytes
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
    ShardedGeneration,
    Steering,
)

STRATEGIES = ("Open_ES", *EVOSAX_STRATEGIES)

MAX_MEMBERS_AT_ONCE = 16  # vectorized members: fewer leave the processor idle,
MEMBER_BYTES = 4 * 2**20  # and more than these of parameters do not fit its cache
LIFETIME_BYTES = 256 * 2**20  # of the lifetimes that run together on a device, those of all members at once


class Evaluations(NamedTuple):
    """The fitness of members and of the baseline; every fitness comes with the number of environment steps taken."""

    population: Callable[[Key, PyTree], tuple[Array, Array]]  # keys [B], proposal -> [P] each
    shard: Callable[[Key, PyTree, Array], tuple[Array, Array]] | None  # keys [B], proposal, index of a shard -> [S]
    baseline: Callable[[Key, Genome], tuple[Array, Array]]  # keys [B], genome -> [] each


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
    rank: int = 0,
    shard_size: int = 0,
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
        rank: Rank of the perturbations of large matrices in Open_ES, for agents that use a matrix as the right factor
            of products only; 0 for full rank. With 1 or more, large networks need less time and memory.
        shard_size: Members whose gradients are summed first (S) in Open_ES, an even divisor of the population size; 0
            for the default, which depends on the population size only. It determines the rounding of sums.
    """
    require_at_least(
        1, num_lifetimes=num_lifetimes, num_generations=num_generations, generations_per_call=generations_per_call
    )
    ratios = {"final_sigma_ratio": final_sigma_ratio, "final_learning_rate_ratio": final_learning_rate_ratio}
    require_at_least(0, learning_rate=learning_rate, rank=rank, shard_size=shard_size, **ratios)
    require_positive(sigma=sigma)
    max_per_call = 1 if isinstance(env, HostEnvironment) else generations_per_call
    num_calls, generations_per_call = split_into_calls(num_generations, max_per_call)
    template = _genome_template(agent)
    shard_size = _choose_checked_shard_size(population_size, shard_size)
    sigmas = optax.cosine_decay_schedule(sigma, num_generations, final_sigma_ratio)
    learning_rates = optax.cosine_decay_schedule(learning_rate, num_generations, final_learning_rate_ratio)
    if strategy == "Open_ES":
        loop = build_open_es(template, population_size, shard_size, sigmas, learning_rates, rank)
    else:
        loop = _build_other_strategy(strategy, template, population_size, sigma, rank)
    baseline = build_agent_from_text(baseline_agent, env, steering)
    sizes = population_size, shard_size, _count_members_at_once(template, shard_size, rank)
    evaluations = _make_evaluations(agent, baseline, env, steering, loop, sizes, template)
    _require_products(evaluations.shard if rank else None, loop, template, num_lifetimes)
    parts = _GenerationParts(agent, env, steering, loop, baseline, population_size, num_lifetimes, template)
    run_generations = repeat_generation(
        env, _make_generation(parts, evaluations), generations_per_call, ReplicatedProgram
    )

    def step(state: EvolutionState) -> tuple[EvolutionState, Info]:
        # Wait, because two calls in flight can deadlock: each may occupy host threads that the other needs to
        # synchronize its devices.
        return jax.block_until_ready(run_generations(state))

    num_steps = population_size * num_lifetimes * env.spec.num_steps
    num_shards = population_size // shard_size if strategy == "Open_ES" else 0
    shards = _make_shards(loop, evaluations, baseline, num_lifetimes, num_shards)
    program = parts if isinstance(env, HostEnvironment) else run_generations
    init, genome = partial(_init, agent, loop), partial(_genome, loop)
    return Development(
        init, step, genome, num_calls, generations_per_call, num_steps, shards, program, parts.extra_bytes
    )


def _build_other_strategy(strategy: str, template: Genome, population_size: int, sigma: float, rank: int) -> OuterLoop:
    """A strategy other than Open_ES; raises `BadInput` where there is none of this name, or for a rank."""
    if strategy not in STRATEGIES:
        raise plugins.unknown_name_error("strategy", strategy, list(STRATEGIES))
    if rank:
        raise BadInput(f"the setting 'rank' needs the strategy 'Open_ES', not '{strategy}'")
    return evosax_loop(strategy, template, population_size, sigma)


def _make_evaluations(
    agent: Agent,
    baseline: Agent,
    env: AnyEnvironment,
    steering: Steering,
    loop: OuterLoop,
    sizes: tuple[int, int, int],
    template: Genome,
) -> Evaluations:
    """The evaluations of the members that a proposal of `loop` determines, and of one genome of the baseline.

    Args:
        sizes: Of the population, of a shard, and of the members at once.
    """
    population_size, shard_size, members_at_once = sizes
    if isinstance(env, HostEnvironment):

        def evaluate_population(keys: Key, proposal: PyTree) -> tuple[Array, Array]:
            def draw(first: Array, count: int) -> PyTree:
                return form_matrices(loop.members(proposal, first, count))

            shape = (population_size, len(keys))
            members, lifetimes = (index.ravel() for index in np.indices(shape))
            measured = host_fitness(
                keys[lifetimes], template, agent, env, steering, HostMembers(draw, population_size, members)
            )
            fitness = searched_fitness(measured, env.spec.num_steps).reshape(shape)
            return jnp.mean(fitness, axis=1), jnp.sum(measured.num_steps.reshape(shape), axis=1)

        def evaluate_baseline(keys: Key, genome: Genome) -> tuple[Array, Array]:
            measured = host_fitness(keys, genome, baseline, env, steering)
            return jnp.mean(searched_fitness(measured, env.spec.num_steps)), jnp.sum(measured.num_steps)

        return Evaluations(evaluate_population, None, evaluate_baseline)
    evaluate_one = partial(mean_fitness, env=env, steering=steering)
    evaluate_member = partial(evaluate_one, agent, members_at_once=members_at_once)
    evaluate_shard = make_shard_evaluation(evaluate_member, loop, shard_size, members_at_once)

    def evaluate_shards(keys: Key, proposal: PyTree) -> tuple[Array, Array]:
        fitness, env_steps = map_shards(evaluate_shard, (keys, proposal), population_size // shard_size)
        return jnp.ravel(fitness), jnp.ravel(env_steps)

    return Evaluations(evaluate_shards, evaluate_shard, partial(evaluate_one, baseline))


def make_shard_evaluation(
    evaluate: Callable[[Key, Genome], tuple[Array, Array]], loop: OuterLoop, shard_size: int, members_at_once: int
) -> Callable[[Key, PyTree, Array], tuple[Array, Array]]:
    """The evaluation of one shard of a population, of which a few members are in memory at once.

    Args:
        evaluate: (keys [B], genome) -> fitness and environment steps, [] each.
        loop: Gives the members of a proposal.
        shard_size: S.
        members_at_once: Members that are evaluated together, an even divisor of S.

    Returns:
        (keys [B], proposal, index of the shard []) -> fitness and environment steps, [S] each.
    """

    def evaluate_shard(keys: Key, proposal: PyTree, shard: Array) -> tuple[Array, Array]:
        def evaluate_members(begin: Array) -> tuple[Array, Array]:
            members = loop.members(proposal, shard * shard_size + begin, members_at_once)
            return jax.vmap(partial(evaluate, keys), (loop.member_axes,))(members)

        measured = jax.lax.map(evaluate_members, jnp.arange(0, shard_size, members_at_once))
        return jax.tree.map(jnp.ravel, measured)

    return evaluate_shard


def _count_members_at_once(template: Genome, shard_size: int, rank: int) -> int:
    """How many members are evaluated together: an even divisor of the size of a shard."""
    fitting = MEMBER_BYTES // max(1, noise_bytes(template, rank))
    return 2 * largest_divisor(shard_size // 2, min(fitting, MAX_MEMBERS_AT_ONCE) // 2)


def _require_products(
    evaluate_shard: Callable[..., PyTree] | None, loop: OuterLoop, template: Genome, num_lifetimes: int
) -> None:
    """Raises `BadInput` if the agent uses a large matrix otherwise than as the right factor of a product."""
    if evaluate_shard is None:
        return

    def propose(key: Key, genome: Genome) -> tuple[Key, PyTree]:
        return jax.random.split(key, num_lifetimes), loop.ask(key, loop.init(key, genome))[0]

    keys, proposal = jax.eval_shape(propose, jax.random.key(0), template)
    try:
        jax.eval_shape(evaluate_shard, keys, proposal, jnp.int32(0))
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise BadInput(
            "perturbations of low rank need an agent that uses the matrices of its genome as `x @ matrix` only; set "
            f"rank=0 for this one (its first other use fails with: {str(error).splitlines()[0]})"
        ) from error


def _genome_template(agent: Agent) -> Genome:
    """The shapes of a genome; raises `BadInput` where it has no parameters."""
    template = jax.eval_shape(agent.genome, jax.random.key(0))
    if not jax.tree.leaves(template):
        raise BadInput("the genome of this agent has no parameters that evolution could search")
    return template


def _choose_checked_shard_size(population_size: int, shard_size: int) -> int:
    """The size of a shard, by default that of `choose_shard_size`.

    Raises:
        BadInput: The population does not consist of pairs, or of shards of this size.
    """
    if population_size < 4 or population_size % 2:
        raise BadInput(f"the setting 'population_size' must be even and at least 4, not {population_size}")
    if shard_size and (shard_size % 2 or population_size % shard_size):
        raise BadInput(
            f"the setting 'shard_size' must be even and divide the population size {population_size}, not {shard_size}"
        )
    return shard_size or choose_shard_size(population_size)


def _init(agent: Agent, loop: OuterLoop, key: Key) -> EvolutionState:
    """The state before the first generation."""
    genome_key, loop_key, generations_key = jax.random.split(key, 3)
    return EvolutionState(generations_key, jnp.int32(0), loop.init(loop_key, agent.genome(genome_key)))


def _genome(loop: OuterLoop, state: EvolutionState) -> Genome:
    """The genome that would be deployed now."""
    return loop.genome(state.strategy)


class _Proposed(NamedTuple):
    """What a generation begins with."""

    keys: Key  # of the lifetimes, [B]
    proposal: PyTree
    strategy: PyTree  # the state of the strategy after `ask`
    tell_key: Key
    baseline_genome: Genome


def _propose(state: EvolutionState, loop: OuterLoop, baseline: Agent, num_lifetimes: int) -> _Proposed:
    """Draws everything random in a generation."""
    key = jax.random.fold_in(state.seed, state.generation)
    ask_key, tell_key, lifetimes_key, baseline_key = jax.random.split(key, 4)
    keys = sample_lifetime_keys(lifetimes_key, num_lifetimes, "training")
    return _Proposed(keys, *loop.ask(ask_key, state.strategy), tell_key, baseline.genome(baseline_key))


def _select(
    state: EvolutionState,
    proposed: _Proposed,
    fitness: Array,
    env_steps: Array,
    baseline_fitness: Array,
    loop: OuterLoop,
) -> tuple[EvolutionState, Info]:
    """The state after a generation, and its diagnostics."""
    # Subtraction lowers the noise of the records. Ranks ignore it: the baseline is the same for all members.
    advantage = fitness - jnp.where(jnp.isfinite(baseline_fitness), baseline_fitness, 0.0)
    strategy = loop.tell(proposed.tell_key, proposed.strategy, proposed.proposal, advantage)
    info = {
        "fitness": jnp.mean(fitness),
        "max_fitness": jnp.max(jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)),
        "fitness_std": jnp.std(fitness),
        "advantage_over_baseline": jnp.mean(advantage),
        "env_steps": env_steps,
    }
    return EvolutionState(state.seed, state.generation + 1, strategy), info


class _GenerationParts:
    """What precedes and follows the evaluation of a generation, compiled where that runs in Python.

    Its method `lower` is that of `jax.jit` for the part with the most memory.
    """

    def __init__(
        self,
        agent: Agent,
        env: AnyEnvironment,
        steering: Steering,
        loop: OuterLoop,
        baseline: Agent,
        population_size: int,
        num_lifetimes: int,
        template: Genome,
    ) -> None:
        """Compile nothing yet."""
        self.propose: Any = partial(_propose, loop=loop, baseline=baseline, num_lifetimes=num_lifetimes)
        self.select: Any = partial(_select, loop=loop)
        self._population_size = population_size
        self._measure = None
        if isinstance(env, HostEnvironment):
            self._measure = partial(host_fitness_bytes, agent, env, steering, template, population_size, num_lifetimes)
            self.propose, self.select = jax.jit(self.propose), jax.jit(self.select)

    def lower(self, state: EvolutionState) -> Any:
        """The stage before compilation of `select`."""
        numbers = jax.ShapeDtypeStruct((self._population_size,), jnp.float32)
        steps, baseline = (jax.ShapeDtypeStruct(*of) for of in ((numbers.shape, jnp.int32), ((), jnp.float32)))
        return self.select.lower(state, jax.eval_shape(self.propose, state), numbers, steps, baseline)

    def extra_bytes(self, state: EvolutionState) -> int:
        """The memory of proposal and lifetimes where they run in Python; 0 where one program is all."""
        if self._measure is None:
            return 0
        return num_bytes(jax.eval_shape(self.propose, state).proposal) + self._measure()


def _make_generation(
    parts: _GenerationParts, evaluations: Evaluations
) -> Callable[[EvolutionState], tuple[EvolutionState, Info]]:
    """One generation."""

    def generation(state: EvolutionState) -> tuple[EvolutionState, Info]:
        proposed = parts.propose(state)
        fitness, env_steps = evaluations.population(proposed.keys, proposed.proposal)
        baseline_fitness, _ = evaluations.baseline(proposed.keys, proposed.baseline_genome)
        return parts.select(state, proposed, fitness, env_steps, baseline_fitness)

    return generation


def _make_shards(
    loop: OuterLoop, evaluations: Evaluations, baseline: Agent, num_lifetimes: int, num_shards: int
) -> ShardedGeneration | None:
    """The parts of a generation of Open_ES, whose proposal is small.

    Returns:
        None where there are no shards, or where the environment cannot be traced.
    """
    if evaluations.shard is None or not num_shards:
        return None
    propose = partial(_propose, loop=loop, baseline=baseline, num_lifetimes=num_lifetimes)

    def finish(state: EvolutionState, fitness: Array, env_steps: Array) -> tuple[EvolutionState, Info]:
        proposed = propose(state)
        baseline_fitness, _ = evaluations.baseline(proposed.keys, proposed.baseline_genome)
        return _select(state, proposed, fitness, env_steps, baseline_fitness, loop)

    def propose_members(state: EvolutionState) -> tuple[Key, PyTree]:
        return propose(state)[:2]

    return ShardedGeneration(
        num_shards, ReplicatedProgram(propose_members), jax.jit(evaluations.shard), ReplicatedProgram(finish)
    )


def mean_fitness(
    agent: Agent, keys: Key, genome: Genome, *, env: Environment, steering: Steering, members_at_once: int = 1
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """The mean fitness of one genome over the lifetimes that `keys` [B] determine, and the steps taken in them.

    Many lifetimes run in chunks, whose length depends on agent and environment only, not on the machine.

    Args:
        members_at_once: Genomes that are evaluated together, of which this is one.
    """

    def evaluate(key: Key) -> LifetimeFitness:
        return lifetime_fitness(key, agent, env, steering, genome)

    size = lifetime_bytes(agent, env, steering, genome)
    at_once = _count_lifetimes_at_once(len(keys), LIFETIME_BYTES // (size * members_at_once))
    measured = jax.vmap(evaluate)(keys) if at_once == len(keys) else map_in_batches(evaluate, keys, at_once)
    return jnp.mean(searched_fitness(measured, env.spec.num_steps)), jnp.sum(measured.num_steps)


def _count_lifetimes_at_once(num_lifetimes: int, fitting: int) -> int:
    """How many lifetimes run together where so many fit: where possible a divisor, so that all chunks are alike."""
    limit = max(1, min(fitting, num_lifetimes))
    divisor = largest_divisor(num_lifetimes, limit)
    return divisor if 2 * divisor > limit else limit
