"""Environments that are Python objects: the driver, the adapter of Gymnasium, and every stage on them."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import contracts, lifetimes, rng, trees
from ontogeny.audit.attribution import attribute
from ontogeny.audit.suite import agent_subjects, audit_subject
from ontogeny.contracts.provider_checks import check_provider
from ontogeny.environments import providers
from ontogeny.errors import BadInput, ContractViolation, LearningDiverged
from ontogeny.host_rollouts import rollout_on_host, task_seeds
from ontogeny.plugins import build as build_plugin
from ontogeny.rollouts import rollout_lifetime
from ontogeny.stages.assembly import assemble, build_development, make_agent, make_env
from ontogeny.stages.deploy import deploy
from ontogeny.stages.evaluate import evaluate, record_lifetime
from ontogeny.stages.saved_agent import initial_agent, read_saved_agent
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from ontogeny.steering import build as build_steering
from ontogeny.types import Environment, EnvSpec, TimeStep

gymnasium = pytest.importorskip("gymnasium")
from ontogeny.environments.gymnasium import from_gymnasium  # noqa: E402

PLUGINS = Path(__file__).parent / "plugins"
KEYS = rng.sample_lifetime_keys(jax.random.key(3), 5, "training")


@pytest.fixture(autouse=True)
def working_directory(monkeypatch):
    """The folder of the user's module, from which the commands are run."""
    monkeypatch.chdir(PLUGINS)


def signals(**settings):
    """The user's environment with these settings, and those of its class as `parameters`."""
    return make_env("gymnasium", id="signals:Signals-v0", **settings)


def run_spec(agent, env_settings, **fields):
    env_settings = {"id": "signals:Signals-v0", **env_settings}
    return parse_run_spec({"agent": agent, "env": {"name": "gymnasium", "settings": env_settings}, **fields})


def random_steps(env, num_steps, *, num_lifetimes=2, strict=True):
    """The time steps of lifetimes with random actions, [T, N], and the actions."""
    tasks = env.begin(range(num_lifetimes), strict=strict)
    actions = np.random.default_rng(0).integers(env.spec.num_actions, size=(num_steps, num_lifetimes))
    steps = [tasks.reset(), *map(tasks.step, actions)]
    tasks.close()
    return jax.tree.map(lambda *leaves: np.stack(leaves), *steps), actions


class Twin(gymnasium.Env):
    """A deterministic environment of this package, as an environment of Gymnasium."""

    def __init__(self, env):
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self.observation_space = gymnasium.spaces.Discrete(env.spec.num_observations)
        self.action_space = gymnasium.spaces.Discrete(env.spec.num_actions)
        self._next = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self._next is None:
            self._state, time_step = self._reset(jax.random.key(0))
            self._next = time_step.observation
        return int(self._next), {}

    def step(self, action):
        self._state, time_step = self._step(jax.random.key(0), self._state, jnp.int32(action))
        self._next = time_step.observation
        first, discount = bool(time_step.first), float(time_step.discount)
        outcome = float(time_step.outcome[0])
        return int(time_step.final_observation), outcome, discount == 0, first and discount == 1, {}


def build_walk(num_steps=40, num_episodes=None):
    """A walk over six places: the last one pays and terminates; a time limit of seven steps truncates."""
    spec = EnvSpec(
        name="walk", num_actions=2, num_observations=6, observation_shape=(), outcome_features=("payout",),
        num_steps=num_steps, horizon=7, drives=(("payout", 1.0),),
    )  # fmt: skip

    def reset(key):
        place = jnp.int32(2)
        return (place, jnp.int32(0), jnp.int32(0)), TimeStep(
            place, place, jnp.zeros(1), jnp.bool_(True), jnp.float32(1)
        )

    def step(key, state, action):
        place, time, num_over = state
        place = jnp.maximum(place + 2 * action - 1, 0)
        ends = place == 5
        first = ends | (time == 6)
        outcome = jnp.where(ends, 1.0, 0.125 * place)[None]
        start = jnp.where(first, 2, place)
        time_step = TimeStep(start, place, outcome, first, jnp.where(ends, 0.0, 1.0))
        return (start, jnp.where(first, 0, time + 1), num_over + first), time_step

    is_over = None if num_episodes is None else lambda state: state[2] >= num_episodes
    return Environment(spec, reset, step, lambda outcome: outcome[0], is_over=is_over)


def walks_of_three_episodes():
    """The walk in JAX and its twin."""
    env = build_walk(num_steps=21, num_episodes=3)
    return env, from_gymnasium(lambda: gymnasium.wrappers.TimeLimit(Twin(env), 7), "twin", episodes=3)


@pytest.mark.parametrize(
    ("name", "agent", "settings"),
    [
        pytest.param("walk", "q_learning", {}, marks=pytest.mark.slow),
        pytest.param("chain", "q_learning", {}, marks=pytest.mark.slow),
        ("walk", "recurrent", {"stochastic": True, "hidden_size": 4}),
        ("three episodes", "q_learning", {}),
    ],
)
def test_a_twin_has_the_trajectories_of_a_rollout_bit_for_bit(name, agent, settings):
    chain = {"num_exposures": 0, "failure_probability": 0.0, "crossing_probability": 0.0, "changed_links": "none"}
    env = make_env("chain", num_trials=10, **chain) if name == "chain" else build_walk()
    twin = from_gymnasium(partial(Twin, env), "twin", steps=env.spec.num_steps)
    if name == "three episodes":
        env, twin = walks_of_three_episodes()
    steering = build_steering(env.spec)
    subject = make_agent(agent, env, steering, **settings)
    genome = subject.genome(jax.random.key(1))
    for learning, reset in ((True, False), (False, True)):

        def run(key, genome, learning=learning, reset=reset):
            return rollout_lifetime(key, subject, env, steering, genome, learning, reset_each_episode=reset)

        expected = jax.jit(jax.vmap(run))(KEYS, jax.tree.map(lambda leaf: jnp.stack([leaf] * len(KEYS)), genome))
        on_host = rollout_on_host(
            KEYS, subject, twin, steering, genome, env.spec.num_steps, learning, reset_each_episode=reset
        )
        assert trees.bitwise_equal(jax.device_get(expected), jax.device_get(on_host))
        trajectory = on_host[1]
        assert np.ptp(trajectory.reward) > 0 and np.any(trajectory.discount == 0)
    if name == "three episodes":
        assert np.ptp((trajectory.reward > 0).sum(axis=1)) > 0 and (trajectory.first.sum(axis=1) == 3).all()
    elif name == "walk":
        assert np.any(trajectory.first[:, 1:] & (trajectory.discount[:, :-1] == 1))


def test_a_twin_has_the_same_policy_gradient(monkeypatch):
    """Also in lifetimes that are over before their last step, and in several batches."""
    monkeypatch.setattr(lifetimes, "MAX_HOST_LIFETIMES_PER_CALL", 4)
    states, infos = [], []
    for env in walks_of_three_episodes():
        steering = build_steering(env.spec)
        agent = make_agent("recurrent", env, steering, hidden_size=4)
        budget = {"num_updates": 2, "num_lifetimes": 6, "updates_per_call": 2}
        development = build_plugin("development", "policy_gradient", agent, env, steering, **budget)
        state = development.init(jax.random.key(0))
        for _ in range(development.num_calls):
            state, info = development.step(state)
        (
            states.append(jax.tree.leaves(state.model)),
            infos.append({name: float(leaf[-1]) for name, leaf in info.items()}),
        )
    for of_rollout, on_host in zip(*states, strict=True):
        assert np.allclose(of_rollout, on_host, atol=1e-5) and np.any(of_rollout)
    assert infos[0] == pytest.approx(infos[1], rel=1e-4) and infos[0]["entropy"] > 0


@pytest.mark.slow
def test_a_twin_has_the_same_attribution():
    env = build_walk(num_steps=24)
    twin = from_gymnasium(partial(Twin, env), "twin", steps=24)
    steering = build_steering(env.spec)
    agent = make_agent("q_learning", env, steering)
    results = [attribute(agent, environment, steering, (), num_tasks=20) for environment in (env, twin)]
    assert results[0] == results[1] and results[0].gain.mean > 0


def test_a_log_in_which_learning_diverges_has_no_score():
    env = from_gymnasium(partial(Twin, build_walk(num_steps=24)), "twin", steps=24)
    steering = build_steering(env.spec)
    agent = make_agent(str(PLUGINS / "diverging.py"), env, steering)
    with pytest.raises(LearningDiverged, match="its 'loss' is not finite at step 4 of the lifetime"):
        lifetimes.score_from_log(KEYS, (), agent, env, steering)


@pytest.mark.parametrize("agent", ["random", "recurrent"])
def test_a_lifetime_is_the_same_alone_and_in_any_batch(agent):
    """Also where others are over before or after it."""
    agent, env, steering = assemble(run_spec(agent, {"id": "CartPole-v1", "episodes": 1}))
    genome = agent.genome(jax.random.key(0))
    batch = jax.device_get(rollout_on_host(KEYS, agent, env, steering, genome, 60, False))
    lengths = (batch[1].reward > 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 1 and lengths.max() < 60
    for selection in (np.array([np.argmin(lengths)]), np.array([3, 1])):
        part = jax.device_get(rollout_on_host(KEYS[selection], agent, env, steering, genome, 60, False))
        expected = jax.tree.map(partial(np.take, indices=selection, axis=0), batch)
        assert trees.bitwise_equal(part, expected)


def test_neither_batches_nor_the_number_of_tasks_change_a_score(monkeypatch):
    assembly = assemble(run_spec("q_learning", {"episodes": 3}))
    at_once = evaluate(*assembly, (), num_tasks=9, seed=1, mode="online")
    monkeypatch.setattr(lifetimes, "MAX_HOST_LIFETIMES_PER_CALL", 2)
    in_batches = evaluate(*assembly, (), num_tasks=5, seed=1, mode="online")
    assert np.array_equal(in_batches.totals, at_once.totals[:5]) and np.ptp(at_once.totals) > 0
    assert at_once.curve.unit == "episode" and at_once.curve.mean.sum() == pytest.approx(at_once.mean)
    trajectory = record_lifetime(*assembly, (), 1, "online", task=2)
    assert trajectory.outcome.sum() == at_once.totals[2]


def test_the_seeds_of_two_stages_differ():
    for index, stage in enumerate(rng.STAGES):
        keys = rng.sample_lifetime_keys(jax.random.key(0), 8, stage)
        seeds = np.asarray(task_seeds(keys, jax.vmap(rng.split_lifetime_key)(keys).task))
        assert set(seeds >> 30) == {index} and len(set(seeds.tolist())) == 8


SPACES = [  # observations, actions, sizes of the spec, observation -> signal
    ("discrete", "discrete", 4, (), lambda observation: observation),
    ("image", "discrete", 0, (4, 4, 3), lambda observation: observation.mean(axis=(1, 2)).argmax()),
    ("dict", "multi_binary", 0, (6,), lambda observation: observation[-4:].argmax()),
    ("tuple", "discrete", 0, (6,), lambda observation: observation[:4].argmax()),
    ("multi_discrete", "multi_discrete", 0, (2,), lambda observation: observation @ [2, 1]),
    ("scalar", "discrete", 0, (1,), lambda observation: observation[0]),
]


@pytest.mark.parametrize(("observations", "actions", "num_observations", "shape", "signal"), SPACES)
def test_spaces_become_arrays_and_numbered_actions(observations, actions, num_observations, shape, signal):
    env = signals(parameters=(f"observations:{observations}", f"actions:{actions}"), steps=100)
    spec = env.spec
    assert (spec.num_observations, spec.observation_shape, spec.num_actions) == (num_observations, shape, 4)
    steps, actions_taken = random_steps(env, 60)
    signal_by_step = np.array([[signal(observation) for observation in row] for row in steps.observation])
    assert set(signal_by_step.ravel()) == {0, 1, 2, 3}
    assert np.array_equal(steps.outcome[1:, :, 0] == 1, signal_by_step[:-1] == actions_taken)
    if observations == "image":
        assert steps.observation.max() == 1.0 and steps.observation.dtype == np.float32


TABLES = [
    gymnasium.spaces.MultiBinary([2, 3]),
    gymnasium.spaces.MultiDiscrete([[2, 2, 2], [2, 2, 2]]),
    gymnasium.spaces.Box(-3, 4, (1, 2), np.int32),
]


@pytest.mark.parametrize("space", TABLES, ids=["MultiBinary", "MultiDiscrete", "Box of whole numbers"])
def test_choices_in_a_table_become_actions_of_its_shape(space):
    layout = providers.describe_actions("mine", space)
    actions = [layout.decode(action, np) for action in range(layout.num_actions)]
    assert all(map(space.contains, actions))
    assert len({action.tobytes() for action in actions}) == 64


def test_an_environment_that_fails_in_a_check_does_not_end_the_table(tmp_path):
    provider = tmp_path / "mine.py"
    provider.write_text(
        "from ontogeny.environments.gymnasium import build\n\nTAKES_ID = True\n\n"
        "def list_ids():\n    return ['signals:FailingSignals-v0', 'signals:Absent-v0']\n"
    )
    failing, absent = check_provider(str(provider))
    assert failing.spec is None and "the lamp is broken" in failing.remarks[0]
    assert absent.spec is None and "cannot make" in absent.remarks[0]


@pytest.mark.parametrize(
    ("id", "num_actions", "num_observations", "shape", "horizon"),
    [
        ("CartPole-v1", 2, 0, (4,), 500),
        ("FrozenLake-v1", 4, 16, (), 100),
        ("Blackjack-v1", 2, 0, (45,), 30),
        ("Taxi-v4", 6, 500, (), 200),
        ("Acrobot-v1", 3, 0, (6,), 500),
    ],
)
def test_environments_of_gymnasium(id, num_actions, num_observations, shape, horizon):
    env = make_env("gymnasium", id=id, steps=30 if id == "Blackjack-v1" else 0)
    spec = env.spec
    assert (spec.num_actions, spec.num_observations, spec.observation_shape) == (num_actions, num_observations, shape)
    assert spec.horizon == horizon and spec.num_steps == (30 if id == "Blackjack-v1" else 10 * horizon)
    steps, _ = random_steps(env, 40)
    assert steps.observation.shape == (41, 2, *shape) and np.isfinite(steps.outcome).all()
    if horizon <= 100:
        contracts.check_host_env(env)


def test_a_time_limit_differs_from_a_termination():
    steps, _ = random_steps(signals(steps=100), 90)
    ended = steps.first[1:]
    truncated, terminated = ended & (steps.discount[1:] == 1), ended & (steps.discount[1:] == 0)
    assert truncated.any() and terminated.any() and np.all(ended | (steps.discount[1:] == 1))
    is_same = steps.observation == steps.final_observation
    assert is_same[1:][~ended].all() and not is_same[1:][ended].all()
    starts = np.flatnonzero(steps.first[:, 0])
    lengths, is_truncated = np.diff(starts), truncated[starts[1:] - 1, 0]
    assert np.all(lengths[is_truncated] == 5) and np.all(lengths <= 5) and np.all(lengths >= 3)


def test_a_lifetime_is_over_after_its_last_episode():
    env = signals(episodes=2)
    assert (env.spec.num_steps, env.spec.horizon) == (10, 5)
    tasks = env.begin([0, 1])
    tasks.reset()
    firsts, is_over = [], []
    for _ in range(12):
        step = tasks.step(np.zeros(2, np.int32))
        firsts.append(step.first), is_over.append(tasks.is_over)
    assert np.array_equal(np.cumsum(firsts, axis=0) == 2, is_over) and np.sum(firsts) == 4
    assert not step.outcome.any() and np.all(step.discount == 1)


def test_named_entries_of_info_are_outcome_features():
    env = signals(features=("hit", "shown", "is_success"), steps=20)
    assert env.spec.outcome_features == ("env_reward", "hit", "shown", "is_success")
    assert env.spec.drives == (("env_reward", 1.0),)
    steps, _ = random_steps(env, 15)
    assert np.array_equal(steps.outcome[..., 0], steps.outcome[..., 1]) and np.ptp(steps.outcome[..., 2]) > 0
    assert np.array_equal(steps.outcome[..., 1], steps.outcome[..., 3])  # a truth value counts as 0 or 1
    agent, env, steering = assemble(run_spec("random", {"features": ["shown"], "steps": 20}, drives={"shown": 2.0}))
    _, trajectory = rollout_on_host(KEYS, agent, env, steering, (), 20, False)
    assert np.array_equal(trajectory.reward, trajectory.outcome @ np.array([1.0, 2.0], np.float32))


def test_parameters_vary_by_lifetime_and_drift_within_it():
    settings = {"vary": ("pay:0.5..2.0",), "drift": ("brightness:0..1:20",), "features": ("brightness",), "steps": 40}
    env = signals(**settings)
    steps, _ = random_steps(env, 30, num_lifetimes=3)
    pays = {tuple(np.unique(row[row > 0])) for row in steps.outcome[1:, :, 0].T}
    assert len(pays) == 3 and all(len(pay) == 1 and 0.5 <= pay[0] <= 2 for pay in pays)
    starts = np.flatnonzero(steps.first[:, 0])
    by_episode = np.split(steps.outcome[1:, 0, 1], starts[1:])
    expected = np.minimum(starts / 20, 1)[: len(by_episode)]
    assert all(np.allclose(part, level) for part, level in zip(by_episode, expected, strict=True) if len(part))
    repeated, _ = random_steps(env, 30, num_lifetimes=3)
    assert trees.bitwise_equal(steps, repeated)
    varied, _ = random_steps(signals(vary=("brightness:2..3",), features=("brightness",), steps=10), 5)
    assert len(np.unique(varied.outcome[1:, :, 1])) == 2 and np.all(varied.outcome[1:, :, 1] > 2)


def develop_and_audit(env, folder):
    """Trains by gradient, evolves, and attributes what the evolved agent gains; `env` is a table of a run's spec."""
    genomes = []
    for development in (
        "policy_gradient:num_updates=2,num_lifetimes=4",
        "evolution:population_size=4,num_lifetimes=2,num_generations=2,sigma=0.5",
    ):
        spec = parse_run_spec({"agent": "recurrent:hidden_size=4", "env": env, "development": development})
        run = train(spec, folder / development.partition(":")[0])
        records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
        assert [record["generation"] for record in records] == [1, 2]
        genomes.append(read_saved_agent(run).genome)
    assert records[0]["fitness_std"] > 0
    genomes.append(initial_agent(spec).genome)
    assert not any(trees.bitwise_equal(genomes[i], genomes[i - 1]) for i in range(3))
    saved_agent = read_saved_agent(run)
    result = attribute(*saved_agent.assembly, saved_agent.genome, num_tasks=20)
    assert result.gain_of_weights.mean == 0 and result.cells["both"] == result.cells["activations"]
    return run


@pytest.mark.parametrize(
    ("observations", "actions"),
    [pytest.param(*case[:2], marks=() if case[0] == "tuple" else pytest.mark.slow) for case in SPACES[1:5]],
)
def test_spaces_are_trained_evolved_and_audited(observations, actions, tmp_path):
    """One pair of spaces; `make test-slow` has the other ones, which reach an agent as arrays of the same kinds."""
    settings = {"id": "signals:Signals-v0", "episodes": 2}
    settings["parameters"] = [f"observations:{observations}", f"actions:{actions}"]
    develop_and_audit({"name": "gymnasium", "settings": settings}, tmp_path)
    if observations == "tuple":
        train(
            parse_run_spec({"agent": "recurrent", "env": {"name": "gymnasium", "settings": settings}}),
            tmp_path / "single",
        )


def test_a_run_that_is_interrupted_has_the_same_bits(tmp_path):
    evolution = "evolution:population_size=4,num_lifetimes=2,num_generations=4,sigma=0.5"
    spec = run_spec("recurrent:hidden_size=4", {"episodes": 2}, development=evolution)

    def interrupt(num_done, total, record):
        if num_done == 2:
            raise KeyboardInterrupt

    finished, resumed = tmp_path / "finished", tmp_path / "resumed"
    train(spec, finished)
    with pytest.raises(KeyboardInterrupt):
        train(spec, resumed, on_progress=interrupt, checkpoint_interval=0)
    train(spec, resumed)
    for name in ("records.jsonl", "genome.safetensors"):
        assert (finished / name).read_bytes() == (resumed / name).read_bytes()


def test_a_deployment_is_the_lifetime_of_its_key():
    saved_agent = initial_agent(run_spec("q_learning", {"episodes": 3}))
    steps = list(deploy(saved_agent, online=True, seed=2))
    key = rng.sample_lifetime_keys(rng.key_from_seed(2), 1, "deployment")
    states, trajectory = rollout_on_host(key, *saved_agent.assembly, saved_agent.genome, 15, True)
    assert 9 <= len(steps) <= 15 and steps[-1].episode == 3
    assert [step.action for step in steps] == trajectory.action[0, : len(steps)].tolist()
    assert sum(step.score for step in steps) == trajectory.outcome.sum()
    last = jax.tree.map(lambda leaf: leaf[0], states)
    assert trees.bitwise_equal(jax.device_get(steps[-1].state), jax.device_get(last))
    assert len(list(deploy(saved_agent, num_steps=4))) == 4


@pytest.mark.slow
@pytest.mark.uses_package("minigrid")
def test_the_contract_holds_in_every_supported_environment():
    """Of Gymnasium without extras, and of MiniGrid where it is installed; each other one is refused with a reason."""
    rows = list(check_provider("gymnasium"))
    accepted = [row for row in rows if row.spec is not None]
    assert len(accepted) >= (14 if importlib.util.find_spec("minigrid") is None else 90)
    assert [row.name for row in accepted if row.num_passed < row.num_checks] == []
    reasons = ("has continuous actions", "is not installed", "dependencies are missing")
    assert all(any(reason in row.remarks[0] for reason in reasons) for row in rows if row.spec is None)


FAULTS = {
    "outside": (BadInput, "`reset` of .* returned an observation outside of its observation space: 9 of type int"),
    "type": (BadInput, "outside of its observation space: .* is not in Dict"),
    "error": (BadInput, "`step` of .* fails: RuntimeError: the lamp is broken"),
    "global chance": (ContractViolation, "is not a function of its seed"),
    "shared": (ContractViolation, "is not a function of its seed|differs when others run beside it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_detected(fault):
    form = "dict" if fault == "type" else "discrete"
    kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        contracts.check_host_env(signals(parameters=(f"fault:{fault}", f"observations:{form}")))


def test_agents_are_checked_in_a_stand_in():
    env = signals(parameters=("observations:image",))
    stand_in = contracts.make_traceable(env)
    assert stand_in.spec == env.spec
    steering = build_steering(env.spec)
    contracts.check_env(stand_in)
    contracts.check_agent_first_steps(make_agent("random", env, steering), stand_in, steering)


REFUSALS = {
    "CartPole-v9": ({"id": "CartPole-v9"}, "Gymnasium cannot make 'CartPole-v9'"),
    "no ID": ({"id": ""}, "by its ID, such as gymnasium:CartPole-v1"),
    "no module": ({"id": "absent_module:Signals-v0"}, "No module named 'absent_module'"),
    "no time limit": ({"id": "signals:EndlessSignals-v0"}, "has no time limit: the setting 'steps'"),
    "continuous": ({"parameters": ["actions:continuous"]}, "has continuous actions.*supports discrete actions"),
    "many": ({"parameters": ["actions:many"]}, "at most 1,024 combinations"),
    "text": ({"parameters": ["observations:text"]}, "has observations of the space Text"),
    "unknown feature": ({"features": ["hits"]}, "`info` of .* has no number 'hits'; did you mean hit"),
    "text feature": ({"features": ["name"]}, "`info` of .* has no number 'name'"),
    "unknown parameter": ({"vary": ["payy:0..1"]}, "no number among the parameters.*did you mean pay"),
    "drift of an argument": ({"drift": ["observations:0..1:5"]}, "no number among the parameters"),
    "no range": ({"vary": ["pay"]}, "the setting 'vary' is of the form PARAMETER:LOW..HIGH"),
    "unknown keyword": ({"parameters": ["color:red"]}, "cannot make .* with color: TypeError"),
    "no keyword": ({"parameters": ["color"]}, "is of the form PARAMETER:"),
    "no episodes": ({"episodes": 0}, "at least 1"),
    "no whole bounds": ({"id": "MountainCar-v0", "vary": ["goal_velocity:0.2..0.8"]}, "is a whole number: so must be"),
    "no number": ({"vary": ["observations:0..1"]}, "no number among the parameters"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_sentence(case):
    settings, message = REFUSALS[case]
    with pytest.raises(BadInput, match=message) as caught:
        env = make_env("gymnasium", **{"id": "signals:Signals-v0", **settings})
        env.begin([0, 1])
    assert "\n" not in str(caught.value)


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(BadInput, match=r"pip install 'ontogeny\[gymnasium\]'"):
        make_env("gymnasium", id="CartPole-v1", steps=3)


def test_what_must_trace_the_environment_is_refused():
    spec = run_spec("recurrent", {}, development="distillation")
    with pytest.raises(BadInput, match="'distillation' needs an environment written in JAX"):
        build_development(spec, assemble(spec))
    with pytest.raises(BadInput, match=r"`audit agent`.* needs an environment written in JAX"):
        audit_subject(agent_subjects(initial_agent(spec))[0])
    with pytest.raises(BadInput, match="cannot reveal"):
        assemble(run_spec("oracle", {}))


def test_an_agent_that_breaks_its_contract_is_refused():
    agent, env, steering = assemble(run_spec("q_learning", {"steps": 10}))
    with pytest.raises(ContractViolation, match="`act` may change activations only"):
        changed = agent._replace(act=lambda key, state, percept: (jnp.int32(0), _with_other_weights(state)))
        evaluate(changed, env, steering, (), num_tasks=2, seed=0)
    with pytest.raises(BadInput, match="action that its environment does not have"):
        outside = agent._replace(act=lambda key, state, percept: (jnp.int32(4), state))
        evaluate(outside, env, steering, (), num_tasks=2, seed=0)


def _with_other_weights(state):
    return state._replace(weights=jax.tree.map(lambda leaf: leaf + 1, state.weights))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("gymnasium:CartPole-v9", "Gymnasium cannot make 'CartPole-v9'"),
        ("gymnasium:signals:Signals-v0,parameters=actions:continuous", "has continuous actions"),
        ("gymnasium:signals:EndlessSignals-v0", "has no time limit"),
        ("gymnasium:signals:Signals-v0,episode=3", "did you mean episodes"),
        ("gymnasium", "such as gymnasium:CartPole-v1"),
    ],
)
def test_a_command_ends_with_one_sentence(env, message, call_cli, monkeypatch):
    monkeypatch.chdir(PLUGINS)
    code, _, error = call_cli("evaluate", "--agent", "random", "--env", env)
    assert code == 2 and message in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_run_in_an_environment_with_an_id_is_deployed(call_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(PLUGINS)
    env, run = "gymnasium:signals:Signals-v0,episodes=2,features=hit", str(tmp_path / "run")
    code, output, error = call_cli(
        "train", "--agent", "random", "--env", env, "--drive", "hit=1", "--out", run,
        "--development", "single_lifetime:num_lifetimes=2",
    )  # fmt: skip
    assert code == 0, error
    code, output, error = call_cli("deploy", run, "--num-steps", "3")
    assert code == 0 and "env_reward" in output and "hit" in output, error


def test_a_file_of_a_user_makes_the_objects_itself(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from signals import Signals\n\nfrom ontogeny.environments.gymnasium import from_gymnasium\n\n\n"
        'def build(*, pay: float = 2.0):\n    return from_gymnasium(lambda: Signals(pay=pay), "mine", steps=12)\n'
    )
    monkeypatch.syspath_prepend(PLUGINS)
    development = "evolution:population_size=4,num_lifetimes=2,num_generations=1"
    spec = {"agent": "recurrent:hidden_size=2", "env": {"name": str(file), "settings": {"pay": 3.0}}}
    run = train(parse_run_spec(spec | {"development": development}), tmp_path / "run")
    saved_agent = read_saved_agent(run)
    assert (run / "files" / "env" / "mine.py").exists() and saved_agent.assembly.env.spec.name == "mine"
    assert {step.score for seed in range(5) for step in deploy(saved_agent, seed=seed)} == {0.0, 3.0}


@pytest.mark.slow
def test_initial_weights_count_as_unchanged_in_a_frozen_lifetime():
    """Two compiled programs that draw the same weights may differ in their last bits."""
    env = signals(steps=3)
    drives = build_steering(env.spec)
    agent = make_agent("neural_model_based", env, drives, width=8)
    evaluation = evaluate(agent, env, drives, agent.genome(jax.random.key(0)), num_tasks=5, seed=0)
    assert evaluation.num_tasks == 5
