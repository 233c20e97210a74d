"""The contract of an environment of Python objects, and a stand-in for it in checks that trace the environment.

Letters: N lifetimes, T steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.contracts.base import require
from ontogeny.contracts.first_steps_of_environments import EmittedSteps, check_emitted, check_types
from ontogeny.contracts.specs import check_spec
from ontogeny.types import AnyEnvironment, Environment, EnvSpec, HostEnvironment, Key, TimeStep

NUM_LIFETIMES = 4
MIN_STEPS, MAX_STEPS = 64, 1000


class StandInState(NamedTuple):
    """The state of a stand-in: nothing but the steps of the episode."""

    task: tuple[()]
    num_steps: Array  # [] int32


def check_host_env(env: HostEnvironment, seed: int = 0) -> None:
    """Checks that lifetimes are functions of their seeds and actions alone, and keep to the spec of the environment.

    Args:
        env: Its tasks check each observation against the spaces that they declare.
        seed: Draws the tasks and random actions.

    Raises:
        ContractViolation: The environment violates the contract.
    """
    check_spec(env.spec)
    random = np.random.default_rng(seed)
    seeds = [int(number) for number in random.integers(2**32, size=NUM_LIFETIMES)]
    num_steps = min(env.spec.num_steps, max(MIN_STEPS, min(3 * env.spec.horizon, MAX_STEPS)))
    actions = random.integers(env.spec.num_actions, size=(NUM_LIFETIMES, num_steps), dtype=np.int32)
    emitted = run_host_lifetimes(env, seeds, actions, strict=True)
    check_emitted(env.spec, emitted)
    require(
        trees.bitwise_equal(emitted, run_host_lifetimes(env, seeds, actions, strict=True)),
        f"'{env.spec.name}' is not a function of its seed: the same seeds and actions gave two different lifetimes, as "
        "where it draws from `random` or `numpy.random`; draw all chance from `self.np_random`, which "
        "`super().reset(seed=seed)` sets",
    )
    for index in range(NUM_LIFETIMES):
        single = run_host_lifetimes(env, seeds[index : index + 1], actions[index : index + 1], strict=True)
        num_shared = min(single.scores.shape[1], emitted.scores.shape[1])
        pair = (_first_steps(emitted, index, num_shared), _first_steps(single, 0, num_shared))
        require(
            trees.bitwise_equal(*pair),
            f"a lifetime of '{env.spec.name}' differs when others run beside it: its objects share variables, such as "
            "attributes of the class or of the module",
        )


def make_traceable(env: AnyEnvironment) -> Environment:
    """An environment with the same spec that JAX can trace, for checks of an agent.

    Of an environment in JAX, it is the environment itself. The stand-in for any other emits random observations and
    outcomes, in episodes of random lengths.
    """
    if not isinstance(env, HostEnvironment):
        return env
    spec = env.spec

    def observe(key: Key) -> Array:
        if spec.num_observations:
            return jax.random.randint(key, (), 0, spec.num_observations)
        return jnp.clip(jax.random.normal(key, spec.observation_shape), *spec.observation_bounds)

    def reset(key: Key) -> tuple[StandInState, TimeStep]:
        observation, outcome = observe(key), jnp.zeros(len(spec.outcome_features))
        time_step = TimeStep(observation, observation, outcome, jnp.bool_(True), jnp.float32(1))
        return StandInState((), jnp.int32(0)), time_step

    def step(key: Key, state: StandInState, action: Array) -> tuple[StandInState, TimeStep]:
        del action
        keys = jax.random.split(key, 4)
        num_steps = state.num_steps + 1
        has_terminated = jax.random.bernoulli(keys[0], 0.1)
        first = has_terminated | (num_steps >= spec.horizon)
        final = observe(keys[1])
        observation = jnp.where(first, observe(keys[2]), final)
        outcome = jax.random.normal(keys[3], (len(spec.outcome_features),))
        discount = jnp.where(has_terminated, 0.0, 1.0)
        return StandInState((), jnp.where(first, 0, num_steps)), TimeStep(observation, final, outcome, first, discount)

    return Environment(spec, reset, step, env.score)


def run_host_lifetimes(env: HostEnvironment, seeds: list[int], actions: np.ndarray, *, strict: bool) -> EmittedSteps:
    """The steps of lifetimes with these actions, [N, T], until one of them is over.

    Args:
        env: Stepped in this process.
        seeds: Of the lifetimes, [N].
        actions: Of each lifetime, [N, T].
        strict: Whether each observation is checked against the space that the environment declares.

    Raises:
        ContractViolation: A time step has other shapes or types than the spec, or an observation leaves its space.
    """
    tasks, time_steps = env.begin(seeds, strict=strict), []
    try:
        initial = tasks.reset()
        _check_types(env.spec, "reset", initial)
        for index in range(actions.shape[1]):
            time_steps.append(tasks.step(actions[:, index]))
            _check_types(env.spec, "step", time_steps[-1])
            if tasks.is_over.any():
                break
    finally:
        tasks.close()
    emitted: TimeStep = jax.tree.map(lambda *steps: np.stack(steps, axis=1), *time_steps)
    scores = np.asarray(jax.vmap(jax.vmap(env.score))(emitted.outcome))
    return EmittedSteps(initial, emitted, scores, np.full(scores.shape, True))  # pyright: ignore[reportArgumentType]


def _check_types(spec: EnvSpec, name: str, time_step: TimeStep) -> None:
    """Shapes and types of the time steps of N lifetimes."""
    check_types(spec, name, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), time_step))


def _first_steps(emitted: EmittedSteps, index: int, num_steps: int) -> EmittedSteps:
    """The first steps of one lifetime."""
    initial, *steps = jax.tree.map(lambda leaf: leaf[index], tuple(emitted))
    return EmittedSteps(initial, *jax.tree.map(lambda leaf: leaf[:num_steps], tuple(steps)))
