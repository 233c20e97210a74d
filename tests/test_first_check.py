"""Mistakes in plugins that are files of the user are detected before any work and reported in one sentence."""

import json
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
    def init(key, genome):
        return State(Weights(()), jnp.zeros(2))
    def act(key, state, percept):
        return jnp.int32(0), state
    def learn(key, state, transition):
        return state, ()
    return Agent(lambda key: (), init, lambda state: state, act, learn)
"""
ENV = (Path(__file__).parent / "plugins" / "coins.py").read_text(encoding="utf-8")
DEVELOPMENT = """
from ontogeny.types import Development

def build(agent, environment, steering):
    def init(key):
        return ()
    def step(state):
        return nothing_of_that_name
    return Development(init, step, lambda state: (), 2, 1, 1)
"""


def write_file(path: Path, text: str, before: str = "", after: str = "") -> str:
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1) if before else text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lambda key: ()", "lambda key: 1 / 0", "`genome` fails with '.*own.py' in line 12: ZeroDivisionError"),
        ("return State(Weights(()), jnp.zeros(2))", "pass", r"`init` must return State\(.*, not NoneType"),
        (
            "lambda state: state",
            "lambda state: state._replace(activations=())",
            "`reset` returns a state of another",
        ),
        ("return jnp.int32(0), state", "return nowhere, state", "`act` fails with '.*own.py' in line 9: NameError"),
        ("return jnp.int32(0), state", "return int(percept.action), state", "`act` fails with .* in line 9: Concret"),
        ("return jnp.int32(0), state", "return 0.5 * percept.reward, state", r"one whole number, not float32\[\]"),
        ("return jnp.int32(0), state", "return jnp.int32(0)", "`act` must return a pair"),
        (
            "jnp.int32(0), state",
            "jnp.int32(0), State(state.weights, jnp.zeros(3))",
            r"`act` returns a state .*: activations float32\[2\] became activations float32\[3\]",
        ),
        ("return state, ()", "return transition.reward, ()", "`learn` fails with .* in line 11: AttributeError"),
        ("return state, ()", "return state", "`learn` must return a pair|`learn` returns a state"),
    ],
)
def test_mistakes_in_an_agent_are_named(tmp_path, before, after, message):
    assemble(parse_run_spec({"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT)}))
    with pytest.raises(BadInput, match=message):
        assemble(parse_run_spec({"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT, before, after)}))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "heads[None]",
            "heads",
            r"`step` returns a state of another structure: .*float32\[1\] became .*float32\[\]",
        ),
        ("jnp.zeros(1)", "jnp.zeros(2)", "the environment names 1 outcome features"),
        ("outcome: outcome[0]", "outcome: outcome", "`score` must return one number"),
        (
            "return CoinsState(chances), TimeStep",
            "return CoinsState(chance), TimeStep",
            "`reset` fails with .*: NameError",
        ),
        ('drives=(("heads", 1.0),)', "drives=1", "`drives` in the spec of 'coins' must be a tuple of pairs"),
    ],
)
def test_mistakes_in_an_environment_are_named(tmp_path, before, after, message):
    assemble(parse_run_spec({"env": write_file(tmp_path / "coins.py", ENV), "agent": "random"}))
    with pytest.raises(BadInput, match=message):
        assemble(parse_run_spec({"env": write_file(tmp_path / "coins.py", ENV, before, after), "agent": "random"}))


def test_mistakes_in_a_development_are_named(tmp_path):
    development = write_file(tmp_path / "own.py", DEVELOPMENT)
    with pytest.raises(BadInput, match="training fails in line 8: NameError"):
        train(parse_run_spec({"env": "bandit", "agent": "random", "development": development}), tmp_path / "run")


def test_an_action_out_of_range_is_refused(tmp_path):
    """JAX clamps indices that are out of bounds, so nothing else would raise an error."""
    data = {"env": "bandit:num_pulls=70", "development": "single_lifetime:num_lifetimes=2"}
    early = write_file(tmp_path / "own.py", AGENT, "jnp.int32(0), state", "jnp.int32(99), state")
    with pytest.raises(BadInput, match="`act` returned the action 99, there are 0 to 4"):
        assemble(parse_run_spec(data | {"agent": early}))
    resetting = AGENT.replace("lambda state: state", "lambda state: State(state.weights, jnp.zeros(2))")
    late = "jnp.where(state.activations[0] < 66, 0, 99), state._replace(activations=state.activations + 1)"
    spec = parse_run_spec(data | {"agent": write_file(tmp_path / "own.py", resetting, "jnp.int32(0), state", late)})
    with pytest.raises(BadInput, match="there are 0 to 4"):
        evaluate(*assemble(spec), (), num_tasks=2, seed=0)
    with pytest.raises(BadInput, match="the action 99, there are 0 to 4"):
        list(deploy(read_saved_agent(train(spec, tmp_path / "run"))))


def test_an_edited_file_is_another_plugin(tmp_path):
    """Also within one process: the copy in a run is the code with which it was trained."""
    spec = parse_run_spec({"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT)})
    assert assemble(spec).agent.init(None, ()).activations.shape == (2,)
    write_file(tmp_path / "own.py", AGENT, "jnp.zeros(2)", "jnp.zeros(5)")
    assert assemble(spec).agent.init(None, ()).activations.shape == (5,)


def test_drives_stay_in_the_same_environment_of_the_user(tmp_path):
    env = write_file(tmp_path / "coins.py", ENV)
    data = {"env": env, "agent": "random", "drives": {"heads": 3}, "development": "single_lifetime:num_lifetimes=2"}
    run = train(parse_run_spec(data), tmp_path / "run")
    assert read_saved_agent(run, env=parse_plugin_choice(f"{env}:flips=7")).assembly.steering.weights == (3.0,)


def test_a_folder_with_other_files_of_the_same_name_stays_untouched(tmp_path):
    data = {"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT), "development": "single_lifetime"}
    path = tmp_path / "run" / "files" / "agent" / "own.py"
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    with pytest.raises(BadInput, match="holds no run; not overwritten"):
        train(parse_run_spec(data), tmp_path / "run")
    assert path.read_text() == "years of work"


def test_a_run_spec_whose_files_are_not_a_table_is_reported_as_damaged(tmp_path):
    run = train(parse_run_spec({"env": "bandit:num_pulls=3", "agent": "random"}), tmp_path / "run")
    path = run / "spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": [1]}))
    with pytest.raises(BadInput, match=r"spec.json' is damaged"):
        read_run_spec(run)
