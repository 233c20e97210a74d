"""Environments of XLand-MiniGrid, Craftax and MiniGrid, each tested where its package is installed."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import contracts, plugins
from ontogeny.errors import BadInput
from ontogeny.stages.assembly import make_env

NUM_LIFETIMES = 8


needs = pytest.mark.needs_package


def build(text):
    name, settings = plugins.parse(text)
    return make_env(name, **settings)


def run(env, num_steps, seed=0):
    """Lifetimes with random actions: tasks, initial time steps and time steps [B, T]."""

    def run_lifetime(key):
        reset_key, action_key, step_key = jax.random.split(key, 3)
        state, initial = env.reset(reset_key)
        actions = jax.random.randint(action_key, (num_steps,), 0, env.spec.num_actions)

        def step(state, inputs):
            return env.step(inputs[0], state, inputs[1])

        _, time_steps = jax.lax.scan(step, state, (jax.random.split(step_key, num_steps), actions))
        return state.task, initial, time_steps

    return jax.device_get(jax.jit(jax.vmap(run_lifetime))(jax.random.split(jax.random.key(seed), NUM_LIFETIMES)))


def require_two_kinds_of_layout(text, num_steps):
    """Each episode begins in a new layout; with `same_layout`, only lifetimes differ."""
    for settings, is_same in (("", False), (",same_layout=true", True)):
        _, initial, steps = run(build(text + settings), num_steps)
        begins = steps.observation[steps.first]
        lifetimes = np.nonzero(steps.first)[0]
        is_equal = [np.array_equal(a, initial.observation[i]) for a, i in zip(begins, lifetimes, strict=True)]
        assert len(is_equal) >= 2 * NUM_LIFETIMES and all(is_equal) == is_same
        assert not np.array_equal(initial.observation[0], initial.observation[1])


@pytest.mark.parametrize(
    ("package", "id"),
    [
        ("xminigrid", "MiniGrid-FourRooms"),
        ("craftax", "Craftax-Symbolic-v1"),
        ("envelope", "jumanji::Snake-v1"),
        ("gymnasium", "CartPole-v1"),
    ],
)
def test_without_the_package_one_sentence_says_what_to_install(package, id, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for module in [module for module in sys.modules if module.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=rf"pip install 'ontogeny\[{package}\]'"):
        plugins.build("environments", package, id=id)


@needs("xminigrid")
def test_an_environment_of_xminigrid_keeps_the_contract():
    env = build("xminigrid:MiniGrid-EmptyRandom-5x5,parameters=max_steps:9,episodes=3")
    assert (env.spec.num_actions, env.spec.observation_shape, env.spec.num_steps) == (6, (7, 7, 2), 27)
    contracts.check_env(env)
    _, initial, steps = run(env, 200)
    reward = steps.outcome[..., 0]
    has_terminated = steps.discount == 0
    assert has_terminated.any() and np.array_equal(reward > 0, has_terminated)
    # A goal in step t pays 1 - 0.9 t / 9; no episode is longer than 9 steps.
    assert {round(float(pay), 1) for pay in reward[has_terminated]} <= {round(1 - 0.1 * t, 1) for t in range(1, 10)}
    is_truncated = steps.first & ~has_terminated
    assert is_truncated.any() and (steps.observation != steps.final_observation)[is_truncated].any()
    assert initial.observation.max() <= env.spec.observation_bounds[1] == 12


@needs("xminigrid")
def test_layouts_of_xminigrid():
    require_two_kinds_of_layout("xminigrid:MiniGrid-FourRooms,parameters=max_steps:5,steps=20", 20)


@needs("xminigrid")
def test_a_lifetime_in_xminigrid_has_one_ruleset(tmp_path):
    """In this benchmark, the goal is to stand beside one of two objects, of which each lifetime has one."""
    from xminigrid.benchmarks import save_bz2_pickle
    from xminigrid.core.constants import TILES_REGISTRY, Colors, Tiles
    from xminigrid.core.goals import AgentNearGoal
    from xminigrid.core.rules import EmptyRule

    balls = [TILES_REGISTRY[Tiles.BALL, color] for color in (Colors.RED, Colors.BLUE)]
    rulesets = {
        "goals": jnp.stack([AgentNearGoal(ball).encode() for ball in balls]),
        "rules": jnp.stack([EmptyRule().encode()[None]] * 2),
        "init_tiles": jnp.stack([ball[None] for ball in balls]),
        "num_rules": jnp.zeros(2, jnp.int32),
    }
    save_bz2_pickle(rulesets, str(tmp_path / "two"))
    env = build(f"xminigrid:XLand-MiniGrid-R1-9x9,benchmark={tmp_path / 'two'},parameters=max_steps:50,steps=200")
    contracts.check_env_first_steps(env)
    task, _, steps = run(env, 200)
    goals = task.parameters["ruleset"].goal
    assert len({goal.tobytes() for goal in goals}) == 2 and (steps.outcome[..., 0] > 0).any()
    colors = [set(observations[..., 1][observations[..., 0] == int(Tiles.BALL)]) for observations in steps.observation]
    assert [len(numbers) for numbers in colors] == [1] * NUM_LIFETIMES and len(set.union(*colors)) == 2


@needs("craftax")
@pytest.mark.slow
def test_an_environment_of_craftax_keeps_the_contract():
    text = "craftax:Craftax-Classic-Symbolic-v1,parameters=max_timesteps:30"
    env = build(f"{text},features=Achievements/collect_sapling,episodes=2")
    assert (env.spec.num_actions, env.spec.num_steps, env.spec.horizon) == (17, 60, 30)
    contracts.check_env(env)
    _, _, steps = run(env, 120)
    is_truncated = steps.first & (steps.discount == 1)
    assert is_truncated.any() and (steps.observation != steps.final_observation).any(axis=-1)[is_truncated].all()
    assert set(np.unique(steps.outcome[..., 1])) <= {0.0, 100.0} and not steps.outcome[~steps.first][:, 1].any()
    require_two_kinds_of_layout(f"{text},steps=90", 90)


@needs("craftax")
@pytest.mark.slow
def test_death_in_craftax_is_a_termination():
    """A player with little food, drink and energy dies; the time limit is far away."""
    env = build("craftax:Craftax-Classic-Symbolic-v1,steps=1500")
    _, _, steps = run(env, 1500)
    assert steps.first.any() and (steps.discount[steps.first] == 0).all()


SUITE = '''
from functools import cached_property

import jax
import jax.numpy as jnp
from envelope import Continuous, Discrete, Environment, InfoContainer, PyTreeSpace, static_field

class Lock(Environment):
    """The action that both parts of the observation name pays; every fourth step terminates an episode."""

    limit: int = static_field(default=3)
    prize: float = 1.0
    num_digits: int = 3

    @classmethod
    def from_name(cls, name, env_kwargs=None):
        if name == "Fixed":
            return Fixed()
        return cls(limit=7 if name == "Endless" else 3, prize=jnp.float32(1))

    @classmethod
    def registered_names(cls):
        return ("Lock", "Endless", "Fixed")

    @property
    def default_max_steps(self):
        return None if self.limit == 7 else self.limit

    def draw(self, key):
        return jax.random.randint(key, (2,), 0, jnp.array([self.num_digits, 4]))

    def observe(self, state):
        return {"digit": state["digit"][0], "rest": (jnp.float32(state["digit"][1])[None] / 4,)}

    def init(self, key):
        state = {"digit": self.draw(key), "key": key, "time": jnp.int32(0)}
        return state, InfoContainer(obs=self.observe(state), reward=0.0, terminated=False)

    def step(self, state, action):
        key, draw = jax.random.split(state["key"])
        pays = (action == state["digit"]).all()
        terminated = (state["time"] >= 1) & ~pays
        state = {"digit": self.draw(draw), "key": key, "time": state["time"] + 1}
        reward = self.prize * jnp.float32(pays)
        return state, InfoContainer(obs=self.observe(state), reward=reward, terminated=terminated)

    @cached_property
    def observation_space(self):
        return PyTreeSpace({"digit": Discrete(3), "rest": (Continuous.from_shape(0.0, 1.0, (1,)),)})

    @cached_property
    def action_space(self):
        return Discrete(jnp.array([3, 4]))

class Fixed(Lock):
    prize: float = static_field(default=1.0)
    num_digits: int = static_field(default=3)
'''


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A package that registers a suite of environments."""
    (tmp_path / "my_suite.py").write_text(SUITE, encoding="utf-8")
    record = tmp_path / "my_suite-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: my_suite\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[envelope.environments]\nmine = my_suite:Lock.from_name\n")
    monkeypatch.syspath_prepend(tmp_path)


@needs("envelope")
def test_an_environment_of_envelope_keeps_the_contract(suite):
    env = build("envelope:mine::Lock,episodes=4")
    assert (env.spec.num_actions, env.spec.observation_shape, env.spec.num_steps) == (12, (4,), 12)
    contracts.check_env(env)
    _, initial, steps = run(env, 200)
    is_truncated = steps.first & (steps.discount == 1)
    assert is_truncated.any() and (steps.discount == 0).any() and (steps.outcome > 0).any()
    assert (steps.observation != steps.final_observation).any(axis=-1)[is_truncated].any()
    digits = initial.observation[:, :3]
    assert (digits.sum(axis=1) == 1).all() and len({row.tobytes() for row in digits}) > 1
    assert build("envelope:mine::Lock,max_episode_steps=2").spec.horizon == 2
    for text, message in (
        ("envelope:Lock", "must name its suite, such as envelope:jumanji::Snake-v1"),
        ("envelope:mine::Endless", "has no time limit: the setting 'steps'"),
        ("envelope:other::Lock", "cannot be made: ValueError: Unknown environment suite: other"),
        ("envelope:mine::Lock,max_episode_steps=-1", "must be at least 0"),
    ):
        with pytest.raises(BadInput, match=message):
            build(text)
    assert plugins.get_attribute("environments", "envelope", "list_ids")()[-3:] == [
        f"mine::{name}" for name in ("Endless", "Fixed", "Lock")
    ]


@needs("envelope")
def test_parameters_of_envelope_vary_and_drift(suite):
    env = build("envelope:mine::Lock,steps=200,vary=prize:2..3+num_digits:1..2")
    contracts.check_env(env)
    task, _, steps = run(env, 200)
    prizes, counts = task.parameters["prize"], task.parameters["num_digits"]
    assert len(set(prizes.tolist())) == NUM_LIFETIMES and set(counts.tolist()) == {1, 2}
    assert ((prizes >= 2) & (prizes <= 3)).all()
    for rewards, prize in zip(steps.outcome[..., 0], prizes, strict=True):
        assert set(rewards.tolist()) == {0.0, float(prize)}
    digits = steps.final_observation[..., :3].any(axis=1)  # [B, 3], which ones a lifetime draws
    assert (digits.sum(axis=1) == counts).all()
    _, _, steps = run(build("envelope:mine::Lock,steps=200,drift=prize:1..5:50..150"), 200)
    for rewards in steps.outcome[..., 0]:
        prizes = rewards[rewards > 0]
        assert (np.diff(prizes) >= 0).all() and prizes[0] == 1 and prizes[-1] == 5 and len(set(prizes.tolist())) > 3
    for text, message in (
        ("envelope:mine::Fixed,vary=prize:1..2", "no numeric parameters of the suite 'mine'"),
        ("envelope:mine::Fixed,drift=prize:1..2:9", "takes neither 'vary' nor 'drift'"),
        ("envelope:mine::Lock,vary=price:1..2", "did you mean prize"),
        ("envelope:mine::Lock,vary=limit:2..3", "no number among the parameters"),
        ("envelope:mine::Lock,vary=num_digits:1.5..2", "is a whole number"),
    ):
        with pytest.raises(BadInput, match=message):
            build(text)


@needs("envelope", "gymnax")
def test_parameters_of_another_library_vary_through_envelope():
    """A stronger push moves the cart farther in the first step, which begins at rest but for small draws."""
    env = build("envelope:gymnax::CartPole-v1,steps=3,vary=force_mag:10..1000")
    task, initial, steps = run(env, 3)
    change = np.abs(steps.final_observation[:, 0, 1] - initial.observation[:, 1])
    order = np.argsort(task.parameters["force_mag"])
    assert (np.diff(change[order]) > 0).all()
    with pytest.raises(BadInput, match="no number among the parameters"):
        build("envelope:gymnax::CartPole-v1,vary=max_steps_in_episode:5..9")


@needs("minigrid")
def test_an_environment_of_minigrid_is_flattened():
    env = build("gymnasium:minigrid:MiniGrid-GoToDoor-5x5-v0,episodes=2")
    assert (env.spec.num_actions, env.spec.observation_shape, env.spec.horizon) == (7, (2835,), 100)
    contracts.check_host_env(env)
    tasks = env.begin([0, 1, 2])
    observation = tasks.reset().observation
    letters = observation[:, 7 * 7 * 3 :]
    assert set(np.unique(letters)) == {0, 1} and (letters.sum(axis=1) >= len("go to the red door")).all()
    assert observation[:, : 7 * 7 * 3].max() > 1 and len({row.tobytes() for row in observation}) == 3
    tasks.close()


REFUSALS = [
    ("xminigrid", "xminigrid", "by its ID, such as xminigrid:MiniGrid-FourRooms"),
    ("xminigrid", "xminigrid:MiniGrid-FourRoom", "did you mean MiniGrid-FourRooms"),
    ("xminigrid", "xminigrid:XLand-MiniGrid-R1-9x9", "has no goal of its own: the setting 'benchmark'"),
    ("xminigrid", "xminigrid:XLand-MiniGrid-R1-9x9,benchmark=trivial", "there is no benchmark or file 'trivial'"),
    ("xminigrid", f"xminigrid:XLand-MiniGrid-R1-9x9,benchmark={__file__}", "cannot be loaded: "),
    ("xminigrid", "xminigrid:MiniGrid-FourRooms,benchmark=trivial-21k", "has no rulesets"),
    ("xminigrid", "xminigrid:MiniGrid-FourRooms,parameters=max_step:3", "did you mean max_steps"),
    ("xminigrid", "xminigrid:MiniGrid-FourRooms,vary=height:9..11", "has no setting 'vary'"),
    ("craftax", "craftax", "by its ID, such as craftax:Craftax-Classic-Symbolic-v1"),
    ("craftax", "craftax:Craftax-Symbolic", "did you mean Craftax-Symbolic-v1"),
    ("craftax", "craftax:Craftax-Symbolic-v1,vary=day_lenght:100..200", "did you mean day_length"),
    ("craftax", "craftax:Craftax-Symbolic-v1,parameters=god_mode:3", "must be a truth value, such as False, not 3"),
    ("craftax", "craftax:Craftax-Symbolic-v1,features=wood", "has no number 'wood'"),
    ("minigrid", "gymnasium:minigrid:MiniGrid-Emty-5x5-v0", "cannot make 'minigrid:MiniGrid-Emty-5x5-v0'"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [pytest.param(text, message, marks=needs(package)) for package, text, message in REFUSALS],
    ids=[text for _, text, _ in REFUSALS],
)
def test_a_mistake_in_a_name_is_answered_in_one_sentence(text, message):
    with pytest.raises(BadInput, match=message) as error_info:
        build(text)
    assert "\n" not in str(error_info.value)
