"""The contracts as checks that can be run on any environment, agent or development.

Each check raises `AssertionError` with a sentence that names the violation and the rule. The tests run the checks on
every registered plugin, and `tests/test_contracts.py` shows that each of them detects a planted violation.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.rollouts import perceive, rollout
from ontogeny.trees import bitwise_equal, scramble
from ontogeny.types import (
    Agent,
    Development,
    Environment,
    EnvSpec,
    EnvState,
    Key,
    Percept,
    State,
    Steering,
    TabularTask,
    TimeStep,
    Trajectory,
    Transition,
)

NUM_STEPS = 30


def check_agent(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks the agent contract bit for bit, in rollouts of 30 steps.

    Args:
        env: An environment in which it can act.
        seed: Draws the task, the genome and all chance.

    Raises:
        AssertionError: The agent violates the contract.
    """
    compiled = agent._replace(act=jax.jit(agent.act), learn=jax.jit(agent.learn))
    check_agent_steps(compiled, env, steering, seed)
    check_agent_lifetimes(agent, env, steering, seed)


def check_agent_steps(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks rules 1 and 2 step by step: what `act` and `learn` change, and that `act` does not read scratch.

    The arguments are those of `check_agent`.
    """
    for state, percept, key in _sample_steps(agent, env, steering, seed):
        action, acted = agent.act(key, state, percept)
        assert bitwise_equal(acted.weights, state.weights), "`act` changed weights; it may change activations only"
        assert jnp.shape(action) == () and jnp.issubdtype(jnp.result_type(action), jnp.integer), (
            f"`act` must return one whole number, not {jnp.result_type(action)}{jnp.shape(action)}"
        )
        assert 0 <= int(action) < env.spec.num_actions, f"`act` returned {int(action)}, which is not an action"

        learned, _ = agent.learn(key, acted, Transition(percept, action, percept))
        assert bitwise_equal(learned.activations, acted.activations), (
            "`learn` changed activations; it may change weights only"
        )
        if not agent.learning:
            assert bitwise_equal(learned.weights, acted.weights), "`learn` changed weights although `learning` is False"

        scratch = scramble(jax.random.key(seed + 1), state.weights.scratch)
        with_other_scratch = state._replace(weights=state.weights._replace(scratch=scratch))
        other_action, other_acted = agent.act(key, with_other_scratch, percept)
        assert bitwise_equal((action, acted.activations), (other_action, other_acted.activations)), (
            "`act` read `weights.scratch`, which is for `learn` only"
        )


def check_agent_lifetimes(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks rules 1 and 3 and the two modes, frozen and online, over whole rollouts.

    The arguments are those of `check_agent`.
    """
    initial = _initial_state(agent, seed)

    def run(env: Environment, learning: bool) -> tuple[State, Trajectory]:
        compiled = jax.jit(rollout, static_argnums=(1, 2, 3, 5, 6))
        return compiled(jax.random.key(seed), agent, env, steering, initial, NUM_STEPS, learning)

    final, trajectory = run(env, learning=False)
    assert bitwise_equal(final.weights, initial.weights), "weights changed in a rollout without learning"

    if agent.learning:
        final, trajectory = run(env, learning=True)
    # Scrambled, because this one rollout may have left the activations as they were.
    scrambled = scramble(jax.random.key(seed + 1), final.activations)
    reset = agent.reset(final._replace(activations=scrambled))
    assert bitwise_equal(reset.weights, final.weights), "`reset` changed weights; it may restore activations only"
    assert bitwise_equal(reset.activations, initial.activations), "`reset` did not restore the initial activations"
    if agent.learning:
        assert not bitwise_equal(final.weights, initial.weights), (
            "`learning` is True, but `learn` did not change weights"
        )

    other_score = env._replace(score=_other_score)
    assert bitwise_equal((final, trajectory), run(other_score, agent.learning)), (
        "the rollout changed with `Environment.score`, which only evaluation may read"
    )
    rewards = jax.vmap(steering)(trajectory.outcome)
    assert np.allclose(trajectory.reward, rewards, rtol=1e-5, atol=1e-6), "a reward is not the steering of the outcome"


def check_env(env: Environment, seed: int = 0) -> None:
    """Checks that an environment is a pure function of its keys, conforms to its spec, and keeps its task.

    Args:
        seed: Draws the task and all chance of three episodes.

    Raises:
        AssertionError: The environment violates the contract.
    """
    spec = env.spec
    env = env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))
    state, time_step = env.reset(jax.random.key(seed))
    assert bitwise_equal((state, time_step), env.reset(jax.random.key(seed))), "`reset` is not a function of its key"
    assert bool(time_step.first) and float(time_step.discount) == 1, "a lifetime must begin with `first` and discount 1"
    assert hasattr(state, "task"), "the state of an environment must have a field `task`"
    task, shapes, steps_in_episode = state.task, _shapes_of((state, time_step)), 0
    tables = env.reveal_task and env.reveal_task(state)
    for t, key in enumerate(jax.random.split(jax.random.key(seed + 1), 3 * spec.horizon)):
        _check_time_step(spec, time_step)
        action = jnp.int32(t % spec.num_actions)
        before, before_step = state, time_step
        state, time_step = env.step(key, before, action)
        assert bitwise_equal((state, time_step), env.step(key, before, action)), "`step` is not a function of its key"
        new_shapes = _shapes_of((state, time_step))
        assert new_shapes == shapes, f"shapes or types changed in `step`: {new_shapes}, at first {shapes}"
        assert bitwise_equal(state.task, task), "the task changed within a lifetime"
        steps_in_episode += 1
        assert steps_in_episode <= spec.horizon, f"an episode took more than the {spec.horizon} steps of `spec.horizon`"
        if bool(time_step.first):
            steps_in_episode = 0
        else:
            assert float(time_step.discount) == 1, "a discount of 0 must come with `first`"
        if env.reveal_task is not None:
            assert tables is not None
            _check_termination(tables, before_step, action, time_step)
            tables = env.reveal_task(state)
    score = env.score(time_step.outcome)
    assert jnp.shape(score) == (), f"`score` must return one number, not an array of shape {jnp.shape(score)}"
    _check_tables(env, state)


def check_development(development: Development, agent: Agent, seed: int = 0) -> None:
    """Checks that a compiled call is a pure function of its state, and that the agent accepts the genome.

    Args:
        development: The development of `agent`.
        seed: Draws the initial state.

    Raises:
        AssertionError: The development violates the contract.
    """
    state, info = development.step(development.init(jax.random.key(seed)))
    repeated, _ = development.step(development.init(jax.random.key(seed)))
    assert bitwise_equal(state, repeated), "`step` is not a pure function of its state"
    assert "fitness" in info, "the info of `step` must hold the `fitness`"
    for name, values in info.items():
        assert jnp.shape(values)[:1] == (development.generations_per_call,), (
            f"'{name}' must have one entry per generation"
        )
    genome, initial = development.genome(state), agent.genome(jax.random.key(seed))
    assert jax.tree.structure(genome) == jax.tree.structure(initial), (
        "the genome has another structure than the agent's"
    )
    for leaf, expected in zip(jax.tree.leaves(genome), jax.tree.leaves(initial), strict=True):
        assert jnp.shape(leaf) == jnp.shape(expected), "the genome has other shapes than the agent's"


def _check_time_step(spec: EnvSpec, time_step: TimeStep) -> None:
    """Shapes and ranges of a time step."""
    num_features = len(spec.outcome_features)
    assert jnp.shape(time_step.outcome) == (num_features,), "an outcome must have one number per outcome feature"
    assert bool(jnp.all(jnp.isfinite(time_step.outcome))), "an outcome must be finite"
    assert jnp.shape(time_step.observation) == spec.observation_shape, "an observation must have the spec's shape"
    if spec.num_observations:
        assert 0 <= int(time_step.observation) < spec.num_observations, "an observation is outside of the spec"


def _check_termination(tables: TabularTask, before: TimeStep, action: jax.Array, after: TimeStep) -> None:
    """An episode that terminates early must be able to terminate by the revealed tables."""
    if float(after.discount) == 0 and int(tables.remaining_steps) > 1:
        assert float(tables.termination_probabilities[int(before.observation), int(action)]) > 0, (
            "an episode ended before its last step where `reveal_task` gives a termination probability of 0"
        )


def _check_tables(env: Environment, state: EnvState) -> None:
    """Shapes and ranges of the revealed tables."""
    if env.reveal_task is None:
        return
    spec, tables = env.spec, env.reveal_task(state)
    S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
    assert tables.transitions.shape == (S, A, S) and tables.outcomes.shape == (S, A, F), (
        "the tables of `reveal_task` have other shapes than the spec"
    )
    assert np.allclose(tables.transitions.sum(-1), 1, atol=1e-5), "the successors' probabilities do not sum to one"
    assert 1 <= int(tables.remaining_steps) <= spec.horizon, "`remaining_steps` must lie between 1 and the horizon"


def _other_score(outcome: jax.Array) -> jax.Array:
    """A score that no environment has."""
    return 1000.0 - jnp.sum(outcome)


def _shapes_of(tree: object) -> object:
    """The shape and type of every leaf."""
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def _initial_state(agent: Agent, seed: int) -> State:
    """An initial state from a random genome."""
    genome_key, init_key = jax.random.split(jax.random.key(seed + 2))
    return agent.init(init_key, agent.genome(genome_key))


def _sample_steps(
    agent: Agent, env: Environment, steering: Steering, seed: int
) -> Iterator[tuple[State, Percept, Key]]:
    """A few (state, percept, key) from a rollout in which `learn` is called."""
    step, state = jax.jit(env.step), _initial_state(agent, seed)
    env_state, time_step = jax.jit(env.reset)(jax.random.key(seed))
    percept = perceive(agent, env, steering, env_state, time_step, None)
    for t, key in enumerate(jax.random.split(jax.random.key(seed + 3), NUM_STEPS)):
        if t % 7 in (0, 1):  # two successive steps of every seven
            yield state, percept, key
        action, state = agent.act(key, state, percept)
        env_state, time_step = step(key, env_state, action)
        next_percept = perceive(agent, env, steering, env_state, time_step, action)
        state, _ = agent.learn(key, state, Transition(percept, action, next_percept))
        percept = next_percept
