"""What the README shows is run as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ontogeny import cli, contracts, plugins, steering

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block marked '{marker}'"
    return found.group(1)


def ontogeny(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ontogeny", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


@pytest.fixture
def own_files(tmp_path):
    for name in ("coins.py", "win_stay.py"):
        (tmp_path / name).write_text(block(f"file: {name}"), encoding="utf-8")
    return tmp_path


def test_the_env_and_the_agent_of_the_readme_keep_the_contracts(own_files):
    env = plugins.build("environments", str(own_files / "coins.py"), flips=20)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", str(own_files / "win_stay.py"), env.spec, drives)
    contracts.check_env(env)
    contracts.check_agent(agent, env, drives)


def test_the_command_of_the_readme_evaluates_them(own_files):
    command = re.search(r"ontogeny (evaluate --agent \./win_stay\.py .*)", README)
    assert command
    done = ontogeny(*command.group(1).split(), "--tasks", "500", "--json", cwd=own_files)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # Win-stay, lose-random: heads follow p / (p + (1 - p) / 2) of the time on a coin of chance p, so 0.68 of flips.
    assert 64 < result["mean"] < 72


def test_every_command_of_the_readme_is_one():
    group = typer.main.get_command(cli.app)
    lines = re.findall(r"^ontogeny (.*)$", README, re.MULTILINE)
    assert {line.split()[0] for line in lines} == set(group.commands)
    for line in lines:
        name, *arguments = shlex.split(re.split(r"\s{2,}", line)[0])  # what it is for stands behind two spaces
        group.commands[name].make_context(name, arguments)


def test_the_loop_of_the_readme_runs(tmp_path):
    command = re.search(r"ontogeny (train .* --out runs/thompson)", README)
    assert command
    made = ontogeny(*command.group(1).split(), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    done = subprocess.run(
        [sys.executable, "-c", block("run: own_loop") + "\nprint(action)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in range(5)
