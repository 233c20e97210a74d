"""An outside program is the environment of a served agent: docs/agent_client.py, which plays Catch, and time limits."""

import os
import re
import subprocess
import sys

import pytest

import ontogeny
from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from serving import ROOT, ServerProcess

pytestmark = pytest.mark.computes

CLIENT = ROOT / "docs" / "agent_client.py"


@pytest.fixture(scope="module")
def catcher(tmp_path_factory):
    """The run that the command in the docstring of the example trains."""
    code = CLIENT.read_text(encoding="utf-8")
    command = re.search(r"ontogeny train --agent (\S+) --env (\S+) ", code)
    assert command
    folder = tmp_path_factory.mktemp("agents") / "catcher"
    train(parse_run_spec({"agent": command[1], "env": command[2]}, "test"), folder)
    return folder


def play(catcher, state_dir, *arguments):
    """Runs the example; returns the balls caught of the first 10 and of the last 20."""
    with ServerProcess(state_dir, "--alias", f"catcher={catcher}", *arguments) as server:
        done = subprocess.run(
            [sys.executable, str(CLIENT)],
            env=os.environ | {"ONTOGENY": server.url, "ONTOGENY_KEY": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in server.log.read_text()
    match = re.fullmatch(r"caught (\d+) of the first 10 balls and (\d+) of the last 20\n", done.stdout)
    assert match, done.stdout
    return int(match[1]), int(match[2])


def test_an_online_agent_learns_catch(catcher, tmp_path):
    assert play(catcher, tmp_path / "online", "--online")[1] >= 18


def test_a_frozen_agent_does_not_learn_catch(catcher, tmp_path):
    """A random policy catches a third; it catches 17 of 20 with a probability below 1e-5."""
    assert play(catcher, tmp_path / "frozen")[1] < 17


TIME_LIMIT = [  # a lifetime in which every third step ends by a time limit, in observation 6 or 7
    {"observation": step % 3, "reward": float(step % 2)}
    | ({"first": True, "terminated": False, "final_observation": 6 + step % 2} if step % 3 == 0 else {})
    for step in range(1, 19)
]


SESSIONS = "/v1/agents/catcher/sessions"


def act_in_session(server, steps, *, separate_feedback=False):
    """The actions of a new session and the digest of its weights."""
    session, actions, answer = server.post(SESSIONS, {"seed": 3})[1]["id"], [], {}
    for step in [{"observation": 0}, *steps]:
        if separate_feedback and "reward" in step:
            feedback = {name: step[name] for name in ("reward", "terminated") if name in step}
            assert server.post(f"{SESSIONS}/{session}/feedback", feedback)[0] == 200
            step = {name: entry for name, entry in step.items() if name not in feedback}
        status, answer = server.post(f"{SESSIONS}/{session}/act", step)
        assert status == 200
        actions.append(answer["action"])
    return actions, answer["weights_digest"]


def test_the_final_observation_of_a_truncated_episode_teaches_over_http(catcher, tmp_path):
    """A session learns what an agent in the client's own loop learns, and something else without that observation."""
    agent, local_actions = ontogeny.load(catcher, online=True), []
    action, state = agent.act(agent.init(3), 0)
    for step in TIME_LIMIT:
        local_actions.append(action)
        observation = step["observation"]
        action, state = agent.act(state, observation, **{name: step[name] for name in step if name != "observation"})
    expected = [*local_actions, action], agent.digest(state)
    with ServerProcess(tmp_path, "--alias", f"catcher={catcher}", "--online") as server:
        assert act_in_session(server, TIME_LIMIT) == expected
        assert act_in_session(server, TIME_LIMIT, separate_feedback=True) == expected
        hidden = [step | {"final_observation": None} if "first" in step else step for step in TIME_LIMIT]
        assert act_in_session(server, hidden)[1] != expected[1]
        session = f"{SESSIONS}/{server.post(SESSIONS, {})[1]['id']}/act"
        server.post(session, {"observation": 0})
        for body, message in (
            ({"final_observation": 6}, "`final_observation` goes with `first`"),
            ({"final_observation": 18, "first": True}, "17"),
            ({"final_observation": "six", "first": True}, "whole number"),
        ):
            status, answer = server.post(session, {"observation": 1, "reward": 0} | body)
            assert status == 400 and message in answer["error"]["message"], answer
        assert server.post(session, {"observation": 1, "reward": 0})[1]["num_steps"] == 2
