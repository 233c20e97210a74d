"""Evolution strategies over the whole genome: fitness is the return of whole lives.

Open_ES (Salimans et al. 2017, arXiv 1703.03864): antithetic perturbations, ranks in place of fitness, common random
numbers. Other strategies by the name they have in evosax (Lange 2022, arXiv 2212.04180): SNES, Sep_CMA_ES, CR_FM_NES,
LM_MA_ES, CMA_ES. All members of a generation live the same lives (the same tasks and the same chance), so that they
differ by their genomes only. P population, B lives.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ontogeny import plugins, trees
from ontogeny.development.base import Development, beside, dispatches, fitness_of_life
from ontogeny.errors import require_at_least
from ontogeny.parallel import map_in_batches, shard_over_devices
from ontogeny.rng import sample_lifetime_keys
from ontogeny.types import Agent, BadInput, Environment, Genome, Info, Key, OuterLoop, PyTree, Steering

STRATEGIES = ("Open_ES", "SNES", "Sep_CMA_ES", "CR_FM_NES", "LM_MA_ES", "CMA_ES")


class Evolution(NamedTuple):
    """All that a killed run needs to go on."""

    seed: Key
    generation: Array  # [] int32, generations lived so far
    search: PyTree  # the strategy's own state


def build(
    agent: Agent,
    env: Environment,
    steering: Steering,
    *,
    strategy: str = "Open_ES",
    population: int = 256,
    num_lifetimes: int = 64,
    generations: int = 100,
    spread: float = 0.05,
    step_size: float = 0.02,
    last_spread: float = 1.0,
    last_step: float = 0.05,
    reference: str = "random",
    generations_per_dispatch: int = 5,
) -> Development:
    """`spread` is the standard deviation of the perturbations and `step_size` that of Adam in Open_ES; both fall along
    a cosine to the shares `last_spread` and `last_step` (other strategies begin with `spread` and find their own way).
    `reference` names an agent, settings after a colon, whose fitness in the same lives is subtracted. Dispatches hold
    at most `generations_per_dispatch` generations, fewer where those would not add up to `generations`."""
    require_at_least(
        1, num_lifetimes=num_lifetimes, generations=generations, generations_per_dispatch=generations_per_dispatch
    )
    require_at_least(0, step_size=step_size, last_spread=last_spread, last_step=last_step)
    if not spread > 0:
        raise BadInput(f"the setting 'spread' must be greater than 0, not {spread}")
    num_dispatches, each = dispatches(generations, generations_per_dispatch)
    template = jax.eval_shape(agent.genome, jax.random.key(0))
    if not jax.tree.leaves(template):
        raise BadInput("this agent's genome holds no number that evolution could search")
    spreads = optax.cosine_decay_schedule(spread, generations, last_spread)
    steps = optax.cosine_decay_schedule(step_size, generations, last_step)
    loop = search(strategy, template, population, spreads, steps)
    measure = over_devices(lambda keys, genome: mean_fitness(keys, agent, env, steering, genome), population)
    other = beside(reference, env, steering)

    def init(key: Key) -> Evolution:
        genome_key, loop_key, seed = jax.random.split(key, 3)
        return Evolution(seed, jnp.int32(0), loop.init(loop_key, agent.genome(genome_key)))

    def generation(state: Evolution, _: None) -> tuple[Evolution, Info]:
        key = jax.random.fold_in(state.seed, state.generation)
        ask_key, tell_key, lives_key, reference_key = jax.random.split(key, 4)
        keys = sample_lifetime_keys(lives_key, num_lifetimes, "training")
        members, asked = loop.ask(ask_key, state.search)
        fitness = measure(keys, members)
        known = mean_fitness(keys, other, env, steering, other.genome(reference_key))
        # Less noise in the records. Ranks do not see it: in common lives the reference is the same for all members.
        ahead = fitness - known
        told = loop.tell(tell_key, asked, members, ahead)
        info = {
            "fitness": jnp.mean(fitness),
            "best": jnp.max(fitness),
            "spread": jnp.std(fitness),
            "ahead_of_reference": jnp.mean(ahead),
        }
        return Evolution(state.seed, state.generation + 1, told), info

    @jax.jit
    def dispatch(state: Evolution) -> tuple[Evolution, Info]:
        return jax.lax.scan(generation, state, length=each)

    def step(state: Evolution) -> tuple[Evolution, Info]:
        # Two dispatches under way at once can take each other's threads where the devices of a host meet, and hang.
        return jax.block_until_ready(dispatch(state))

    num_steps = population * num_lifetimes * env.spec.num_steps
    return Development(init, step, lambda state: loop.best(state.search), num_dispatches, each, num_steps)


def search(
    strategy: str, template: Genome, population: int, spreads: optax.Schedule, steps: optax.Schedule
) -> OuterLoop:
    """A strategy of evosax as an outer loop over genomes like `template`. Fitness is maximised."""
    algorithm, parameters = _of_evosax(strategy, template, population, spreads, steps)

    def init(key: Key, genome: Genome) -> PyTree:
        # Some of evosax's numbers are Python's; as arrays, a state has the same types before and after a step.
        state = algorithm.init(key, genome, parameters)
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), state)

    def ask(key: Key, state: PyTree) -> tuple[PyTree, PyTree]:
        return algorithm.ask(key, state, parameters)

    def tell(key: Key, state: PyTree, members: PyTree, fitness: Array) -> PyTree:
        cost = -fitness  # evosax minimises; this is the one place where the sign turns
        return algorithm.tell(key, members, cost, state, parameters)[0]

    return OuterLoop(init, ask, tell, best=algorithm.get_mean)


def _of_evosax(
    strategy: str, template: Genome, population: int, spreads: optax.Schedule, steps: optax.Schedule
) -> tuple[Any, Any]:
    """The algorithm and its parameters; only what evosax leaves to be chosen is set."""
    if strategy not in STRATEGIES:
        raise plugins.unknown("strategy", strategy, list(STRATEGIES))
    if population < 4 or population % 2:
        raise BadInput(f"the setting 'population' must be even and at least 4, not {population}")
    numbers = trees.size(template)
    if strategy == "LM_MA_ES" and population > 2 * numbers:
        # Its path of evolution decays by 1 - population / numbers per generation, in evosax a root of 2 minus that.
        raise BadInput(
            f"the strategy 'LM_MA_ES' takes a population of at most twice the {numbers} numbers of this genome, "
            f"not {population}"
        )
    from evosax import algorithms  # two seconds, so not before it is needed

    given: dict[str, Any] = {}
    if strategy == "Open_ES":
        given = {"optimizer": optax.adam(steps), "std_schedule": spreads}
    solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    algorithm = getattr(algorithms, strategy)(population, solution, **given)
    parameters = algorithm.default_params
    if hasattr(parameters, "std_init"):
        parameters = parameters.replace(std_init=spreads(0))
    return algorithm, parameters


def mean_fitness(keys: Key, agent: Agent, env: Environment, steering: Steering, genome: Genome) -> Array:
    """The mean fitness of one genome over the lives that `keys` [B] determine: []."""
    return jnp.mean(jax.vmap(lambda key: fitness_of_life(key, agent, env, steering, genome))(keys))


def over_devices(measure, population: int):
    """`measure(keys, genome) -> []` for all members [P], a few at a time, on all local devices where these divide P."""

    def few_at_a_time(keys: Key, members: PyTree) -> Array:
        # One by one leaves the processor waiting between small operations; all together leave its cache.
        return map_in_batches(lambda genome: measure(keys, genome), members, batch_size=16)

    if population % jax.local_device_count():
        return few_at_a_time
    return shard_over_devices(few_at_a_time, (None, 0))
