"""Environments of gymnax: the adapter, and rewards compared with their published definitions."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import contracts, plugins, rng
from ontogeny.audit import base, learns
from ontogeny.environments import providers
from ontogeny.rollouts import rollout_lifetime
from ontogeny.stages.assembly import assemble, make_env, make_steering
from ontogeny.stages.evaluate import evaluate
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from ontogeny.types import Agent, BadInput, State, Weights

gymnax = pytest.importorskip("gymnax")

CONTINUOUS = ["Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc"]
UNSUPPORTED = [*CONTINUOUS, "MNISTBandit-bsuite"]
SUPPORTED = [id for id in gymnax.registered_envs if id not in UNSUPPORTED]
NUM_LIFETIMES = 16


def build(text):
    name, settings = plugins.parse(text)
    return make_env(name, **settings)


def run(env, num_steps, num_lifetimes=NUM_LIFETIMES, seed=0):
    """Lifetimes with random actions: tasks, drifting parameters, initial time steps, actions and time steps [B, T]."""

    def run_lifetime(key):
        reset_key, action_key, step_key = jax.random.split(key, 3)
        state, initial = env.reset(reset_key)
        actions = jax.random.randint(action_key, (num_steps,), 0, env.spec.num_actions)

        def step(state, inputs):
            state, time_step = env.step(inputs[0], state, inputs[1])
            return state, (state.drifting, time_step)

        _, (drifting, time_steps) = jax.lax.scan(step, state, (jax.random.split(step_key, num_steps), actions))
        return state.task, drifting, initial, actions, time_steps

    return jax.device_get(jax.jit(jax.vmap(run_lifetime))(jax.random.split(jax.random.key(seed), num_lifetimes)))


def episodes(env, num_steps, seed=0):
    """Every completed episode: its task, observations [L + 1, *O], actions [L], rewards [L] and last discount."""
    task, _, initial, actions, steps = run(env, num_steps, seed=seed)
    for i in range(len(actions)):
        observations, start = [initial.observation[i]], 0
        for t in range(num_steps):
            observations.append(steps.final_observation[i, t])
            if steps.first[i, t]:
                of_episode = slice(start, t + 1)
                of_lifetime = jax.tree.map(lambda leaf, i=i: leaf[i], task)
                rewards, discount = steps.outcome[i, of_episode, 0], steps.discount[i, t]
                yield of_lifetime, np.array(observations), actions[i, of_episode], rewards, discount
                observations, start = [steps.observation[i, t]], t + 1
            else:
                assert np.array_equal(steps.observation[i, t], steps.final_observation[i, t])


# Rewards and episodes as published; these functions share no code with gymnax.


def test_catch_pays_for_a_caught_ball():
    """bsuite's catch.py: the ball falls one row per step; in the last row, +1 at its column and -1 elsewhere."""
    count = 0
    for _, observations, actions, rewards, discount in episodes(build("gymnax:Catch-bsuite"), 60):
        ball, paddle = int(observations[0][0].argmax()), 2
        for row, action in enumerate(actions, start=1):
            paddle = int(np.clip(paddle + action - 1, 0, 4))
            expected = np.zeros((10, 5))
            expected[row, ball] = expected[9, paddle] = 1
            assert np.array_equal(observations[row], expected)
        assert rewards.tolist() == [0] * 8 + [1 if ball == paddle else -1] and discount == 0
        count += 1
    assert count == NUM_LIFETIMES * 6


def cart_pole_successor(observation, action, length):
    """Barto, Sutton and Anderson 1983, as in Gymnasium's cartpole.py: Euler steps of 0.02 s, force 10 N."""
    x, velocity, angle, angular_velocity = observation.astype(np.float64)
    gravity, cart, pole, force = 9.8, 1.0, 0.1, 10.0 if action == 1 else -10.0
    pressure = (force + pole * length * angular_velocity**2 * np.sin(angle)) / (cart + pole)
    turn = gravity * np.sin(angle) - np.cos(angle) * pressure
    turn /= length * (4 / 3 - pole * np.cos(angle) ** 2 / (cart + pole))
    push = pressure - pole * length * turn * np.cos(angle) / (cart + pole)
    return np.array([x, velocity, angle, angular_velocity]) + 0.02 * np.array([velocity, push, angular_velocity, turn])


@pytest.mark.parametrize("settings", ["", ",vary=length:0.2..2"])
def test_cart_pole_moves_by_its_equations_and_pays_for_each_step(settings):
    limit, lengths, ends = 25, set(), set()
    env = build(f"gymnax:CartPole-v1,parameters=max_steps_in_episode:{limit}{settings}")
    for task, observations, actions, rewards, discount in episodes(env, 60):
        length = float(task.parameters.get("length", 0.5))
        lengths.add(length)
        for t, action in enumerate(actions):
            expected = cart_pole_successor(observations[t], action, length)
            assert np.allclose(observations[t + 1], expected, rtol=1e-4, atol=1e-5)
        assert (rewards == 1).all()
        position, _, angle, _ = observations[-1]
        has_fallen = abs(position) > 2.4 or abs(angle) > 12 * np.pi / 180
        assert discount == (0 if has_fallen else 1) and (has_fallen or len(actions) == limit)
        ends.add(has_fallen)
    assert ends == {True, False}
    assert (
        len(lengths) == NUM_LIFETIMES and all(0.2 <= length <= 2 for length in lengths)
        if settings
        else lengths == {0.5}
    )


def test_deep_sea_pays_at_the_end_of_the_diagonal_and_takes_a_cost_for_right():
    """Osband et al. 2020 (bsuite), deep_sea.py: -0.01 / N for right, +1 for right in the last column."""
    size, maps = 5, []
    for task, observations, actions, rewards, discount in episodes(
        build(f"gymnax:DeepSea-bsuite,parameters=size:{size}"), 40
    ):
        is_right, column = task.state_parts["action_mapping"], 0
        maps.append(is_right.tobytes())
        for row, action in enumerate(actions):
            expected = np.zeros((size, size))
            expected[row, column] = 1
            assert np.array_equal(observations[row], expected)
            moves_right = action == is_right[row, column]
            reward = (-0.01 / size + (column == size - 1)) if moves_right else 0
            assert rewards[row] == pytest.approx(reward, abs=1e-6)
            column = int(np.clip(column + (1 if moves_right else -1), 0, size - 1))
        assert len(actions) == size and discount == 0 and not observations[-1].any()
    assert len(maps) == 8 * NUM_LIFETIMES and len(set(maps)) == NUM_LIFETIMES  # one map for each lifetime


def test_memory_chain_pays_for_the_bit_of_the_first_step():
    """Osband et al. 2020 (bsuite), memory_chain.py: at the end, +1 for the context of the first step, else -1."""
    results = set()
    env = build("gymnax:MemoryChain-bsuite,parameters=memory_length:3")
    for _, observations, actions, rewards, discount in episodes(env, 40):
        context = (observations[0][2] + 1) / 2
        assert context in (0, 1) and (observations[2:, 2] == 0).all()
        assert len(actions) == 4 and discount == 0
        assert rewards.tolist() == [0, 0, 0, 1 if actions[-1] == context else -1]
        results.add(rewards[-1])
    assert results == {1, -1}


def test_umbrella_chain_pays_at_the_end_for_the_first_choice():
    """Osband et al. 2020 (bsuite), umbrella_chain.py: at the end +1 if umbrella and need agree, before -1 or +1."""
    noise, results = [], set()
    for _, observations, actions, rewards, discount in episodes(build("gymnax:UmbrellaChain-bsuite"), 40):
        needs_umbrella = observations[0][0]
        assert len(actions) == 10 and discount == 0
        assert rewards[-1] == (1 if actions[0] == needs_umbrella else -1)
        noise += rewards[:-1].tolist()
        results.add(rewards[-1])
    assert set(noise) == {1, -1} == results and abs(np.mean(noise)) < 4 / np.sqrt(len(noise))


def test_discounting_chain_pays_once_after_the_delay_of_the_first_action():
    """Osband et al. 2020 (bsuite), discounting_chain.py: 1 after 1, 3, 10, 30 or 100 steps, 1.1 for one of these."""
    env = build("gymnax:DiscountingChain-bsuite")
    delays = set()
    for _, _, actions, rewards, _ in episodes(env, 200):
        delay = (1, 3, 10, 30, 100)[actions[0]]
        assert len(actions) == 100 and np.flatnonzero(rewards).tolist() == [delay - 1]
        assert rewards[delay - 1] == pytest.approx(1.1 if actions[0] == 0 else 1)
        delays.add(delay)
    assert len(delays) == 5


# The adapter.


def test_a_bandit_keeps_its_payouts_for_a_lifetime():
    """bsuite's bandit draws the payouts 0, 0.1, ..., 1 once; in gymnax alone no arm could be learned."""
    task, _, _, actions, steps = run(build("gymnax:SimpleBandit-bsuite,steps=50"), 50)
    payouts = task.state_parts["rewards"]
    assert np.array_equal(steps.outcome[..., 0], np.take_along_axis(payouts, actions, axis=1))
    assert np.allclose(np.sort(payouts, axis=1), np.linspace(0, 1, 11)) and len({row.tobytes() for row in payouts}) > 10


def test_a_truncation_keeps_the_final_observation():
    env = build("gymnax:MountainCar-v0,parameters=max_steps_in_episode:4,episodes=3")
    assert (env.spec.num_steps, env.spec.horizon) == (12, 4)
    _, _, initial, _, steps = run(env, 12)
    assert steps.first.tolist() == [[False, False, False, True] * 3] * NUM_LIFETIMES and (steps.discount == 1).all()
    is_equal = (steps.observation == steps.final_observation).all(axis=-1)
    assert is_equal[~steps.first].all() and not is_equal[steps.first].any()
    # The car begins at rest in the valley, so that velocities tell the first observation from the last one.
    assert (steps.observation[steps.first][:, 1] == 0).all() and (steps.final_observation[steps.first][:, 1] != 0).all()
    assert initial.first.all() and (initial.outcome == 0).all()


def counting_agent(spec):
    """An agent that acts at random, and counts its actions in activations and its updates in weights."""

    def act(key, state, percept):
        return jax.random.randint(key, (), 0, spec.num_actions), state._replace(activations=state.activations + 1)

    def learn(key, state, transition):
        return state._replace(weights=Weights(state.weights.content + 1)), ()

    def init(key, genome):
        return State(Weights(jnp.int32(0)), jnp.int32(0))

    return Agent(lambda key: (), init, lambda state: state._replace(activations=jnp.int32(0)), act, learn)


def test_a_lifetime_is_over_after_its_last_episode():
    """The score is the sum of the returns; otherwise every lifetime of CartPole would score the number of steps."""
    text = "gymnax:CartPole-v1,parameters=max_steps_in_episode:40"
    keys = rng.sample_lifetime_keys(jax.random.key(0), NUM_LIFETIMES, "training")

    def run_agent(env):
        arguments = counting_agent(env.spec), env, make_steering(env), ()
        return jax.device_get(jax.jit(jax.vmap(lambda key: rollout_lifetime(key, *arguments, True)))(keys))

    state, trajectory = run_agent(build(f"{text},episodes=2"))
    _, endless = run_agent(build(f"{text},steps=80"))
    num_steps = (trajectory.reward > 0).sum(axis=1)
    assert np.ptp(num_steps) > 0 and num_steps.max() < 80 and (endless.reward == 1).all()
    assert np.array_equal(state.weights.content, num_steps) and np.array_equal(state.activations, num_steps)
    is_blank = np.arange(80) >= num_steps[:, None]
    assert np.array_equal(trajectory.is_taken, ~is_blank) and endless.is_taken.all()
    assert not trajectory.outcome[is_blank].any() and not trajectory.first[is_blank].any()
    assert (trajectory.discount[is_blank] == 1).all() and (trajectory.first.sum(axis=1) == 2).all()
    for field in ("observation", "first", "action", "discount"):
        assert np.allclose(*(getattr(steps, field)[~is_blank] for steps in (trajectory, endless)), atol=1e-3)


@pytest.mark.parametrize(
    ("provider", "agent", "development"),
    [
        ("gymnax", "random", "single_lifetime:num_generations=3,num_lifetimes=8"),
        pytest.param(
            "gymnax",
            "recurrent:hidden_size=2",
            "evolution:population_size=4,num_lifetimes=2,num_generations=3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gymnasium",
            "recurrent:hidden_size=2",
            "evolution:population_size=4,num_lifetimes=2,num_generations=3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_only_steps_that_were_taken_are_reported(provider, agent, development, tmp_path):
    """Each step of CartPole pays 1, so the fitness of all lifetimes is the number of steps; none takes all 1000."""
    spec = parse_run_spec({"env": f"{provider}:CartPole-v1,episodes=2", "agent": agent, "development": development})
    run = train(spec, tmp_path / "run")
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert [record["env_steps"] for record in records] == pytest.approx(
        np.cumsum([8 * record["fitness"] for record in records]), abs=0.01
    )
    assert json.loads((run / "genome.json").read_text())["metadata"]["env_steps"] == records[-1]["env_steps"]
    assembly = assemble(spec)
    evaluation = evaluate(*assembly, assembly.agent.genome(jax.random.key(0)), num_tasks=3, seed=0)
    assert evaluation.env_steps == evaluation.totals.sum() < 3 * 1000


def test_the_test_of_learning_scores_single_episodes_after_the_last_one():
    """Its free episodes begin when those of the setting are over, and each step of CartPole pays 1."""
    env = build("gymnax:CartPole-v1,parameters=max_steps_in_episode:60,episodes=8")
    keys = rng.sample_lifetime_keys(jax.random.key(0), 20, "evaluation")
    measured = learns.measure(base.control_subject("random", env), keys)
    assert 10 / 60 < measured["score"].mean() < 40 / 60 and learns.spread_of_score(measured) > 0.05
    endless = build("gymnax:CartPole-v1,steps=4000")
    assert base.without_early_end(endless) is endless


def test_varied_parameters_change_once_per_lifetime():
    env = build("gymnax:MemoryChain-bsuite,vary=memory_length:2..4,steps=30")
    assert env.spec.horizon == 5
    task, _, _, _, steps = run(env, 30, 64)
    lengths = task.parameters["memory_length"]
    assert set(lengths.tolist()) == {2, 3, 4}
    for length, first in zip(lengths, steps.first, strict=True):
        assert np.flatnonzero(first)[:2].tolist() == [length, 2 * length + 1]


def test_drifting_parameters_change_where_an_episode_begins():
    env = build("gymnax:MountainCar-v0,parameters=max_steps_in_episode:4,episodes=4,drift=gravity:0.1..0.2:4..12")
    _, drifting, _, _, _ = run(env, 16, 2)
    assert drifting["gravity"][0].tolist() == pytest.approx([0.1] * 7 + [0.15] * 4 + [0.2] * 5)
    # An abrupt change of a whole number, to a lower one.
    env = build("gymnax:MemoryChain-bsuite,drift=memory_length:3..2:6..6,steps=20")
    _, drifting, _, _, steps = run(env, 14, 1)
    assert np.flatnonzero(steps.first[0]).tolist() == [3, 7, 10, 13]
    assert drifting["memory_length"][0].tolist() == [3] * 7 + [2] * 7


def test_numbers_in_info_become_outcome_features():
    env = build("gymnax:FrozenLake-misc,features=p,steps=8")
    assert env.spec.outcome_features == ("env_reward", "p") and env.spec.drives == (("env_reward", 1.0),)
    assert env.spec.num_observations == 16 and float(env.score(jnp.array([0.5, 3.0]))) == 0.5
    _, _, initial, _, steps = run(env, 8)
    assert np.allclose(steps.outcome[..., 1], 1 / 3) and (initial.outcome == 0).all()


@pytest.mark.parametrize("id", UNSUPPORTED)
def test_an_unsupported_environment_is_refused_in_one_sentence(id):
    message = "downloads a data set" if "MNIST" in id else "has continuous actions, Box.*; ontogeny supports discrete"
    with pytest.raises(BadInput, match=message) as error_info:
        build(f"gymnax:{id}")
    assert f"'gymnax:{id}'" in str(error_info.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gymnax", "by its ID, such as gymnax:Catch-bsuite"),
        ("gymnax:Catch", "there is no environment of gymnax 'Catch'; did you mean Catch-bsuite"),
        ("gymnax:nowhere_at_all:Catch", "the module 'nowhere_at_all' cannot be imported"),
        ("gymnax:Catch-bsuite,episode=3", "has no setting 'episode'; did you mean episodes"),
        ("gymnax:Catch-bsuite,episodes=0", "'episodes' must be at least 1"),
        ("gymnax:Catch-bsuite,steps=-1", "'steps' must be at least 0"),
        ("gymnax:Catch-bsuite,features=speed", "has no number 'speed'; there are: discount"),
        ("gymnax:CartPole-v1,vary=lenght:1..2", "named 'lenght'; did you mean length"),
        ("gymnax:CartPole-v1,vary=length:2..1", "the lower bound 2 exceeds the upper bound 1"),
        ("gymnax:CartPole-v1,vary=length:1..2+length:3..4", "name the parameter 'length' twice"),
        ("gymnax:MemoryChain-bsuite,vary=memory_length:1.5..3", "is a whole number: so must be its bounds"),
        ("gymnax:DeepSea-bsuite,vary=deterministic:0..1", "named 'deterministic'"),
        ("gymnax:CartPole-v1,drift=length:1..2", "of the form PARAMETER:LOW..HIGH:STEPS"),
        ("gymnax:DeepSea-bsuite,parameters=size", "of the form PARAMETER:NUMBER"),
        ("gymnax:DeepSea-bsuite,parameters=sise:3", "named 'sise'; did you mean size"),
        ("gymnax:DeepSea-bsuite,parameters=size:many", "cannot be made"),
        ("gymnax:DeepSea-bsuite,parameters=size:0", "cannot be used with these parameters: ZeroDivisionError"),
        ("gymnax:CartPole-v1,parameters=max_steps_in_episode:0", "must have at least 1 step, not 0"),
        ("gymnax:CartPole-v1,vary=length:0.5..1..2", "of the form PARAMETER:LOW..HIGH"),
        ("gymnax:DeepSea-bsuite,parameters=deterministic:3", "must be a truth value, such as True, not 3"),
        ("gymnax:CartPole-v1,parameters=length:true", "must be a number, such as 0.5, not True"),
    ],
)
def test_a_mistake_in_a_name_is_answered_in_one_sentence(text, message):
    with pytest.raises(BadInput, match=message) as error_info:
        build(text)
    assert "\n" not in str(error_info.value)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(BadInput, match=r"pip install 'ontogeny\[gymnax\]'"):
        plugins.build("environments", "gymnax", id="Catch-bsuite")


OWN_MODULE = '''
import gymnax, jax, jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

@struct.dataclass
class EnvState(environment.EnvState):
    target: jax.Array

class Lock(environment.Environment):
    """Pays for the action that the observation names; observations and actions have two parts."""

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=5)

    def observe(self, key, state, action, params):
        return {"digit": state.target[0], "rest": (jnp.full((2, 1), state.target[1], jnp.float32), state.time * 1.0)}

    def reset_env(self, key, params):
        state = EnvState(time=0, target=jax.random.randint(key, (2,), 0, jnp.array([3, 4])))
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        reward = (action[0] == state.target[0]) & (action[1] == state.target[1])
        state = state.replace(time=state.time + 1)
        return self.observe(key, state, action, params), state, reward, jnp.bool_(False), {"table": jnp.zeros(3)}

    def action_space(self, params):
        return spaces.Tuple([spaces.Discrete(3), spaces.Discrete(4)])

    def observation_space(self, params):
        rest = spaces.Tuple([spaces.Box(0, 4, (2, 1)), spaces.Box(0, 5, ())])
        return spaces.Dict({"digit": spaces.Discrete(3), "rest": rest})

if "Lock-v0" not in gymnax.registered_envs:
    gymnax.register("Lock-v0", Lock)
'''


def test_an_environment_of_an_own_module_with_nested_spaces(tmp_path, monkeypatch):
    (tmp_path / "my_lock.py").write_text(OWN_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    env = build("gymnax:my_lock:Lock-v0")
    assert str(tmp_path) not in sys.path
    contracts.check_env_first_steps(env)
    assert (env.spec.num_actions, env.spec.observation_shape, env.spec.horizon) == (12, (6,), 5)
    _, _, initial, actions, steps = run(env, 40)
    observations = np.concatenate([initial.observation[:, None], steps.observation[:, :-1]], axis=1)
    digit, target = observations[..., :3].argmax(-1), observations[..., 3]
    assert (observations[..., :3].sum(-1) == 1).all() and np.array_equal(target, observations[..., 4])
    is_paid = (actions // 4 == digit) & (actions % 4 == target)
    assert np.array_equal(steps.outcome[..., 0], is_paid) and is_paid.any() and set(digit.ravel()) == {0, 1, 2}
    monkeypatch.delitem(gymnax.registration._registry, "Lock-v0")
    gymnax.registered_envs.remove("Lock-v0")


@pytest.mark.parametrize(
    ("sizes", "message"), [((33, 32), "1,056 combinations of actions; ontogeny supports"), ((4, 256), None)]
)
def test_tuples_of_actions_are_numbered_where_they_are_few(sizes, message):
    space = gymnax.environments.spaces.Tuple([gymnax.environments.spaces.Discrete(size) for size in sizes])
    if message is not None:
        with pytest.raises(BadInput, match=message):
            providers.describe_actions("mine", space)
        return
    layout = providers.describe_actions("mine", space)
    decoded = {tuple(map(int, layout.decode(action, np))) for action in range(layout.num_actions)}
    assert decoded == {(a, b) for a in range(4) for b in range(256)}


@pytest.mark.parametrize("id", ["Catch-bsuite", "FrozenLake-misc"])
def test_the_contract_holds(id):
    contracts.check_env(build(f"gymnax:{id}"))


@pytest.mark.slow
@pytest.mark.parametrize("id", SUPPORTED)
def test_the_contract_holds_in_every_supported_environment(id):
    contracts.check_env(build(f"gymnax:{id}"))


def test_an_agent_is_trained_evaluated_and_audited_by_its_name(call_cli, tmp_path):
    run_folder = str(tmp_path / "catch")
    budget = "evolution:num_generations=2,population_size=4,num_lifetimes=2"
    choice = ("--agent", "recurrent:hidden_size=4", "--env", "gymnax:Catch-bsuite,episodes=2")
    code, output, error = call_cli("train", *choice, "--development", budget, "--out", run_folder)
    assert code == 0, error
    written = json.loads((tmp_path / "catch" / "spec.json").read_text())["spec"]["env"]
    assert written["name"] == "gymnax" and written["settings"]["id"] == "Catch-bsuite"
    code, output, error = call_cli("evaluate", run_folder, "--num-tasks", "4", "--out", str(tmp_path / "scores.json"))
    assert code == 0 and "gymnax:Catch-bsuite,episodes=2" in output, error
    code, output, error = call_cli("audit", "attribution", run_folder, "--num-tasks", "20")
    assert code == 0, error


STUDY = """
title = "Catch"
question = "Which agent catches more?"

[[environments]]
name = "catch"
env = {name = "gymnax", id = "Catch-bsuite", episodes = 2}
num_tasks = 4

[[agents]]
agent = "random"
environments = ["catch"]

[[agents]]
agent = {name = "recurrent", hidden_size = 4}
approach = "evolution"
development = "evolution:num_generations=2,population_size=4,num_lifetimes=2"
environments = ["catch"]
"""


@pytest.mark.slow
def test_a_study_and_an_audit_run_in_an_environment_of_gymnax(call_cli, tmp_path):
    spec = tmp_path / "catch.toml"
    spec.write_text(STUDY, encoding="utf-8")
    code, output, error = call_cli("study", str(spec), "--out", str(tmp_path / "study"))
    assert code == 0 and "recurrent" in output, error
    run_folder = next((tmp_path / "study" / "agents").glob("recurrent*"))
    code, output, error = call_cli("audit", "agent", str(run_folder), "--num-lifetimes", "20")
    assert code == 0 and "learns:" in output, error
