"""Deployment: one life in use, step by step, frozen or online, and what is saved of it."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ontogeny import rng, trees
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rollouts import rollout
from ontogeny.stages.deploy import deploy
from ontogeny.stages.saved_agent import initial_state, read_saved_agent, save_deployment
from ontogeny.stages.spec import parse_plugin_choice, parse_run_spec
from ontogeny.stages.train import train

ROOMS = Path(__file__).parent / "plugins"


def run_of(folder: Path, agent: str) -> Path:
    env, development = "bandit:num_arms=3,num_pulls=20", "single_lifetime:num_lifetimes=2"
    return train(parse_run_spec({"agent": agent, "env": env, "development": development}), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "counting", str(ROOMS / "counting.py"))


@pytest.fixture(scope="module")
def agent(run):
    return read_saved_agent(run)


@pytest.mark.parametrize("online", [False, True])
def test_a_deployment_is_the_life_that_live_would_live(agent, online):
    steps = list(deploy(agent, online=online, seed=5))
    key, born = initial_state(agent, 5)
    state, trajectory = jax.jit(lambda key: rollout(key, *agent.assembly, born, 20, online))(key)
    assert [step.action for step in steps] == trajectory.action.tolist()
    assert [step.reward for step in steps] == trajectory.reward.tolist()
    assert [step.outcome["payout"] for step in steps] == trajectory.outcome[:, 0].tolist()
    assert [(step.number, step.episode) for step in steps] == [(n, n) for n in range(1, 21)]
    assert trees.bitwise_equal(steps[-1].state, state)
    assert rng.stage_of(key) == "deployment"


def test_only_an_online_life_changes_weights(agent):
    born = trees.digest(initial_state(agent, 0)[1].weights)
    assert {trees.digest(step.state.weights) for step in deploy(agent, num_steps=3)} == {born}
    online = [trees.digest(step.state.weights) for step in deploy(agent, online=True, num_steps=3)]
    assert len({born, *online}) == 4


def test_a_frozen_life_whose_weights_change_is_found(tmp_path):
    lawless = read_saved_agent(run_of(tmp_path / "run", str(ROOMS / "lawless.py")))
    with pytest.raises(ContractViolation, match="the weights changed while frozen"):
        list(deploy(lawless, num_steps=3))


def test_an_online_life_can_later_be_deployed_frozen(agent, tmp_path):
    *_, last = deploy(agent, online=True, seed=1)
    folder = save_deployment(tmp_path / "used", agent.spec, last.state, {"case": "online", "steps": last.number})
    used = read_saved_agent(folder)
    assert used.state is not None and trees.bitwise_equal(used.state, last.state)
    steps = list(deploy(used, seed=1))
    assert trees.bitwise_equal(steps[-1].state.weights, last.state.weights)
    best = int(np.argmax((last.state.weights.content["sums"] + 1) / (last.state.weights.content["pulls"] + 1)))
    assert {step.action for step in steps} == {best}


def test_a_deployment_is_saved_whole_and_never_over_another(agent, tmp_path, monkeypatch):
    _, state = initial_state(agent, 0)
    folder = save_deployment(tmp_path / "used", agent.spec, state, {})
    with pytest.raises(BadInput, match="exists; not overwritten"):
        save_deployment(folder, agent.spec, state, {})

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.checkpoint, "save", full)
    with pytest.raises(BadInput, match="cannot be made: No space left"):
        save_deployment(tmp_path / "other", agent.spec, state, {})
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_another_env_of_the_same_shape_is_fine_and_others_are_refused(run):
    longer = read_saved_agent(run, env=parse_plugin_choice("bandit:num_arms=3,num_pulls=30"))
    assert len(list(deploy(longer))) == 30
    _, state = initial_state(read_saved_agent(run), 0)
    assert state.weights.content["sums"].shape == (3,)
    with pytest.raises(BadInput, match="at least 1 step"):
        deploy(longer, num_steps=0)


def test_what_is_no_run_is_said(run, tmp_path):
    with pytest.raises(BadInput, match="there is no run in"):
        read_saved_agent(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"spec.json' cannot be read"):
        read_saved_agent(tmp_path)
    (tmp_path / "spec.json").write_bytes((run / "spec.json").read_bytes())
    with pytest.raises(BadInput, match="not the file that the run was made with"):
        read_saved_agent(tmp_path)
    shutil.copytree(run / "plugins", tmp_path / "rooms")
    with pytest.raises(BadInput, match="is not finished"):
        read_saved_agent(tmp_path)
    (tmp_path / "spec.json").write_text('{"format": 1, "run": {"env": "bandit"}}')
    with pytest.raises(BadInput, match=r"spec.json' is damaged: \[run\] lacks the key 'agent'"):
        read_saved_agent(tmp_path)
