"""Rooms that are files of somebody's own: their mistakes are found before any work, and said in one sentence."""

import re
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.stages.assembly import assemble
from ontogeny.stages.deploy import deploy
from ontogeny.stages.evaluate import evaluate
from ontogeny.stages.saved_agent import read_run_spec, read_saved_agent
from ontogeny.stages.spec import parse_plugin_choice, parse_run_spec
from ontogeny.stages.train import train

AGENT = """
import jax.numpy as jnp
from ontogeny.types import Agent, State, Weights

def build(spec, steering):
    def birth(key, genome):
        return State(Weights(()), jnp.zeros(2))
    def act(key, state, percept):
        return jnp.int32(0), state
    def learn(key, state, transition):
        return state, ()
    return Agent(lambda key: (), birth, lambda state: state, act, learn)
"""
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ENV = re.findall(r"<!-- file: coins.py -->\n```python\n(.*?)```", README, re.DOTALL)[0]
DEVELOPMENT = """
from ontogeny.types import Development

def build(agent, environment, steering):
    def init(key):
        return ()
    def step(state):
        return nothing_of_that_name
    return Development(init, step, lambda state: (), 2, 1, 1)
"""


def written(path: Path, text: str, before: str = "", after: str = "") -> str:
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1) if before else text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("lambda key: ()", "lambda key: 1 / 0", "`genome` fails with '.*own.py' in line 12: ZeroDivisionError"),
        ("return State(Weights(()), jnp.zeros(2))", "pass", r"`birth` must return State\(.*, not NoneType"),
        (
            "lambda state: state",
            "lambda state: state._replace(activations=())",
            "`reset` gives back a state of another",
        ),
        ("return jnp.int32(0), state", "return nowhere, state", "`act` fails with '.*own.py' in line 9: NameError"),
        ("return jnp.int32(0), state", "return int(percept.action), state", "`act` fails with .* in line 9: Concret"),
        ("return jnp.int32(0), state", "return 0.5 * percept.reward, state", r"one whole number, not float32\[\]"),
        ("return jnp.int32(0), state", "return jnp.int32(0)", "`act` must return a pair"),
        (
            "jnp.int32(0), state",
            "jnp.int32(0), State(state.weights, jnp.zeros(3))",
            r"`act` gives back .*: activations float32\[2\] became activations float32\[3\]",
        ),
        ("return state, ()", "return transition.reward, ()", "`learn` fails with .* in line 11: AttributeError"),
        ("return state, ()", "return state", "`learn` must return a pair|`learn` gives back"),
    ],
)
def test_what_is_wrong_in_an_agent_is_named(tmp_path, before, after, said):
    assemble(parse_run_spec({"env": "bandit", "agent": written(tmp_path / "own.py", AGENT)}))
    with pytest.raises(BadInput, match=said):
        assemble(parse_run_spec({"env": "bandit", "agent": written(tmp_path / "own.py", AGENT, before, after)}))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "heads[None]",
            "heads",
            r"`step` gives back a state of another structure: .*float32\[1\] became .*float32\[\]",
        ),
        ("jnp.zeros(1)", "jnp.zeros(2)", "the environment names 1 facts"),
        ("outcome: outcome[0]", "outcome: outcome", "`score` must be one number"),
        ("return State(chances), TimeStep", "return State(chance), TimeStep", "`reset` fails with .*: NameError"),
        ('drives=(("heads", 1.0),)', "drives=1", "do not go together: TypeError"),
    ],
)
def test_what_is_wrong_in_a_env_is_named(tmp_path, before, after, said):
    assemble(parse_run_spec({"env": written(tmp_path / "coins.py", ENV), "agent": "random"}))
    with pytest.raises(BadInput, match=said):
        assemble(parse_run_spec({"env": written(tmp_path / "coins.py", ENV, before, after), "agent": "random"}))


def test_what_is_wrong_in_a_development_is_named(tmp_path):
    development = written(tmp_path / "own.py", DEVELOPMENT)
    with pytest.raises(BadInput, match="training fails in line 8: NameError"):
        train(parse_run_spec({"env": "bandit", "agent": "random", "development": development}), tmp_path / "run")


def test_an_action_that_there_is_not_is_refused(tmp_path):
    """Arrays take the nearest place for one that is out of bounds, so that nothing else would tell."""
    agent = written(tmp_path / "own.py", AGENT, "jnp.int32(0), state", "jnp.int32(99), state")
    spec = parse_run_spec({"env": "bandit:num_pulls=3", "agent": agent, "development": "single_lifetime:num_lifetimes=2"})
    with pytest.raises(BadInput, match="there are 0 to 4"):
        evaluate(*assemble(spec), (), num_tasks=2, seed=0)
    with pytest.raises(BadInput, match="the action 99, there are 0 to 4"):
        list(deploy(read_saved_agent(train(spec, tmp_path / "run"))))


def test_a_file_that_is_edited_in_between_is_another_room(tmp_path):
    """Also within one process: the copy in a run is the code that it was trained with."""
    spec = parse_run_spec({"env": "bandit", "agent": written(tmp_path / "own.py", AGENT)})
    assert assemble(spec).agent.init(None, ()).activations.shape == (2,)
    written(tmp_path / "own.py", AGENT, "jnp.zeros(2)", "jnp.zeros(5)")
    assert assemble(spec).agent.init(None, ()).activations.shape == (5,)


def test_drives_stay_in_the_same_env_of_ones_own(tmp_path):
    env = written(tmp_path / "coins.py", ENV)
    data = {"env": env, "agent": "random", "drives": {"heads": 3}, "development": "single_lifetime:num_lifetimes=2"}
    run = train(parse_run_spec(data), tmp_path / "run")
    assert read_saved_agent(run, env=parse_plugin_choice(f"{env}:flips=7")).assembly.steering.weights == (3.0,)


def test_a_folder_of_rooms_that_is_somebody_elses_is_not_touched(tmp_path):
    spec = parse_run_spec({"env": "bandit", "agent": written(tmp_path / "own.py", AGENT), "development": "single_lifetime"})
    kept = tmp_path / "house" / "rooms" / "agent" / "own.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    with pytest.raises(BadInput, match="holds no run; not overwritten"):
        train(spec, tmp_path / "house")
    assert kept.read_text() == "years of work"
    kept.write_text(AGENT)  # what a kill leaves between the copies and the spec
    assert train(spec, tmp_path / "house") == tmp_path / "house"


def test_a_spec_whose_digests_are_no_table_is_damaged(tmp_path):
    (tmp_path / "spec.json").write_text('{"format": 1, "run": {"env": "bandit", "agent": "own.py"}, "rooms": [1]}')
    written(tmp_path / "own.py", AGENT)
    with pytest.raises(BadInput, match="not the file that the run was made with"):
        read_run_spec(tmp_path)
