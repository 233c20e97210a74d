"""Every registered environment satisfies its contract; published environments have the published moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.csgraph
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny import contracts, plugins, rng, steering, trees
from ontogeny.environments import foraging
from ontogeny.environments.base import distances_to
from ontogeny.errors import ContractViolation
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import BadInput, TimeStep


@pytest.mark.parametrize("name", plugins.list_buildable("environments"))
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_env_satisfies_its_contract(name, seed):
    contracts.check_env(plugins.build("environments", name), seed)


def violations():
    env = plugins.build("environments", "random_mdp", num_states=3, num_actions=2, horizon=3)

    def moving_task(key, state, action):
        state, time_step = env.step(key, state, action)
        return state._replace(task=state.task._replace(means=state.task.means + 1)), time_step

    def endless(key, state, action):
        state, time_step = env.step(key, state, action)
        emitted = time_step.observation
        return state, TimeStep(emitted, emitted, time_step.outcome, jnp.bool_(False), jnp.float32(1))

    def growing(key, state, action):
        state, time_step = env.step(key, state, action)
        return state, time_step._replace(outcome=jnp.zeros(2))

    def late_reset(key):
        state, time_step = env.reset(key)
        return state, time_step._replace(first=jnp.bool_(False))

    def disagreeing(key, state, action):
        state, time_step = env.step(key, state, action)
        return state, time_step._replace(final_observation=(time_step.final_observation + 1) % 3)

    yield "the final observation after step 1 is not the observation", env._replace(step=disagreeing)
    yield "the task changed", env._replace(step=moving_task)
    yield "more than the 3 steps", env._replace(step=endless)
    yield "`step` returns a state of another structure", env._replace(step=growing)
    yield "must begin with `first`", env._replace(reset=late_reset)
    yield "must return one number", env._replace(score=lambda outcome: outcome)

    def ending(key, state, action):
        state, time_step = env.step(key, state, action)
        return state._replace(steps=state.steps * 0), time_step._replace(first=jnp.bool_(True), discount=jnp.float32(0))

    yield "gives a termination probability of 0", env._replace(step=ending)


@pytest.mark.parametrize(
    ("message", "env"), list(violations()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_violation_of_the_contract_is_detected(message, env):
    with pytest.raises(ContractViolation, match=message):
        contracts.check_env(env)


@pytest.mark.parametrize("name", ["bandit", "random_mdp", "two_step"])
def test_revealed_tables_agree_with_observed_frequencies(name):
    """The revealed tables predict the mean outcome and the successors of the first action."""
    env = plugins.build("environments", name)
    state, time_step = jax.jit(env.reset)(jax.random.key(3))
    assert env.reveal_task is not None
    tables = env.reveal_task(state)
    keys = jax.random.split(jax.random.key(4), 20_000)
    _, steps = jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))(keys, state, jnp.int32(1))
    expected = tables.outcomes[time_step.observation, 1]
    assert np.allclose(steps.outcome.mean(0), expected, atol=4 * float(steps.outcome.std()) / np.sqrt(20_000) + 1e-6)
    if not bool(steps.first[0]):
        frequencies = np.bincount(np.asarray(steps.observation), minlength=env.spec.num_observations) / 20_000
        assert np.allclose(frequencies, tables.transitions[time_step.observation, 1], atol=0.015)


def test_bandit_arm_probabilities_are_uniformly_distributed():
    env = plugins.build("environments", "bandit", num_arms=5)
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 4000))
    p = np.asarray(state.task.probabilities)
    assert abs(p.mean() - 0.5) < 0.01 and abs(p.var() - 1 / 12) < 0.003


def test_random_mdp_has_the_published_moments():
    """Flat Dirichlet over ten successors: mean 1/10, variance 9/1100; mean gains N(1, 1), noise of variance 1."""
    env = plugins.build("environments", "random_mdp")
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 400))
    probabilities = np.diff(np.asarray(state.task.cumulative_transitions), axis=-1, prepend=0)
    assert abs(probabilities.mean() - 0.1) < 1e-6 and abs(probabilities.var() - 9 / 1100) < 2e-4
    means = np.asarray(state.task.means)
    assert abs(means.mean() - 1) < 0.03 and abs(means.std() - 1) < 0.03
    first_task = jax.tree.map(lambda leaf: leaf[0], state)
    _, steps = jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))(
        jax.random.split(jax.random.key(1), 4000), first_task, jnp.int32(2)
    )
    assert abs(float(steps.outcome.std()) - 1) < 0.05


@pytest.mark.parametrize("rewards", ["switching", "drifting"])
@pytest.mark.parametrize("transitions", ["fixed", "random"])
def test_two_step_common_transitions(rewards, transitions):
    env = plugins.build("environments", "two_step", rewards=rewards, transitions=transitions)
    reset, steps = jax.jit(env.reset), jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))
    common_places = []
    for seed in range(12):
        state, _ = reset(jax.random.key(seed))
        states, _ = steps(jax.random.split(jax.random.key(seed), 1000), state, jnp.int32(0))
        common = 1 + int(state.task.common_place[0])
        assert abs(float((states.position == common).mean()) - 0.8) < 0.05
        common_places.append(common)
    assert set(common_places) == ({1} if transitions == "fixed" else {1, 2})


def test_two_step_rewards_switch_at_the_published_rate():
    env = plugins.build("environments", "two_step")
    random = plugins.build("agents", "random", env.spec, steering.build(env.spec))
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2000))
    at_place = state._replace(position=jnp.ones_like(state.position))
    keys, actions = jax.random.split(jax.random.key(1), 2000), jnp.zeros(2000, int)
    next_state, steps = jax.jit(jax.vmap(env.step))(keys, at_place, actions)
    swapped = np.asarray(next_state.probabilities[:, 0, 0] != at_place.probabilities[:, 0, 0])
    assert abs(swapped.mean() - 0.025) < 0.011
    assert bool(steps.first.all()) and not bool(random.learning)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_foraging_never_enters_walls(seed):
    env = plugins.build("environments", "foraging", size=4, num_episodes=3)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "random", env.spec, drives)
    walls, trajectory = _walk(env, agent, drives)(jax.random.key(seed))
    cells = np.asarray(trajectory.observation) % 16
    assert not np.asarray(walls)[cells].any()
    assert (np.asarray(trajectory.outcome)[:, :3] >= 0).all()


_WALKS = {}


def _walk(env, agent, drives):
    """One compiled rollout for all examples: the walls, and the trajectory."""

    def walk(key):
        state, _ = env.reset(rng.split_lifetime_key(key).task)
        return state.task.walls, rollout_lifetime(key, agent, env, drives, (), learning=False)[1]

    return _WALKS.setdefault("walk", jax.jit(walk))


def test_foraging_outcomes_match_a_hand_computed_episode():
    """Water and home lie east, food south. Each can be had once, and home ends the episode."""
    env = plugins.build("environments", "foraging", size=3, wall_fraction=0.0, num_thorns=1)
    none = jnp.zeros(9, bool)
    task = foraging.ForagingTask(none, none.at[4].set(True), jnp.int32(3), jnp.int32(1), jnp.int32(2), jnp.int32(0))
    state = foraging.ForagingState(task, jnp.int32(0), jnp.bool_(False), jnp.bool_(False), jnp.int32(0))
    expected = [
        (2, [1, 0, 0, -0.05], False),  # south: food
        (1, [0, 0, 1, -0.05], False),  # east: thorns
        (0, [0, 1, 0, -0.05], False),  # north: water
        (0, [0, 0, 0, -0.05], False),  # north again: the edge, and the water is had
        (1, [0, 0, 0, 0.95], True),  # east: home
    ]
    for action, outcome, is_over in expected:
        state, time_step = env.step(jax.random.key(0), state, jnp.int32(action))
        assert np.allclose(time_step.outcome, outcome) and bool(time_step.first) == is_over
    assert int(state.cell) == 0 and not bool(state.has_eaten) and float(time_step.discount) == 0


def test_different_keys_give_different_tasks():
    env = plugins.build("environments", "foraging")
    first, _ = env.reset(jax.random.key(0))
    second, _ = env.reset(jax.random.key(1))
    assert not trees.bitwise_equal(first.task, second.task)


@pytest.mark.parametrize(
    ("name", "settings_", "part"),
    [
        ("bandit", {"num_arms": 1}, "num_arms"),
        ("bandit", {"num_arm": 3}, "did you mean num_arms"),
        ("bandit", {"num_arms": "five"}, "type int"),
        ("bandits", {}, "did you mean bandit"),
        ("two_step", {"rewards": "walking"}, "switching, drifting"),
        ("two_step", {"common_probability": 1.5}, "probability"),
        ("foraging", {"wall_fraction": 0.9}, "between 0 and 0.5"),
        ("foraging", {"size": 3, "num_thorns": 9}, "cannot hold"),
    ],
)
def test_invalid_settings_are_rejected_in_one_sentence(name, settings_, part):
    with pytest.raises(BadInput, match=part) as error_info:
        plugins.build("environments", name, **settings_)
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize("wall_fraction", [0.15, 0.4])
def test_walls_never_block_the_path_between_foraging_places(wall_fraction):
    """A search in Python finds food, water and home from the start of every layout."""
    size, num_walled = 5, 0
    env = plugins.build("environments", "foraging", size=size, wall_fraction=wall_fraction, num_thorns=0)
    tasks = jax.jit(jax.vmap(lambda key: env.reset(key)[0].task))(jax.random.split(jax.random.key(8), 300))
    for walls, food, water, home, start in zip(
        *map(np.asarray, (tasks.walls, tasks.food, tasks.water, tasks.home, tasks.start)), strict=True
    ):
        num_walled += walls.sum() == int(wall_fraction * size * size)
        reached, edge = {int(start)}, [divmod(int(start), size)]
        while edge:
            row, column = edge.pop()
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < size and 0 <= c < size and not walls[r * size + c] and r * size + c not in reached:
                    reached.add(r * size + c)
                    edge.append((r, c))
        assert {int(food), int(water), int(home)} <= reached
    assert num_walled > 290, "walls are omitted only where no valid layout was drawn"


@pytest.mark.parametrize("size", [3, 5, 8, 9, 12])
def test_distances_in_a_grid_are_those_of_breadth_first_search(size):
    """Paths over several words, up to 3 x size steps; the reference is SciPy's search on the graph of free cells."""
    rng = np.random.default_rng(size)
    for wall_fraction in (0.0, 0.2, 0.4):
        walls = rng.random(size**2) < wall_fraction
        target = int(rng.integers(size**2))
        walls[target] = False
        grid = ~walls.reshape(size, size)
        index = np.arange(size**2).reshape(size, size)
        pairs = np.concatenate(
            [
                np.stack([index[:, :-1][grid[:, :-1] & grid[:, 1:]], index[:, 1:][grid[:, :-1] & grid[:, 1:]]], axis=1),
                np.stack([index[:-1][grid[:-1] & grid[1:]], index[1:][grid[:-1] & grid[1:]]], axis=1),
            ]
        )
        graph = scipy.sparse.csr_array((np.ones(len(pairs)), pairs.T), shape=(size**2, size**2))
        steps = scipy.sparse.csgraph.shortest_path(graph, directed=False, unweighted=True, indices=target)
        expected = np.where(steps <= 3 * size, steps, size**2)
        assert np.array_equal(distances_to(jnp.asarray(walls), jnp.int32(target)), expected)
