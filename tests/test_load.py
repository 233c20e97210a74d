"""A loaded agent in somebody's own loop: what docs/state.md prints is what is run here."""

import re
from pathlib import Path

import jax
import pytest

import ontogeny
from ontogeny import plugins, trees
from ontogeny.errors import BadInput
from ontogeny.stages.deploy import deploy
from ontogeny.stages.saved_agent import read_saved_agent
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train

ROOMS = Path(__file__).parent / "plugins"
DOCS = (Path(__file__).parents[1] / "docs" / "state.md").read_text(encoding="utf-8")


def printed(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", DOCS, re.DOTALL)
    assert found, f"docs/state.md has no block '{name}'"
    return found.group(1)


def run_of(folder: Path, agent: str, env: str) -> Path:
    return train(parse_run_spec({"agent": agent, "env": env, "development": "single_lifetime:num_lifetimes=2"}), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "mine", str(ROOMS / "counting.py"), "bandit:num_arms=3,num_pulls=20")


@pytest.mark.parametrize("online", [False, True])
def test_the_five_lines(run, tmp_path, monkeypatch, online):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    lines = printed("frozen")
    assert 'ontogeny.load("runs/mine", online=True)' in DOCS
    if online:
        lines = lines.replace('load("runs/mine")', 'load("runs/mine", online=True)')
    names: dict = {}
    exec(lines, names)
    agent, state = names["agent"], names["state"]
    assert type(names["action"]) is int and 0 <= names["action"] < 3
    assert (agent.digest(state) != agent.digest(agent.init(seed=0))) == online


def test_every_agent_that_is_named_there_is_and_reset_does_what_is_said():
    named = set(re.findall(r"^\| (`.*?) \|", DOCS[DOCS.index("## By kind") :], re.MULTILINE))
    agents = set(re.findall(r"`(\w+)`", " ".join(named)))
    assert agents and agents <= set(plugins.list_names("agents"))


@pytest.mark.parametrize("online", [False, True])
def test_the_own_loop_is_the_life_that_deploy_would_live(run, online):
    agent = ontogeny.load(run, online=online)
    steps = list(deploy(read_saved_agent(run), online=online, seed=2))
    state = agent.init(seed=2)
    action, state = agent.act(state, 0)
    for number, step in enumerate(steps, start=1):
        assert action == step.action
        before = state
        action, state = agent.act(state, 0, outcome=step.outcome, first=True)
        assert trees.bitwise_equal(state.state.weights, step.state.weights), f"step {number}"
        assert trees.bitwise_equal(before, before) and int(before.step) == number


def test_a_state_is_a_value(run):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    before = trees.digest(state)
    one = agent.act(state, 0, reward=1.0, first=True)
    other = agent.act(state, 0, reward=1.0, first=True)
    assert trees.bitwise_equal(one, other) and trees.digest(state) == before
    assert not trees.bitwise_equal(one, agent.act(state, 0, reward=0.0, first=True))


def test_reset_clears_activations_and_keeps_weights(run):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    _, state = agent.act(state, 0, reward=1.0, first=True)
    reset = agent.reset(state)
    assert agent.digest(reset) == agent.digest(state) != agent.digest(agent.init())
    assert trees.bitwise_equal(reset.state.activations, agent.init().state.activations)
    _, again = agent.act(reset, 0)
    assert int(again.step) == 3 and agent.digest(again) == agent.digest(state)


def test_a_life_is_saved_and_goes_on(run, tmp_path):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    _, state = agent.act(state, 0, reward=1.0, first=True)
    later = ontogeny.load(agent.save(state, tmp_path / "used"))
    assert trees.bitwise_equal(later.init().state, state.state)
    assert "frozen" in repr(later) and later.digest(later.init()) == agent.digest(state)


def test_several_facts_are_given_by_name(tmp_path):
    agent = ontogeny.load(run_of(tmp_path / "run", "random", "foraging:num_episodes=1,horizon=3"))
    _, state = agent.act(agent.init(), 7)
    _, then = agent.act(state, 8, outcome={"food": 1, "pain": 2})
    assert then.percept.outcome.tolist() == [1, 0, 2, 0] and float(then.percept.reward) == -1
    assert not bool(then.percept.first) and float(then.percept.discount) == 1
    _, then = agent.act(state, 8, outcome={}, first=True, terminated=False)
    assert bool(then.percept.first) and float(then.percept.discount) == 1
    with pytest.raises(BadInput, match="several facts: give `outcome` with food, water, pain, energy"):
        agent.act(state, 8, reward=1.0)
    with pytest.raises(BadInput, match="there is no fact 'foot'; did you mean food"):
        agent.act(state, 8, outcome={"foot": 1})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"observation": 0}, "say what the last action led to"),
        ({"observation": 0, "reward": 1.0, "outcome": {"payout": 1}}, "either as `reward` or as `outcome`"),
        ({"observation": 1, "reward": 1.0}, "a whole number from 0 to 0, not 1"),
        ({"observation": 0.5, "reward": 1.0}, "a whole number from 0 to 0, not 0.5"),
        ({"observation": [0, 0], "reward": 1.0}, r"must have the shape \(\), not \(2,\)"),
    ],
)
def test_what_does_not_fit_is_said(run, given, said):
    agent = ontogeny.load(run)
    _, state = agent.act(agent.init(), 0)
    with pytest.raises(BadInput, match=said):
        agent.act(state, **given)
    with pytest.raises(BadInput, match="no action yet"):
        agent.act(agent.init(), 0, reward=1.0)
    with pytest.raises(BadInput, match="'seed' in"):
        agent.init(seed=-1)


def test_gymnasium(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    agent = ontogeny.load(run_of(tmp_path / "run", str(ROOMS / "counting.py"), "random_mdp"), online=True)

    class Lever(gymnasium.Env):
        """Pays for action 2, ends after three steps."""

        observation_space, action_space = gymnasium.spaces.Discrete(10), gymnasium.spaces.Discrete(5)

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return 0, {}

        def step(self, action):
            self.steps += 1
            return self.steps, 2.0 * (action == 2), False, self.steps == 3, {}

    names: dict = {}
    exec(printed("gymnasium"), names)
    state, total = names["live"](agent, Lever(), 60)
    pulls = state.state.weights.content["pulls"]
    assert int(pulls.sum()) == 60 and int(pulls.argmax()) == 2 and total == 2 * int(pulls[2])
    again, same = names["live"](agent, Lever(), 60)
    assert same == total and trees.bitwise_equal(again, state)
    assert jax.tree.structure(state) == jax.tree.structure(again)


@pytest.mark.parametrize("name", ["model_based", "psrl", "certainty_equivalence", "q_learning"])
def test_an_episode_that_is_cut_off_teaches_no_successor(tmp_path, name):
    """Cut off after four steps of ten: where the fourth action led is not seen, the next episode is elsewhere."""
    agent = ontogeny.load(run_of(tmp_path / "run", name, "random_mdp"), online=True)
    state = agent.init()
    _, state = agent.act(state, 0)
    for step in range(1, 21):
        cut = step % 4 == 0
        _, state = agent.act(state, 0 if cut else 5, reward=1.0, first=cut, terminated=False)
    content = state.state.weights.content
    if name == "q_learning":
        assert float(content[5].max()) > 0
        return
    evidence = content.evidence if name == "model_based" else content
    assert float(evidence.visit_counts.sum()) == 20
    assert float(evidence.successor_counts.sum()) == 15 and float(evidence.successor_counts[:, :, 0].sum()) == 0


@pytest.mark.parametrize("given", [{"reward": float("nan")}, {"reward": "much"}, {"outcome": [1.0]}])
def test_what_is_no_number_is_no_reward(run, given):
    agent = ontogeny.load(run)
    _, state = agent.act(agent.init(), 0)
    with pytest.raises(BadInput, match=r"reward|outcome"):
        agent.act(state, 0, first=True, **given)


def test_every_agent_stands_in_the_table_of_what_reset_keeps():
    rows = [line for line in DOCS.split("## By kind of agent")[1].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(plugins.list_names("agents"))
