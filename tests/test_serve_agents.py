"""The example docs/agent_client.py on a server: an outside program is the environment, here Catch."""

import os
import re
import subprocess
import sys

import pytest

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
