"""What outer loops share: the record that each returns, the fitness of one life, dispatches, descent by gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ontogeny import plugins
from ontogeny.agents.base import require_revealable_tasks
from ontogeny.errors import require_at_least
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Agent, Development, Environment, Genome, Info, Key, PyTree, Steering


def fitness_of_life(key: Key, agent: Agent, env: Environment, steering: Steering, genome: Genome) -> Array:
    """The return of a whole life from birth, the sum of what steering says of it: []. Summed outside the agent.

    Not `Environment.score`, which evaluation alone may read (the third law): a genome that is developed on a proxy is
    developed on that proxy. Agents that learn by weights (`agent.learns`) do so in their life; all others live on
    activations.
    """
    _, trajectory = rollout_lifetime(key, agent, env, steering, genome, learning=agent.learning)
    return jnp.sum(trajectory.reward)


def beside(text: str, env: Environment, steering: Steering) -> Agent:
    """Another agent in the same environment, named as on the command line: one to be compared with or taught by."""
    name, settings = plugins.parse(text)
    agent = plugins.build("agents", name, env.spec, steering, **settings)
    require_revealable_tasks(name, agent, env)
    return agent


def dispatches(total: int, at_most: int) -> tuple[int, int]:
    """How many dispatches of how many generations each, at most `at_most`, make up exactly `total`."""
    each = max(size for size in range(1, min(at_most, total) + 1) if total % size == 0)
    return total // each, each


class Descent(NamedTuple):
    """The state of a development by gradient: all that a killed run needs to go on."""

    seed: Key
    update: Array  # [] int32, updates made so far
    model: PyTree
    optimizer: PyTree


def descent(
    model: Callable[[Key], PyTree],
    loss: Callable[[PyTree, Key, Array], tuple[Array, dict[str, Array]]],
    genome: Callable[[PyTree], Genome],
    env: Environment,
    *,
    updates: int,
    num_lifetimes: int,
    step_size: float,
    updates_per_dispatch: int,
) -> Development:
    """Adam on `loss(model, keys [B], progress [])`, clipped; the step size falls to zero as a cosine.

    One generation is one update on `lives` fresh lives of the stage `training`; `progress` goes from 0 to 1; the
    loss's info is recorded. `genome` takes what is deployed out of the model.
    """
    require_at_least(1, updates=updates, num_lifetimes=num_lifetimes, updates_per_dispatch=updates_per_dispatch)
    require_at_least(0, step_size=step_size)
    num_dispatches, each = dispatches(updates, updates_per_dispatch)
    schedule = optax.cosine_decay_schedule(step_size, updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def init(key: Key) -> Descent:
        model_key, seed = jax.random.split(key)
        first = model(model_key)
        return Descent(seed, jnp.int32(0), first, optimizer.init(first))

    def update(state: Descent, _: None) -> tuple[Descent, Info]:
        keys = sample_lifetime_keys(jax.random.fold_in(state.seed, state.update), num_lifetimes, "training")
        (value, info), gradient = jax.value_and_grad(loss, has_aux=True)(state.model, keys, state.update / updates)
        change, moments = optimizer.update(gradient, state.optimizer, state.model)
        moved = cast(Any, optax.apply_updates(state.model, change))
        return Descent(state.seed, state.update + 1, moved, moments), {"loss": value, **info}

    @jax.jit
    def step(state: Descent) -> tuple[Descent, Info]:
        return jax.lax.scan(update, state, length=each)

    return Development(
        init,
        step,
        lambda state: genome(state.model),
        num_dispatches,
        each,
        num_lifetimes * env.spec.num_steps,
    )
