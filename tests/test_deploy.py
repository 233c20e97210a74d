"""Deployment runs one lifetime step by step, frozen or online, and its state can be saved."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ontogeny import rng, trees
from ontogeny.cli import agents
from ontogeny.errors import BadInput, ContractViolation
from ontogeny.rollouts import rollout
from ontogeny.runs import checkpoint
from ontogeny.stages.deploy import deploy
from ontogeny.stages.saved_agent import initial_state, read_saved_agent, save_deployment
from ontogeny.stages.spec import parse_plugin_choice, parse_run_spec
from ontogeny.stages.train import train

PLUGINS = Path(__file__).parent / "plugins"


def run_of(folder: Path, agent: str, num_pulls: int = 20) -> Path:
    env, development = f"bandit:num_arms=3,num_pulls={num_pulls}", "single_lifetime:num_lifetimes=2"
    return train(parse_run_spec({"agent": agent, "env": env, "development": development}), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "counting", str(PLUGINS / "counting.py"))


@pytest.fixture(scope="module")
def agent(run):
    return read_saved_agent(run)


@pytest.mark.parametrize("online", [False, True])
def test_a_deployment_takes_the_steps_of_a_rollout(agent, online):
    steps = list(deploy(agent, online=online, seed=5))
    key, initial = initial_state(agent, 5)
    state, trajectory = jax.jit(lambda key: rollout(key, *agent.assembly, initial, 20, online))(key)
    assert [step.action for step in steps] == trajectory.action.tolist()
    assert [step.reward for step in steps] == trajectory.reward.tolist()
    assert [step.outcome["payout"] for step in steps] == trajectory.outcome[:, 0].tolist()
    assert [(step.number, step.episode) for step in steps] == [(n, n) for n in range(1, 21)]
    assert trees.bitwise_equal(steps[-1].state, state)
    assert rng.stage_of(key) == "deployment"


def test_only_an_online_lifetime_changes_weights(agent):
    initial = trees.digest(initial_state(agent, 0)[1].weights)
    assert {trees.digest(step.state.weights) for step in deploy(agent, num_steps=3)} == {initial}
    online = [trees.digest(step.state.weights) for step in deploy(agent, online=True, num_steps=3)]
    assert len({initial, *online}) == 4


def test_weights_that_change_while_frozen_are_detected(agent):
    def act(key, state, percept):
        action, state = agent.assembly.agent.act(key, state, percept)
        weights = jax.tree.map(lambda leaf: leaf + 1, state.weights)
        return action, state._replace(weights=weights)

    changing = agent.assembly.agent._replace(act=act)  # as if the first check of its contract had missed it
    violator = agent._replace(assembly=agent.assembly._replace(agent=changing))
    with pytest.raises(ContractViolation, match="the weights changed while frozen"):
        list(deploy(violator, num_steps=3))


def test_a_deployment_stops_where_learning_diverges_and_keeps_the_last_good_state(tmp_path, capsys):
    folder, destination = run_of(tmp_path / "run", str(PLUGINS / "diverging.py"), num_pulls=3), tmp_path / "last_good"
    with pytest.raises(BadInput, match=r"'loss' is not finite at step 4 .* after step 3 is saved in .*last_good"):
        agents.deploy(folder, online=True, num_steps=20, save=destination)
    assert capsys.readouterr().out.count("\nstep ") == 2
    assert float(read_saved_agent(destination).state.weights.content) == 4
    with pytest.raises(BadInput, match="after step 3 is lost without --save"):
        agents.deploy(folder, online=True, num_steps=20)


def test_weights_that_are_not_finite_stop_a_deployment_although_the_loss_is(tmp_path):
    folder = run_of(tmp_path / "run", str(PLUGINS / "diverging.py") + ":part=weights", num_pulls=3)
    steps = deploy(read_saved_agent(folder), online=True, num_steps=20)
    assert [float(next(steps).state.weights.content) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(BadInput, match=r"'weights' is not finite at step 4"):
        next(steps)
    assert len(list(deploy(read_saved_agent(folder), num_steps=20))) == 20  # frozen


def test_a_lifetime_saved_online_can_be_deployed_frozen(agent, tmp_path):
    *_, last = deploy(agent, online=True, seed=1)
    folder = save_deployment(tmp_path / "saved", agent.spec, last.state, mode="online", num_steps=last.number)
    saved_agent = read_saved_agent(folder)
    assert saved_agent.state is not None and trees.bitwise_equal(saved_agent.state, last.state)
    assert checkpoint.read_metadata(folder, "state")["mode"] == "online"
    steps = list(deploy(saved_agent, seed=1))
    assert trees.bitwise_equal(steps[-1].state.weights, last.state.weights)
    best = int(np.argmax((last.state.weights.content["sums"] + 1) / (last.state.weights.content["pulls"] + 1)))
    assert {step.action for step in steps} == {best}


def test_a_deployment_is_saved_whole_and_never_over_another(agent, tmp_path, monkeypatch):
    _, state = initial_state(agent, 0)
    folder = save_deployment(tmp_path / "saved", agent.spec, state, mode="frozen", num_steps=0)
    with pytest.raises(BadInput, match="exists; not overwritten"):
        save_deployment(folder, agent.spec, state, mode="frozen", num_steps=0)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(BadInput, match="cannot be created: No space left"):
        save_deployment(tmp_path / "other", agent.spec, state, mode="frozen", num_steps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_agent_is_deployed_in_another_environment_of_the_same_shape(run):
    longer = read_saved_agent(run, env=parse_plugin_choice("bandit:num_arms=3,num_pulls=30"))
    assert len(list(deploy(longer))) == 30
    _, state = initial_state(read_saved_agent(run), 0)
    assert state.weights.content["sums"].shape == (3,)
    with pytest.raises(BadInput, match="at least 1 step"):
        deploy(longer, num_steps=0)


def test_a_folder_without_a_finished_run_is_refused(run, tmp_path):
    with pytest.raises(BadInput, match="there is no run in"):
        read_saved_agent(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is an empty folder, not an agent run"):
        read_saved_agent(tmp_path)
    (tmp_path / "spec.json").write_bytes((run / "spec.json").read_bytes())
    with pytest.raises(BadInput, match="not the file with which the run began"):
        read_saved_agent(tmp_path)
    shutil.copytree(run / "files", tmp_path / "files")
    with pytest.raises(BadInput, match="is not finished; rerun the same command"):
        read_saved_agent(tmp_path)
    content = json.loads((run / "spec.json").read_text()) | {"files": {}, "spec": {"env": "bandit"}}
    del content["sha256"]
    (tmp_path / "spec.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"spec.json' is damaged: \[run\] lacks the key 'agent'"):
        read_saved_agent(tmp_path)


def test_a_spec_that_was_edited_after_training_is_refused(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    content = json.loads((folder / "spec.json").read_text())
    content["spec"]["seed"] += 1
    (folder / "spec.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"spec.json' was changed after the run began"):
        read_saved_agent(folder)
    del content["sha256"]  # as before runs named a digest, but the genome names it too
    (folder / "spec.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"spec.json' is not the one of the run that saved 'genome'"):
        read_saved_agent(folder)
    shutil.copy(run / "spec.json", folder)
    assert read_saved_agent(folder).spec.seed == read_saved_agent(run).spec.seed
