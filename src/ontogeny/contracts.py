"""The contracts as checks that anybody can run on an environment, agent or outer loop of their own.

Each check raises `AssertionError` with a sentence that says what is broken and what the rule is. The tests run
them over every registered room; `tests/test_laws.py` shows that each of them fails where a law is broken.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import trees
from ontogeny.rollouts import perceive, rollout
from ontogeny.types import Agent, Development, Environment, Percept, State, Steering, Trajectory, Transition

NUM_STEPS = 30


def check_agent(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """The three laws, bit for bit, over one life in which the agent learns where it can."""
    compiled = agent._replace(act=jax.jit(agent.act), learn=jax.jit(agent.learn))
    check_steps(compiled, env, steering, seed)
    check_lives(agent, env, steering, seed)


def check_steps(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Laws 1 and 2, step by step: what `act` and `learn` change, and that `act` does not read scratch."""
    for state, percept, key in _steps(agent, env, steering, seed):
        action, acted = agent.act(key, state, percept)
        assert trees.bitwise_equal(acted.weights, state.weights), "`act` changed weights; it may change activations only"
        assert jnp.shape(action) == () and jnp.issubdtype(jnp.result_type(action), jnp.integer), (
            f"`act` must return one whole number, not {jnp.result_type(action)}{jnp.shape(action)}"
        )
        assert 0 <= int(action) < env.spec.num_actions, f"`act` returned {int(action)}, which is no action"

        learned, _ = agent.learn(key, acted, Transition(percept, action, percept))
        assert trees.bitwise_equal(learned.activations, acted.activations), (
            "`learn` changed activations; it may change weights only"
        )
        if not agent.learning:
            assert trees.bitwise_equal(learned.weights, acted.weights), "`learn` changed weights although `learns` is False"

        scrambled = trees.scramble(jax.random.key(seed + 1), state.weights.scratch)
        other = state._replace(weights=state.weights._replace(scratch=scrambled))
        other_action, other_acted = agent.act(key, other, percept)
        assert trees.bitwise_equal((action, acted.activations), (other_action, other_acted.activations)), (
            "`act` read `weights.scratch`, which is for `learn` only"
        )


def check_lives(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Laws 1 and 3 and the two cases, over whole lives."""

    def lived(env: Environment, learning: bool) -> tuple[State, Trajectory]:
        return jax.jit(lambda key: rollout(key, agent, env, steering, born, NUM_STEPS, learning))(jax.random.key(seed))

    born = _born(agent, seed)
    after, trajectory = lived(env, learning=False)
    assert trees.bitwise_equal(after.weights, born.weights), "weights changed in a life without learning"

    if agent.learning:
        after, trajectory = lived(env, learning=True)
    # Whatever the activations have come to be, also where this one life has left them as they were.
    reset = agent.reset(after._replace(activations=trees.scramble(jax.random.key(seed + 1), after.activations)))
    assert trees.bitwise_equal(reset.weights, after.weights), "`reset` changed weights; it may restore activations only"
    assert trees.bitwise_equal(reset.activations, born.activations), "`reset` did not restore the activations of birth"
    if agent.learning:
        assert not trees.bitwise_equal(after.weights, born.weights), "`learns` is True, but learning did not change weights"

    perverse = env._replace(score=lambda outcome: 1000.0 - jnp.sum(outcome))
    assert trees.bitwise_equal((after, trajectory), lived(perverse, agent.learning)), (
        "the life changed with `Environment.score`, which evaluation alone may read"
    )
    judged = jax.vmap(steering)(trajectory.outcome)
    assert np.allclose(trajectory.reward, judged, rtol=1e-5, atol=1e-6), (
        "a reward is not what steering says of the outcome"
    )


def check_env(env: Environment, seed: int = 0) -> None:
    """An environment is a pure function of its keys, keeps to its spec, and does not change the task within a life."""
    spec = env.spec
    env = env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))
    state, time_step = env.reset(jax.random.key(seed))
    assert trees.bitwise_equal((state, time_step), env.reset(jax.random.key(seed))), "`reset` is not a function of its key"
    assert bool(time_step.first) and float(time_step.discount) == 1, "a life must begin with `first` and discount 1"
    assert hasattr(state, "task"), "the state of an environment must name its `task`"
    task, since_first, tables = state.task, 0, env.reveal_task and env.reveal_task(state)
    template = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), (state, time_step))
    for t, key in enumerate(jax.random.split(jax.random.key(seed + 1), 3 * spec.horizon)):
        _check_time_step(env, time_step)
        action = jnp.int32(t % spec.num_actions)
        before, before_step = state, time_step
        state, time_step = env.step(key, before, action)
        assert trees.bitwise_equal((state, time_step), env.step(key, before, action)), "`step` is not a function of its key"
        found = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), (state, time_step))
        assert found == template, f"shapes or types changed in `step`: {found}, at birth {template}"
        assert trees.bitwise_equal(state.task, task), "the task changed within a life"
        since_first += 1
        assert since_first <= spec.horizon, f"an episode took more than the {spec.horizon} steps of `spec.horizon`"
        if bool(time_step.first):
            since_first = 0
        else:
            assert float(time_step.discount) == 1, "a discount of 0 must come with `first`"
        if env.reveal_task is not None:
            assert tables is not None
            if float(time_step.discount) == 0 and int(tables.remaining_steps) > 1:
                assert float(tables.termination_probabilities[int(before_step.observation), int(action)]) > 0, (
                    "an episode ended before its last step where `reveal` says that none can end"
                )
            tables = env.reveal_task(state)
    score = env.score(time_step.outcome)
    assert jnp.shape(score) == (), f"`score` must return one number, not an array of shape {jnp.shape(score)}"
    if env.reveal_task is not None:
        tables = env.reveal_task(state)
        S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
        assert tables.transitions.shape == (S, A, S) and tables.outcomes.shape == (S, A, F), "`reveal` has other shapes"
        assert np.allclose(tables.transitions.sum(-1), 1, atol=1e-5), "the successors' probabilities do not sum to one"
        assert 1 <= int(tables.remaining_steps) <= spec.horizon, "`remaining` must lie between 1 and the horizon"


def check_development(development: Development, agent: Agent, seed: int = 0) -> None:
    """A dispatch is a pure function of its state, and the genome is one that the agent can be born from."""
    start = development.init(jax.random.key(seed))
    state, info = development.step(start)
    again, _ = development.step(development.init(jax.random.key(seed)))
    assert trees.bitwise_equal(state, again), "a dispatch is not a pure function of its state"
    assert "fitness" in info, "the info of a dispatch must hold the `fitness`"
    for name, values in info.items():
        assert jnp.shape(values)[:1] == (development.generations_per_call,), f"'{name}' must have one entry per generation"
    genome, own = development.genome(state), agent.genome(jax.random.key(seed))
    assert jax.tree.structure(genome) == jax.tree.structure(own), "the genome has another structure than the agent's"
    for found, expected in zip(jax.tree.leaves(genome), jax.tree.leaves(own), strict=True):
        assert jnp.shape(found) == jnp.shape(expected), "the genome has other shapes than the agent's"


def _check_time_step(env: Environment, time_step) -> None:
    spec = env.spec
    assert jnp.shape(time_step.outcome) == (len(spec.outcome_features),), "an outcome must have one number per fact"
    assert bool(jnp.all(jnp.isfinite(time_step.outcome))), "an outcome must be finite"
    assert jnp.shape(time_step.observation) == spec.observation_shape, "an observation must have the spec's shape"
    if spec.num_observations:
        assert 0 <= int(time_step.observation) < spec.num_observations, "an observation is outside of the spec"


def _born(agent: Agent, seed: int) -> State:
    genome_key, birth_key = jax.random.split(jax.random.key(seed + 2))
    return agent.init(birth_key, agent.genome(genome_key))


def _steps(agent: Agent, env: Environment, steering: Steering, seed: int):
    """A few (state, percept, key) from a life that learns where the agent can."""
    step, state = jax.jit(env.step), _born(agent, seed)
    env_state, time_step = jax.jit(env.reset)(jax.random.key(seed))
    percept: Percept = perceive(agent, env, steering, env_state, time_step, jnp.int32(-1), born=True)
    for t, key in enumerate(jax.random.split(jax.random.key(seed + 3), NUM_STEPS)):
        if t % 7 in (0, 1):
            yield state, percept, key
        action, state = agent.act(key, state, percept)
        env_state, time_step = step(key, env_state, action)
        then = perceive(agent, env, steering, env_state, time_step, action)
        state, _ = agent.learn(key, state, Transition(percept, action, then))
        percept = then
