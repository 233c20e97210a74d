"""What outer loops share: the fitness of a lifetime, agents named by text, compiled calls, gradient descent."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int32

from ontogeny import plugins, trees
from ontogeny.content.optimizers import apply_gradient, build_optimizer, cosine_decay
from ontogeny.contracts import check_outside_agent
from ontogeny.errors import BadInput, require_at_least
from ontogeny.lifetimes import LifetimeMeasure, count_finite_steps, lifetimes_per_call, measure_lifetimes
from ontogeny.memory import read_memory
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import (
    Carry,
    begin_lifetime,
    initial_carry,
    require_revealable_tasks,
    rollout_in_chunks,
    rollout_lifetime,
)
from ontogeny.trees import finite_by_name
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Development,
    Environment,
    Genome,
    HostEnvironment,
    Info,
    Key,
    PyTree,
    State,
    Steering,
    Trajectory,
    Weights,
)

StateT = TypeVar("StateT")
MAX_STEPS_AT_ONCE = 1024  # steps of a lifetime whose rewards are in memory at once; longer lifetimes run in chunks
CARRY_COPIES = 4  # of what a lifetime carries from step to step: before and after a step, and what is computed between
MEASURED_TASKS = 16  # Python objects whose memory is measured before a run
STEP_BYTES = 16  # of what is recorded of a step: its reward, whether it was taken, and what of its learning is finite


class LifetimeFitness(NamedTuple):
    """The fitness of a lifetime; a leading axis N where there are several.

    Attributes:
        fitness: The return of the whole lifetime: the sum of the rewards that steering computes.
        num_steps: Environment steps taken before the lifetime was over.
        num_finite_steps: By name of a quantity that `learn` reports, the number of steps before the first at which it
            is not finite, as `lifetimes.count_finite_steps`; empty for agents that do not learn.
    """

    fitness: Float[Array, ""]
    num_steps: Int32[Array, ""]
    num_finite_steps: dict[str, Array]


class _FitnessStep(NamedTuple):
    """What is kept of a step for the fitness."""

    reward: Array
    is_taken: Array
    is_finite: dict[str, Array]  # what `learn` reports, by name


def lifetime_fitness(key: Key, agent: Agent, env: Environment, steering: Steering, genome: Genome) -> LifetimeFitness:
    """The fitness of a whole lifetime.

    `Environment.score` plays no part: only evaluation reads it (agent contract, rule 3), and a genome that is developed
    on a proxy reward is meant to be developed on that proxy. Agents with `learning` learn in the lifetime; the weights
    of all others stay as they are.
    """
    num_steps = env.spec.num_steps
    if num_steps <= MAX_STEPS_AT_ONCE:
        _, trajectory = rollout_lifetime(key, agent, env, steering, genome, learning=agent.learning)
        return _sum_steps(jax.vmap(partial(_record_step, env))(trajectory))

    def sum_chunk(trajectory: Trajectory, is_within: Array) -> LifetimeFitness:
        steps = jax.vmap(partial(_record_step, env))(trajectory)
        is_finite = {name: finite | ~is_within for name, finite in steps.is_finite.items()}
        return _sum_steps(_FitnessStep(jnp.where(is_within, steps.reward, 0.0), steps.is_taken & is_within, is_finite))

    parts = rollout_in_chunks(
        key, agent, env, steering, genome, agent.learning, max_steps=MAX_STEPS_AT_ONCE, summarize=sum_chunk
    )
    return _join_chunks(parts, num_steps)


def lifetime_bytes(agent: Agent, env: Environment, steering: Steering, genome: Genome) -> int:
    """About how much memory `lifetime_fitness` needs for each lifetime that shares a genome with others."""

    def begin(key: Key, genome: Genome) -> Carry:
        return initial_carry(key, agent, env, steering, begin_lifetime(key, agent, genome))

    state, env_state, percept = jax.eval_shape(begin, jax.random.key(0), genome)
    carry = trees.num_bytes((state.activations, env_state, percept, state.weights if agent.learning else ()))
    num_steps = min(env.spec.num_steps, MAX_STEPS_AT_ONCE)
    return CARRY_COPIES * carry + num_steps * STEP_BYTES


def _join_chunks(parts: LifetimeFitness, num_steps: int) -> LifetimeFitness:
    """The fitness of a lifetime of T steps from that of its K chunks of equal length, leading axis K."""
    num_chunks = len(parts.fitness)
    length = -(-num_steps // num_chunks)

    def count_steps(counts: Array) -> Array:
        """Steps before the first that is not finite, from those of each chunk, [K]."""
        is_reached = jnp.concatenate([jnp.array([True]), jnp.cumprod(counts == length)[:-1].astype(bool)])
        return jnp.minimum(jnp.sum(jnp.where(is_reached, counts, 0)), num_steps)

    num_finite_steps = {name: count_steps(counts) for name, counts in parts.num_finite_steps.items()}
    return LifetimeFitness(jnp.sum(parts.fitness), jnp.sum(parts.num_steps), num_finite_steps)


class HostMembers(NamedTuple):
    """The members of a population, of which those of one batch of lifetimes are in memory at once."""

    draw: Callable[[Array, int], PyTree]  # index of the first, even; M, even -> genomes, leading axis M
    size: int  # P
    indices: np.ndarray  # [N], the member of each lifetime, in ascending order

    def genomes_of(self, lifetimes: slice, at_once: int) -> PyTree:
        """The genome of each of these lifetimes, which are at most `at_once`."""
        chosen = self.indices[lifetimes]
        max_members = 2 + -(-at_once * self.size // len(self.indices))  # of a batch, with those that it shares
        count = min(self.size, max_members + max_members % 2)
        first = min(chosen[0] // 2 * 2, self.size - count)
        genomes = self.draw(jnp.int32(first), count)
        return jax.tree.map(lambda leaf: leaf[chosen - first], genomes)


def host_fitness(
    keys: Key,
    genome: Genome,
    agent: Agent,
    env: HostEnvironment,
    steering: Steering,
    members: HostMembers | None = None,
) -> LifetimeFitness:
    """`lifetime_fitness` in an environment of Python objects, for many lifetimes, [N].

    Args:
        keys: [N].
        genome: From which all lifetimes begin; where there are members, only its shapes are read.
        members: The members of a population to which the lifetimes belong.
    """
    at_once = lifetimes_per_call(agent, env, steering, genome, len(keys))
    fitness = []
    for begin in range(0, len(keys), at_once):
        chunk = slice(begin, begin + at_once)
        start, start_axis = (genome, None) if members is None else (members.genomes_of(chunk, at_once), 0)
        arguments = (keys[chunk], start, agent, env, steering, agent.learning)
        fitness.append(measure_lifetimes(_FITNESS, *arguments, start_axis=start_axis))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *fitness)


def host_fitness_bytes(
    agent: Agent, env: HostEnvironment, steering: Steering, genome: Genome, population_size: int, num_lifetimes: int
) -> int:
    """About how much memory `host_fitness` of a population needs.

    The objects of a few tasks are made, because nothing else tells their size.

    Args:
        genome: Its shapes.
        population_size: P.
        num_lifetimes: Of each member.
    """
    key = jax.random.key(0)
    at_once = lifetimes_per_call(agent, env, steering, genome, population_size * num_lifetimes)
    state = jax.eval_shape(lambda genome: begin_lifetime(key, agent, genome), genome)
    num_genomes = at_once + min(population_size, at_once // num_lifetimes + 4)
    arrays = num_genomes * trees.num_bytes(genome) + at_once * CARRY_COPIES * trees.num_bytes(state)
    before = read_memory("VmRSS") or 0
    tasks = env.begin(range(min(at_once, MEASURED_TASKS)))
    tasks.reset()
    growth = max(0, (read_memory("VmRSS") or 0) - before)
    tasks.close()
    return arrays + growth * at_once // min(at_once, MEASURED_TASKS) + at_once * env.spec.num_steps * STEP_BYTES


def searched_fitness(lifetime: LifetimeFitness, num_steps: int) -> Array:
    """The fitness of a lifetime for a search: -inf, the lowest of all, if the learning diverged in it.

    A search has to go on where a genome makes the learning of its agent diverge, and to turn away from that genome.

    Args:
        num_steps: T.
    """
    fitness = lifetime.fitness
    for num_finite_steps in lifetime.num_finite_steps.values():
        fitness = jnp.where(num_finite_steps < num_steps, -jnp.inf, fitness)
    return fitness


def _record_step(env: AnyEnvironment, step: Trajectory) -> _FitnessStep:
    """Keeps the reward of a step, whether it was taken, and whether the learning in it was finite."""
    del env
    return _FitnessStep(step.reward, step.is_taken, finite_by_name(step.info))


def _sum_steps(steps: _FitnessStep) -> LifetimeFitness:
    """The fitness of a lifetime from its steps, leading axis T."""
    return LifetimeFitness(jnp.sum(steps.reward), jnp.sum(steps.is_taken), count_finite_steps(steps.is_finite))


def _summarize_steps(before: Weights, after: State, steps: _FitnessStep) -> LifetimeFitness:
    """The fitness of a lifetime, whatever its weights."""
    del before, after
    return _sum_steps(steps)


_FITNESS = LifetimeMeasure(_record_step, _summarize_steps)


def repeat_generation(
    env: AnyEnvironment,
    generation: Callable[[StateT], tuple[StateT, Info]],
    num_generations: int,
    jit: Callable[..., Any] = jax.jit,
) -> Callable[[StateT], tuple[StateT, Info]]:
    """The step of a development: so many generations, with the records of all of them.

    Args:
        env: Where it is in JAX, the generations are one compiled program.
        generation: State -> next state, and diagnostics.
        num_generations: G, at least 1.
        jit: Compiles the generations; `parallel.ReplicatedProgram` where they are divided over the devices.

    Returns:
        State -> next state, and diagnostics with a leading axis G.
    """

    @jit
    def run_compiled(state: StateT) -> tuple[StateT, Info]:
        return jax.lax.scan(lambda state, _: generation(state), state, length=num_generations)

    def step(state: StateT) -> tuple[StateT, Info]:
        infos = []
        for _ in range(num_generations):
            state, info = generation(state)
            infos.append(info)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *infos)

    return step if isinstance(env, HostEnvironment) else run_compiled


def build_agent_from_text(text: str, env: AnyEnvironment, steering: Steering) -> Agent:
    """A second agent in the same environment, such as a baseline or a teacher.

    Args:
        text: The agent as on the command line, e.g. "epsilon_greedy:epsilon=0.1".
        env: The environment in which both agents act.
        steering: The reward function of both agents.

    Raises:
        BadInput: No such agent or setting exists, or the agent needs a task that the environment does not reveal.
    """
    name, settings = plugins.parse(text)
    agent = plugins.build("agents", name, env.spec, steering, **settings)
    require_revealable_tasks(name, agent, env)
    check_outside_agent("agents", name, agent, env, steering)
    return agent


def split_into_calls(num_generations: int, max_per_call: int) -> tuple[int, int]:
    """How many compiled calls of how many generations, at most `max_per_call`, make up exactly `num_generations`."""
    sizes = range(1, min(max_per_call, num_generations) + 1)
    per_call = max(size for size in sizes if num_generations % size == 0)
    return num_generations // per_call, per_call


class GradientBudget(NamedTuple):
    """The sizes of a development by gradient."""

    num_updates: int  # at least 1
    num_lifetimes: int  # B, lifetimes per update, at least 1
    learning_rate: float  # of the first update, at least 0
    updates_per_call: int  # updates per compiled call at most, at least 1


class GradientState(NamedTuple):
    """The state of a development by gradient."""

    seed: Key
    update: Array  # [] int32, number of updates made
    model: PyTree
    optimizer: PyTree


def require_finite_search(info: Info) -> None:
    """Stops a search that cannot move the genome.

    Args:
        info: The diagnostics of a compiled call, with a leading axis of its generations.

    Raises:
        BadInput: The best fitness, or the loss, is finite in none of these generations.
    """
    is_evolution = "max_fitness" in info
    for name in ("max_fitness",) if is_evolution else ("fitness", "loss"):
        if name in info and not np.isfinite(np.asarray(info[name])).any():
            raise BadInput(
                f"the {name.removeprefix('max_')} is not finite in {len(info[name])} successive generations, so the "
                "development cannot change the genome; check that outcome features and their weights are finite, and "
                "that the learning within a lifetime does not diverge"
            )


def develop_by_gradient(
    init_model: Callable[[Key], PyTree],
    loss: Callable[[PyTree, PyTree, Array], tuple[Array, dict[str, Array]]],
    get_genome: Callable[[PyTree], Genome],
    env: AnyEnvironment,
    budget: GradientBudget,
    collect: Callable[[PyTree, Key], PyTree] | None = None,
) -> Development:
    """A development by Adam with clipped gradients and a learning rate that falls to zero as a cosine.

    One generation is one update on fresh lifetimes of the stage `training`.

    Args:
        init_model: Random key -> the trained parameters.
        loss: (model, keys [B], progress [] from 0 to 1) -> the loss and diagnostics, which are recorded; among them
            `env_steps`, the steps taken in these lifetimes.
        get_genome: Model -> the genome that is deployed.
        env: Gives the length of a lifetime.
        budget: Sizes of the development; in an environment of Python objects, each update is a call of its own.
        collect: (model, keys [B]) -> what `loss` takes in place of the keys; it need not be traceable where the
            environment consists of Python objects.
    """
    num_updates, num_lifetimes, learning_rate, updates_per_call = budget
    require_at_least(1, num_updates=num_updates, num_lifetimes=num_lifetimes, updates_per_call=updates_per_call)
    require_at_least(0, learning_rate=learning_rate)
    is_on_host = isinstance(env, HostEnvironment)
    updates_per_call = 1 if is_on_host else updates_per_call
    num_calls, updates_per_call = split_into_calls(num_updates, updates_per_call)
    optimizer = build_optimizer(cosine_decay(learning_rate, num_updates))

    def init(key: Key) -> GradientState:
        model_key, seed = jax.random.split(key)
        model = init_model(model_key)
        return GradientState(seed, jnp.int32(0), model, optimizer.init(model))

    def sample_keys(state: GradientState) -> Key:
        return sample_lifetime_keys(jax.random.fold_in(state.seed, state.update), num_lifetimes, "training")

    def descend(state: GradientState, experience: PyTree) -> tuple[GradientState, Info]:
        progress = state.update / num_updates
        (loss_value, info), gradient = jax.value_and_grad(loss, has_aux=True)(state.model, experience, progress)
        updated = apply_gradient(optimizer, gradient, Weights(state.model, state.optimizer))
        return GradientState(state.seed, state.update + 1, *updated), {"loss": loss_value, **info}

    if is_on_host:
        sample_keys, descend = jax.jit(sample_keys), jax.jit(descend)

    def update(state: GradientState) -> tuple[GradientState, Info]:
        keys = sample_keys(state)
        return descend(state, keys if collect is None else collect(state.model, keys))

    step = repeat_generation(env, update, updates_per_call)

    def genome(state: GradientState) -> Genome:
        return get_genome(state.model)

    program = None if is_on_host else step
    return Development(
        init, step, genome, num_calls, updates_per_call, num_lifetimes * env.spec.num_steps, program=program
    )
