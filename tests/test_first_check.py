"""Mistakes in plugins that are files of the user are detected before any work and reported in one sentence."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ontogeny
from ontogeny import steering
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.stages.assembly import assemble, make_env
from ontogeny.stages.deploy import deploy
from ontogeny.stages.evaluate import evaluate
from ontogeny.stages.saved_agent import read_run_spec, read_saved_agent
from ontogeny.stages.spec import parse_plugin_choice, parse_run_spec
from ontogeny.stages.train import train
from ontogeny.types import EnvSpec

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
LEARNER = """
import jax
import jax.numpy as jnp
import numpy
from ontogeny.types import Agent, State, Weights

COUNT = [0]

def build(spec, steering):
    def init(key, genome):
        return State(Weights(jnp.zeros(spec.num_actions), jnp.float32(0)), jnp.int32(0))
    def reset(state):
        return State(state.weights, jnp.int32(0))
    def act(key, state, percept):
        weights, values, activations = state.weights, state.weights.content, state.activations + 1
        # act
        return jnp.argmax(values).astype(jnp.int32), State(weights, activations)
    def learn(key, state, transition):
        content = state.weights.content.at[transition.action].add(transition.next_percept.reward - 0.3)
        weights, activations = Weights(content, state.weights.scratch + 1), state.activations
        # learn
        return State(weights, activations), ()
    return Agent(lambda key: (), init, reset, act, learn, learning=True)
"""
CALLBACK = "jax.pure_callback(lambda: numpy.float32(numpy.random.normal()), jax.ShapeDtypeStruct((), 'float32'))"
BROKEN_AGENTS = {  # the fault: (a line of the agent, its replacement, message)
    "act_writes_weights": ("# act", "weights = Weights(values + 1, weights.scratch)", "`act` changed weights"),
    "act_writes_weights_late": (
        "# act",
        "weights = Weights(jnp.where(activations < 120, values, values + 1), weights.scratch)",
        "`act` changed weights",
    ),
    "act_reads_scratch": ("# act", "activations += weights.scratch.astype(int)", "`act` read `weights.scratch`"),
    "learning_is_not_declared": (", learning=True", "", "although `learning` is False: build .* `learning=True`"),
    "learning_is_declared_falsely": ("# learn", "weights = state.weights", "`learning` is True, but `learn` returns"),
    "the_flag_is_no_truth_value": ("=True", "='yes'", "`learning` of an agent must be True or False, not 'yes'"),
    "learn_writes_activations": ("# learn", "activations += transition.action", "`learn` changed activations"),
    "reset_writes_weights": ("State(state.weights, jnp.int32(0))", "init(None, ())", "`reset` changed weights"),
    "reset_keeps_activations": ("State(state.weights, jnp.int32(0))", "state", "`reset` did not restore"),
    "a_type_changes": ("# act", "activations += 1.0", r"activations int32\[\] became activations float32\[\]"),
    "a_shape_changes": (
        "# learn",
        "weights = Weights(content[:2], weights.scratch)",
        r"`learn` returns a state of another structure: .*float32\[5\] became .*float32\[2\]",
    ),
    "chance_from_numpy": ("# act", "values = values + numpy.random.normal()", "`act` is not a function of its arg"),
    "a_variable_outside": ("# learn", "COUNT[0] += 1; activations += COUNT[0]", "`learn` is not a function of its"),
    "chance_from_a_callback": ("# act", f"activations += (99 * {CALLBACK}).astype(int)", "the same keys gave two diff"),
}
BROKEN_ENVS = {  # the fault: (a part of the environment, its replacement, message)
    "observation_out_of_range": (
        "state, TimeStep(jnp.int32(0), jnp.int32(0)",
        "state, TimeStep(jnp.int32(1), jnp.int32(1)",
        "observation after step 1 is 1, outside of the spec: .* 0 to 0",
    ),
    "observation_rarely_out_of_range": (
        "state, TimeStep(jnp.int32(0), jnp.int32(0)",
        "state, TimeStep(-(jax.random.uniform(key) < 0.05).astype(int), jnp.int32(0)",
        "observation after step .* is -1, outside of the spec",
    ),
    "final_observation_out_of_range": (
        "state, TimeStep(jnp.int32(0), jnp.int32(0)",
        "state, TimeStep(jnp.int32(0), jnp.int32(-1)",
        "the final observation after step 1 is -1, outside of the spec",
    ),
    "final_observation_shape": (
        "state, TimeStep(jnp.int32(0), jnp.int32(0)",
        "state, TimeStep(jnp.int32(0), jnp.zeros(2, int)",
        r"`step` returns a state of another structure: .*final_observation",
    ),
    "observation_type": ("TimeStep(jnp.int32(0)", "TimeStep(jnp.float32(0)", "by the spec observations are whole num"),
    "observation_shape": ("TimeStep(jnp.int32(0)", "TimeStep(jnp.zeros(2, int)", r"shape \(2,\), but `observation_sh"),
    "discount": ("jnp.float32(0))", "jnp.float32(0.9))", "the discount after step 1 is 0.9, but it says whether"),
    "discount_type": ("jnp.float32(0))", "jnp.int32(0))", "`step` returns a state of another structure"),
    "discount_without_first": (
        "jnp.bool_(True), jnp.float32(0)",
        "jnp.bool_(False), jnp.float32(0)",
        "come with `first`",
    ),
    "first_type": ("jnp.bool_(True)", "jnp.int32(1)", "`first` of the time step .* must be one truth value, not int32"),
    "first_at_reset": ("jnp.zeros(1), jnp.bool_(True)", "jnp.zeros(1), jnp.bool_(False)", "must begin with `first`"),
    "outcome_type": (
        "jnp.zeros(1)|.astype(float)",
        "jnp.zeros(1, int)|.astype(int)",
        "`outcome` .* must be real numbers, not int32",
    ),
    "outcome_not_finite": (
        ".astype(float)",
        ".astype(float) / 0",
        "the outcome after step 1 holds a number that is not",
    ),
    "score_not_finite": ("outcome: outcome[0]", "outcome: outcome[0] / 0", "the score after step 1 is not finite"),
    "episode_too_long": (
        "jnp.bool_(True), jnp.float32(0)",
        "jnp.bool_(False), jnp.float32(1)",
        "more than the 1 steps",
    ),
    "chance_from_numpy": ("heads = jax", "import numpy; heads = numpy.random.rand() + jax", "`step` is not a function"),
    "task_changes": ("return state, TimeStep", "return CoinsState(state.task / 2), TimeStep", "the task changed"),
    "drive_misspelled": ('(("heads", 1.0),)', '(("haeds", 1.0),)', "names 'haeds', .* did you mean heads?"),
    "drives_as_a_dict": ('(("heads", 1.0),)', '{"heads": 1.0}', r"must be a tuple of pairs .*, not \{'heads': 1.0\}"),
    "drives_as_a_pair": ('(("heads", 1.0),)', '("heads", 1.0)', "must be a tuple of pairs .*; 'heads' is no pair"),
    "drive_is_a_text": (
        '(("heads", 1.0),)',
        '(("heads", "1"),)',
        "weight of 'heads' .* must be a finite number, not '1'",
    ),
    "drive_is_not_finite": ('(("heads", 1.0),)', '(("heads", float("nan")),)', "must be a finite number, not nan"),
    "outcome_features_as_a_text": ('("heads",),', '"heads",', "must be a tuple of names, .*, not 'heads'"),
    "horizon_of_0": ("horizon=1", "horizon=0", "`horizon` in the spec of 'coins' must be at least 1 and .*, not 0"),
    "num_steps_of_0": ("num_steps=flips", "num_steps=0", "`num_steps` in the spec of 'coins' must be at least 1"),
    "num_steps_of_50.5": ("num_steps=flips", "num_steps=50.5", "`num_steps` .* must be a whole number, not 50.5"),
    "num_actions_of_0": ("num_actions=2", "num_actions=0", "`num_actions` .* must be at least 1"),
    "vectors_without_a_shape": ("num_observations=1", "num_observations=0", "must be the shape of a vector"),
}
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


@pytest.mark.parametrize("fault", BROKEN_AGENTS)
def test_an_agent_that_breaks_its_contract_is_refused_on_real_arrays_where_it_is_loaded(tmp_path, fault):
    before, after, message = BROKEN_AGENTS[fault]
    agent = write_file(tmp_path / "own.py", LEARNER, before, after)
    with pytest.raises(ContractViolation, match=message) as violation:
        assemble(parse_run_spec({"env": "bandit:num_pulls=150", "agent": agent}))
    assert "own.py" in str(violation.value) and "\n" not in str(violation.value)


@pytest.mark.parametrize("fault", BROKEN_ENVS)
def test_an_environment_that_contradicts_its_spec_is_refused_where_it_is_loaded(tmp_path, fault):
    before, after, message = BROKEN_ENVS[fault]
    text = ENV
    for part, replacement in zip(before.split("|"), after.split("|"), strict=True):
        assert part in text
        text = text.replace(part, replacement)
    with pytest.raises(ContractViolation, match=message) as violation:
        make_env(write_file(tmp_path / "coins.py", text))
    assert "coins.py" in str(violation.value) and "\n" not in str(violation.value)


def test_valid_plugins_pass_the_first_check_also_with_unusual_but_valid_parts(tmp_path):
    """A learning rate of 0, compiled functions, activations that never change, and an agent without weights."""
    for before, after in [
        ("# learn", "weights = Weights(state.weights.content + 0 * content, weights.scratch)"),
        ("def act(", "@jax.jit\n    def act("),
        ("state.activations + 1", "state.activations"),
    ]:
        agent = write_file(tmp_path / "own.py", LEARNER, before, after)
        assemble(parse_run_spec({"env": "bandit", "agent": agent}))
    assemble(parse_run_spec({"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT)}))


SPEC = EnvSpec("coins", 2, 1, (), ("heads",), 50, 1, (("heads", 1.0),))
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=2), st.just("heads"), st.just(object),
    st.recursive(
        st.sampled_from(["heads", "", 1, 0, 2.5, None, float("inf")]),
        lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.just({"heads": 1}),
        max_leaves=6,
    ),
)  # fmt: skip


@given(field=st.sampled_from(EnvSpec._fields), entry=ANYTHING)
def test_any_spec_is_accepted_or_refused_in_one_sentence(field, entry):
    spec = SPEC._replace(**{field: entry})
    try:
        drives = steering.build(spec)
    except ContractViolation as violation:
        assert field in str(violation) and "\n" not in str(violation)
    else:
        assert len(drives.weights) == len(spec.outcome_features) and hash(spec) == hash(spec)


def test_a_run_whose_agent_breaks_its_contract_is_refused_by_every_stage_that_loads_it(tmp_path):
    """Deployment, evaluation, audits and servers read the agent of a run; the run was made before there was a check."""
    agent = write_file(tmp_path / "own.py", LEARNER)
    data = {"env": "bandit:num_pulls=5", "agent": agent, "development": "single_lifetime:num_lifetimes=2"}
    run = train(parse_run_spec(data), tmp_path / "run")
    ontogeny.load(run)
    copy, spec_path = run / "files" / "agent" / "own.py", run / "spec.json"
    write_file(copy, LEARNER, ", learning=True", "")
    description = json.loads(spec_path.read_text())
    description["files"]["files/agent/own.py"] = hashlib.sha256(copy.read_bytes()).hexdigest()
    del description["sha256"]  # as of a run of an earlier version
    spec_path.write_text(json.dumps(description))
    for load in (ontogeny.load, read_saved_agent):
        with pytest.raises(ContractViolation, match="although `learning` is False"):
            load(run)


STUDY = """
title = "Own files"
question = "Which is better?"
[[environments]]
name = "coins"
env = "./coins.py"
num_tasks = 4
[[agents]]
agent = "./own.py"
environments = ["coins"]
"""


@pytest.mark.parametrize(
    ("env", "agent", "message"),
    [
        (
            ENV.replace("horizon=1", "horizon=0"),
            AGENT,
            "coins.py', `horizon` in the spec of 'coins' must be at least 1",
        ),
        pytest.param(
            ENV.replace("jnp.float32(0))", "jnp.float32(0.9))"),
            AGENT,
            "coins.py', the discount after step 1 is 0.9",
            marks=pytest.mark.slow,
        ),
        (ENV, LEARNER.replace(", learning=True", ""), "own.py', `learn` changed weights although `learning` is False"),
    ],
)
def test_every_command_refuses_files_that_break_their_contracts(call_cli, env, agent, message):
    for name, text in (("coins.py", env), ("own.py", agent), ("study.toml", STUDY)):
        Path(name).write_text(text, encoding="utf-8")
    own_files = ("--agent", "./own.py", "--env", "./coins.py")
    commands = [
        ("evaluate", *own_files),
        ("evaluate", *own_files, "--online"),
        ("train", *own_files, "--out", "run"),
        ("study", "study.toml", "--out", "study"),
        ("check", "agent", "./own.py", "--env", "./coins.py"),
        ("audit", "agent", "./own.py", "--env", "./coins.py"),
        ("audit", "attribution", "./own.py", "--env", "./coins.py"),
    ]
    if env != ENV:
        commands.append(("check", "env", "./coins.py"))
    for command in commands:
        code, _, complaint = call_cli(*command)
        assert (code, complaint.count("\n")) == (2, 1) and message in complaint, (command, complaint)
    assert not Path("run").exists() and not Path("study").exists()


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


def test_an_edited_file_is_another_plugin(tmp_path, monkeypatch):
    """Also within one process and one second, in which cached bytecode counts as current."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    spec = parse_run_spec({"env": "bandit", "agent": write_file(tmp_path / "own.py", AGENT)})
    assert assemble(spec).agent.init(None, ()).activations.shape == (2,)
    write_file(tmp_path / "own.py", AGENT, "jnp.zeros(2)", "jnp.zeros(5)")
    assert not (tmp_path / "__pycache__").exists()
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
