"""The contract of an environment, as a check of whole episodes that can be run on any of them."""

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.contracts.base import Recorder, require
from ontogeny.contracts.first_steps_of_environments import record_env, run_random_lifetimes
from ontogeny.contracts.specs import check_spec
from ontogeny.seeds import nth_seed
from ontogeny.types import Environment, EnvSpec, TabularTask, TimeStep


def check_env(env: Environment, seed: int = 0) -> None:
    """Checks that an environment is a pure function of its keys, conforms to its spec, and keeps its task.

    Args:
        seed: Draws the tasks and all chance of lifetimes of at least three episodes.

    Raises:
        ContractViolation: The environment violates the contract.
    """
    spec, recorder = env.spec, Recorder()
    check_spec(spec)
    reset, _ = record_env(env, recorder)
    require(
        hasattr(reset.shapes[0], "task"),
        "the state of an environment must have a field `task`, which a lifetime does not change",
    )
    run_random_lifetimes(env, 3 * spec.horizon, recorder, seed=seed)
    if env.reveal_task is not None:
        _check_revealed_tasks(env, seed)


def _check_revealed_tasks(env: Environment, seed: int) -> None:
    """The tables of every step of one lifetime allow what happens in it."""
    spec, reveal_task = env.spec, env.reveal_task
    assert reveal_task is not None
    step = jax.jit(env.step)
    state, time_step = jax.jit(env.reset)(jax.random.key(seed))
    tables = reveal_task(state)
    for t, key in enumerate(jax.random.split(jax.random.key(nth_seed(seed, 1)), 3 * spec.horizon)):
        action, before = jnp.int32(t % spec.num_actions), time_step
        state, time_step = step(key, state, action)
        _check_termination(tables, before, action, time_step)
        tables = reveal_task(state)
    _check_tables(spec, tables)


def _check_termination(tables: TabularTask, before: TimeStep, action: jax.Array, after: TimeStep) -> None:
    """An episode that terminates early must be able to terminate by the revealed tables."""
    if float(after.discount) == 0 and int(tables.remaining_steps) > 1:
        probability = float(tables.termination_probabilities[int(before.observation), int(action)])
        require(
            probability > 0,
            "an episode ended before its last step where `reveal_task` gives a termination probability of 0",
        )


def _check_tables(spec: EnvSpec, tables: TabularTask) -> None:
    """Shapes and ranges of the revealed tables."""
    S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
    has_shapes = tables.transitions.shape == (S, A, S) and tables.outcomes.shape == (S, A, F)
    require(has_shapes, "the tables of `reveal_task` have other shapes than the spec")
    is_distribution = np.allclose(tables.transitions.sum(-1), 1, atol=1e-5)
    require(is_distribution, "the successors' probabilities do not sum to one")
    is_in_range = 1 <= int(tables.remaining_steps) <= spec.horizon
    require(is_in_range, "`remaining_steps` must lie between 1 and the horizon")
