"""The example of docs/agent_client.py on a live server: an outside program is the environment, here Catch."""

import os
import re
import subprocess
import sys

import pytest

from ontogeny.stages.spec import parse_run_spec
from ontogeny.stages.train import train
from serving import ROOT, Live

pytestmark = pytest.mark.computes

CLIENT = ROOT / "docs" / "agent_client.py"


@pytest.fixture(scope="module")
def catcher(tmp_path_factory):
    """What the command in the example's docstring makes."""
    code = CLIENT.read_text(encoding="utf-8")
    asked = re.search(r"ontogeny train --agent (\S+) --env (\S+) ", code)
    assert asked
    folder = tmp_path_factory.mktemp("agents") / "catcher"
    train(parse_run_spec({"agent": asked[1], "env": asked[2]}, "test"), folder)
    return folder


def play(catcher, state, *arguments):
    """Balls caught of the first 10 and of the last 20, by the example as it stands."""
    with Live(state, "--alias", f"catcher={catcher}", *arguments) as live:
        done = subprocess.run(
            [sys.executable, str(CLIENT)],
            env=os.environ | {"ONTOGENY": live.url, "ONTOGENY_KEY": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in live.log.read_text()
    found = re.fullmatch(r"caught (\d+) of the first 10 balls and (\d+) of the last 20\n", done.stdout)
    assert found, done.stdout
    return int(found[1]), int(found[2])


def test_the_example_plays_catch_and_learns_it_online(catcher, tmp_path):
    assert play(catcher, tmp_path / "online", "--online")[1] >= 18


def test_the_same_agent_frozen_learns_nothing(catcher, tmp_path):
    """Chance catches a third; 17 of 20 by chance are less likely than one in a hundred thousand."""
    assert play(catcher, tmp_path / "frozen")[1] < 17
