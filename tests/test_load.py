"""A loaded agent in the user's own loop, frozen and online; `load` and `open_run` on every kind of folder."""

import re
from pathlib import Path

import jax
import pytest

import ontogeny
from ontogeny import plugins, trees
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout
from ontogeny.stages.deploy import deploy
from ontogeny.stages.saved_agent import read_saved_agent
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from selection import slow_except

PLUGINS = Path(__file__).parent / "plugins"
DOCS = Path(__file__).parents[1] / "docs"
LEARNERS = ["model_based", "psrl", "certainty_equivalence", "q_learning"]
QUICK_LEARNERS = ["model_based", "q_learning"]


def run_of(folder: Path, agent: str, env: str) -> Path:
    return train(parse_run_spec({"agent": agent, "env": env, "development": "single_lifetime:num_lifetimes=2"}), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(
        tmp_path_factory.mktemp("runs") / "mine", str(PLUGINS / "counting.py"), "bandit:num_arms=3,num_pulls=20"
    )


@pytest.mark.parametrize("online", [False, True])
def test_only_an_online_agent_changes_its_weights(run, online):
    agent = ontogeny.load(run, online=online)
    state = agent.init(seed=0)
    action, state = agent.act(state, observation=0)
    action, state = agent.act(state, observation=0, reward=1.0, first=True)
    assert type(action) is int and 0 <= action < 3
    assert (agent.digest(state) != agent.digest(agent.init(seed=0))) == online


@pytest.mark.parametrize("online", [False, True])
def test_a_session_takes_the_steps_of_a_deployment(run, online):
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


def test_no_call_changes_a_state(run):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    before = trees.digest(state)
    first = agent.act(state, 0, reward=1.0, first=True)
    second = agent.act(state, 0, reward=1.0, first=True)
    assert trees.bitwise_equal(first, second) and trees.digest(state) == before
    assert not trees.bitwise_equal(first, agent.act(state, 0, reward=0.0, first=True))


def test_reset_clears_activations_and_keeps_weights(run):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    _, state = agent.act(state, 0, reward=1.0, first=True)
    reset = agent.reset(state)
    assert agent.digest(reset) == agent.digest(state) != agent.digest(agent.init())
    assert trees.bitwise_equal(reset.state.activations, agent.init().state.activations)
    _, later = agent.act(reset, 0)
    assert int(later.step) == 3 and agent.digest(later) == agent.digest(state)


def test_a_reset_in_a_loop_of_ones_own_is_the_reset_of_a_rollout(tmp_path):
    """A bandit begins an episode at every pull: reset before each, a session acts as a rollout that resets."""
    agent = ontogeny.load(run_of(tmp_path / "run", "ucb1", "bandit:num_arms=3,num_pulls=12"))
    state, actions = agent.init(seed=3), []
    for _ in range(12):
        action, state = agent.act(agent.reset(state), 0)
        actions.append(action)
    _, env, drives = agent.saved_agent.assembly
    initial = agent.init(seed=3)
    _, trajectory = rollout(initial.key, agent.agent, env, drives, initial.state, 12, False, reset_each_episode=True)
    assert trajectory.action.tolist() == actions and len(set(actions)) > 1


def test_a_saved_lifetime_continues(run, tmp_path):
    agent = ontogeny.load(run, online=True)
    _, state = agent.act(agent.init(), 0)
    _, state = agent.act(state, 0, reward=1.0, first=True)
    later = ontogeny.load(agent.save(state, tmp_path / "saved"))
    assert trees.bitwise_equal(later.init().state, state.state)
    assert "frozen" in repr(later) and later.digest(later.init()) == agent.digest(state)


def test_outcome_features_are_given_by_name(tmp_path):
    agent = ontogeny.load(run_of(tmp_path / "run", "random", "foraging:num_episodes=1,horizon=3"))
    _, state = agent.act(agent.init(), 7)
    _, after = agent.act(state, 8, outcome={"food": 1, "pain": 2})
    assert after.percept.outcome.tolist() == [1, 0, 2, 0] and float(after.percept.reward) == -1
    assert not bool(after.percept.first) and float(after.percept.discount) == 1
    _, after = agent.act(state, 8, outcome={}, first=True, terminated=False)
    assert bool(after.percept.first) and float(after.percept.discount) == 1
    with pytest.raises(BadInput, match="several outcome features: give `outcome` with food, water, pain, energy"):
        agent.act(state, 8, reward=1.0)
    with pytest.raises(BadInput, match="there is no outcome feature 'foot'; did you mean food"):
        agent.act(state, 8, outcome={"foot": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": 0}, "state the outcome of the last action"),
        ({"observation": 0, "reward": 1.0, "outcome": {"payout": 1}}, "either as `reward` or as `outcome`"),
        ({"observation": 1, "reward": 1.0}, "a whole number from 0 to 0, not 1"),
        ({"observation": 0.5, "reward": 1.0}, "a whole number from 0 to 0, not 0.5"),
        ({"observation": [0, 0], "reward": 1.0}, r"must have the shape \(\), not \(2,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(run, arguments, message):
    agent = ontogeny.load(run)
    _, state = agent.act(agent.init(), 0)
    with pytest.raises(BadInput, match=message):
        agent.act(state, **arguments)
    with pytest.raises(BadInput, match="there is no last action"):
        agent.act(agent.init(), 0, reward=1.0)
    with pytest.raises(BadInput, match="the seed must be a whole number"):
        agent.init(seed=-1)


def run_in_gymnasium(agent, env, num_steps, seed=0):
    """One lifetime of many episodes in an environment with numbered observations."""
    state, (observation, _), total = agent.init(seed), env.reset(seed=seed), 0.0
    action, state = agent.act(state, int(observation))
    for _ in range(num_steps):
        observation, reward, terminated, truncated, _ = env.step(action)
        total, has_ended = total + float(reward), terminated or truncated
        if has_ended:
            observation, _ = env.reset()
        action, state = agent.act(state, int(observation), reward=float(reward), first=has_ended, terminated=terminated)
    return state, total


def test_an_agent_learns_in_a_gymnasium_environment(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    agent = ontogeny.load(run_of(tmp_path / "run", str(PLUGINS / "counting.py"), "random_mdp"), online=True)

    class Lever(gymnasium.Env):
        """Pays for action 2, ends after three steps."""

        observation_space, action_space = gymnasium.spaces.Discrete(10), gymnasium.spaces.Discrete(5)

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return 0, {}

        def step(self, action):
            self.steps += 1
            return self.steps, 2.0 * (action == 2), False, self.steps == 3, {}

    state, total = run_in_gymnasium(agent, Lever(), 60)
    pulls = state.state.weights.content["pulls"]
    assert int(pulls.sum()) == 60 and int(pulls.argmax()) == 2 and total == 2 * int(pulls[2])
    repeated, repeated_total = run_in_gymnasium(agent, Lever(), 60)
    assert repeated_total == total and trees.bitwise_equal(repeated, state)
    assert jax.tree.structure(state) == jax.tree.structure(repeated)


@pytest.mark.parametrize("name", slow_except(QUICK_LEARNERS, LEARNERS))
def test_no_successor_is_learned_from_the_last_step_of_a_truncated_episode(tmp_path, name):
    """After a time limit at four steps of ten, the successor of the fourth action is not given."""
    agent = ontogeny.load(run_of(tmp_path / "run", name, "random_mdp"), online=True)
    state = agent.init()
    _, state = agent.act(state, 0)
    for step in range(1, 21):
        is_truncated = step % 4 == 0
        observation = 0 if is_truncated else 5
        _, state = agent.act(state, observation, reward=1.0, first=is_truncated, terminated=False)
    content = state.state.weights.content
    if name == "q_learning":
        assert float(content[5].max()) > 0
        return
    evidence = content.evidence if name == "model_based" else content
    assert float(evidence.visit_counts.sum()) == 20
    assert float(evidence.successor_counts.sum()) == 15 and float(evidence.successor_counts[:, :, 0].sum()) == 0


@pytest.mark.parametrize("name", ["model_based", "q_learning"])
def test_a_termination_teaches_without_its_final_observation(tmp_path, name):
    """The only reward comes with the termination, after which nothing has a value."""
    agent = ontogeny.load(run_of(tmp_path / "run", name, "random_mdp"), online=True)
    _, state = agent.act(agent.init(), 5)
    _, state = agent.act(state, 0, reward=1.0, first=True, terminated=True)
    content = state.state.weights.content
    if name == "q_learning":
        assert float(content[5].max()) > 0
    else:
        assert float(content.evidence.end_counts.sum()) == 1


@pytest.mark.parametrize("name", slow_except(QUICK_LEARNERS, LEARNERS))
def test_the_successor_is_learned_from_the_final_observation_of_a_truncated_episode(tmp_path, name):
    """After a time limit at four steps of ten, the fourth action has led to observation 6."""
    agent = ontogeny.load(run_of(tmp_path / "run", name, "random_mdp"), online=True)
    _, state = agent.act(agent.init(), 0)
    for step in range(1, 21):
        arguments = {"first": True, "terminated": False, "final_observation": 6} if step % 4 == 0 else {}
        _, state = agent.act(state, 0 if arguments else 5, reward=float(step % 4 == 0), **arguments)
    content = state.state.weights.content
    if name == "q_learning":
        assert float(content[5].max()) > 0 and float(content[6].max()) == 0
        return
    counts = (content.evidence if name == "model_based" else content).successor_counts
    assert float(counts.sum()) == 20 and float(counts[5, :, 6].sum()) == 5 and float(counts[:, :, 0].sum()) == 0
    with pytest.raises(BadInput, match="`final_observation` goes with `first`"):
        agent.act(state, 5, reward=1.0, final_observation=6)


@pytest.mark.parametrize("arguments", [{"reward": float("nan")}, {"reward": "much"}, {"outcome": [1.0]}])
def test_a_reward_must_be_a_finite_number(run, arguments):
    agent = ontogeny.load(run)
    _, state = agent.act(agent.init(), 0)
    with pytest.raises(BadInput, match=r"reward|outcome"):
        agent.act(state, 0, first=True, **arguments)


def test_the_documentation_states_for_every_agent_which_state_reset_keeps():
    pages = [page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")]
    tables = [page.split("## By kind of agent")[1] for page in pages if "## By kind of agent" in page]
    assert len(tables) == 1
    rows = [line for line in tables[0].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(
        plugins.list_names("agents")
    )
